"""Types and ranges of the numbers in result files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jpt.errors import InputError
from jpt.tasks.metrics import METRICS, TEXT_METRICS

ROUNDING = 1e-6  # a mean of float32 losses may be a little below 0


class Bounds(NamedTuple):
    """The values that a number of a result file may have; never NaN or infinite."""

    low: float = 0
    high: float = math.inf
    is_whole: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a JSON value is a number of this range."""
        kinds = (int,) if self.is_whole else (int, float)  # bool is neither of these types
        is_number = type(value) in kinds and -math.inf < value < math.inf
        return is_number and self.low - ROUNDING <= value <= self.high + ROUNDING

    def __str__(self) -> str:
        what = "a whole number" if self.is_whole else "a number"
        ends = f"of at least {self.low}" if self.high == math.inf else f"from {self.low} to"
        return f"{what} {ends}" + (f" {self.high}" if self.high < math.inf else "")


_COUNT, _INDEX, _SHARE = Bounds(1, is_whole=True), Bounds(0, is_whole=True), Bounds(0, 1)
_SIGNED = Bounds(-1, 1)  # Matthews correlation, and what may be one

SCORES = {**dict.fromkeys((*METRICS, *TEXT_METRICS), _SHARE), "matthews": _SIGNED}
"""Bounds of every metric of a task."""

OF_A_NUMBER = "evaluation"  # the score of a user's own evaluation
MAIN_SCORES = {**SCORES, "mean_score": _SIGNED, "error": Bounds(), OF_A_NUMBER: Bounds(-math.inf)}
"""Bounds of every score by which a run selects its best step; a validation line has one of them."""

RANGES = {
    **MAIN_SCORES,
    **dict.fromkeys(("chance", "score", "best_score"), _SIGNED),
    **dict.fromkeys(
        ("mean_over_targets", "pooled_relative", "pooled_above_chance", "pooled_raw"), _SIGNED
    ),
    **dict.fromkeys(("hits", "chance_hits", "majority", "ratio"), _SHARE),
    **dict.fromkeys(("loss", "standard_error", "gradient_norm"), Bounds()),
    **dict.fromkeys(("elapsed_s", "rows_per_s"), Bounds()),
    **dict.fromkeys(("rows", "steps", "trials_at_once"), _COUNT),
    **dict.fromkeys(("step", "best_step"), _INDEX),
}
"""Bounds of every number whose name says what it is."""

# Of generative tasks and in older files; in a cell, what is not finite.
_MAY_BE_NULL = ("majority", "chance", "standard_error", "value", "loss")
_SPLITS = ("validation", "test", "average")
# Tables by names of users, and lists: the range of each value, or what each record in them needs.
_TABLES: dict[str, Bounds | tuple[str, ...]] = {
    **{"counts": _INDEX, "weights": _SHARE, "by_task": _SIGNED, "unseen": Bounds()},
    **{"targets": ("metric", "unmasked", "masks"), "masks": ("runs",), "runs": ("value",)},
}


def expected_instead(name: str, value: Any, metric: str | None = None) -> str | None:
    """Return what was expected of a number; None for a valid one, or one of an unknown name."""
    allowed = RANGES.get(name if metric is None else metric)
    if allowed is None or allowed.holds(value) or (value is None and name in _MAY_BE_NULL):
        return None
    return str(allowed)


def check_values(where: str | Path, record: Any, cure: str, needed: Sequence[str] = ()) -> None:
    """Raise InputError unless a record has what is needed, and known numbers in their ranges."""
    for fault in _faults(record, "", needed):
        raise InputError(f"{where}: {_show(*fault)}; {cure}")


def check_score(where: str | Path, metric: str, value: float, cure: str) -> None:
    """Raise InputError if a score is out of the range of its metric; any metric may be unknown."""
    if expected := expected_instead(metric, value):
        raise InputError(f"{where}: {_show(metric, expected, value)}; {cure}")


def _show(key: str, expected: str, value: Any) -> str:
    got = repr(value)
    return f"expected {expected} for {key}, got {got if len(got) <= 60 else f'{got[:57]}...'}"


def _faults(
    record: Any, key: str, needed: Sequence[str] = (), metric: str | None = None
) -> Iterator[tuple[str, str, Any]]:
    """Yield key, expected value and value of each fault; by the metric also of an outer record."""
    if not isinstance(record, dict):
        yield key or "the top level", "an object", record
        return
    found = record.get("metric", metric)
    metric = found if isinstance(found, str) else None
    for name in needed:
        if name not in record:
            yield f"{key}.{name}".lstrip("."), str(RANGES.get(name, "a value")), None
    for name, value in record.items():
        inner = f"{key}.{name}".lstrip(".")
        if name in (*_SPLITS, "measures", "checksums"):
            yield from _faults(value, inner, [metric] if metric and name in _SPLITS else [])
        elif name in _TABLES and not (name == "weights" and type(value) is int):  # of a projector
            allowed = Bounds() if "error" in record else _TABLES[name]
            yield from _table_faults(value, inner, allowed, metric)
        elif expected := _expected_of(name, value, metric):
            yield inner, expected, value


def _table_faults(
    table: Any, key: str, allowed: Bounds | tuple[str, ...], metric: str | None
) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(table, dict | list):
        yield key, "an object", table
        return
    for name, value in table.items() if isinstance(table, dict) else enumerate(table):
        if not isinstance(allowed, Bounds):
            yield from _faults(value, f"{key}.{name}", allowed, metric)
        elif not allowed.holds(value):
            yield f"{key}.{name}", str(allowed), value


def _expected_of(name: str, value: Any, metric: str | None) -> str | None:
    if name == "metric":
        return None if value in tuple(MAIN_SCORES) else f"one of {', '.join(MAIN_SCORES)}"
    if name in ("split", "target_task", "source_prompt"):
        return None if isinstance(value, str) else "a name"
    return expected_instead(name, value, metric if name in ("value", "unmasked") else None)
