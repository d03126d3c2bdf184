"""Several prompts that are compared: loaded by name, and refused when they cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jpt.errors import InputError
from jpt.prompts.store import list_prompts, load_prompt
from jpt.types import Prompt


def load_prompts(prompts: Mapping[str, Prompt] | str | Path) -> dict[str, Prompt]:
    """Loads the prompts of a folder, and sees to it that they belong together."""
    if isinstance(prompts, (str, Path)):
        prompts = {name: load_prompt(path) for name, path in list_prompts(prompts).items()}
    if not prompts:
        raise InputError("no prompts were given; give a folder of prompts, or prompts by name")
    loaded = dict(sorted(prompts.items()))
    first = next(iter(loaded))
    expected = _kind(loaded[first])
    for name, prompt in loaded.items():
        for what, value in _kind(prompt).items():
            if value != expected[what]:
                raise InputError(
                    f"prompt {name} has {what} {value} and prompt {first} {expected[what]}; only"
                    " prompts of one backbone, length and width can be compared: put them into"
                    " folders of their own"
                )
    return loaded


def _kind(prompt: Prompt) -> dict[str, str | int]:
    return {
        "the backbone": prompt.card.backbone,
        "the layout": prompt.card.layout,
        "the length": len(prompt.values),
        "the width": prompt.values.shape[1],
        "the first position": prompt.card.first_position or 0,
    }
