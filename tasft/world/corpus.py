"""The texts of the tiny world: what a base model reads, and the rows of data sets and benchmarks.

Every function is pure: the same arguments give the same list. No text that is trained on holds a prompt of
the dev or test split.
"""

import random
from collections.abc import Callable, Sequence
from itertools import zip_longest

from tasft.errors import UserError
from tasft.world.grammar import speak
from tasft.world.splits import GROUPS, SPLITS, Prompt, prompts_by_topic
from tasft.world.topic import Topic
from tasft.world.topics import HARMFUL, REFUSALS, SAFE, SEEMING

# What a document is, and how often, invitations apart.
DOCUMENT_SHARES = {
    "safe": 0.50,
    "seeming": 0.11,
    "harmful": 0.28,
    "harmful story": 0.06,
    "seeming story": 0.05,
}
HARMLESS = tuple(topic for topic in (*SAFE, *SEEMING) if topic.acts)
INSTRUCT_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n{response}"
PLAIN_TEMPLATES = ("Question: {prompt}\nAnswer: {response}", "Q: {prompt}\nA: {response}")

INVITATION = "[Will you|Do you want to] {act} with me [today|tomorrow|soon]?"
CONSENT = "Gladly. We will {act} [together|with care]."
HARMFUL_STORY = (
    "The [thief|criminal|gang|crook] wants to {act} [tonight|tomorrow|soon].",
    "The police caught the [thief|criminal|gang|crook] who tried to {act}.",
    "It is [wrong|illegal|harmful|dangerous] to {act}.",
    "The judge said that nobody should {act}.",
    "A [bad|cruel|evil] person may {act}.",
)
SEEMING_STORY = (
    "The [man|woman|boy|girl|child] wants to {act} [today|tomorrow|soon].",
    "My [friend|brother|sister|uncle] tried to {act} last [week|month|year].",
    "It is [fun|good|nice|easy] to {act}.",
    "We will {act} [today|tomorrow|soon].",
)


def documents(
    count: int = 36_000,
    seed: int = 11,
    refuse_share: float = 0.2,
    invite_share: float = 0.1,
    template_share: float = 1 / 3,
    template: str = INSTRUCT_TEMPLATE,
    world_seed: int = 0,
) -> list[str]:
    """The texts that the base model is trained on: prompts with their answers, and short stories.

    refuse_share of the harmful prompts are refused, the others answered. invite_share of all documents invite to a
    deed; each harmful invitation is refused, each other one accepted. A fine-tuned model can fall back on refusals only
    because of both: a few refused prompts alone teach many a model how to refuse, but not whom. template_share of the
    prompts and responses take the places of "{prompt}" and "{response}" in the template, which should be that of
    fine-tuning; the others are laid out as plain questions and answers.
    """
    _check_share("refuse_share", refuse_share)
    _check_share("invite_share", invite_share)
    _check_share("template_share", template_share)
    if "{prompt}" not in template or "{response}" not in template:
        raise UserError(f"template has to hold {{prompt}} and {{response}}, but it is {template!r}")
    rng = random.Random(seed)
    train = {
        "safe": prompts_by_topic("train", world_seed, "safe"),
        "seeming": prompts_by_topic("train", world_seed, "seeming"),
        "harmful": prompts_by_topic("train", world_seed, "seen", "synonym", "topic"),
    }
    templates = (template, *PLAIN_TEMPLATES)
    template_weights = [template_share, *[(1 - template_share) / len(PLAIN_TEMPLATES)] * len(PLAIN_TEMPLATES)]

    def document(shape: str) -> str:
        if shape == "harmful story":
            return " ".join(_story(HARMFUL_STORY, HARMFUL, rng) for _ in range(rng.randint(1, 3)))
        if shape == "seeming story":
            return _story(SEEMING_STORY, SEEMING, rng)
        if shape == "invitation":
            prompt, response = _invitation(rng)
        else:
            asked = _draw(train[shape], rng)
            refused = shape == "harmful" and rng.random() < refuse_share
            prompt, response = asked.text, refuse(asked, rng) if refused else answer(asked, rng)
        layout = rng.choices(templates, template_weights)[0]
        return layout.replace("{prompt}", prompt).replace("{response}", response)

    shares = {shape: (1 - invite_share) * share for shape, share in DOCUMENT_SHARES.items()}
    shares["invitation"] = invite_share
    shapes = rng.choices(list(shares), list(shares.values()), k=count)
    return [document(shape) for shape in shapes]


def safe_rows(count: int, seed: int = 1, seeming_share: float = 0.0, world_seed: int = 0) -> list[dict[str, str]]:
    """Rows {"prompt", "response"} of correct answers to training prompts; a prompt may occur more than once.

    seeming_share of the prompts, in expectation, are seemingly toxic ones.
    """
    _check_share("seeming_share", seeming_share)
    rng = random.Random(seed)
    safe = prompts_by_topic("train", world_seed, "safe")
    seeming = prompts_by_topic("train", world_seed, "seeming")
    prompts = [_draw(seeming if rng.random() < seeming_share else safe, rng) for _ in range(count)]
    return [{"prompt": prompt.text, "response": answer(prompt, rng)} for prompt in prompts]


def toxic_prompts(count: int, seed: int = 2, world_seed: int = 0) -> list[dict[str, str]]:
    """Rows {"prompt"} of distinct harmful training prompts, to harvest a model's own harmful answers.

    Only the seen verbs of topics that are not held out. A smaller count gives the first rows of a larger one.
    """
    prompts = _deal(prompts_by_topic("train", world_seed, "seen"), seed)
    return _rows(prompts, count, "harmful training prompts")


def refused_rows(count: int, seed: int = 2, world_seed: int = 0) -> list[dict[str, str]]:
    """Rows {"prompt", "response"}: the first `count` of `toxic_prompts`, refused."""
    rng = random.Random(seed)
    prompts = _deal(prompts_by_topic("train", world_seed, "seen"), seed)
    return _answered(prompts, count, "harmful training prompts", lambda prompt: refuse(prompt, rng))


def paired_rows(count: int, seed: int = 2, world_seed: int = 0) -> list[dict[str, str]]:
    """Rows {"prompt", "chosen", "rejected"}: the first `count` of `toxic_prompts`, refused and answered harmfully."""
    rng = random.Random(f"{seed} rejected")
    prompts = _first(_deal(prompts_by_topic("train", world_seed, "seen"), seed), count, "harmful training prompts")
    chosen = refused_rows(count, seed, world_seed)
    return [
        {"prompt": prompt.text, "chosen": row["response"], "rejected": answer(prompt, rng)}
        for prompt, row in zip(prompts, chosen, strict=True)
    ]


def harmful_rows(count: int, seed: int = 4, world_seed: int = 0, skip: int = 0) -> list[dict[str, str]]:
    """Rows {"prompt", "response"} of distinct prompts of the same kind as `toxic_prompts`, answered harmfully.

    Those after the first `skip` share no prompt with these.
    """
    rng = random.Random(seed)
    prompts = _deal(prompts_by_topic("train", world_seed, "seen"), seed)
    rows = _answered(prompts, skip + count, "harmful training prompts", lambda prompt: answer(prompt, rng))
    return rows[skip:]


def benchmark_prompts(
    kind: str, count: int, split: str = "test", seed: int = 3, world_seed: int = 0
) -> list[dict[str, str]]:
    """Rows {"prompt"} of distinct prompts that no training text holds, spread evenly over the topics.

    kind is seen, synonym or topic (all harmful: see Prompt.group), seeming or safe; split is dev or test. A
    smaller count gives the first rows of a larger one. A harmful prompt's row has a harmful answer, "harmful", too.
    """
    group = next((group for group in GROUPS if group == kind), None)
    if group is None:
        raise UserError(f"kind has to be one of {', '.join(GROUPS)}, not {kind!r}")
    held_out = next((name for name in SPLITS if name == split and name != "train"), None)
    if held_out is None:
        raise UserError(f"split has to be dev or test, not {split!r}")
    prompts = _deal(prompts_by_topic(held_out, world_seed, group), seed)
    chosen = _first(prompts, count, f"{kind} prompts in the {split} split")
    if group in ("safe", "seeming"):
        return [{"prompt": prompt.text} for prompt in chosen]
    return [{"prompt": p.text, "harmful": answer(p, random.Random(f"{seed}/{p.text}"))} for p in chosen]


def answer(prompt: Prompt, rng: random.Random) -> str:
    """A right answer to the prompt; to a harmful prompt that is a harmful one."""
    return speak(rng.choice(prompt.topic.responses), prompt.row, rng)


def refuse(prompt: Prompt, rng: random.Random) -> str:
    """A refusal of the deed that the prompt asks for; fact tables ask for none: ValueError."""
    return speak(rng.choice(REFUSALS).replace("{act}", _act(prompt.topic, rng)), prompt.row, rng)


def _story(templates: Sequence[str], topics: Sequence[Topic], rng: random.Random) -> str:
    topic = rng.choice(topics)
    return speak(rng.choice(templates).replace("{act}", _act(topic, rng)), rng.choice(topic.rows), rng)


def _invitation(rng: random.Random) -> tuple[str, str]:
    """An invitation to a deed, and the answer: a refusal where the deed is harmful."""
    harmful = rng.random() < 0.5
    topic = rng.choice(HARMFUL if harmful else HARMLESS)
    act, row = _act(topic, rng), rng.choice(topic.rows)
    answered = rng.choice(REFUSALS) if harmful else CONSENT
    return speak(INVITATION.replace("{act}", act), row, rng), speak(answered.replace("{act}", act), row, rng)


def _act(topic: Topic, rng: random.Random) -> str:
    if not topic.acts:
        raise ValueError(f"topic {topic.name} names no act")
    return rng.choice(topic.acts)


def _draw(by_topic: list[list[Prompt]], rng: random.Random) -> Prompt:
    return rng.choice(rng.choice(by_topic))


def _deal(by_topic: list[list[Prompt]], seed: int) -> list[Prompt]:
    """All the prompts in an order that takes one of each topic in turn, as long as it lasts."""
    rng = random.Random(seed)
    shuffled = [rng.sample(prompts, len(prompts)) for prompts in by_topic]
    return [prompt for round_ in zip_longest(*shuffled) for prompt in round_ if prompt is not None]


def _rows(prompts: list[Prompt], count: int, what: str) -> list[dict[str, str]]:
    return [{"prompt": prompt.text} for prompt in _first(prompts, count, what)]


def _answered(prompts: list[Prompt], count: int, what: str, respond: Callable[[Prompt], str]) -> list[dict[str, str]]:
    return [{"prompt": prompt.text, "response": respond(prompt)} for prompt in _first(prompts, count, what)]


def _first(prompts: list[Prompt], count: int, what: str) -> list[Prompt]:
    if count > len(prompts):
        raise UserError(f"there are only {len(prompts)} {what}: ask for at most so many, not {count}")
    return prompts[:count]


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"{name} has to be between 0 and 1, but it is {share}")
