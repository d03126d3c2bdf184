"""What the JSON files of a study say: how it was made, its correlations, its means by type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jpt.analysis.json_fields import Fields, read_fields


@dataclass(frozen=True)
class TargetFacts:
    """A target task as ``transfer.json`` has it."""

    task: str  # its full name
    type: str | None  # its type, where one is known
    majority: float  # share of its commonest class; NaN where it has no classes
    rows: int | None  # how many rows were scored
    split: str | None  # which rows were scored
    own_prompt: str | None  # name of the prompt that was tuned for it


@dataclass(frozen=True)
class TransferFacts:
    """How a matrix was made, as ``transfer.json`` has it."""

    backbone: str | None  # name of the model
    split: str | None  # which rows were scored
    targets: Mapping[str, TargetFacts]  # the tasks by name
    prompt_types: Mapping[str, str | None]  # the type of each prompt's task
    random: str | None  # name of the column of the untrained prompt, where there is one
    # how that prompt was made, for instance ``{"seed": "0", "init": "random"}``
    random_start: Mapping[str, str]
    untouched: str | None  # name of the column of the model without a prompt, where there is one
    notes: tuple[str, ...]  # what the command had to say
    elapsed_s: float  # how long it took; NaN where not told
    versions: Mapping[str, str]  # of the programs
    device: str | None  # what it ran on
    command: str | None  # the line that was typed
    machine: str | None = None  # the kind of machine around it, where told


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of one indicator with zero-shot performance."""

    # of the correlations of each target over its sources; NaN if undefined
    mean_over_targets: float
    pooled_relative: float  # over all pairs, with relative performance
    pooled_raw: float  # over all pairs, with scores as they are
    n_targets: int  # how many targets have a defined correlation
    per_target: Mapping[str, float]  # the correlation of each; NaN where a side is constant


@dataclass(frozen=True)
class Correlations:
    """The correlations of every indicator, as ``correlation.json`` has them."""

    # by indicator, the target's own prompt left out of the sources
    own_out: Mapping[str, Correlation]
    own_in: Mapping[str, Correlation]  # by indicator, the target's own prompt among the sources
    notes: tuple[str, ...] = ()  # what is undefined or left out, and why


@dataclass(frozen=True)
class TypeMeans:
    """Means over pairs of prompts for tasks of one type and of two types."""

    same: float  # mean over pairs of one type; NaN where there is none
    different: float  # mean over pairs of two types
    n_same: int | None = None  # how many pairs, where told
    n_different: int | None = None  # how many pairs, where told
    seeds: float = math.nan  # mean over pairs of two seeds of a prompt; NaN where there is none


@dataclass(frozen=True)
class TypeFacts:
    """Means by type of task, as ``types.json`` has them."""

    similarity: Mapping[str, TypeMeans]  # of each indicator
    transfer: TypeMeans | None  # of relative performance, where there was a matrix
    random: float  # mean relative performance of the untrained prompt; NaN where not measured
    best_other: Mapping[str, str]  # the best source of each target, its own prompt left out
    best_same_fraction: float  # share of targets whose best other source has their type
    # mean relative performance by type of target, then of source
    by_type: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = field(default=())  # what the command had to say


def read_transfer_facts(path: str | Path, cure: str) -> TransferFacts | None:
    """Reads ``transfer.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    start = fields.fields("random")
    return TransferFacts(
        backbone=fields.text("backbone"),
        split=fields.text("split"),
        targets={name: _target(name, each) for name, each in fields.fields("targets").each()},
        prompt_types={name: each.text("type") for name, each in fields.fields("prompts").each()},
        random=start.text("name"),
        random_start={k: str(v) for k, v in start.value.items() if k != "name" and v is not None},
        untouched=fields.fields("untouched").text("name"),
        notes=fields.texts("notes"),
        elapsed_s=fields.number("elapsed_s"),
        versions={name: str(value) for name, value in fields.fields("versions").value.items()},
        device=fields.text("device"),
        command=fields.text("command"),
        machine=fields.text("machine"),
    )


def read_correlations(path: str | Path, cure: str) -> Correlations | None:
    """Reads ``correlation.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    parts = {
        part: {name: _correlation(each) for name, each in fields.fields(part).each()}
        for part in ("own_in", "own_out")
    }
    if not any(parts.values()):
        # The error of a missing field, so that it reads like the others.
        Fields(None, path, cure, "own_out")
    return Correlations(parts["own_out"], parts["own_in"], fields.texts("notes"))


def read_type_facts(path: str | Path, cure: str) -> TypeFacts | None:
    """Reads ``types.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    moved = fields.fields("relative_transfer")
    best = moved.fields("best_other_source")
    return TypeFacts(
        similarity={
            name: _means(each) for name, each in fields.fields("similarity_by_type").each()
        },
        transfer=_means(moved) if moved.value else None,
        random=moved.number("random_mean"),
        best_other={name: str(best.text(name)) for name in best.value if best.text(name)},
        best_same_fraction=moved.number(
            "fraction_of_targets_whose_best_other_source_has_same_type"
        ),
        by_type={name: each.numbers() for name, each in fields.fields("relative_by_type").each()},
        notes=fields.texts("notes"),
    )


def _target(name: str, fields: Fields) -> TargetFacts:
    return TargetFacts(
        task=fields.text("task") or name,
        type=fields.text("type"),
        majority=fields.number("majority"),
        rows=fields.count("rows"),
        split=fields.text("split"),
        own_prompt=fields.text("own_prompt"),
    )


def _correlation(fields: Fields) -> Correlation:
    return Correlation(
        mean_over_targets=fields.number("mean_over_targets"),
        pooled_relative=fields.number("pooled_relative"),
        pooled_raw=fields.number("pooled_raw"),
        n_targets=fields.count("n_targets") or 0,
        per_target=fields.fields("per_target").numbers(),
    )


def _means(fields: Fields) -> TypeMeans:
    return TypeMeans(
        same=fields.number("same_type_mean"),
        different=fields.number("different_type_mean"),
        n_same=fields.count("n_same"),
        n_different=fields.count("n_diff"),
        seeds=fields.number("same_task_mean"),
    )
