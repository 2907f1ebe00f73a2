"""Models that were tuned before: how a run was trained, in words that a folder's name can hold, and back."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasft.result.store import toxic_used

AGAIN = " tuned again"  # after a model's name, in tables: of all its runs that go on from another run
PLAIN = "sft_toxic0"  # how plain SFT was trained
_DIGEST = "[0-9a-f]{8}"


@dataclass(frozen=True)
class Origin:
    """What a model that is tuned again comes from, as its name says.

    `model` is the one below all adapters; `how` says how they were trained, `emd_toxic50`, several with a comma; the
    digest is the last one's.
    """

    model: str
    how: str
    digest: str


def trained_as(config: Mapping[str, Any]) -> str:
    """The loss and what else than safe rows was trained on, by a run's config: `sft_toxic0_safe_answers50`."""
    loss, data = config["loss"]["name"], config["data"]
    mixed = [f"{kind}{data[kind]}" for kind in ("safe_answers", "contrastive", "harmful") if data.get(kind)]
    filtered = [data["filter"]] if data.get("filter") else []
    return "_".join([loss, f"toxic{toxic_used(loss, data['toxic'])}", *mixed, *filtered])


def tuned_name(model: str | None, adapter: str) -> str:
    """The name of `model` with the adapter of that name merged in: `tiny-from_emd_toxic50_1a2b3c4d`."""
    return f"{model}-from_{adapter}"


def origin(name: str) -> Origin | None:
    """What `tuned_name` has put together; None for the name of another model."""
    found = re.fullmatch(rf"(.+?)((?:-from_.+?_{_DIGEST})+)", name)
    if found is None:
        return None
    adapters = re.findall(rf"-from_(.+?)_({_DIGEST})(?=-from_|$)", found[2])
    return Origin(found[1], ",".join(how for how, _ in adapters), adapters[-1][1])
