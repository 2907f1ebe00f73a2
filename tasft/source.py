"""Rows from files, web addresses, Hugging Face data sets and functions, each with the place it came from."""

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasft.errors import UserError
from tasft.schema import Source

KINDS = (".json", ".jsonl", ".csv", ".parquet")
MAX_FIELD = 2**24  # characters of one CSV field; the csv module's own limit of 131,072 is too short for some texts
WEB = re.compile(r"https?://")


@dataclass(frozen=True)
class Row:
    """One record and where it stands: `alpaca.json row 3`, `pairs.jsonl line 7`, `tatsu-lab/alpaca row 3`."""

    place: str
    values: dict[str, Any]

    def text(self, column: str) -> str:
        """The column's text; UserError that names the place where it is missing or no text."""
        if column not in self.values:
            raise UserError(
                f"{self.place} has no field {column!r} (it has {', '.join(map(str, self.values)) or 'none'}):"
                " mend the row, or name your columns in `fields`"
            )
        value = self.values[column]
        if not isinstance(value, str):
            raise UserError(
                f"{self.place}: field {column!r} is {'null' if value is None else repr(value)[:40]}, not text"
            )
        return value


def cache_folder() -> Path:
    """Where downloads and base models are kept: $TASFT_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tasft"
    return Path(os.environ.get("TASFT_CACHE", default))


def read_rows(source: Source, key: str) -> list[Row]:
    """All rows of `source` that `where` keeps; `key` is its name in the config, for messages.

    Raises UserError where there is nothing to read or a line cannot be read.
    """
    if source.rows is not None:
        rows = [Row(f"{key} row {i}", dict(values)) for i, values in enumerate(source.rows)]
    elif source.path is not None:
        rows = _rows_of_file(source.path, key)
    elif source.id is not None:
        rows = _rows_of_hub(source, key)
    else:
        raise UserError(f"{key} says no place to read from: give {key}.path=<file> or {key}.id=<data set>")
    if not rows:
        raise UserError(f"{source.path or source.id or key} holds no rows")
    for column in source.where:
        if column not in rows[0].values:
            raise UserError(f"{rows[0].place} has no field {column!r}, which {key}.where asks for")
    kept = [row for row in rows if all(str(row.values.get(c)) == value for c, value in source.where.items())]
    if not kept:
        wanted = " and ".join(f"{column}={value}" for column, value in source.where.items())
        raise UserError(f"{source.path or source.id or key} has no row with {wanted}: mend {key}.where")
    return kept


def _local(path: str, key: str) -> Path:
    """The file itself, downloaded once where `path` is a web address."""
    if WEB.match(path):
        import fsspec  # brings downloads and their cache; slow to import

        try:
            kept = {"cache_storage": str(cache_folder() / "downloads"), "expiry_time": 0}  # 0: for good
            with fsspec.open(f"filecache::{path}", filecache=kept) as copy:
                return Path(copy.name)
        except Exception:  # of many kinds, and what they say differs from version to version
            raise UserError(
                f"{path} could not be downloaded: check the address and the network,"
                f" or save the file and give {key}.path=<file>"
            ) from None
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}.path={path}: {'a folder, not a file' if file.is_dir() else 'no such file'}")
    return file


def _rows_of_file(path: str, key: str) -> list[Row]:
    file = _local(path, key)
    name = Path(urlsplit(path).path if WEB.match(path) else path).name  # a web address may end in ?download=true
    kind = Path(name.removesuffix(".gz")).suffix.lower()
    if kind not in KINDS:
        raise UserError(
            f"{key}.path={path}: {kind or 'no ending'} is not a kind that can be read; use {', '.join(KINDS)}, also .gz"
        )
    content = file.read_bytes()
    if name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise UserError(f"{path} is damaged: {error}") from None
    if not content.strip():
        raise UserError(f"{path} is empty")
    if kind == ".parquet":
        return _parquet(content, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    reader = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}[kind]
    return list(reader(text, name))


def _jsonl(text: str, name: str) -> Iterator[Row]:
    if text.lstrip().startswith("["):  # some .jsonl files are one JSON array, as HH-RLHF's red_team_attempts.jsonl
        yield from _json(text, name)
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a string
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} line {number} is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(values, dict):
            raise UserError(f"{name} line {number} is not a JSON object")
        yield Row(f"{name} line {number}", values)


def _json(text: str, name: str) -> Iterator[Row]:
    """A list of objects, a list of strings (column `prompt`), or one object of columns; JSON lines are read too."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _jsonl(text, name)
            return
        raise UserError(f"{name} line {error.lineno} is not JSON: {error.msg} at column {error.colno}") from None
    if isinstance(whole, dict) and any(isinstance(column, list) for column in whole.values()):
        columns = {key: column for key, column in whole.items() if isinstance(column, list)}
        length = max(map(len, columns.values()))
        whole = [{key: column[i] for key, column in columns.items() if i < len(column)} for i in range(length)]
    if not isinstance(whole, list):
        raise UserError(f"{name} is neither a list of rows nor an object of columns")
    for number, values in enumerate(whole):
        if isinstance(values, str):
            values = {"prompt": values}
        if not isinstance(values, dict):
            raise UserError(f"{name} row {number} is neither an object nor a string")
        yield Row(f"{name} row {number}", values)


def _csv(text: str, name: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            if None in values or None in values.values():
                header = len(reader.fieldnames or [])
                raise UserError(f"{name} line {reader.line_num} has not as many fields as the header ({header})")
            yield Row(f"{name} line {reader.line_num}", dict(values))
    except csv.Error as error:
        raise UserError(f"{name} line {reader.line_num} is not CSV: {error}") from None


def _parquet(content: bytes, path: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is no parquet file: {error}") from None
    return [Row(f"{Path(path).name} row {i}", values) for i, values in enumerate(table.to_pylist())]


def _rows_of_hub(source: Source, key: str) -> list[Row]:
    import datasets  # slow to import
    from huggingface_hub import constants

    from tasft import hub

    datasets.disable_progress_bars()
    local = Path(str(source.id)).is_dir()
    if not local:
        hub.probe()
        datasets.config.HF_HUB_OFFLINE |= constants.HF_HUB_OFFLINE
    try:
        data = datasets.load_dataset(
            source.id, name=source.subset, data_dir=source.data_dir, split=source.split, revision=source.revision
        )
    except Exception as error:  # the library raises many kinds, for network, access, names and scripts
        reason = hub.first_line(error) if local else hub.why(error)
        raise UserError(
            f"{key}.id={source.id} could not be loaded ({reason}), or save its file and give {key}.path=<file>"
        ) from None
    return [Row(f"{source.id} row {i}", dict(values)) for i, values in enumerate(data)]
