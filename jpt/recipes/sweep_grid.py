"""The file that says which runs a sweep has: what is fixed, what varies, what varies together.

[fixed]
backbone = "builtin/bert-small"
steps = 60

[grid]                                # every combination
task = ["builtin/imdb_number", "builtin/imdb_negation"]
seed = [0, 1, 2]
learning_rate = { from = 1e-3, to = 1e-2, count = 3 }    # in equal ratios

[[zip]]                               # values that go together
length = [10, 20]
batch_size = [32, 16]

[run]                                 # how, not what
places = 4
memory_gb = 8
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jpt.config import COUNTS, TuneOptions, check_amount, check_counts
from jpt.errors import InputError, unknown_name
from jpt.files.reading import read_bytes
from jpt.prompts.own import short_task

OPTIONS = tuple(each.name for each in dataclasses.fields(TuneOptions))
FIELDS = ("backbone", "task", "data", *OPTIONS)
TABLES = ("fixed", "grid", "zip", "run", "search")
RUN_FIELDS = ("places", "memory_gb")
WHOLE = {*COUNTS, "seed"}


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    name: str  # its folder below ``runs``; unique. Seeds are folders of one setting
    setting: str  # what it shares with the runs that differ from it in their seed alone
    values: Mapping[str, Any]  # every field that the file sets, by name

    @property
    def options(self) -> TuneOptions:
        """The options of its tuning; everything left open is still None."""
        return TuneOptions(**{name: self.values[name] for name in OPTIONS if name in self.values})


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says."""

    runs: tuple[SweepRun, ...]  # all of them, in the order of the file
    varied: tuple[str, ...]  # the fields that differ between runs
    # fields of `[search]`: name to the lowest and the highest value and the scale
    ranges: Mapping[str, tuple[float, float, str]] = dataclasses.field(default_factory=dict)
    places: int | None = None  # how many runs are trained at once; None leaves it to the machine
    memory_gb: float | None = None  # what the places may take; None leaves it to the machine


def read_sweep(path: str | Path) -> Sweep:
    """Reads a sweep file."""
    try:
        content = tomllib.loads(read_bytes(path).decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    try:
        return parse_sweep(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_sweep(content: Mapping[str, Any]) -> Sweep:
    """Reads a sweep from the tables of its file."""
    _known("table", content, TABLES)
    fixed, run = _table(content, "fixed"), _table(content, "run")
    _known("field of [run]", run, RUN_FIELDS)
    check_counts(places=run.get("places"))
    check_amount("memory_gb", run.get("memory_gb"), "8")
    grid = {name: _values(name, given) for name, given in _table(content, "grid").items()}
    zipped = [_zipped(table) for table in content.get("zip", [])]
    ranges = {name: _range(name, given) for name, given in _table(content, "search").items()}
    varied = [*grid, *(name for table in zipped for name in table[0])]
    _once([*fixed, *varied, *ranges])
    combined = [dict(fixed) | dict(values) for values in _combine(grid, zipped)]
    runs = tuple(_named(combined, varied))
    _check(runs)
    return Sweep(runs, tuple(varied), ranges, run.get("places"), run.get("memory_gb"))


def on_mesh(sweep: Sweep, mesh: str) -> Sweep:
    """Puts all runs on a mesh of devices."""
    named = {run.values["mesh"] for run in sweep.runs if "mesh" in run.values}
    if named:
        raise InputError(f"mesh is {mesh}, and the file has {', '.join(named)}; leave one out")
    runs = tuple(
        dataclasses.replace(run, values={**run.values, "mesh": mesh}) for run in sweep.runs
    )
    return dataclasses.replace(sweep, runs=runs)


def _combine(
    grid: Mapping[str, list[Any]], zipped: Sequence[list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    axes = [[{name: value} for value in values] for name, values in grid.items()]
    for chosen in itertools.product(*axes, *zipped):
        yield {name: value for part in chosen for name, value in part.items()}


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"[{name}] is no table of names and values")
    if name != "run":
        _known(f"field of [{name}]", table, FIELDS)
    return table


def _known(what: str, names: Iterable[str], choices: Sequence[str]) -> None:
    for name in names:
        if name not in choices:
            raise unknown_name(what, name, choices)


def _once(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} stands in two places; one run has one {name}")


def _values(name: str, given: Any) -> list[Any]:
    """The values of one field: a list as it is, or a range."""
    if isinstance(given, dict):
        low, high, scale = _range(name, given)
        count = given.get("count")
        check_counts(count=count)
        if count is None:
            raise InputError(f"the range of {name} has no count; say how many values it has")
        space = np.geomspace if scale == "log" else np.linspace
        # Six digits: the values go into names and tables, and differ enough.
        found = [float(f"{value:.6g}") for value in space(low, high, count)]
        values = [round(value) for value in found] if name in WHOLE else found
    else:
        values = given
    if not isinstance(values, list) or not values:
        raise InputError(f"{name} is {given!r}; give a list of values, or a range")
    if len(set(map(str, values))) < len(values):
        raise InputError(f"{name} has a value twice: {values}")
    return values


def _range(name: str, given: Any) -> tuple[float, float, str]:
    example = "{ from = 1e-3, to = 1e-1, count = 3 }"
    if not isinstance(given, dict) or not {"from", "to"} <= set(given):
        raise InputError(f"{name} is {given!r}; a range is written {example}")
    _known(f"word in the range of {name}", given, ("from", "to", "count", "scale"))
    low, high, scale = given["from"], given["to"], given.get("scale", "log")
    numbers = all(isinstance(value, int | float) for value in (low, high))
    if scale not in ("log", "linear") or not numbers or not low < high:
        raise InputError(f"the range of {name} is {given}; expected for instance {example}")
    if scale == "log" and low <= 0:
        raise InputError(f'the range of {name} starts at {low}; write scale = "linear"')
    return low, high, scale


def _zipped(table: Any) -> list[dict[str, Any]]:
    if not isinstance(table, dict) or not table:
        raise InputError("[[zip]] is no table of lists")
    _known("field of [[zip]]", table, FIELDS)
    values = {name: _zip_list(name, given) for name, given in table.items()}
    counts = {name: len(given) for name, given in values.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"the lists of [[zip]] differ in length: {listed}")
    (count,) = set(counts.values())
    return [{name: given[number] for name, given in values.items()} for number in range(count)]


def _zip_list(name: str, given: Any) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise InputError(f"{name} in [[zip]] is {given!r}; give a list of values")
    return given


def _named(combined: Sequence[dict[str, Any]], varied: Sequence[str]) -> Iterator[SweepRun]:
    for values in combined:
        for name in ("backbone", "task"):
            if not isinstance(values.get(name), str):
                raise InputError(f"no {name} is named; write it into [fixed] or [grid]")
    shorts = {values["task"]: short_task(Path(values["task"]).name) for values in combined}
    clash = len(set(shorts.values())) < len(shorts)
    for values in combined:
        task = values["task"].strip("/").replace("/", "_") if clash else shorts[values["task"]]
        others = [name for name in varied if name not in ("task", "seed")]
        setting = "+".join([task, *(f"{name}={_short(values[name])}" for name in others)])
        name = f"{setting}/seed-{values['seed']}" if "seed" in varied else setting
        yield SweepRun(name, setting, values)


def _short(value: Any) -> str:
    """A value as part of a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    parts = [part for part in text.split("/") if part]
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in parts[-1] if c)


def _check(runs: Sequence[SweepRun]) -> None:
    seen: dict[str, SweepRun] = {}
    for run in runs:
        run.options  # noqa: B018 (building them checks every value)
        if run.name in seen:
            raise InputError(f"two runs are called {run.name}; give values whose names differ")
        seen[run.name] = run
