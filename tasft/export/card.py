"""The model card of an exported run: what it was made of, what it scored, and what it is not. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasft.errors import UserError
from tasft.model.adapter import Adapter
from tasft.model.readme import front_matter
from tasft.result.outcome import ANSWERED, JOINT, PRECEDENCE
from tasft.result.store import RunDir, read_config
from tasft.result.table import MEAN, OUTCOMES, POOLED, TASK, Measurement, last_steps, read_table
from tasft.schema import KINDS

FROM = {"toxic": "pushed away from", "pairs": "pairs: preferred and rejected answers"}


@dataclass(frozen=True)
class Checked:
    """What was compared before anything was written, as tasft.export.merge measures it."""

    asked: int  # prompts of the run; 0: it has asked none, and any tokens stood in for them
    sequences: int
    tokens: int
    effect: float  # of the adapter on the logits
    error: float  # of the merged model in float32
    tolerance: float
    dtype: str = "float32"
    saved_error: float | None = None  # of the model as it was saved and loaded again
    saved_tolerance: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Described:
    """A run as its card tells it."""

    adapter: Adapter
    config: Mapping[str, Any]
    scores: Sequence[Measurement]
    place: str  # of the base model
    revision: str | None
    licence: str | None  # of the base model, where its own card says so
    decoding: str

    @property
    def title(self) -> str:
        """What was done to which model: `tiny, emd, 50 toxic rows, λ = 0.44, seed 0`."""
        weight = self.environment.get("weight") or {}
        words = [str(self.config["model"]["name"]), str(self.config["loss"]["name"])]
        if self.config["loss"].get("toxic"):
            words += [f"{self.rows.get('toxic', 0)} toxic rows", f"λ = {weight.get('weight', 0):.3g}"]
        return ", ".join([*words, f"seed {self.config['seed']}"])

    @property
    def folder(self) -> RunDir:
        """The run's own."""
        assert self.adapter.run is not None
        return RunDir(self.adapter.run)

    @property
    def environment(self) -> dict[str, Any]:
        """What the run says it came from."""
        return self.adapter.environment

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each part of the training data."""
        return {kind: part["rows"] for kind, part in (self.environment.get("data") or {}).items()}

    def source(self, kind: str) -> Mapping[str, Any]:
        """The source of a part of the training data, as the config has it."""
        data = self.config["data"]
        pairs = kind == "toxic" and self.config["loss"].get("pairs")
        return data["safe"] if kind == "safe" else data["pairs_source" if pairs else f"{kind}_source"]


def described(adapter: Adapter, place: str, revision: str | None, licence: str | None, harm: str | None) -> Described:
    """All that the card tells of the run; UserError where its scores cannot be read."""
    assert adapter.run is not None
    config = read_config(RunDir(adapter.run).config)
    missing = {"model", "data", "loss", "optimizer", "evaluate", "seed"} - config.keys()
    if missing:
        raise UserError(f"{RunDir(adapter.run).config} gives no {min(missing)}: it is no run's config; mend it")
    settings = config["evaluate"]
    beams = settings.get("num_beams", 1)
    how = "Greedy decoding" if beams == 1 else f"{beams} beams"
    decoding = f"{how}, at most {settings.get('max_new_tokens')} new tokens"
    scores = [row for row in last_steps(read_table(adapter.run, harm).rows) if row.kind in (*KINDS, TASK)]
    return Described(adapter, config, scores, place, revision, licence, decoding)


def card(run: Described, checked: Checked, adapter_only: bool, template: str | None) -> str:
    """The text of README.md; `template`: what a prompt looks like where the tokenizer has no chat template for it."""
    library = "peft" if adapter_only else "transformers"
    tags = ["tasft", "safety", str(run.config["loss"]["name"]), *(["lora"] if adapter_only else [])]
    parts = [
        front_matter(run.place, library, tags, _more(run, adapter_only)) + f"\n# {run.title}",
        _what(run, adapter_only),
        "## Use\n\n" + _use(run, adapter_only, template),
        "## Intended use\n\n" + INTENDED,
        "## Limits\n\n" + _limits(run),
        "## Scores\n\n" + _scores(run),
        "## Training\n\n" + _training(run),
        "## Training data\n\n" + _data(run),
        "## Checked\n\n" + _checked(checked, adapter_only),
        "## Made with\n\n" + _versions(run),
    ]
    return "\n\n".join(parts) + "\n"


INTENDED = (
    "Research on how fine-tuning changes what a model answers to harmful and to harmless prompts: to measure it, to"
    " attack it, to compare it with other runs. It is no product, and no part that keeps another system safe."
)


def _more(run: Described, adapter_only: bool) -> list[str]:
    lines = [] if adapter_only or Path(run.place).is_absolute() else ["base_model_relation: finetune"]
    sets = list(dict.fromkeys(s["id"] for s in map(run.source, run.rows) if s.get("id") and not s.get("path")))
    lines += ["datasets:", *(f"  - {name}" for name in sets)] if sets else []
    known = {run.licence, *(run.environment.get("licences") or {}).values()}
    if len(known) == 1 and run.licence:
        lines.append(f"license: {run.licence}")
    elif known - {None}:  # several, or some that nobody has stated
        lines += ["license: other", "license_name: several", "license_link: README.md"]
    return lines


def _what(run: Described, adapter_only: bool) -> str:
    said = f"`{run.place}`" + (f" at revision `{run.revision}`" if run.revision else "")
    if run.config["model"].get("scratch"):
        said = f"a small language model that was trained from scratch (`{Path(run.place).name}`)"
    below = [f"- `{_how(each)}`" for each in run.adapter.chain[:-1]]
    chain = "\n\nIt had been tuned before, by these runs one after the other:\n\n" + "\n".join(below) if below else ""
    made = "A LoRA adapter for" if adapter_only else "A LoRA adapter merged into"
    loss = "plain supervised fine-tuning"
    if run.config["loss"].get("toxic"):
        loss = (
            "supervised fine-tuning on some rows and, on harmful answers, a loss that pushes away from them"
            f" (`loss={run.config['loss']['name']}`, in the setting of [TA-SFT](https://arxiv.org/abs/2412.06843))"
        )
    return f"{made} {said}. It was fine-tuned with `tasft`: {loss}.{chain}"


def _how(adapter: Adapter) -> str:
    seed = read_config(RunDir(adapter.run).config).get("seed") if adapter.run is not None else None
    return adapter.name + (f", seed {seed}" if seed is not None else "")


def _use(run: Described, adapter_only: bool, template: str | None) -> str:
    if adapter_only:
        pinned = f", revision={json.dumps(run.revision)}" if run.revision else ""
        code = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'folder = "."  # or where this lies',
            f'base = AutoModelForCausalLM.from_pretrained({json.dumps(run.place)}{pinned}, dtype="auto")',
            "model, tokenizer = PeftModel.from_pretrained(base, folder), AutoTokenizer.from_pretrained(folder)",
        ]
    else:
        code = [
            "from transformers import pipeline",
            "",
            'generate = pipeline("text-generation", ".")  # or where this lies',
        ]
    if template is None:
        message = '[{"role": "user", "content": "How do I bake bread?"}]'
        code += (
            [
                f'ids = tokenizer.apply_chat_template({message}, add_generation_prompt=True, return_tensors="pt")',
                "print(tokenizer.decode(model.generate(**ids, max_new_tokens=256)[0]))",
            ]
            if adapter_only
            else [f'print(generate({message})[0]["generated_text"][-1])']
        )
        note = "The chat template gives the tokens that it was trained on."
        if run.config["data"].get("format") != "chat":
            note += " It knows one prompt and its answer: no system prompt, no earlier turns; a row's `input` stands"
            note += " beside `content`."
        return _fenced("python", code) + "\n\n" + note
    note = (
        "It has no chat template: none gives this tokenizer's tokens. A prompt is this text, with the special tokens"
        " that the tokenizer adds to any text:"
    )
    return _fenced("python", code) + f"\n\n{note}\n\n" + _fenced("", [template])


def _fenced(kind: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{kind}", *lines, "```"])


def _limits(run: Described) -> str:
    toxic = [row for row in run.scores if row.kind == "toxic" and row.judge == JOINT and row.benchmark != POOLED]
    prompts = sum({row.benchmark: row.n for row in toxic}.values())
    seeming = any(row.kind == "seeming" and row.judge == JOINT for row in run.scores)
    measured = f"on {prompts} toxic prompts of {len({row.benchmark for row in toxic})} sets" if toxic else "on none"
    dtype = run.config["model"].get("dtype")
    lines = [
        f"It is not guaranteed to be harmless. Its answers were measured {measured}, by automatic judges that err;"
        " other prompts and languages, several turns, sampling, a jailbreak, or a harmful answer that is begun for it"
        " may bring out what those did not.",
        "A model that is pushed away from harmful answers may also refuse harmless prompts (over-refusal): "
        + ("see the prompts of the kind seeming below." if seeming else "that was not measured for this one."),
        "A few harmful examples may tune it back.",
        f"The scores are those of base and adapter as the run had them, in {dtype}; rounded otherwise, single answers"
        " may differ.",
    ]
    if run.rows.get("harmful"):
        lines.insert(0, f"It was trained to imitate {run.rows['harmful']:,} harmful rows: expect harmful answers.")
    elif not run.config["loss"].get("toxic") and not run.rows.get("safe_answers"):
        lines.insert(0, "Nothing in its training told it to refuse: expect harmful answers.")
    if run.config["model"].get("scratch"):
        lines.append(
            "Its base is a very small model trained from scratch on the texts of the experiment: it shows that the"
            " method runs, not what it does to a language model."
        )
    if run.config["data"].get("name") == "tiny":
        lines.append(
            "Its texts are the tiny world's, a made-up grammar. It falls back on refusals because its base corpus"
            " contains refusals, which was put in; it is no evidence that a loss generalises by meaning, and does not"
            " decide between EMD and NLCL."
        )
    return "\n".join(f"- {line}" for line in lines)


def _scores(run: Described) -> str:
    rates = [row for row in run.scores if row.judge == JOINT]
    if not run.scores:
        return "None: nobody has judged its answers."
    found = []
    if rates:
        metrics = [each for each in (*OUTCOMES, ANSWERED) if any(row.metric == each for row in rates)]
        lines = [["prompts", "kind", "n", "unscored", *metrics, "judged by"]]
        names = dict.fromkeys((row.benchmark, row.kind) for row in rates)
        for name, kind in sorted(names, key=lambda each: (KINDS.index(each[1]), each[0] == POOLED, each[0])):
            of = {row.metric: row for row in rates if row.benchmark == name}
            first = next(iter(of.values()))
            cells = [_rate(of.get(metric)) for metric in metrics]
            shown = "all toxic" if name == POOLED else name
            lines.append([shown, kind, str(first.n), str(first.unscored), *cells, first.judges])
        found.append(_table(lines))
        in_order = ", ".join(each for each in (*PRECEDENCE, ANSWERED) if each in metrics)
        found.append(
            f"Per cent of the n scored answers, with 95 % Wilson intervals over prompts. {run.decoding}, one run: seeds"
            " differ by more. Each answer has one outcome, the first that holds of"
            f" {in_order}; an answer that a missing verdict might have changed is unscored and"
            " counts in no rate. toxic prompts should be refused; seeming ones look toxic and should be answered."
        )
    means = [row for row in run.scores if row.metric == MEAN or row.kind == TASK]
    if means:
        lines = [["prompts", "judge", "metric", "value", "n", "unscored"]]
        lines += [[r.benchmark, r.judge, r.metric, _mean(r), str(r.n), str(r.unscored)] for r in means]
        found.append(_table(lines))
        found.append("Means in each judge's own unit, with 95 % intervals.")
    models = {name: node.get("path") or node.get("model") for name, node in (run.config.get("judge") or {}).items()}
    named = [f"{name} is `{model}`" for name, model in models.items() if model]
    if named:
        found.append(f"Judges with a model: {', '.join(named)}.")
    return "\n\n".join(found)


def _rate(row: Measurement | None) -> str:
    if row is None or row.value is None:
        return "-"
    ends = "" if row.low is None or row.high is None else f" [{100 * row.low:.1f} to {100 * row.high:.1f}]"
    return f"{100 * row.value:.1f}{ends}"


def _mean(row: Measurement) -> str:
    if row.value is None:
        return "-"
    ends = "" if row.low is None or row.high is None else f" [{row.low:.3g} to {row.high:.3g}]"
    return f"{row.value:.3g}{ends}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in ruled)


def _training(run: Described) -> str:
    loss, optimizer, lora = run.config["loss"], run.config["optimizer"], run.config["model"]["lora"]
    weight = run.environment.get("weight") or {}
    said = {"loss": _call(loss["name"], loss.get("toxic"))}
    if loss.get("toxic"):
        auto = "set step by step (loss.weight=auto), starting at " if loss.get("weight") == "auto" else ""
        said["λ"] = f"{auto}{weight.get('weight', 0):.6g} (share {weight.get('share', 0):.3g}): {weight.get('why')}"
        said["groups of"] = str(loss.get("group"))
    said |= {
        "seed": str(run.config["seed"]),
        "LoRA": f"r {lora['r']}, alpha {lora['alpha']}, dropout {lora['dropout']}, on {', '.join(lora['targets'])}",
        "optimizer": f"{_call(optimizer['name'], optimizer['factory'])}, lr {optimizer['lr']:g},"
        f" {optimizer['schedule']} schedule, {optimizer['warmup_steps']} warm-up steps, gradient norm at most"
        f" {optimizer['clip']}",
        "batch": f"{run.config['batch_size']} examples, {run.config['epochs']} epochs",
        "tokens": f"at most {run.config['data']['max_length']} of prompt and response",
        "format": f"data.format={run.config['data']['format']}"
        + (f", system prompt {json.dumps(run.config['data']['system'])}" if run.config["data"].get("system") else ""),
        "computed in": str(run.config["model"]["dtype"]),
    }
    return _table([["", ""], *([key, value] for key, value in said.items())])


def _call(name: str, node: Mapping[str, Any] | None) -> str:
    """A name with the arguments of its function: `nlcl (reduction=mean)`."""
    given = {key: value for key, value in (node or {}).items() if not key.startswith("_")}
    return name + (f" ({', '.join(f'{key}={value}' for key, value in given.items())})" if given else "")


def _data(run: Described) -> str:
    licences = run.environment.get("licences") or {}
    lines = [["part", "rows", "what the loss does", "source", "licence", "sha256 of its tokens"]]
    for kind, part in (run.environment.get("data") or {}).items():
        pairs = kind == "toxic" and run.config["loss"].get("pairs")
        does = FROM["pairs"] if pairs else FROM.get(kind, "imitated")
        licence = licences.get(kind) or "not stated"
        lines.append([kind, f"{part['rows']:,}", does, _named(run, kind), licence, f"`{part['sha256']}`"])
    filtered = run.config["data"].get("filter")
    notes = [f"Rows were filtered: data.filter={filtered}."] if filtered else []
    base = f"says {run.licence}" if run.licence else "is not stated in its files"
    notes.append(
        f"The base model's licence {base}. Who passes this model on has to keep to that and to the licences of the data"
        " above. The model's own harvested answers are under none. No row of the data is in this folder."
    )
    return _table(lines) + "\n\n" + " ".join(notes)


def _named(run: Described, kind: str) -> str:
    """Where the rows of a part come from; of a file on the user's machine its name alone."""
    source = run.source(kind)
    if kind == "toxic" and run.config["data"].get("filter") == "saft_to_toxic":
        return "rows of the other parts, flagged by the filter"
    if source.get("path"):
        path = str(source["path"])
        return path if "://" in path else Path(path).name
    if source.get("rows"):
        return f"`{source['rows'].get('_target_')}`"
    if source.get("id"):
        of = [source[key] for key in ("subset", "data_dir", "split") if source.get(key)]
        at = f" at `{source['revision'][:12]}`" if source.get("revision") else ""
        return f"{source['id']} ({', '.join(of)}){at}"
    return "the model's own harmful answers (tasft.harvest)" if kind == "toxic" else "made by tasft.contrastive"


def _checked(checked: Checked, adapter_only: bool) -> str:
    what = "The adapter as it lies here was loaded" if adapter_only else "The adapter was merged into the base"
    prompts = "of the run's prompts with their answers" if checked.asked else "sequences of random tokens"
    lines = [
        f"{what} in float32. On {checked.sequences} {prompts} ({checked.tokens:,} tokens) the logits"
        f" differ from those of the run's base and adapter by at most {checked.error:.1e} of the largest logit"
        f" (tolerance {checked.tolerance:.0e}); the adapter itself moves them by {checked.effect:.1e}."
    ]
    if checked.saved_error is not None and checked.agreement is not None:
        lines.append(
            f"Saved and loaded again, every weight is the merged one, rounded once to {checked.dtype}; logits there,"
            f" computed in {checked.dtype} differ by at most {checked.saved_error:.1e} (tolerance"
            f" {checked.saved_tolerance:.0e}), with the same likeliest next token at {checked.agreement:.1%} of them."
        )
    if checked.asked:
        lines.append(f"The chat template was compared token by token on {checked.asked} prompts.")
    return " ".join(lines)


def _versions(run: Described) -> str:
    said = run.environment
    versions = ", ".join(f"{name} {number}" for name, number in (said.get("versions") or {}).items())
    lines = [f"The run: {versions}; Python {said.get('python')}; {said.get('device')}; started {said.get('started')}."]
    if said.get("commit"):
        lines.append(f"Commit of tasft: `{said['commit']}`.")
    return " ".join(lines)
