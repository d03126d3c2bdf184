"""What ``mask.json`` says: how prompts score while chosen neurons are silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jpt.analysis.json_fields import Fields, read_fields


@dataclass(frozen=True)
class MaskedTask:
    """One task, scored by its own prompt."""

    type: str | None  # of the task, where one is known
    metric: str  # of its scores
    majority: float  # share of its commonest class; NaN where not told
    unmasked: float  # the score with all neurons
    scores: Mapping[str, float]  # by kind of mask, the mean over its draws and sources
    # by kind of mask, the same over the score with all neurons; NaN where undefined
    relative: Mapping[str, float]


@dataclass(frozen=True)
class MaskFacts:
    """A masking study."""

    ratio: float  # share of the neurons that is silent; NaN where not told
    silent: int  # how many that are
    neurons: int  # among how many
    layers: tuple[int, int]  # first and last layer
    split: str | None  # which rows were scored
    tasks: Mapping[str, MaskedTask]  # by name
    # what is left of the scores, by type of task and kind of mask
    by_type: Mapping[str, Mapping[str, float]]
    # what the neurons of prompts of the task's type leave; NaN if not measured
    other_same_type: float
    other_different_type: float  # what those of other types leave
    notes: tuple[str, ...] = ()  # what was left out, and why

    @property
    def kinds(self) -> list[str]:
        """The kinds of masks, in the order of the file."""
        return list(dict.fromkeys(kind for task in self.tasks.values() for kind in task.scores))


def read_mask_facts(path: str | Path, cure: str) -> MaskFacts | None:
    """Reads ``mask.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    first, last = fields.pair("layers")
    return MaskFacts(
        ratio=fields.number("ratio"),
        silent=fields.count("silent_neurons") or 0,
        neurons=fields.count("neurons") or 0,
        layers=(int(first), int(last)) if first == first else (0, 0),
        split=fields.text("split"),
        tasks={name: _task(each) for name, each in fields.fields("targets").each()},
        by_type={name: each.numbers() for name, each in fields.fields("relative_by_type").each()},
        other_same_type=fields.number("other_same_type"),
        other_different_type=fields.number("other_different_type"),
        notes=fields.texts("notes"),
    )


def _task(fields: Fields) -> MaskedTask:
    masks = dict(fields.fields("masks").each())
    return MaskedTask(
        type=fields.text("type"),
        metric=fields.text("metric") or "score",
        majority=fields.number("majority"),
        unmasked=fields.number("unmasked"),
        scores={kind: mask.number("value") for kind, mask in masks.items()},
        relative={kind: mask.number("relative") for kind, mask in masks.items()},
    )
