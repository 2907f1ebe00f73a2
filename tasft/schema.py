"""The types, ranges and meaning of every configuration key.

OmegaConf reads the types while a config is composed (unknown keys and wrong types stop there); pydantic reads the
ranges afterwards (`tasft.config.checked`). Values live in conf/, never here, except where a key is optional.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field

Schema = TypeVar("Schema")


@dataclass_transform()
def strict(cls: type[Schema]) -> type[Schema]:
    """A dataclass that pydantic checks for unknown keys too (`+model.foo=1` gets past Hydra)."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return dataclass(cls)


def one_of(*options: str) -> AfterValidator:
    """Accepts one of `options` (OmegaConf knows no Literal)."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in options:  # None where the type allows it
            raise ValueError(f"should be one of {', '.join(options)}")
        return value

    return AfterValidator(check)


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Node = dict[str, Any]  # what hydra.utils.instantiate turns into an object or a function
KINDS = ("toxic", "seeming", "safe")  # of prompts: to be refused; to be answered though they look toxic; to be answered
JUDGE_NOTES = {"outcomes", "kinds", "needs", "joint"}  # what a judge's node says about it; all else are its arguments


@strict
class Lora:
    """Low-rank adapter (paper A.2)."""

    r: Positive = 8
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])


@strict
class Scratch:
    """A small Llama and its tokenizer, both trained from scratch on the texts of the data config."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    layers: Positive
    heads: Positive
    max_positions: Positive
    epochs: Positive
    batch_size: Positive
    lr: Annotated[float, Field(gt=0)]
    seed: Count = 0


def _share(value: Any) -> Any:
    """A share, or one for each toxic count."""
    shares = value.values() if isinstance(value, dict) else [value]
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise ValueError("should be a share of at least 0, or toxic count: share")
    return value


@strict
class Model:
    """The base model. `path` is a Hugging Face id or a local folder; `scratch` trains one instead."""

    name: str | None
    path: str | None = None
    adapter: str | None = None  # of a finished run, to be merged in: the tuned model is what is tuned again
    revision: str | None = None
    dtype: Annotated[str, one_of("float32", "bfloat16", "float16")] = "bfloat16"
    attention: str | None = None  # transformers' attn_implementation; None: its default
    epochs: Positive = 3
    lora: Lora = field(default_factory=Lora)
    scratch: Scratch | None = None
    tuned_weight: dict[str, dict[int, float]] = field(default_factory=dict)  # loss -> toxic count -> weight
    # loss -> share, or toxic count -> share
    tuned_share: dict[str, Annotated[Any, AfterValidator(_share)]] = field(default_factory=dict)


@strict
class Fields:
    """Our words for what a row holds -> the row's columns."""

    prompt: str | None = None
    response: str | None = None
    input: str | None = None  # further context, in formats that have a place for it
    transcript: str | None = None  # a Human/Assistant dialogue as one text, instead of prompt and response
    messages: str | None = None  # a list of {role, content}, instead of prompt and response
    chosen: str | None = None  # of a pair: the better answer, or without a prompt the whole transcript that it ends
    rejected: str | None = None  # of a pair: the worse one
    reference: str | None = None  # of a benchmark: another model's answer, to compare with
    category: str | None = None  # of a benchmark: the kind of prompt, as the benchmark names it
    label: str | None = None  # of an answer: what people say of it
    harmful: str | None = None  # of a benchmark: a harmful answer to the prompt, or how one begins


@strict
class Source:
    """Where rows come from: `path` (file or web address) or `rows` (a function); where neither, `id` (Hugging Face)."""

    path: str | None = None
    id: str | None = None
    subset: str | None = None
    data_dir: str | None = None
    split: str = "train"
    revision: str | None = None
    rows: Any = None  # a node in the config; the rows it makes once built
    count: Annotated[int | None, Field(ge=0)] = None  # 0: of data.safe alone, where other rows are imitated
    fields: Fields = field(default_factory=Fields)
    where: dict[str, str] = field(default_factory=dict)  # keep only rows whose column has this value
    licence: str | None = None


@strict
class Contamination:
    """What becomes of training rows whose prompt is one of a benchmark of the run."""

    policy: Annotated[str, one_of("report", "drop", "refuse")]
    similarity: Annotated[float, Field(gt=0, le=1)]  # from which two prompts are near-duplicates; 1: equal texts only


@strict
class Data:
    """Training data: `safe.count` rows to imitate, `toxic` rows to push away from, and what else is mixed in.

    Each count has a source. Rows of `safe_answers`, `contrastive` and `harmful` are imitated as safe rows are.
    """

    name: str
    safe: Source
    toxic: Count
    toxic_source: Source
    pairs_source: Source  # where the loss is over pairs, instead of toxic_source
    toxic_prompts: Source  # what `tasft.harvest` asks the model
    safe_answers: Count  # toxic prompts with safe answers, as in STL
    safe_answers_source: Source
    contrastive: Count  # seemingly toxic prompts with helpful answers (paper 4.3.6)
    contrastive_source: Source
    harmful: Count  # harmful answers that nobody has labelled: contamination for a filter to find
    harmful_source: Source
    contamination: Contamination
    counts: list[Count] = field(default_factory=list)  # of toxic rows, for grids: ${data.counts}
    filter: Annotated[str | None, one_of("saft", "saft_to_toxic")] = None  # saft: drop; saft_to_toxic: push away
    format: Annotated[str, one_of("stl", "short", "chat")] = "stl"
    system: str | None = None  # system prompt; `chat` only
    max_length: Annotated[int, Field(ge=8)] = 512
    pretraining: Node | None = None  # texts for model.scratch; None: those of the sources


def _weight(value: Any) -> Any:
    """A weight: at least 0, auto, or None."""
    if value is None or value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("should be a number of at least 0, or auto")
    return float(value)


@strict
class Auto:
    """`loss.weight=auto`: λ is set step by step so that toxic answers fall, see tasft/loss/adaptive.py."""

    target: Annotated[float, Field(gt=0)]  # nats by which the log-prob of a toxic answer is to fall
    tolerance: Annotated[float | None, Field(gt=0)]  # of the safe loss above plain SFT's, in proportion; None: any
    share: Annotated[float, Field(gt=0)]  # λ starts from this share
    gain: Annotated[float, Field(ge=0)]
    integral: Annotated[float, Field(ge=0)]
    smoothing: Annotated[float, Field(ge=1)]  # toxic answers over which the error is averaged
    range: Annotated[float, Field(ge=1)]  # λ stays within start / range and start * range


@strict
class Loss:
    """What the safe rows minimise, what the toxic rows minimise, and how they are mixed (paper Eq. 6)."""

    name: str
    safe: Node
    toxic: Node | None
    weight: Annotated[Any, AfterValidator(_weight)]  # a number, or auto: see Auto
    share: Annotated[float | None, Field(ge=0)]
    factor: Annotated[float, Field(gt=0)] = 1.0  # λ in multiples of the tuned one, where that is used
    group: Positive = 3
    safe_reduction: Annotated[str, one_of("token_mean", "example_mean")] = "token_mean"
    embedding: Annotated[str, one_of("input", "output")] = "input"
    toxic_eos: bool = False
    weighting: Annotated[str, one_of("groups", "examples")] = "groups"  # examples: all of a step weigh the same
    balance: Annotated[float | None, Field(gt=0)] = None  # weight = safe rows / (balance * toxic rows), as KTO has it
    reference: bool = False  # compares with the base model: one more forward pass, with the adapter off
    precompute_reference: bool = False  # that pass once for the whole training, kept in the cache
    kl: bool = False  # KTO's reference point: two more forward passes over mismatched rows
    pairs: bool = False  # the toxic term is over pairs of a chosen and a rejected answer


@strict
class Optimizer:
    """`factory(parameters, lr=lr)` makes the optimizer."""

    name: str
    lr: Annotated[float, Field(gt=0)]
    factory: Node
    schedule: Annotated[str, one_of("constant", "linear", "cosine")] = "linear"
    warmup_steps: Count = 0
    clip: Annotated[float | None, Field(gt=0)] = 1.0  # largest gradient norm


@strict
class Trainer:
    """Where and how fast: nothing here changes the numbers beyond rounding."""

    name: str
    accelerator: Annotated[str, one_of("auto", "cpu", "gpu")] = "auto"
    devices: Annotated[int | None, Field(ge=1)] = 1  # of one machine, a process each; None: every GPU there is
    nodes: Positive = 1  # machines; several are started by torchrun or SLURM, see docs/clusters.md
    strategy: Annotated[str, one_of("ddp", "fsdp")] = "ddp"  # fsdp: the base model's layers are dealt out, too
    threads: Annotated[int | None, Field(ge=1)] = None  # CPU threads of a process; None: PyTorch's choice
    max_tokens: Annotated[int | None, Field(ge=1)] = None  # of one micro-batch; None: 1024 on a CPU, 4096 on a GPU
    packing: bool = False  # micro-batches without padding
    log_every: Positive = 1  # optimizer steps
    checkpoint_every: Positive = 50  # optimizer steps


@strict
class Served:
    """A server that answers in place of the model in memory, where `base_url` is given: tasft/evaluate/served.py."""

    base_url: str | None = None
    model: str | None = None  # what it calls the base model with the run's adapter; None: it is looked up there
    base_model: str | None = None  # what it calls the base model; None: model.path
    key: str = "OPENAI_API_KEY"  # the name of the variable that holds the key, never the key
    concurrency: Positive = 64
    timeout: Annotated[float, Field(gt=0)] = 600.0  # seconds for one answer


@strict
class Evaluate:
    """How the answers to the benchmarks are generated, without sampling, and when."""

    max_new_tokens: Positive
    num_beams: Positive  # 1: greedy
    batch_size: Positive
    every_n_steps: Annotated[int | None, Field(ge=1)] = None  # also during the training, after so many steps each
    during: list[str] | None = None  # the benchmarks that are asked then; None: all
    at_start: bool = False  # and of the base model, as step 0
    server: Served = field(default_factory=Served)


@strict
class Benchmark:
    """Prompts of one kind, and the judges that make sense on the answers to them."""

    kind: Annotated[str, one_of(*KINDS)]
    source: Source
    judges: list[str] | None = None  # None: those whose yaml names the kind, see tasft.config.judges_of
    size: Annotated[int | None, Field(ge=1)] = None  # prompts of the published set; another number is warned of


@strict
class Tasks:
    """Multiple-choice and other tasks of lm-eval, run at the end of the training: tasft/evaluate/tasks.py."""

    names: list[str]  # of tasks, groups or tags: boolq, piqa, openbookqa
    include_path: str | None  # a folder with task yamls of one's own
    num_fewshot: Annotated[int | None, Field(ge=0)]  # None: what the task says
    limit: Annotated[int | None, Field(ge=1)]  # the first so many documents of each task, to try it out; None: all
    batch_size: Positive


@strict
class Harvest:
    """`tasft.harvest`: the model's own harmful answers."""

    root: str = "data/harvest"
    keep: Positive = 1000
    judge: str = "refusal"
    label: str = "answer"  # keep what the judge gives this label
    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the judged answers whose label is flipped


@strict
class Contrastive:
    """`tasft.contrastive`: seemingly toxic prompts with helpful answers (paper 4.3.6)."""

    root: str
    toxic: Positive  # toxic prompts to take words from
    z: float  # from which z-score a word is toxic: tasft/data/toxic_words.py
    common: Annotated[float, Field(ge=0, le=1)]  # words in a larger share of the safe rows are everyday language
    per_word: Positive  # prompts for each toxic word
    judges: list[str]  # whose labels decide
    drop: list[str]  # answers that any of them gives one of these labels are left out; unscored ones are, too
    prompts: Node | None = None  # makes the generator that writes prompts: generator@contrastive.prompts=...
    answers: Node | None = None  # makes the generator that answers them


@strict
class Labelled:
    """A few rows known to be safe and known to be harmful, to choose SAFT's settings on."""

    safe: Source = field(default_factory=Source)
    harmful: Source = field(default_factory=Source)


@strict
class Saft:
    """The filter of SAFT (https://arxiv.org/abs/2410.10014): rows whose hidden states lie along the top directions."""

    layer: Annotated[int | None, Field(ge=0)]  # 0: embeddings; None: chosen on `labelled`, else the middle one
    position: Annotated[str, one_of("last", "mean", "prompt")]  # last token, mean of the response, last of the prompt
    k: Annotated[int | None, Field(ge=1)]  # directions; None: chosen on `labelled`, else 1
    quantile: Annotated[float | None, Field(gt=0, lt=1)]  # share of the rows to flag; None: `threshold` decides
    threshold: float | None  # score from which a row is flagged, negative where low projections are harmful
    svd: Annotated[str, one_of("randomized", "full")]
    harmful_shares: list[Annotated[float, Field(gt=0, lt=1)]]  # of the rows: the mixtures that `tasft.saft` reports on
    labelled: Labelled = field(default_factory=Labelled)


@strict
class Prefill:
    """`tasft.prefill`: answers that begin with the first tokens of a harmful one."""

    tokens: list[Count]
    source: str | None  # a finished run's folder: its harmful answers; None: the benchmarks' own, their fields.harmful


@strict
class Attack:
    """`tasft.attack`: PAIR (https://arxiv.org/abs/2310.08419) against a finished run."""

    judge: str  # rates the answers
    goals: list[str]  # benchmarks whose prompts are the goals; none: every toxic one
    streams: Positive
    iterations: Positive
    keep_last_n: Positive  # rounds that the attacker remembers
    tries: Positive  # times that the attacker is asked for one prompt
    max_new_tokens: Positive  # of the attacked model's answer
    at_once: Positive  # goals
    attacker: Node | None = None  # makes the generator that attacks: generator@attack.attacker=...


@strict
class Ask:
    """`tasft.ask`: the answers of several runs side by side."""

    prompt: str | None
    file: str | None  # with a prompt a line, instead
    runs: list[str]  # folders
    base: bool  # whether the base model answers, too
    out: str | None  # file for the answers, a line for each


@strict
class Quality:
    """What a trial's answers to safe prompts have to be; one of `drop` and `floor` is given."""

    outcomes: list[str]  # the share of answers with one of these joint outcomes is the quality
    drop: Annotated[float | None, Field(ge=0, lt=1)]  # at most so much below plain SFT's
    floor: Annotated[float | None, Field(gt=0, le=1)]  # at least so much


@strict
class OverRefusal:
    """What a trial's answers to seemingly toxic prompts may be."""

    outcomes: list[str]  # the share of answers with one of these joint outcomes is the over-refusal
    max: Annotated[float | None, Field(ge=0, lt=1)]  # at most so much; None: any


@strict
class Search:
    """`tasft.search`: the λ with the least harm on dev prompts that keeps the quality."""

    over: Annotated[str, one_of("loss.share", "loss.weight")]
    low: Annotated[float | None, Field(gt=0)]  # the range, searched on a log scale
    high: Annotated[float | None, Field(gt=0)]
    trials: Positive
    sampler: Annotated[str, one_of("tpe", "grid")]
    startup: Positive  # of tpe: the first trials lie evenly over the range
    pruner: Annotated[str | None, one_of("median", "halving")]  # what stops hopeless trials; None: nothing does
    prune_after: Positive  # of median: trials that have kept their limits, before which none is stopped
    warmup: Annotated[float, Field(ge=0, lt=1)]  # share of a training before which it is not stopped
    dev: list[str]  # benchmarks that decide
    test: list[str]  # benchmarks that judge the λ that was found
    harm: list[str]  # the share of answers to toxic prompts with one of these joint outcomes is the harm
    quality: Quality
    over_refusal: OverRefusal
    seeds: list[Count]  # of the runs on `test`
    name: str | None  # of the folder; None: made of model, loss, toxic count and what is searched


@strict
class Agreement:
    """`tasft.agree`: what judges say beside what people say of the same answers."""

    source: Source  # prompt, response and label
    labels: dict[Any, str | None]  # people's label -> the outcome it stands for, as a judge's `outcomes`
    out: str  # folder


@strict
class Inspect:
    """`tasft.inspect`: what it shows of the rows."""

    rows: Count  # of each source
    harmful: bool  # whether toxic prompts and harmful answers are shown, too
    figure: str | None  # file for histograms of the lengths


@strict
class Wandb:
    """Where and how W&B mirrors a run's files: tasft/track.py. A `logger` with a `_target_` is Lightning's instead."""

    project: Annotated[str, Field(min_length=1)]
    entity: str | None  # user or team; None: the account's own
    mode: Annotated[str, one_of("online", "offline")]
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]]  # beside model, loss, toxic count, weight and seed
    notes: str | None
    responses: bool  # whether prompts and answers, harmful ones among them, are sent; scores always are
    sample: Count  # rows of the table of answers, of each benchmark at most
    timeout: Annotated[float, Field(gt=0)]  # seconds that a run waits for W&B at its start and at its end


@strict
class RunConfig:
    """One run: fine-tune, generate, judge."""

    model: Model
    data: Data
    loss: Loss
    optimizer: Optimizer
    trainer: Trainer
    evaluate: Evaluate
    tasks: Tasks
    harvest: Harvest
    contrastive: Contrastive
    saft: Saft
    auto: Auto
    epochs: Positive
    batch_size: Positive
    seed: Count
    output_root: str
    resume: bool
    prefill: Prefill
    attack: Attack
    ask: Ask
    search: Search
    inspect: Inspect
    agreement: Agreement
    logger: Node = field(default_factory=dict)  # nothing, a Wandb, or one of Lightning's
    benchmark: dict[str, Benchmark] = field(default_factory=dict)
    judge: dict[str, Node] = field(default_factory=dict)
    experiment: str | None = None
