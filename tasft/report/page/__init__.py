"""index.html: all runs on one page that needs no network, to sort, compare, and read answers on.

The browser gets the numbers of the tables, so that page and tables say the same; nothing is computed twice. Own code
and SVG instead of a chart library: lines, points and a Pareto front need little, and the smallest library that is kept
well would be half of the page of a few runs.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasft.report.page.data import page_data
from tasft.report.summary import Summary
from tasft.result.rows import write_atomically
from tasft.result.table import Table

PARTS = Path(__file__).parent


def write_page(root: Path, table: Table, summaries: Sequence[Summary], path: Path, notes: Sequence[str] = ()) -> None:
    """Write the page of all runs under `root` to `path`; `notes` stand beside those of the tables."""
    write_atomically(path, page(page_data(root, table, summaries, notes)))


def page(data: dict[str, Any]) -> str:
    """The whole file: markup, style, script and data."""
    style, script = ((PARTS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # No tag can begin within the data, whatever a model has answered; the policy below lets no other script run
    # and nothing be fetched, even if one could.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {"style": style, "script": script, "digest": digest, "data": text}
    pieces = (PARTS / "page.html").read_text(encoding="utf-8").split("{{")
    return pieces[0] + "".join(values[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))
