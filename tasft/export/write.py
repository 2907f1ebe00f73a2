"""A finished run to a folder: merged, compared, saved, loaded again, compared again, and only then put in its place."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from tasft import hub
from tasft.base import Base, base_of_run
from tasft.data.tokenize import answer_ids, prompt_ids
from tasft.errors import UserError
from tasft.execute import alone
from tasft.export import TOLERANCE
from tasft.export.card import Checked, card, described
from tasft.export.merge import deviation, logits_of, merged_whole, parameter_count, stacked
from tasft.export.template import differing, templates
from tasft.model.adapter import CONFIG, WEIGHTS, Adapter
from tasft.model.loading import load_base
from tasft.prepare import quiet
from tasft.progress import Progress
from tasft.prompt import ChatFormat, Format, prompt_format
from tasft.result.rows import write_atomically, writing
from tasft.result.store import RunDir, check_writable

log = logging.getLogger(__name__)

COMPARED, TOKENS = 16, 128  # answered prompts whose logits are compared, and how much of each
RENDERED = 500  # prompts whose tokens are compared
# Allowed deviation of a saved model's logits, computed in its dtype, in proportion to the largest logit. Random models
# of eight architectures and up to 32 layers of 1,024 give at most 0.023 and 0.018; each weight is compared by itself.
SAVED = {"bfloat16": 0.1, "float16": 0.05}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Asked = list[tuple[str, str]]  # prompts of the run, and its answers


def export(
    run: Path,
    out: Path,
    dtype: str | None = None,
    tolerance: float = TOLERANCE,
    adapter_only: bool = False,
    moved_base: str | None = None,
    harm: str | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write the run's model, or its adapter alone, with tokenizer and card to `out`.

    dtype: of the saved weights, None: that of the run. tolerance: of the merged model's float32 logits, in proportion
    to the largest. moved_base: where the base model lies now. harm: the judge of harm of the card's scores.
    UserError, and nothing at `out`, where anything is missing or a check fails.
    """
    out = out.expanduser().resolve()
    _check_out(out)
    adapter = _adapter_of(run)
    if adapter_only:
        _check_alone(adapter, dtype)
    quiet()
    base = base_of_run(adapter, moved_base)
    told = described(adapter, base.place, base.model.revision, _licence(base.place), harm)
    data, evaluate, dtype = told.config["data"], told.config["evaluate"], dtype or base.model.dtype
    count = parameter_count(base.place, base.model.revision)
    _check_space(out, 0 if adapter_only else count * BYTES[dtype])
    format = prompt_format(data["format"], base.tokenizer, data.get("system"))
    asked = _asked(told.folder)
    tokenizer = _with_template(base.tokenizer, format, asked)
    sequences = _sequences(base.tokenizer, format, asked)
    passes = 3 if adapter_only else 4
    with alone(out), _draft(out) as draft, Progress(passes * len(sequences), "comparing logits", "prompt") as bar:
        log.info("loading %s: %s parameters, %s in float32", base.place, f"{count:,}", _size(4 * count))
        model = stacked(load_base(base.place, "float32", base.model.revision), adapter.chain)
        reference = logits_of(model, sequences, bar)
        with model.disable_adapter():
            effect = deviation(model, sequences, reference, bar).error
        if not effect > tolerance:
            log.warning("the adapter moves the logits by %.1e only: the comparison says little", effect)
        tokenizer.save_pretrained(draft)
        if adapter_only:
            _copy(adapter, base, draft)
            alike: Any = PeftModel.from_pretrained(model.unload(), str(draft)).eval()
        else:
            alike = merged_whole(model)
        del model
        error = deviation(alike, sequences, reference, bar).error
        _check_within("float32", error, tolerance, "give a larger --tolerance if that is near enough")
        checked = Checked(len(asked), len(sequences), sum(map(len, sequences)), effect, error, tolerance)
        if not adapter_only:
            alike.generation_config = _generation(alike, tokenizer, evaluate)
            log.info("saving %s in %s", _size(count * BYTES[dtype]), dtype)
            alike.to(getattr(torch, dtype)).save_pretrained(draft, max_shard_size=max_shard_size)
            again = load_base(str(draft), dtype)
            _check_same(alike, again)
            del alike
            found = deviation(again, sequences, reference, bar)
            allowed = SAVED.get(dtype, tolerance)
            _check_within(dtype, found.error, allowed, "give --dtype float32")
            checked = replace(
                checked, dtype=dtype, saved_error=found.error, saved_tolerance=allowed, agreement=found.agreement
            )
        saved = AutoTokenizer.from_pretrained(draft)
        if saved.chat_template and (wrong := differing(saved, format, base.tokenizer, asked)) is not None:
            raise UserError(f"the saved tokenizer gives other tokens than the run's for the prompt {wrong!r}")
        text = card(told, checked, adapter_only, None if saved.chat_template else format.prompt("{prompt}"))
        write_atomically(draft / "README.md", text)
        for file in draft.iterdir():
            shutil.copymode(draft / "README.md", file)  # safetensors lets nobody else read what it writes
    log.info("wrote %s: %s", out, "an adapter" if adapter_only else f"a model in {dtype}")


def _check_out(out: Path) -> None:
    """UserError where `out` holds anything, or could not be put in place in the end."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is not empty: give a new folder, or move away what is there")
    if os.path.ismount(out):
        raise UserError(f"--out={out} is a file system of its own: give a folder in it")
    check_writable(out.parent)


def _adapter_of(run: Path) -> Adapter:
    """The adapter of a finished run; UserError where there is none."""
    adapter = Adapter(run, "run")
    if adapter.run is None:
        raise UserError(f"{run} is no run: there is no config.yaml that says what its prompts look like")
    if not RunDir(adapter.run).finished:
        raise UserError(f"{adapter.run} is not finished: give the run's own command again, it goes on where it stopped")
    for each in adapter.chain:
        _check_readable(each)
    return adapter


def _check_readable(adapter: Adapter) -> None:
    """UserError where the adapter's config or weights are damaged; reads no more than their headers."""
    adapter.settings  # noqa: B018
    try:
        for file in adapter.folder.glob("adapter_model.safetensors"):
            with safe_open(file, "pt"):
                pass
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}): put it back, or train the run again") from None


def _check_alone(adapter: Adapter, dtype: str | None) -> None:
    if dtype is not None:
        raise UserError("--dtype is of a merged model, and --adapter-only leaves the adapter as it is: drop one")
    if adapter.below is not None:
        raise UserError(
            f"--adapter-only: {adapter.run} was trained on a tuned model ({adapter.below.folder} merged in), so that"
            " its adapter alone fits nothing that can be loaded: drop --adapter-only"
        )


def _check_space(out: Path, needed: int) -> None:
    folder = next(each for each in out.parents if each.exists())
    free = shutil.disk_usage(folder).free
    if needed * 1.05 > free:
        raise UserError(f"--out={out}: the model takes {_size(needed)}, and {_size(free)} are free: make room")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _licence(place: str) -> str | None:
    """What the base model's own card says, where there is one."""
    try:
        card = ModelCard.load(str(Path(place) / "README.md") if Path(place).is_dir() else place)
        return str(card.data.license) if card.data.license else None
    except Exception:  # no file, no network, no readable card
        return None


def _asked(folder: RunDir) -> Asked:
    """Prompts and answers of the run's last step, one of each benchmark in turn."""
    last = dict(sorted(folder.responses_present()))
    rows = [folder.read_responses(name, step) for name, step in last.items()]
    turns = [row for turn in zip_longest(*rows) for row in turn if row is not None]
    return [(row.prompt, row.response) for row in turns[:RENDERED]]


def _with_template(tokenizer: Any, format: Format, asked: Asked) -> Any:
    """A copy of the run's tokenizer whose chat template gives the run's tokens; without a template where none does."""
    own = deepcopy(tokenizer)
    if isinstance(format, ChatFormat) and not format.system:
        return own
    for template in templates(format, tokenizer):
        own.chat_template = template
        if differing(own, format, tokenizer, asked) is None:
            return own
    log.warning(
        "no chat template gives this tokenizer's tokens of the run's prompts: the card says what they look like"
    )
    own.chat_template = None
    return own


def _sequences(tokenizer: Any, format: Format, asked: Asked) -> list[list[int]]:
    """Tokens of answered prompts; of a run that has asked nothing, any tokens, the same each time."""
    made = []
    for prompt, answer in asked[:COMPARED]:
        try:
            ids = sum(answer_ids(tokenizer, prompt, answer, format), start=list[int]())
        except UserError:  # a chat template that does not keep an answer as it is
            ids = prompt_ids(tokenizer, format.prompt(prompt), format)
        made.append(ids[:TOKENS])
    if made:
        return made
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(tokenizer), (COMPARED, TOKENS // 2), generator=generator).tolist()


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when all went well, and of which nothing is left when not."""
    draft = out.with_name(f".{out.name}.unfinished")
    try:
        with writing(out):
            shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
            draft.mkdir(parents=True)
        yield draft
        with writing(out):
            if out.exists():
                out.rmdir()
            draft.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {hub.first_line(error)}; nothing is left there") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(adapter: Adapter, base: Base, draft: Path) -> None:
    """The adapter's files, with the base model's place as it is now."""
    for name in WEIGHTS:
        if (adapter.folder / name).is_file():
            shutil.copyfile(adapter.folder / name, draft / name)
    settings = adapter.settings | {"base_model_name_or_path": base.place, "revision": base.model.revision}
    write_atomically(draft / CONFIG, json.dumps(settings, indent=2) + "\n")


def _generation(model: PreTrainedModel, tokenizer: Any, evaluate: dict[str, Any]) -> GenerationConfig:
    """How the run has generated its answers: what stops one, and no sampling."""
    eos = model.generation_config.eos_token_id
    stops = sorted({tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        max_new_tokens=evaluate["max_new_tokens"],
        num_beams=evaluate.get("num_beams", 1),
        do_sample=False,
    )


def _check_same(saved: PreTrainedModel, again: PreTrainedModel) -> None:
    """UserError where a weight that was loaded again is not the one that was saved."""
    want, got = saved.state_dict(), again.state_dict()
    other = sorted(want.keys() ^ got.keys()) or [name for name in want if not torch.equal(want[name], got[name])]
    if other:
        raise UserError(f"{len(other)} weights are not what was saved, such as {other[0]}: nothing is written")


def _check_within(dtype: str, error: float, tolerance: float, advice: str) -> None:
    """UserError where the error is larger, or NaN."""
    log.info("logits in %s: largest deviation %.1e of the largest logit (tolerance %.0e)", dtype, error, tolerance)
    if not error <= tolerance:
        raise UserError(
            f"the exported model's logits in {dtype} differ from those of base and adapter by {error:.1e} of the"
            f" largest logit, and {tolerance:g} is allowed: nothing is written; {advice}"
        )
