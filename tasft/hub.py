"""The Hugging Face hub: whether it answers, and in words why it did not give something."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError


@cache
def probe() -> None:
    """Ask once whether the hub answers; where it does not, turn its offline mode on: what is in its cache still loads.

    Without this its client tries again for 20 seconds and more for every file that it does not get.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # of whichever HTTP library the client is built on
        constants.HF_HUB_OFFLINE = True


def commit(id: str, revision: str | None = None) -> str | None:
    """The commit of a model that has just been loaded from the hub; None where `id` is a folder."""
    found = None if Path(id).expanduser().is_dir() else try_to_load_from_cache(id, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None  # .../snapshots/<commit>/config.json


def why(error: BaseException) -> str:
    """Why the hub did not give something, and what to do about it, in one clause."""
    causes = list(_causes(error))
    said = str(error)  # datasets keeps no cause
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "is a gated dataset" in said:
        return "no access: accept its licence on its Hugging Face page and log in (hf auth login)"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes) or "cannot be accessed" in said:
        return "not on the Hugging Face hub, or no access: check the id, or log in (hf auth login)"
    status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if status in (401, 403):
        return f"no access ({status}): log in (hf auth login) with an account that may read it"
    if constants.HF_HUB_OFFLINE:
        return "the Hugging Face hub cannot be reached: check the id and the network"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line that the error says, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
