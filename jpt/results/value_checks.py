"""Types and ranges of the numbers in result files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jpt.errors import InputError
from jpt.tasks.metrics import METRICS, TEXT_METRICS

ROUNDING = 1e-6  # a mean of float32 losses may be a little below 0


class Range(NamedTuple):
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
        return f"{what} {f'of at least {self.low}' if self.high == math.inf else self.between()}"

    def between(self) -> str:
        """Return both ends as text."""
        return f"from {self.low} to {self.high}"


_COUNT, _INDEX, _SHARE = Range(1, is_whole=True), Range(0, is_whole=True), Range(0, 1)

SCORES = {**dict.fromkeys((*METRICS, *TEXT_METRICS), _SHARE), "matthews": Range(-1, 1)}
"""Range of every metric of a task."""

RANGES = {
    **SCORES,
    "mean_score": Range(-1, 1),  # over tasks that may have several metrics
    **dict.fromkeys(("chance", "score", "best_score"), Range(-1, 1)),
    **dict.fromkeys(("mean_over_targets", "pooled_relative", "pooled_raw"), Range(-1, 1)),
    **dict.fromkeys(("hits", "chance_hits"), _SHARE),
    **dict.fromkeys(("majority", "ratio"), _SHARE),
    **dict.fromkeys(("loss", "error", "standard_error", "gradient_norm"), Range()),
    **dict.fromkeys(("elapsed_s", "rows_per_s"), Range()),
    **dict.fromkeys(("rows", "steps"), _COUNT),
    **dict.fromkeys(("step", "best_step"), _INDEX),
}
"""Range of every number whose name says what it is."""

MAIN_SCORES = (*SCORES, "mean_score", "error")
"""Names of the score of a validation line, which has one of them."""

_MAY_BE_NULL = ("majority", "chance", "standard_error")  # of generative tasks, in older files
_SPLITS = ("validation", "test", "average")


def expected_instead(name: str, value: Any, metric: str | None = None) -> str | None:
    """Return what was expected of a number; None for a valid one, or one of an unknown name."""
    allowed = RANGES.get(name if metric is None else metric)
    if allowed is None or allowed.holds(value) or (value is None and name in _MAY_BE_NULL):
        return None
    return str(allowed)


def check_values(where: str | Path, record: Any, cure: str, needed: Sequence[str] = ()) -> None:
    """Raise InputError unless a record has what is needed, and known numbers in their ranges."""
    _raise_first(where, _faults(record, "", needed), cure)


def check_score(where: str | Path, metric: str, value: float, cure: str) -> None:
    """Raise InputError if a score is out of the range of its metric; any metric may be unknown."""
    expected = expected_instead(metric, value)
    _raise_first(where, iter([(metric, expected, value)] if expected else []), cure)


def check_log_line(where: str | Path, line: Any, cure: str) -> None:
    """Raise InputError unless a line of a log has step, split and valid numbers."""
    check_values(where, line, cure, ("step", "split"))


def check_masks(where: str | Path, record: Any, cure: str) -> None:
    """Raise InputError unless the scores of a masking study are in the ranges of their metrics."""
    _raise_first(where, _mask_faults(record), cure)


Fault = tuple[str, str, Any]  # key, what was expected, and the value


def _faults(record: Any, key: str, needed: Sequence[str] = ()) -> Iterator[Fault]:
    if not isinstance(record, dict):
        yield key or "the top level", "an object", record
        return
    for name in needed:
        if name not in record:
            yield name, str(RANGES.get(name, "a value")), None
    for name, value in record.items():
        inner = f"{key}.{name}" if key else name
        if name in _SPLITS or name == "measures":
            yield from _faults(value, inner)
        elif name == "counts":
            yield from _each(value, inner, _INDEX)
        elif name == "by_task":
            yield from _each(value, inner, RANGES["error" if "error" in record else "mean_score"])
        elif name == "unseen":
            yield from _each(value, inner, RANGES["error"])
        elif name == "weights" and isinstance(value, dict):  # of a mixture
            yield from _each(value, inner, _SHARE)
        elif name in ("metric", "split") and not isinstance(value, str):
            yield inner, "a name", value
        elif expected := expected_instead(name, value):
            yield inner, expected, value
    metric = record.get("metric")
    for split in _SPLITS:
        if metric is not None and split in record and metric not in record[split]:
            yield f"{key or split}.{metric}", "a number", None


def _each(table: Any, key: str, allowed: Range) -> Iterator[Fault]:
    if not isinstance(table, dict):
        yield key, "an object", table
        return
    for name, value in table.items():
        if not allowed.holds(value):
            yield f"{key}.{name}", str(allowed), value


def _mask_faults(record: Any) -> Iterator[Fault]:
    targets = record.get("targets") if isinstance(record, dict) else None
    if not isinstance(targets, dict):
        yield "targets", "an object", targets
        return
    for task, target in targets.items():
        key = f"targets.{task}"
        metric = target.get("metric") if isinstance(target, dict) else None
        masks = target.get("masks") if isinstance(target, dict) else None
        if metric not in SCORES or not isinstance(masks, dict):
            yield key, "a task with a metric and masks", target
            continue
        yield from _faults(target, key)
        scored = [(f"{key}.unmasked", target.get("unmasked"))]
        for kind, mask in masks.items():
            runs = mask.get("runs", []) if isinstance(mask, dict) else [None]
            for each, where in [(mask, kind), *((run, f"{kind}.runs") for run in runs)]:
                found = each.get("value") if isinstance(each, dict) else each
                scored.append((f"{key}.masks.{where}.value", found))
        for where, value in scored:
            if not SCORES[metric].holds(value):
                yield where, str(SCORES[metric]), value


def _raise_first(where: str | Path, faults: Iterator[Fault], cure: str) -> None:
    for key, expected, value in faults:
        got = repr(value)
        got = got if len(got) <= 60 else f"{got[:57]}..."
        raise InputError(f"{where}: expected {expected} for {key}, got {got}; {cure}")


def find_cell_fault(record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a cell as read from its file, or None."""
    metric = record["metric"]
    if not isinstance(metric, str) or metric not in SCORES:
        return f"expected one of {', '.join(SCORES)} for metric, got {metric!r}"
    for name in ("target_task", "source_prompt"):
        if not isinstance(record[name], str):
            return f"expected a name for {name}, got {record[name]!r}"
    for name, value in record.items():
        of = metric if name == "value" else name
        is_undefined = value is None and name in ("value", "loss")  # not finite
        expected = None if is_undefined else expected_instead(name, value, of)
        if expected:
            return f"expected {expected} for {of}, got {value!r}"
    return None
