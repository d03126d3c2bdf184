"""A folder of prompts: what is in it, and whether each of them can be used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jpt.backbones.families import find_family
from jpt.backbones.registry import PREFIX, find_folder, read_config
from jpt.errors import InputError
from jpt.prompts.seed_prompts import list_runs
from jpt.prompts.store import load_prompt
from jpt.recipes.prompts_text import COLUMNS, short, visible, wrap
from jpt.types import Prompt

_OF_A_RUN = ("seed", "steps", "score", "metric", "jpt_version")


@dataclass(frozen=True)
class PromptEntry:
    """One prompt of a folder."""

    name: str  # of the prompt
    path: Path  # its file
    prompt: Prompt | None  # the prompt; None where it cannot be read
    faults: tuple[str, ...] = ()  # what is wrong with it
    notes: tuple[str, ...] = ()  # what could not be looked at

    @property
    def record(self) -> dict[str, Any]:
        """The entry as JSON."""
        found: dict[str, Any] = {"name": self.name, "path": str(self.path)}
        if self.prompt is not None:
            norms = np.linalg.norm(self.prompt.values.astype(np.float64), axis=1)
            card = dataclasses.asdict(self.prompt.card)
            found |= {
                "card": {key: value for key, value in card.items() if value is not None},
                "rows": len(norms),
                "width": self.prompt.values.shape[1],
                "norm": {f: float(getattr(norms, f)()) for f in ("mean", "min", "max")},
            }
        return {**found, "faults": list(self.faults), "notes": list(self.notes)}


def read_entries(folder: str | Path) -> list[PromptEntry]:
    """Reads every prompt of a folder; one that cannot be read says why."""
    entries = []
    for name, path in list_runs(folder).items():
        try:
            entries.append(PromptEntry(name, path, load_prompt(path)))
        except InputError as error:
            entries.append(PromptEntry(name, path, None, (str(error),)))
    return entries


def verify_entries(entries: list[PromptEntry], backbone: str | None = None) -> list[PromptEntry]:
    """Looks whether prompts are whole: cards, and sizes against the config of their backbone."""
    if backbone is not None:
        _shape(backbone)  # told at once
    return [each if each.prompt is None else _verify(each, backbone) for each in entries]


def _verify(entry: PromptEntry, backbone: str | None) -> PromptEntry:
    prompt = entry.prompt
    assert prompt is not None
    card, faults, notes = prompt.card, [], []
    lacking = [name for name in _OF_A_RUN if getattr(card, name) is None]
    if lacking and card.source is None:
        faults.append(f"its card lacks {', '.join(lacking)}")
    name = backbone or card.backbone
    if backbone is None and not name.startswith(PREFIX) and not Path(name).is_dir():
        notes.append(f"sizes not held against {name}, which is no folder here")
    else:
        try:
            faults += _size_faults(prompt, name)
        except InputError as error:
            faults.append(str(error))
    return dataclasses.replace(entry, faults=tuple(faults), notes=tuple(notes))


def _size_faults(prompt: Prompt, name: str) -> list[str]:
    (rows, width), (layout, expected, positions) = prompt.values.shape, _shape(name)
    faults = []
    if width != expected:
        faults.append(f"{width} wide, but {name} is {expected} wide")
    if prompt.card.layout != layout:
        faults.append(f"of the layout {prompt.card.layout}, but {name} has {layout}")
    if rows > positions:
        faults.append(f"{rows} rows, but {name} has {positions} positions")
    return faults


@cache
def _shape(name: str) -> tuple[str, int, int]:
    """Layout, width and positions of a backbone, from its config alone."""
    folder = find_folder(name)
    fields = read_config(folder)
    family = find_family(fields, f"{folder}/config.json")
    config = family.config(fields)
    return family.layout, config.width, config.positions


def describe_entries(entries: list[PromptEntry], verified: bool = False) -> str:
    """Lays a folder out for a terminal."""
    lines = [f"{'name':<17} {'task':<16} {'backbone':<19} {'size':>10} {'score':>6} {'norm':>6}"]
    for entry in entries:
        lines.append(_line(entry))
        for fault in entry.faults:
            lines += wrap(f"  broken: {fault}")
        for note in entry.notes:
            lines += wrap(f"  note: {note}")
    if verified:
        broken = sum(bool(entry.faults) for entry in entries)
        count = f"{len(entries)} prompt{'' if len(entries) == 1 else 's'}"
        lines.append(f"{count}, {broken} broken" if broken else f"{count}, all whole")
    return "\n".join(lines)


def _line(entry: PromptEntry) -> str:
    prompt = entry.prompt
    if prompt is None:
        return visible(entry.name, COLUMNS)
    rows, width = prompt.values.shape
    score = "-" if prompt.card.score is None else f"{prompt.card.score:.3f}"
    norm = short(float(np.linalg.norm(prompt.values.astype(np.float64), axis=1).mean()))
    # Of a path, the end tells more.
    backbone = prompt.card.backbone
    backbone = visible(backbone if len(backbone) <= 19 else f".{backbone[-18:]}", 19)
    task, size = visible(prompt.card.task, 16), f"{rows} x {width}"
    return (
        f"{visible(entry.name, 17):<17} {task:<16} {backbone:<19} {size:>10} {score:>6} {norm:>6}"
    )
