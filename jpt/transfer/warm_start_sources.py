"""The prompts that warm runs start from: named, read, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from jpt.backbones.registry import Backbone
from jpt.errors import InputError
from jpt.prompts.collection import load_prompts
from jpt.prompts.store import PROMPT_FILE, check_prompt, load_prompt
from jpt.tuning.start import Start, read_start
from jpt.types import Prompt

VANILLA = "vanilla"
"""The run from a random start, which the others are held against."""

Sources = Mapping[str, Prompt | str | Path] | Iterable[str | Path] | str | Path
"""Prompts by name, or prompt files and run folders, or one of these."""


def read_sources(sources: Sources, copy_moments: bool = False) -> dict[str, Start]:
    """Reads the sources of a warm-start study."""
    starts = {name: _read(name, source, copy_moments) for name, source in _by_name(sources).items()}
    load_prompts({name: start.prompt for name, start in starts.items()})  # they belong together
    return starts


def _by_name(sources: Sources) -> dict[str, Prompt | str | Path]:
    if isinstance(sources, Mapping):
        named = list(sources.items())
    else:
        files = [sources] if isinstance(sources, str | Path) else list(sources)
        named = [(source_name(file), file) for file in files]
    if not named:
        raise InputError("no sources were given; give prompt files or run folders to start from")
    found: dict[str, Prompt | str | Path] = {}
    for name, source in named:
        if name == VANILLA:
            raise InputError(
                f"a source is named {VANILLA}, like the run from a random start; rename its file"
            )
        if name in found:
            raise InputError(f"two sources are named {name}; rename a file, or give them by name")
        if not name or name in (".", "..") or {"/", "\\", "\0"} & set(name):
            raise InputError(f"{name!r} is no name for a source: it shall name a folder too")
        found[name] = source
    return found


def source_name(source: str | Path) -> str:
    """Names a source like its file or its run."""
    path = Path(source)
    if path.name == PROMPT_FILE:
        path = path.parent
    if path.suffix == ".safetensors":
        return path.stem
    return path.name or path.resolve().name


def _read(name: str, source: Prompt | str | Path, copy_moments: bool) -> Start:
    if not copy_moments:
        return Start(name, source if isinstance(source, Prompt) else load_prompt(source))
    if isinstance(source, Prompt):
        raise InputError(
            f"source {name} is a prompt without a run, and a prompt has no moments; give the "
            "folder of its run, or leave copy_moments out"
        )
    return read_start(name, source)


def check_sources(starts: Mapping[str, Start], backbone: Backbone, other: bool) -> None:
    """Refuses sources that a backbone cannot read."""
    for name, start in starts.items():
        try:
            check_prompt(start.prompt, backbone.name, backbone.config.width, backbone.layout, other)
        except InputError as error:
            raise InputError(f"source {name}: {error}") from None
