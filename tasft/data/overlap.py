"""Training prompts that are a benchmark's prompts, or nearly so: exact Jaccard similarities, all of them."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

APOSTROPHES = "'’ʼ"
SHINGLE = 4  # characters
CHUNK = 500  # training prompts whose similarities to every benchmark prompt are held at once


@dataclass(frozen=True)
class Overlap:
    """A training prompt and the benchmark prompt that is most similar to it."""

    index: int  # of the training prompt
    benchmark: str
    prompt: str  # the benchmark's
    similarity: float  # 1.0 where both are equal once normalised, else the Jaccard similarity, which stays below


def normalised(text: str) -> str:
    """`text` without what writing may vary: `What’s  "C++"?` is `whats c++`.

    NFKC and casefold; apostrophes and invisible characters go, other punctuation becomes white space, of which one
    blank is left between words. Letters with their accents, digits and symbols (+, <, $) stay.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(map(_kept, folded)).split())


def shingles(text: str) -> set[str]:
    """Every 4 characters in a row within a word of a normalised text, a blank before and after each word counted.

    A word of one letter is one shingle of three. The order of words does not matter.
    """
    padded = (f" {word} " for word in text.split())
    return {word[i : i + SHINGLE] for word in padded for i in range(max(1, len(word) - SHINGLE + 1))}


def overlaps(prompts: Sequence[str], benchmarks: Mapping[str, Sequence[str]], similarity: float) -> list[Overlap]:
    """For each training prompt that has one, the most similar benchmark prompt of at least `similarity`, in (0, 1].

    Similarity is that of Jaccard: shared shingles over all shingles of both. Among equally similar ones the first of
    the first benchmark counts; 1 finds equal texts only. A prompt without letters, digits or symbols overlaps none.
    """
    known: dict[str, tuple[str, str]] = {}  # normalised -> benchmark and prompt, the first that has it
    for benchmark, texts in benchmarks.items():
        for text in texts:
            known.setdefault(normalised(text), (benchmark, text))
    known.pop("", None)
    wanted = [normalised(prompt) for prompt in prompts]
    others = [text for text in dict.fromkeys(wanted) if text and text not in known]
    near = _nearest(others, list(known), similarity) if similarity < 1 else {}
    found = []
    for index, text in enumerate(wanted):
        match, value = (text, 1.0) if text in known else near.get(text, ("", 0.0))
        if match:
            found.append(Overlap(index, *known[match], value))
    return found


def _nearest(texts: list[str], known: list[str], similarity: float) -> dict[str, tuple[str, float]]:
    """Text -> the most similar one of `known` and its similarity, where that is large enough; none is among `known`."""
    found: dict[str, tuple[str, float]] = {}
    if not texts or not known:
        return found
    counter = CountVectorizer(analyzer=_as_they_are, dtype=np.float64)  # of sets, so that every count is 0 or 1
    sets = [shingles(text) for text in known]
    shared_with = counter.fit_transform(sets).T.tocsr()  # (shingles of `known`, len(known))
    sizes = np.array([len(each) for each in sets])
    for start in range(0, len(texts), CHUNK):
        chunk = [shingles(text) for text in texts[start : start + CHUNK]]
        both = (counter.transform(chunk) @ shared_with).toarray()  # (C, len(known)) shared shingles
        jaccard = both / (np.array([len(each) for each in chunk])[:, None] + sizes - both)
        for i, j in enumerate(jaccard.argmax(axis=1)):
            if jaccard[i, j] >= similarity:
                # the same words in another order have the same shingles, and are not the same text
                found[texts[start + i]] = known[j], min(float(jaccard[i, j]), float(np.nextafter(1, 0)))
    return found


def _as_they_are(each: Iterable[str]) -> Iterable[str]:
    return each


@cache
def _kept(character: str) -> str:
    """What stays of one character."""
    category = unicodedata.category(character)
    if character in APOSTROPHES or category == "Cf":
        return ""
    return " " if category.startswith("P") else character
