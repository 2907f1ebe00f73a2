"""What a model is trained on: a prompt, a response, and the tag that says which loss the response gets."""

from dataclasses import dataclass

from tasft.errors import UserError
from tasft.prompt import Turn
from tasft.schema import Fields
from tasft.source import Row

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class Example:
    """One prompt with one response. `toxic`: push away from the response; else imitate it."""

    prompt: str
    response: str
    toxic: bool
    source: str  # the place it came from: file and line, or data set and row
    input: str = ""  # further context, in templates that have a place for it
    history: tuple[Turn, ...] = ()  # earlier turns, oldest first
    rejected: str | None = None  # of a pair: the answer that `response` is preferred to

    @property
    def asked(self) -> tuple[str, ...]:
        """What the user asks, turn by turn, the last one with its input."""
        return (*(asked for asked, _ in self.history), f"{self.prompt}\n{self.input}" if self.input else self.prompt)


@dataclass(frozen=True)
class Rejected:
    """A row that is not trained on, and why."""

    source: str
    reason: str


def example(row: Row, fields: Fields, toxic: bool) -> Example | Rejected:
    """The row as an Example; `fields` says which of its columns is what.

    `transcript` is a dialogue as in Anthropic's HH-RLHF, `messages` a list of {role, content}: the last answer is the
    response, the turns before it the history. Raises UserError where a column is missing.
    """
    if fields.chosen or fields.rejected:
        return _pair(row, fields)
    if fields.transcript:
        turns = transcript_turns(_transcript(row, fields))
        if not turns:
            return Rejected(row.place, "not a Human/Assistant transcript")
    elif fields.messages:
        turns = _message_turns(row, fields.messages)
        if not turns:
            return Rejected(row.place, "no pair of a user's and an assistant's message at the end")
    else:
        if not (fields.prompt and fields.response):
            raise UserError(f"`fields` of {row.place} must name prompt and response, or transcript, or messages")
        turns = ((row.text(fields.prompt), row.text(fields.response)),)
    prompt, response = turns[-1]
    if not prompt.strip():
        return Rejected(row.place, "empty prompt")
    if not response.strip():
        return Rejected(row.place, "empty response")
    has_input = fields.input and row.values.get(fields.input) is not None  # a row may lack it
    extra = row.text(fields.input) if fields.input and has_input else ""
    return Example(prompt, response, toxic, row.place, extra, tuple(turns[:-1]))


def _pair(row: Row, fields: Fields) -> Example | Rejected:
    """A prompt with a chosen and a rejected answer: texts beside a prompt, or two dialogues that differ at the end."""
    if not (fields.chosen and fields.rejected):
        raise UserError(f"`fields` of {row.place} must name both chosen and rejected")
    chosen, rejected = row.text(fields.chosen), row.text(fields.rejected)
    if fields.prompt:
        prompt, history = row.text(fields.prompt), tuple[Turn, ...]()
    else:
        turns, others = transcript_turns(chosen), transcript_turns(rejected)
        if not turns or not others:
            return Rejected(row.place, "not a pair of Human/Assistant transcripts")
        (prompt, chosen), (asked, rejected), history = turns[-1], others[-1], turns[:-1]
        if (prompt, history) != (asked, others[:-1]):
            return Rejected(row.place, "chosen and rejected differ before the last answer")
    for text, what in ((prompt, "prompt"), (chosen, "chosen answer"), (rejected, "rejected answer")):
        if not text.strip():
            return Rejected(row.place, f"empty {what}")
    if chosen == rejected:
        return Rejected(row.place, "chosen and rejected are the same")
    return Example(prompt, chosen, True, row.place, history=history, rejected=rejected)


def prompt_of(row: Row, fields: Fields) -> str | Rejected:
    """The row's prompt; the first human turn where the row is a transcript. UserError where a column is missing."""
    if fields.transcript:
        start, human, rest = _transcript(row, fields).partition(HUMAN)
        if start or not human:
            return Rejected(row.place, "not a Human/Assistant transcript")
        return rest.partition(HUMAN)[0].partition(ASSISTANT)[0].strip()  # which need not have an answer
    if not fields.prompt:
        raise UserError(f"`fields` of {row.place} must name prompt or transcript")
    return row.text(fields.prompt)


def _transcript(row: Row, fields: Fields) -> str:
    """The text of the dialogue; UserError where the column is missing, perhaps because another source named it."""
    column = str(fields.transcript)
    if column not in row.values and fields.prompt in row.values:
        raise UserError(
            f"{row.place} has no field {column!r}, the transcript of `fields`, which goes before its prompt"
            f" {fields.prompt!r}: drop it with transcript: null, or use source@<place>=local"
        )
    return row.text(column)


def transcript_turns(text: str) -> tuple[Turn, ...]:
    r"""Turns of a `\n\nHuman: ...\n\nAssistant: ...` dialogue, () if it is none; https://github.com/anthropics/hh-rlhf."""
    if not text.startswith(HUMAN):
        return ()
    turns = []
    for part in text.split(HUMAN)[1:]:
        asked, marker, answered = part.partition(ASSISTANT)
        if not marker:
            return ()
        # two answers in a row belong to one turn
        turns.append((asked.strip(), "\n\n".join(map(str.strip, answered.split(ASSISTANT)))))
    return tuple(turns)


def _message_turns(row: Row, column: str) -> tuple[Turn, ...]:
    messages = row.values.get(column)
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and "role" in m and isinstance(m.get("content"), str) for m in messages
    ):
        raise UserError(f"{row.place}: field {column!r} is not a list of {{role, content}} messages")
    spoken = [m for m in messages if m["role"] != "system"]
    roles = [m["role"] for m in spoken]
    if len(spoken) % 2 or roles != ["user", "assistant"] * (len(spoken) // 2):
        return ()
    return tuple(
        (asked["content"], answered["content"]) for asked, answered in zip(spoken[::2], spoken[1::2], strict=True)
    )
