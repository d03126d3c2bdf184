"""Relative performance by type of task, and which sources do best: what a matrix says in short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64


def summarize_relative(
    relative: Float64[np.ndarray, "N K"],
    targets: Sequence[str],
    sources: Sequence[str],
    own: Mapping[str, str],
    target_types: Mapping[str, str | None],
    source_types: Mapping[str, str | None],
    baselines: Mapping[str, Float64[np.ndarray, "N"] | None],
) -> dict[str, Any]:
    """Computes means by type of target and of source, and the best source of each target."""
    # A target's own prompt is left out of all of them, and so is what has no type or no value.
    rows = [row for row, name in enumerate(targets) if target_types.get(name)]
    columns = [column for column, name in enumerate(sources) if source_types.get(name)]
    targets, sources = [targets[row] for row in rows], [sources[column] for column in columns]
    relative = relative[np.ix_(rows, columns)]
    other = others(targets, sources, own) & ~np.isnan(relative)
    row_types = np.array([target_types[name] for name in targets])
    column_types = np.array([source_types[name] for name in sources])
    same = row_types[:, None] == column_types[None]
    ranking = rank_sources(relative, targets, sources, own)
    best = {target: ranked[0] for target, ranked in ranking.items() if ranked}
    hits = [source_types[source] == target_types[target] for target, source in best.items()]
    return {
        "relative_transfer": {
            **compare_types(relative, other, same),
            **{f"{name}_mean": _mean_of_known(values) for name, values in baselines.items()},
            "best_other_source": best,
            "fraction_of_targets_whose_best_other_source_has_same_type": _mean(np.array(hits)),
        },
        "relative_by_type": {
            kind: {
                source: _mean(relative[other & _crossed(row_types == kind, column_types == source)])
                for source in dict.fromkeys(column_types.tolist())
            }
            for kind in dict.fromkeys(row_types.tolist())
        },
    }


def rank_sources(
    relative: Float64[np.ndarray, "N K"],
    targets: Sequence[str],
    sources: Sequence[str],
    own: Mapping[str, str],
) -> dict[str, list[str]]:
    """Sorts the sources of each target from best to worst; equal ones by name."""
    used = others(targets, sources, own) & ~np.isnan(relative)
    return {
        target: [
            name
            for _, name in sorted(
                (-value, name)
                for value, name, ok in zip(line, sources, used_line, strict=True)
                if ok
            )
        ]
        for target, line, used_line in zip(targets, relative.tolist(), used, strict=True)
    }


def others(
    targets: Sequence[str], sources: Sequence[str], own: Mapping[str, str]
) -> Bool[np.ndarray, "N K"]:
    """Marks the pairs of a target and a prompt that is not its own."""
    marks = np.array([[own.get(target) != name for name in sources] for target in targets], bool)
    return marks.reshape(len(targets), len(sources))


def compare_types(
    values: Float64[np.ndarray, "N K"],
    used: Bool[np.ndarray, "N K"],
    same: Bool[np.ndarray, "N K"],
) -> dict[str, Any]:
    """Computes the mean over pairs of one type and over pairs of two types."""
    used = used & ~np.isnan(values)
    alike, unlike = values[used & same], values[used & ~same]
    return {
        "same_type_mean": _mean(alike),
        "different_type_mean": _mean(unlike),
        "n_same": len(alike),
        "n_diff": len(unlike),
    }


def _crossed(
    rows: Bool[np.ndarray, "N"], columns: Bool[np.ndarray, "K"]
) -> Bool[np.ndarray, "N K"]:
    return rows[:, None] & columns[None]


def _mean_of_known(values: Float64[np.ndarray, "N"] | None) -> float | None:
    return None if values is None else _mean(values[~np.isnan(values)])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
