"""A trained adapter on disk: where it lies, what it is called, and which model it was trained on. Imports no torch."""

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from tasft.errors import UserError
from tasft.result.origin import trained_as
from tasft.result.store import RunDir, read_config

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ASIDE = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}  # of its config, decide no weight


class Adapter:
    """A LoRA adapter in PEFT's format; `path` is its folder or that of the run which has trained it.

    UserError where there is none; `key` is what names it in the config.
    """

    def __init__(self, path: str | Path, key: str = "model.adapter") -> None:
        given = Path(path).expanduser()
        if not given.is_dir():
            raise UserError(f"{key}={path}: no such folder")
        self.folder = (given if (given / CONFIG).is_file() else RunDir(given).adapter).resolve()
        if not (self.folder / CONFIG).is_file() or not any((self.folder / name).is_file() for name in WEIGHTS):
            raise UserError(f"{key}={path} holds no adapter: give the folder of a finished run, or its adapter folder")
        self.run = self.folder.parent if RunDir(self.folder.parent).config.is_file() else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its adapter_config.json; UserError where that is damaged, or of another kind than LoRA."""
        file = self.folder / CONFIG
        try:
            settings = json.loads(file.read_bytes())
            kind = settings["peft_type"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged (no readable adapter config): give another folder") from None
        if kind != "LORA":
            raise UserError(f"{file} is of an adapter of the kind {kind}: only LoRA's can be merged in")
        return dict(settings)

    @cached_property
    def digest(self) -> str:
        """Eight hex digits of its content, wherever it lies."""
        digest = hashlib.sha256()
        for name in WEIGHTS:
            if (self.folder / name).is_file():
                digest.update((self.folder / name).read_bytes())
        decided = {key: value for key, value in self.settings.items() if key not in ASIDE}
        digest.update(json.dumps(decided, sort_keys=True).encode())
        return digest.hexdigest()[:8]

    @cached_property
    def name(self) -> str:
        """How it was trained, and its digest, in letters for the name of a folder: `emd_toxic50_1a2b3c4d`."""
        how = self.folder.name
        if self.run is not None:
            try:
                how = trained_as(read_config(RunDir(self.run).config))
            except (KeyError, TypeError):
                raise UserError(f"{RunDir(self.run).config} is no run's config: mend it, or move it away") from None
        return re.sub(r"[^\w-]+", "_", f"{how}_{self.digest}")

    @cached_property
    def below(self) -> "Adapter | None":
        """The adapter that was merged into the model which this one was trained on."""
        before = read_config(RunDir(self.run).config).get("model", {}).get("adapter") if self.run else None
        return Adapter(before, f"model.adapter of {self.run}") if before else None

    @property
    def chain(self) -> "list[Adapter]":
        """All adapters to merge in, one after the other, this one last."""
        return [*(self.below.chain if self.below else []), self]

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Its run's environment.json; nothing where there is none. UserError for a damaged one."""
        if self.run is None or not RunDir(self.run).environment.is_file():
            return {}
        try:
            return dict(json.loads(RunDir(self.run).environment.read_bytes()))
        except (ValueError, TypeError):
            raise UserError(f"{RunDir(self.run).environment} is damaged: mend it, or move its folder away") from None

    @cached_property
    def trained_on(self) -> list[str | None] | None:
        """`tasft.base.Base.identity` of the model that it was trained on, as its run says; None where nothing does."""
        said = self.environment.get("base")
        return list(said) if said else None
