"""Progress of long work: a bar on a terminal, a line in the log at every tenth elsewhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)

_quiet = False


@contextmanager
def quiet() -> Iterator[None]:
    """Silences every Progress that is made within: it is a part of something that reports as a whole."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


class Progress:
    """Counts `unit`s of `title` up to `total`; a context manager."""

    def __init__(self, total: int, title: str, unit: str, start: int = 0) -> None:
        self.quiet = _quiet
        self.total, self.title, self.done = total, title, start
        self._bar = tqdm(total=total, initial=start, desc=title, unit=unit, disable=_quiet or None)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Move on; `note` stands behind the count."""
        before, self.done = self.done, self.done + by
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(by)
        tenth = max(self.total / 10, 1)
        if not self.quiet and self._bar.disable and (before // tenth != self.done // tenth or self.done == self.total):
            log.info("%s %d/%d  %s", self.title, self.done, self.total, note)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
