"""The rows of a run's jsonl files: answers and scores, one JSON object a line."""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from tasft.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or what one may have of it


@dataclass(frozen=True)
class ResponseRow:
    """One answer; `prompt_id` is unique within its benchmark."""

    prompt_id: str
    prompt: str
    response: str
    truncated: bool | None = None  # cut off by the limit on its length; None: not known
    reference: str | None = None  # another model's answer to the prompt
    category: str | None = None  # the benchmark's own word for the kind of prompt
    started: str | None = None  # how the response was made to begin: the model's own words are those after it

    def __post_init__(self) -> None:
        _check_texts(self)
        if self.truncated is not None and not isinstance(self.truncated, bool):
            raise ValueError(f"truncated is {self.truncated!r}, not true or false")


@dataclass(frozen=True)
class ScoreRow:
    """A judge's verdict on the answer to `prompt_id`, in the judge's unit.

    score None means unscored, which is not 0: the judge could not read the answer, and reason says why; again is true
    where it may another time, as after a server's bad day; None where nobody has noted it.
    """

    prompt_id: str
    score: float | None
    label: str | None = None  # the judge's class in words
    reason: str | None = None
    detail: dict[str, float] | None = None  # what the score was made from, as one number for each category
    again: bool | None = None

    @property
    def may_come(self) -> bool:
        """Whether there is no score, and may be one another time."""
        return self.score is None and self.again is not False

    def __post_init__(self) -> None:
        _check_texts(self)
        if self.score is not None:
            _check_number("score", self.score)
        elif not self.reason:
            raise ValueError("score is null and reason does not say why")
        if self.again is not None and not isinstance(self.again, bool):
            raise ValueError(f"again is {self.again!r}, not true or false")
        if self.detail is not None:
            if not isinstance(self.detail, dict):
                raise ValueError(f"detail is {self.detail!r}, not an object")
            for name, value in self.detail.items():
                _check_number(f"detail.{name}", value)


RowKind = TypeVar("RowKind", ResponseRow, ScoreRow)

# Looked up once, as a report reads a million rows: the fields that hold text and whether they may be null, and all
# fields and whether a row needs them
_TEXTS = {
    kind: [(f.name, f.default is None) for f in fields(kind) if f.name not in ("score", "detail", "truncated", "again")]
    for kind in (ResponseRow, ScoreRow)
}
_KNOWN = {kind: {f.name: f.default is MISSING for f in fields(kind)} for kind in (ResponseRow, ScoreRow)}


def _check_texts(row: ResponseRow | ScoreRow) -> None:
    """ValueError where a field that holds text is neither text nor, where it may be, null."""
    for name, may_be_null in _TEXTS[type(row)]:
        value = getattr(row, name)
        if not isinstance(value, str) and not (value is None and may_be_null):
            raise ValueError(f"{name} is {value!r}, not text")


def _check_number(name: str, value: Any) -> None:
    """ValueError where `value` is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, not a finite number")


def write_rows(path: Path, rows: Iterable[ResponseRow] | Iterable[ScoreRow]) -> None:
    """Write `rows` to `path`, one JSON object a line; a reader sees the old file or the whole new one."""
    optional = {field.name for kind in (ResponseRow, ScoreRow) for field in fields(kind) if field.default is None}
    said = ({k: v for k, v in asdict(row).items() if v is not None or k not in optional} for row in rows)
    lines = [json.dumps(each, ensure_ascii=False, allow_nan=False) + "\n" for each in said]
    write_atomically(path, "".join(lines))


def read_rows(path: Path, kind: type[RowKind]) -> list[RowKind]:
    """The rows of `path` in order; UserError that names file and line where one is damaged."""
    rows = []
    for number, values in read_objects(path):
        try:
            rows.append(_row(values, kind))
        except ValueError as error:
            raise damaged(path, number, str(error)) from None
    return rows


def _row(values: dict[str, Any], kind: type[RowKind]) -> RowKind:
    known = _KNOWN[kind]
    missing = [name for name, needed in known.items() if needed and name not in values]
    unknown = [name for name in values if name not in known]
    if missing:
        raise ValueError(f"no field {missing[0]!r}")
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    return kind(**values)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and object of each line of a jsonl file; UserError where a line is no object."""
    try:
        lines = path.read_bytes().split(b"\n")  # the one line break: others may stand inside a text
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:  # also what is no UTF-8
            raise damaged(path, number, "not JSON") from None
        if not isinstance(values, dict):
            raise damaged(path, number, "not a JSON object")
        yield number, values


def damaged(path: Path, number: int, why: str) -> UserError:
    """The mistake to raise for line `number` of `path`."""
    return UserError(f"{path} line {number} is damaged ({why}): mend the line, or delete the file and make it again")


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all; makes the folder; UserError where it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_text(text, encoding="utf-8", newline="\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into one sentence."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        what = "make room there" if error.errno in FULL else "choose a folder that can be written"
        raise UserError(f"cannot write {path}: {why}; {what}") from None


def append_objects(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Add the objects to a jsonl file in one write, a line each; makes file and folder."""
    lines = "".join(json.dumps(each, ensure_ascii=False, allow_nan=False) + "\n" for each in objects)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def read_appended(path: Path) -> list[dict[str, Any]]:
    """The objects that `append_objects` has written; none where there is no file.

    A last line that a crash has cut short is taken off the file. UserError for any other damage.
    """
    if not path.exists():
        return []
    with writing(path):
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    return [values for _, values in read_objects(path)]
