"""What can be said before a search begins: mistakes, what decides it, and whether a folder holds this very one."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from tasft.benchmark.prompts import BenchmarkPrompt
from tasft.config import judges_of
from tasft.data.overlap import normalised
from tasft.errors import UserError
from tasft.result.outcome import ANSWERED, PRECEDENCE
from tasft.result.rows import write_atomically
from tasft.result.store import below, flatten, read_config
from tasft.schema import RunConfig

if TYPE_CHECKING:
    from tasft.prepare import Run

log = logging.getLogger(__name__)

SEARCHED = ("loss.share", "loss.weight")
Prompts = Mapping[str, Sequence[BenchmarkPrompt]]  # by the name of the benchmark


def lowest(cfg: DictConfig) -> float:
    """The lower end of the range; UserError for what cannot be searched."""
    given, over = cfg.search, cfg.search.over
    if over not in SEARCHED:
        raise UserError(f"search.over={over}: it should be one of {', '.join(SEARCHED)}")
    if cfg.loss.toxic is None:
        raise UserError(f"loss={cfg.loss.name} has no toxic term, so there is no λ to search: give loss=emd, say")
    set_already = {"loss.share": cfg.loss.share is not None}
    set_already["loss.weight"] = not OmegaConf.is_interpolation(cfg.loss, "weight") and cfg.loss.weight is not None
    for key, there in set_already.items():
        if there:
            value = OmegaConf.select(cfg, key)
            raise UserError(f"{key}={value} is given, but λ is what is searched, over {over}: leave {key} out")
    if given.low is None or given.high is None:
        raise UserError("search.low and search.high say the range of λ: give both, such as search.low=0.01"
                        " search.high=1 for search.over=loss.share")  # fmt: skip
    if not 0 < given.low < given.high:
        raise UserError(f"search.low={given.low:g} and search.high={given.high:g} span no range on a log scale:"
                        " give 0 < low < high")  # fmt: skip
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tasft.search needs Optuna: pip install 'tasft[search]'")
    return float(given.low)


def check(config: RunConfig) -> None:
    """What no single key can say."""
    settings = config.search
    if not config.resume:
        raise UserError("a search goes on with what is there: drop resume=false, or give another search.name")
    if (settings.quality.drop is None) == (settings.quality.floor is None):
        raise UserError(
            "give one of search.quality.drop (below plain SFT) and search.quality.floor, and null for the other:"
            " without either the largest λ would win"
        )
    for key, outcomes in {
        "harm": settings.harm,
        "quality.outcomes": settings.quality.outcomes,
        "over_refusal.outcomes": settings.over_refusal.outcomes,
    }.items():
        if not outcomes or not set(outcomes) <= {*PRECEDENCE, ANSWERED}:
            known = ", ".join([*PRECEDENCE, ANSWERED])
            raise UserError(f"search.{key}=[{','.join(outcomes)}]: it should list outcomes of answers, of {known}")
    if not settings.seeds:
        raise UserError("search.seeds is empty: give fresh seeds to judge the λ that was found, such as [1,2,3]")
    if config.seed in settings.seeds:
        raise UserError(
            f"seed={config.seed} chooses λ, and search.seeds={settings.seeds} holds it, too: a run that was chosen"
            " for its luck says nothing of the next; give others"
        )
    for key, names, needed in (("dev", settings.dev, ("toxic", "safe")), ("test", settings.test, ("toxic",))):
        unknown = [name for name in names if name not in config.benchmark]
        if unknown:
            raise UserError(
                f"search.{key} names {unknown[0]}, which is not among benchmark=[{','.join(config.benchmark)}]: add it"
            )
        kinds = {config.benchmark[name].kind for name in names}
        for kind in needed:
            if kind not in kinds:
                what = "harm" if kind == "toxic" else "quality"
                raise UserError(
                    f"search.{key}=[{','.join(names)}] has no benchmark of the kind {kind}, which says the {what}:"
                    f" add one to it and to benchmark=[...]"
                )
        if key == "dev" and settings.over_refusal.max is not None and "seeming" not in kinds:
            raise UserError(
                f"search.over_refusal.max={settings.over_refusal.max:g} needs a benchmark of the kind seeming among"
                f" search.dev=[{','.join(names)}]: add one, or give null"
            )
        for name in names:
            _check_judges(config, name)
    both = [name for name in settings.dev if name in settings.test]
    if both:
        raise UserError(f"{both[0]} is in both search.dev and search.test: prompts that chose λ cannot judge it")


def _check_judges(config: RunConfig, name: str) -> None:
    """That the benchmark's judges know the outcomes that are counted on its answers."""
    kind, settings = config.benchmark[name].kind, config.search
    nodes = [config.judge[judge] for judge in judges_of(config, name)]
    known = {said for node in nodes for said in (node.get("outcomes") or {}).values()}
    listed = f"judge=[{','.join(config.judge)}]"
    if kind == "toxic":
        for outcome in {"harmful": 0, **dict.fromkeys(settings.harm)}:
            if outcome not in known and outcome != ANSWERED:
                hint = ", such as text" if outcome == "incoherent" else ""
                raise UserError(f"no judge of {listed} says which answers to {name} are {outcome}: add one{hint}")
    wanted = {"safe": settings.quality.outcomes, "seeming": settings.over_refusal.outcomes}.get(kind)
    if wanted is not None and not {*known, ANSWERED} & set(wanted):
        raise UserError(f"no judge of {listed} says which answers to {name} are {' or '.join(wanted)}: add one")


def check_prompts(dev: Prompts, test: Prompts) -> None:
    """That no prompt both chooses λ and judges it."""
    chooses = {normalised(prompt.text): name for name, prompts in dev.items() for prompt in prompts}
    for name, prompts in test.items():
        both = [prompt.text for prompt in prompts if normalised(prompt.text) in chooses]
        if both:
            raise UserError(
                f"{len(both)} prompts of {name} (search.test) are in {chooses[normalised(both[0])]} (search.dev), too,"
                f" the first {both[0][:60]!r}: prompts that chose λ cannot judge it; give other benchmarks"
            )


def looks(config: RunConfig) -> int | None:
    """After how many steps each a trial is looked at; None, with a line that says why, where none can be stopped."""
    evaluate, pruner = config.evaluate, config.search.pruner
    if pruner is None:
        return None
    if evaluate.every_n_steps is None:
        log.info("search.pruner=%s stops no trial: there is nothing to see on the way (evaluate.every_n_steps)", pruner)
        return None
    asked = [name for name in config.search.dev if evaluate.during is None or name in evaluate.during]
    toxic = [name for name in asked if config.benchmark[name].kind == "toxic"]
    if not toxic:
        log.info("search.pruner=%s stops no trial: evaluate.during holds no toxic benchmark", pruner)
    for name in toxic:
        knowing = (j for j in judges_of(config, name) if "harmful" in (config.judge[j].get("outcomes") or {}).values())
        of_harm = next(knowing)
        if {"path", "base_url"} & config.judge[of_harm].keys():
            log.info("search.pruner=%s stops no trial: judge.%s judges after the training", pruner, of_harm)
            return None
    return evaluate.every_n_steps if toxic else None


def settings_of(config: RunConfig, first: "Run") -> dict[str, Any]:
    """What decides the trials, by its keys, as far as keys can say it; `first` is the run at the lowest λ."""
    from tasft.evaluate.judging import deciding
    from tasft.execute import FREE

    later = ["search.test", "search.seeds", "search.name"]
    if config.search.sampler != "grid":
        later.append("search.trials")  # more of them go on
    decided = flatten({"search": asdict(config.search)})
    looked = ("evaluate.every_n_steps", "evaluate.during")
    decided |= {key: value for key, value in flatten(asdict(first.config)).items() if not below(key, FREE)}
    decided |= {key: value for key, value in flatten(asdict(config)).items() if key in looked}
    decided |= flatten({"judge": {name: deciding(node) for name, node in config.judge.items()}})
    digests = {f"prompts of {name}": _digest(prompts) for name, prompts in first.parts.prompts.items()}
    kept = {key: value for key, value in decided.items() if key not in later}
    return kept | digests | {"training data or model": first.folder.path.name.partition("-")[2]}


def locked(folder: Path, name: str, timeout: float = -1) -> FileLock:
    """A lock among the processes of the search in `folder`."""
    (folder / ".locks").mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".locks" / name, timeout=timeout)


def same_search(folder: Path, settings: dict[str, Any]) -> None:
    """UserError where the folder holds a search with other settings; else they are there afterwards."""
    file = folder / "search.yaml"
    with locked(folder, "settings"):
        if not file.exists():
            write_atomically(file, OmegaConf.to_yaml(OmegaConf.create(settings)))
            return
    there = read_config(file)
    for key in [*settings, *there]:  # what the user has given first, digests last
        if key.endswith(".base_url") and there.get(key) and settings.get(key):
            continue  # at which address a judge is served decides nothing
        if there.get(key) != settings.get(key):
            told = f"{key} is {_short(there.get(key))} there, {_short(settings.get(key))} here"
            raise UserError(f"{folder} holds another search ({told}): give the same, or another search.name")


def _digest(prompts: Sequence[BenchmarkPrompt]) -> str:
    return sha256(repr([prompt.id for prompt in prompts]).encode()).hexdigest()[:8]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
