"""The words that tell toxic prompts from everyday language: by the log-odds ratio of Monroe, Colaresi and Quinn."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import simplemma
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from tasft.errors import UserError

TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
SHORTEST = 3  # letters: what is shorter is an abbreviation or a slip


@dataclass(frozen=True)
class ToxicWord:
    """A lemma, the form of it that toxic prompts use most, its z-score, and how many texts of each kind hold it."""

    lemma: str
    word: str
    z: float
    toxic: int
    safe: int


def toxic_words(toxic: Iterable[str], safe: Iterable[str], z: float, common: float) -> list[ToxicWord]:
    """The lemmas that mark the toxic prompts, the surest first; UserError where there is none.

    A lemma is taken if its z-score is at least `z` (see `log_odds`), at most the share `common` of the safe texts hold
    it (what is more frequent is everyday language, and differs by style), it is no stop word, and made of letters only.
    `safe` are whole safe rows, with their responses: they say what everyday language is.
    """
    forms: dict[str, Counter[str]] = {}
    toxic_counts: Counter[str] = Counter()
    for text in toxic:
        found = list(_lemmas(text))
        toxic_counts.update({lemma for lemma, _ in found})
        for lemma, form in found:
            forms.setdefault(lemma, Counter())[form] += 1
    safe_counts: Counter[str] = Counter()
    texts = 0
    for text in safe:
        texts += 1
        safe_counts.update(lemmas(text))
    scores = log_odds(toxic_counts, safe_counts)
    kept = [
        ToxicWord(lemma, forms[lemma].most_common(1)[0][0], scores[lemma], count, safe_counts[lemma])
        for lemma, count in toxic_counts.items()
        if scores[lemma] >= z and safe_counts[lemma] <= common * texts and _counts(lemma, forms[lemma])
    ]
    if not kept:
        raise UserError(
            f"no word is more frequent in the toxic prompts than in the safe rows (contrastive.z={z:g},"
            f" contrastive.common={common:g}): give more toxic prompts, or a smaller contrastive.z"
        )
    return sorted(kept, key=lambda word: (-word.z, word.lemma))


def log_odds(toxic: Mapping[str, int], safe: Mapping[str, int]) -> dict[str, float]:
    """The z-score of each key of `toxic`: its log-odds ratio, toxic against safe, in units of its deviation.

    Eq. 16, 20 and 22 of Monroe, Colaresi, Quinn 2008 (Fightin' Words, https://doi.org/10.1093/pan/mpn018) with the
    frequencies in both corpora as the prior: α_w = α_0 (y_toxic,w + y_safe,w) / (n_toxic + n_safe). Its weight lies
    between the two corpora, α_0 = √(n_toxic n_safe): one much lighter puts a word that the safe rows have once before
    one that they never have, one much heavier leaves only the most frequent words.
    """
    n_toxic, n_safe = sum(toxic.values()), sum(safe.values())
    weight = math.sqrt(n_toxic * n_safe)
    scores = {}
    for word, y_toxic in toxic.items():
        y_safe = safe.get(word, 0)
        prior = weight * (y_toxic + y_safe) / (n_toxic + n_safe)
        t, s = y_toxic + prior, y_safe + prior
        rest_t, rest_s = n_toxic + weight - t, n_safe + weight - s
        if min(s, rest_t, rest_s) <= 0:  # nothing to compare with
            scores[word] = 0.0
            continue
        delta = math.log(t / rest_t) - math.log(s / rest_s)
        scores[word] = delta / math.sqrt(1 / t + 1 / s)
    return scores


def lemmas(text: str) -> set[str]:
    """The lemmas of the text's words, in lower case."""
    return {lemma for lemma, _ in _lemmas(text)}


def has_word(text: str, word: ToxicWord) -> bool:
    """Whether the text holds the word in any of its forms."""
    return word.lemma in lemmas(text)


def _lemmas(text: str) -> Iterable[tuple[str, str]]:
    """(lemma, form) of each word; `Sam's` is a form of Sam."""
    for form in TOKEN.findall(text.lower()):
        form = re.sub(r"['’]s$", "", form)
        yield _lemma(form), form


def _counts(lemma: str, forms: Mapping[str, int]) -> bool:
    contraction = any("'" in form or "’" in form for form in forms)
    return lemma.isalpha() and not contraction and len(lemma) >= SHORTEST and not {lemma, *forms} & ENGLISH_STOP_WORDS


@cache
def _lemma(form: str) -> str:
    return simplemma.lemmatize(form, lang="en").lower()
