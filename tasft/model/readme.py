"""The README of a run's adapter: on which model it belongs, and how to load it without tasft. Imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path

from tasft.model.adapter import Adapter


def adapter_readme(title: str, place: str, revision: str | None, below: Sequence[Adapter], prompt: str) -> str:
    """Markdown with front matter; `place` is the folder or the hub id of the model that `below` are merged into.

    `prompt` is what a prompt looks like, {prompt} in its place.
    """
    pinned = f", revision={json.dumps(revision)}" if revision else ""
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"place = {json.dumps(place)}",
        f"tokenizer = AutoTokenizer.from_pretrained(place{pinned})",
        f'model = AutoModelForCausalLM.from_pretrained(place{pinned}, dtype="auto")',
    ]
    if below:
        lines += [
            f"for folder in {json.dumps([str(each.folder) for each in below])}:  # it was trained on what these make",
            "    model = PeftModel.from_pretrained(model, folder).merge_and_unload()",
        ]
    lines += ['model = PeftModel.from_pretrained(model, "<this folder>")']
    code = "\n".join(lines)
    return f"""{front_matter(place, "peft", ["lora", "tasft"])}
# {title}

A LoRA adapter. Without tasft:

```python
{code}
```

A prompt is given to it as this text, with the special tokens that the tokenizer adds to any text:

```
{prompt}
```

The run's folder says how it was trained and what it scored; `python -m tasft.export <run> --out <folder>` makes of both
one model with a model card.
"""


def front_matter(place: str, library: str, tags: Sequence[str], more: Sequence[str] = ()) -> str:
    """The YAML at the head of a README for the hub; a base model in a folder has no name there."""
    base = [] if Path(place).is_absolute() else [f"base_model: {place}"]
    lines = ["---", *base, f"library_name: {library}", "pipeline_tag: text-generation", "tags:"]
    return "\n".join([*lines, *(f"  - {tag}" for tag in tags), *more, "---", ""])
