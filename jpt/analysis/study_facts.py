"""What the JSON files of a study say: how it was made, its correlations, its means by type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jpt.analysis.json_fields import Fields, read_fields


@dataclass(frozen=True)
class TargetFacts:
    """A target task as ``transfer.json`` has it.

    Attributes:
        task: its full name.
        type: its type, where one is known.
        majority: share of its commonest class; NaN where it has no classes.
        rows: how many rows were scored.
        split: which rows were scored.
        own_prompt: name of the prompt that was tuned for it.
    """

    task: str
    type: str | None
    majority: float
    rows: int | None
    split: str | None
    own_prompt: str | None


@dataclass(frozen=True)
class TransferFacts:
    """How a matrix was made, as ``transfer.json`` has it.

    Attributes:
        backbone: name of the model.
        split: which rows were scored.
        targets: the tasks by name.
        prompt_types: the type of each prompt's task.
        random: name of the column of the untrained prompt, where there is one.
        random_start: how that prompt was made, for instance ``{"seed": "0", "init": "random"}``.
        untouched: name of the column of the model without a prompt, where there is one.
        notes: what the command had to say.
        elapsed_s: how long it took; NaN where not told.
        versions: of the programs.
        device: what it ran on.
        machine: the kind of machine around it, where told.
        command: the line that was typed.
    """

    backbone: str | None
    split: str | None
    targets: Mapping[str, TargetFacts]
    prompt_types: Mapping[str, str | None]
    random: str | None
    random_start: Mapping[str, str]
    untouched: str | None
    notes: tuple[str, ...]
    elapsed_s: float
    versions: Mapping[str, str]
    device: str | None
    command: str | None
    machine: str | None = None


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of one indicator with zero-shot performance.

    Attributes:
        mean_over_targets: of the correlations of each target over its sources; NaN if undefined.
        pooled_relative: over all pairs, with relative performance.
        pooled_raw: over all pairs, with scores as they are.
        n_targets: how many targets have a defined correlation.
        per_target: the correlation of each; NaN where a side is constant.
    """

    mean_over_targets: float
    pooled_relative: float
    pooled_raw: float
    n_targets: int
    per_target: Mapping[str, float]


@dataclass(frozen=True)
class Correlations:
    """The correlations of every indicator, as ``correlation.json`` has them.

    Attributes:
        own_out: by indicator, the target's own prompt left out of the sources.
        own_in: by indicator, the target's own prompt among the sources.
        notes: what is undefined or left out, and why.
    """

    own_out: Mapping[str, Correlation]
    own_in: Mapping[str, Correlation]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TypeMeans:
    """Means over pairs of prompts for tasks of one type and of two types.

    Attributes:
        same: mean over pairs of one type; NaN where there is none.
        different: mean over pairs of two types.
        n_same: how many pairs, where told.
        n_different: how many pairs, where told.
        seeds: mean over pairs of two seeds of a prompt; NaN where there is none.
    """

    same: float
    different: float
    n_same: int | None = None
    n_different: int | None = None
    seeds: float = math.nan


@dataclass(frozen=True)
class TypeFacts:
    """Means by type of task, as ``types.json`` has them.

    Attributes:
        similarity: of each indicator.
        transfer: of relative performance, where there was a matrix.
        random: mean relative performance of the untrained prompt; NaN where not measured.
        best_other: the best source of each target, its own prompt left out.
        best_same_fraction: share of targets whose best other source has their type.
        by_type: mean relative performance by type of target, then of source.
        notes: what the command had to say.
    """

    similarity: Mapping[str, TypeMeans]
    transfer: TypeMeans | None
    random: float
    best_other: Mapping[str, str]
    best_same_fraction: float
    by_type: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = field(default=())


def read_transfer_facts(path: str | Path, cure: str) -> TransferFacts | None:
    """Reads ``transfer.json``.

    Args:
        path: the file.
        cure: the command that writes it anew, for messages.

    Returns:
        The facts, or None where there is no such file.

    Raises:
        InputError: it is broken; the place is named.

    Example:
        >>> read_transfer_facts("no/transfer.json", "jpt transfer") is None
        True
    """
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
    """Reads ``correlation.json``.

    Args:
        path: the file.
        cure: the command that writes it anew, for messages.

    Returns:
        The correlations, or None where there is no such file.

    Raises:
        InputError: it is broken, or has neither part.

    Example:
        >>> read_correlations("no/correlation.json", "jpt indicators") is None
        True
    """
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
    """Reads ``types.json``.

    Args:
        path: the file.
        cure: the command that writes it anew, for messages.

    Returns:
        The means, or None where there is no such file.

    Raises:
        InputError: it is broken; the place is named.

    Example:
        >>> read_type_facts("no/types.json", "jpt indicators") is None
        True
    """
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
