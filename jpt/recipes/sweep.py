"""Many runs from one file: grids, search, multi-run training, progress and result table."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import os
import shutil
import statistics
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jpt.backbones.registry import Backbone
from jpt.config import AMOUNTS, COUNTS, TuneOptions, check_amount, check_counts
from jpt.distributed import is_first, on_first
from jpt.errors import InputError, unknown_name
from jpt.io.files import (
    OutFolder,
    make_folder,
    moved_error,
    read_bytes,
    read_json,
    write_json,
    write_table,
)
from jpt.parallel import make_mesh
from jpt.results.prompt_table import short_task
from jpt.results.provenance import environment_info
from jpt.results.value_checks import check_values
from jpt.tuning.bound_task import Splits, resolve_backbone, resolve_options, resolve_task
from jpt.tuning.logging import StepBar
from jpt.tuning.multi_run import (
    SlotRun,
    SlotSchedule,
    fit_runs,
    group_step,
    multi_run_key,
    pack_runs,
    read_diverged,
    stack_answers,
    stack_batches,
    stack_trees,
)
from jpt.tuning.run_dir import (
    CHECKPOINTS,
    RESULT,
    RunFolder,
    differences,
    identity_of,
    read_config,
    read_result,
)
from jpt.tuning.step import init_state
from jpt.tuning.tune import PreparedRun, prepare_run
from jpt.types import Score

# --- Sweep files
#
#     [fixed]                  # constant values
#     backbone = "builtin/bert-small"
#     steps = 60
#     [grid]                   # every combination
#     task = ["builtin/imdb_number", "builtin/imdb_negation"]
#     learning_rate = { from = 1e-3, to = 1e-2, count = 3 }  # geometric
#     [[zip]]                  # lists that vary together
#     length = [10, 20]
#     batch_size = [32, 16]
#     [run]                    # how to train, not what
#     slots = 4
#     memory_gb = 8

OPTIONS = tuple(each.name for each in dataclasses.fields(TuneOptions))
FIELDS = ("backbone", "task", "data", *OPTIONS)
TABLES = ("fixed", "grid", "zip", "run", "search")
RUN_FIELDS = ("slots", "memory_gb")
WHOLE = {*COUNTS, "seed"}


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    name: str  # unique; its folder below ``runs``, with seeds as folders of one setting
    setting: str  # shared by the runs that differ in the seed only
    values: Mapping[str, Any]  # every field set by the file

    @property
    def options(self) -> TuneOptions:
        """Tuning options; None where the file sets nothing."""
        return TuneOptions(**{name: self.values[name] for name in OPTIONS if name in self.values})


@dataclass(frozen=True)
class Sweep:
    """Parsed sweep file."""

    runs: tuple[SweepRun, ...]  # in the order of the file
    varied: tuple[str, ...]  # fields that differ between runs
    # fields of `[search]`: lowest value, highest value and scale
    ranges: Mapping[str, tuple[float, float, str]] = field(default_factory=dict)
    slots: int | None = None  # runs trained at once; None: chosen for the machine
    memory_gb: float | None = None  # memory limit for all slots; None: that of the device


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file."""
    try:
        content = tomllib.loads(read_bytes(path).decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    try:
        return parse_sweep(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_sweep(content: Mapping[str, Any]) -> Sweep:
    """Parse the tables of a sweep file."""
    _known("table", content, TABLES)
    fixed, run = _table(content, "fixed"), _table(content, "run")
    if "places" in run:
        raise InputError("[run] has places, which is now called slots; rename it")
    _known("field of [run]", run, RUN_FIELDS)
    check_counts(slots=run.get("slots"))
    check_amount("memory_gb", run.get("memory_gb"), "8")
    grid = {name: _values(name, given) for name, given in _table(content, "grid").items()}
    zipped = [_zipped(table) for table in content.get("zip", [])]
    ranges = {name: _range(name, given) for name, given in _table(content, "search").items()}
    varied = [*grid, *(name for table in zipped for name in table[0])]
    _once([*fixed, *varied, *ranges])
    combined = [dict(fixed) | dict(values) for values in _combine(grid, zipped)]
    runs = tuple(_named(combined, varied))
    _grid_check(runs)
    return Sweep(runs, tuple(varied), ranges, run.get("slots"), run.get("memory_gb"))


def on_mesh(sweep: Sweep, mesh: str) -> Sweep:
    """Return the sweep with all runs on a mesh of devices."""
    named = {run.values["mesh"] for run in sweep.runs if "mesh" in run.values}
    if named:
        raise InputError(
            f"mesh is {mesh}, but the sweep file has {', '.join(named)}; leave one of them out"
        )
    runs = tuple(replace(run, values={**run.values, "mesh": mesh}) for run in sweep.runs)
    return replace(sweep, runs=runs)


def _combine(
    grid: Mapping[str, list[Any]], zipped: Sequence[list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    axes = [[{name: value} for value in values] for name, values in grid.items()]
    for chosen in itertools.product(*axes, *zipped):
        yield {name: value for part in chosen for name, value in part.items()}


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"[{name}] is {table!r}; expected a table of names and values")
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
            raise InputError(f"{name} is set in two tables; leave it in one of them")


def _values(name: str, given: Any) -> list[Any]:
    """Return the values of a field: a list as it is, or the values of a range."""
    if isinstance(given, dict):
        low, high, scale = _range(name, given)
        count = given.get("count")
        check_counts(count=count)
        if count is None:
            raise InputError(f"the range of {name} has no count; add the number of values")
        space = np.geomspace if scale == "log" else np.linspace
        # Rounded to six digits, because the values are part of folder names.
        found = [float(f"{value:.6g}") for value in space(low, high, count)]
        values = [round(value) for value in found] if name in WHOLE else found
    else:
        values = given
    if not isinstance(values, list) or not values:
        raise InputError(f"{name} is {given!r}; give a list of values or a range")
    if len(set(map(str, values))) < len(values):
        raise InputError(f"{name} has duplicate values: {values}")
    return values


def _range(name: str, given: Any) -> tuple[float, float, str]:
    example = "{ from = 1e-3, to = 1e-1, count = 3 }"
    if not isinstance(given, dict) or not {"from", "to"} <= set(given):
        raise InputError(f"{name} is {given!r}; expected a range such as {example}")
    _known(f"key in the range of {name}", given, ("from", "to", "count", "scale"))
    low, high, scale = given["from"], given["to"], given.get("scale", "log")
    numbers = all(isinstance(value, int | float) for value in (low, high))
    if scale not in ("log", "linear") or not numbers or not low < high:
        raise InputError(f"the range of {name} is {given}; expected a range such as {example}")
    if scale == "log" and low <= 0:
        raise InputError(f'the range of {name} starts at {low}; write scale = "linear"')
    return low, high, scale


def _zipped(table: Any) -> list[dict[str, Any]]:
    if not isinstance(table, dict) or not table:
        raise InputError(f"[[zip]] is {table!r}; expected a table of lists")
    _known("field of [[zip]]", table, FIELDS)
    for name, given in table.items():
        if not isinstance(given, list) or not given:
            raise InputError(f"{name} in [[zip]] is {given!r}; give a list of values")
    counts = {name: len(given) for name, given in table.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"the lists of [[zip]] differ in length: {listed}")
    (count,) = set(counts.values())
    return [{name: given[number] for name, given in table.items()} for number in range(count)]


def _named(combined: Sequence[dict[str, Any]], varied: Sequence[str]) -> Iterator[SweepRun]:
    for values in combined:
        for name in ("backbone", "task"):
            if not isinstance(values.get(name), str):
                raise InputError(f"the sweep has no {name}; add it to [fixed] or [grid]")
    shorts = {values["task"]: short_task(Path(values["task"]).name) for values in combined}
    clash = len(set(shorts.values())) < len(shorts)
    for values in combined:
        task = values["task"].strip("/").replace("/", "_") if clash else shorts[values["task"]]
        others = [name for name in varied if name not in ("task", "seed")]
        setting = "+".join([task, *(f"{name}={_grid_short(values[name])}" for name in others)])
        name = f"{setting}/seed-{values['seed']}" if "seed" in varied else setting
        yield SweepRun(name, setting, values)


def _grid_short(value: Any) -> str:
    """Format a value for a folder name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    parts = [part for part in text.split("/") if part]
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in parts[-1] if c)


def _grid_check(runs: Sequence[SweepRun]) -> None:
    seen: dict[str, SweepRun] = {}
    for run in runs:
        run.options  # noqa: B018 (validates every value)
        if run.name in seen:
            raise InputError(f"two runs are named {run.name}; give values whose names differ")
        seen[run.name] = run


# --- Number of slots

MOST_SLOTS = 8  # default on an accelerator; more runs do not speed up its matrix products
GB = 1e9


def choose_slots(parts: PreparedRun, runs: int, asked: int | None, memory_gb: float | None) -> int:
    """Return the number of runs of one kind to train at once."""
    # One on a CPU: a single run keeps its cores busy, and runs in slots pad their texts to the
    # longest among them. As many as fit on an accelerator, up to `MOST_SLOTS`.
    limit = memory_gb * GB if memory_gb else _device_bytes()
    on_cpu = jax.devices()[0].platform == "cpu"
    wanted = min(runs, asked or (1 if on_cpu and memory_gb is None else MOST_SLOTS))
    if limit is None or (asked and memory_gb is None):
        return wanted
    weights, each = run_bytes(parts)
    fit = int((limit - weights) // each)
    if fit < (wanted if asked else 1):
        raise InputError(
            f"{wanted if asked else 1} runs at once need {(weights + each * wanted) / GB:.2f} GB "
            f"({weights / GB:.2f} for weights, {each / GB:.2f} per run), but the limit is "
            f"{limit / GB:.2f} GB; use fewer slots, a smaller batch_size or max_tokens, or a larger"
            " memory_gb"
        )
    return min(wanted, fit)


def run_bytes(parts: PreparedRun) -> tuple[int, int]:
    """Return the bytes of the weights and of one run in the compiled step, at maximum length."""
    options, backbone = parts.options, parts.backbone
    batch = _longest(parts)
    state = stack_trees([init_state(parts.initial)])
    frozen = (backbone.params, stack_answers([parts.bound.answer]))
    numbers = (np.ones(1, np.float32), np.zeros(1, np.uint32))
    step = group_step(backbone.module, options)
    analysis = step.lower(frozen, state, batch, *numbers).compile().memory_analysis()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(backbone.params))
    rest = analysis.argument_size_in_bytes - weights + analysis.output_size_in_bytes
    return weights, max(1, rest + analysis.temp_size_in_bytes)


def _longest(parts: PreparedRun) -> Any:
    """Return a batch padded to ``max_tokens``."""
    options = parts.options
    batch = parts.batches.batch_at(0)
    room = options.max_tokens - batch.tokens.shape[1]
    tokens = np.pad(batch.tokens, ((0, 0), (0, max(0, room))))
    return stack_batches([batch._replace(tokens=tokens)], 0)


def _device_bytes() -> int | None:
    """Return the device's memory limit; None on a CPU, which reports none."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


# --- Groups of runs that share a compiled step

RUNS, GROUPS = "runs", "groups"


@dataclass(frozen=True)
class RunGroup:
    """Runs that are trained together."""

    slot_schedule: SlotSchedule

    @property
    def runs(self) -> tuple[str, ...]:
        """Run names."""
        return tuple(run for slot in self.slot_schedule.slots for run in slot)

    @property
    def name(self) -> str:
        """Folder below ``groups``: a checksum of the schedule."""
        text = repr((self.slot_schedule.slots, sorted(self.slot_schedule.steps.items())))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def steps(self) -> int:
        """Total steps of all runs."""
        return sum(self.slot_schedule.steps[run] for run in self.runs)


@dataclass
class RunLoader:
    """Cache of loaded backbones and encoded splits."""

    backbones: dict[tuple[Any, ...], Backbone] = field(default_factory=dict)
    splits: dict[tuple[Any, ...], Splits] = field(default_factory=dict)

    def prepare(self, run: SweepRun) -> PreparedRun:
        """Load and check everything that a run needs, without compiling."""
        try:
            return self._prepare(run)
        except InputError as error:
            raise InputError(f"run {run.name}: {error}") from None

    def _prepare(self, run: SweepRun) -> PreparedRun:
        options, values = run.options, run.values
        kind = (options.dtype, options.dropout, options.remat, options.mesh)
        key = (values["backbone"], *kind)
        if key not in self.backbones:
            mesh = make_mesh(options.mesh)
            choices = (options.dtype, options.dropout == "paper", mesh, options.remat)
            self.backbones[key] = resolve_backbone(values["backbone"], *choices)
        backbone = self.backbones[key]
        task = resolve_task(values["task"], values.get("data"))
        resolved = resolve_options(options, backbone, task)
        texts = (resolved.max_tokens, resolved.answer_tokens, resolved.label_scoring)
        rows = (key, values["task"], values.get("data"), *texts)
        parts = prepare_run(backbone, task, None, options, splits=self.splits.get(rows))
        self.splits[rows] = parts.splits
        return parts


def pack(parts: Mapping[str, PreparedRun], slots: Mapping[Any, int]) -> list[RunGroup]:
    """Pack runs into groups; the same sweep gives the same groups on every machine."""
    groups = []
    for key, names in group_runs(parts).items():
        steps = {name: parts[name].options.steps for name in names}
        groups += [RunGroup(_of_its_runs(schedule)) for schedule in pack_runs(steps, slots[key])]
    return groups


def _of_its_runs(schedule: SlotSchedule) -> SlotSchedule:
    """Drop the steps of other groups' runs, on which a group's name must not depend."""
    names = {run for slot in schedule.slots for run in slot}
    steps = {name: count for name, count in schedule.steps.items() if name in names}
    return replace(schedule, steps=steps)


def group_runs(parts: Mapping[str, PreparedRun]) -> dict[Any, list[str]]:
    """Return the names of the runs that can share a compiled step, by its key."""
    names: dict[Any, list[str]] = {}
    for name, each in parts.items():
        names.setdefault(multi_run_key(each), []).append(name)
    return names


def still_to_do(groups: Iterable[RunGroup], out: Path, finished: Sequence[str]) -> list[RunGroup]:
    """Drop finished groups, and finished runs of groups that have not started."""
    left = []
    for group in groups:
        waiting = [run for run in group.runs if run not in finished]
        started = (out / GROUPS / group.name / CHECKPOINTS).exists()
        if waiting and (started or len(waiting) == len(group.runs)):
            left.append(group)
        elif waiting:
            steps = {run: group.slot_schedule.steps[run] for run in waiting}
            packed = pack_runs(steps, len(group.slot_schedule.slots))
            left += [RunGroup(_of_its_runs(schedule)) for schedule in packed]
    return left


def open_runs(group: RunGroup, parts: Mapping[str, PreparedRun], out: Path) -> dict[str, SlotRun]:
    """Open the run folders of a group."""
    return {
        name: SlotRun(parts[name], RunFolder(out / RUNS / name, parts[name].config()))
        for name in group.runs
    }


# --- Progress


class SweepProgress(StepBar):
    """Progress bar over the steps of all runs, with a line for every finished run."""

    def __init__(self, runs: int, done: int, shown: bool = True) -> None:
        super().__init__(shown)
        self._runs, self._done = runs, done
        self._best: tuple[str, float] | None = None

    def planned(self, steps: int, groups: int) -> None:
        """Start the bar over the remaining steps."""
        self.start(steps)
        self.say(
            f"{self._done} of {self._runs} runs done; {steps} steps left in {groups}"
            f" group{'' if groups == 1 else 's'} of runs"
        )

    def group(self, runs: Sequence[str], slots: int) -> None:
        """Report that a group starts or resumes."""
        listed = ", ".join(runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
        self.say(f"running in {slots} slot{'' if slots == 1 else 's'}: {listed}")

    def stepped(self, steps: int, rows_per_s: float) -> None:
        """Count steps."""
        best = "" if self._best is None else f"{self._best[1]:.3f} ({self._best[0]})"
        shown = {"done": f"{self._done}/{self._runs}", "rows/s": f"{rows_per_s:.0f}", "best": best}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(steps)

    def scored(self, run: str, score: Score) -> None:
        """Report a validation score."""
        if self._best is None or score.value > self._best[1]:
            self._best = (run, score.value)

    def ended(self, run: str, record: Mapping[str, Any]) -> None:
        """Report that a run finished or diverged."""
        self._done += 1
        outcome = record.get("diverged")
        if outcome is None:
            found = record["validation"][record["metric"]]
            outcome = f"validation {record['metric']} {found:.3f} at step {record['best_step']}"
        self.say(f"[{self._done}/{self._runs}] {run}: {outcome}")


# --- Tables of runs and settings

RUN_TABLE, SETTING_TABLE = "runs.csv", "settings.csv"
DONE, DIVERGED, WAITING = "done", "diverged", "waiting"
SPLITS = ("validation", "test")


def run_row(run: SweepRun, result: Mapping[str, Any] | None, diverged: bool) -> dict[str, Any]:
    """Return the row of a run."""
    row = {
        "run": run.name,
        "setting": run.setting,
        "state": DONE if result else DIVERGED if diverged else WAITING,
        "task": result["task"] if result else run.values["task"],
        "backbone": run.values["backbone"],
        "seed": run.options.seed,
    }
    if result is None:
        return row
    scores = {split: result[split][result["metric"]] for split in SPLITS if split in result}
    kept = {name: result[name] for name in ("metric", "best_step", "steps", "elapsed_s")}
    return row | scores | kept


def setting_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Aggregate the seeds of each setting and mark the best setting of each task."""
    together: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["state"] == DONE:
            together.setdefault(row["setting"], []).append(row)
    settings = [_setting(name, runs) for name, runs in together.items()]
    best: dict[Any, dict[str, Any]] = {}
    for setting in settings:
        key = (setting["task"], setting["backbone"])
        if key not in best or setting["validation"] > best[key]["validation"]:
            best[key] = setting
    for setting in settings:
        setting["best"] = any(setting is chosen for chosen in best.values())
    return settings


def _setting(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row = {
        "setting": name,
        "task": runs[0]["task"],
        "backbone": runs[0]["backbone"],
        "metric": runs[0]["metric"],
        "seeds": len(runs),
    }
    for split in SPLITS:
        values = [run[split] for run in runs if split in run]
        if values:
            row[split] = statistics.fmean(values)
            row[f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else float("nan")
    return row


def write_tables(folder: Path, sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``runs.csv`` and ``settings.csv``."""
    varied = [name for name in sweep.varied if name not in ("task", "backbone", "seed")]
    head = ["run", "setting", "state", "task", "backbone", "seed", *varied]
    tail = ["metric", *SPLITS, "best_step", "steps", "elapsed_s"]
    tail = [name for name in tail if name not in head]
    values = {run.name: run.values for run in sweep.runs}
    lines = [
        [({**values[row["run"]], **row}).get(name, "") for name in (*head, *tail)] for row in rows
    ]
    write_table(folder / RUN_TABLE, [*head, *tail], lines)
    columns = ["setting", "task", "backbone", "metric", "seeds", "best"]
    columns += [part for split in SPLITS for part in (split, f"{split}_std")]
    settings = [[row.get(name, "") for name in columns] for row in setting_rows(rows)]
    write_table(folder / SETTING_TABLE, columns, settings)


def describe_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe the settings, the best of each task first, and the runs without a result."""
    settings = setting_rows(rows)
    order = sorted(settings, key=lambda row: (row["task"], row["backbone"], -row["validation"]))
    lines = _aligned(order)
    for state in (DIVERGED, WAITING):
        names = [row["run"] for row in rows if row["state"] == state]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"{len(names)} {state}: {shown}")
    return "\n".join(lines)


def _aligned(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    if not settings:
        return []
    splits = [split for split in SPLITS if any(split in row for row in settings)]
    table = [["  setting", *splits]]
    for row in settings:
        name = f"{'*' if row['best'] else ' '} {row['setting']}"
        table.append([name, *(_score(row, split) for split in splits)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    seeds = max(row["seeds"] for row in settings)
    over = f" over {seeds} seeds (± standard deviation)" if seeds > 1 else ""
    return [*lines, f"* best setting of its task by mean validation score{over}"]


def _score(row: Mapping[str, Any], split: str) -> str:
    if split not in row:
        return ""
    deviation = f" ± {row[f'{split}_std']:.3f}" if row["seeds"] > 1 else ""
    return f"{row[split]:.3f}{deviation}"


# --- Adaptive search
# Optuna's sampler proposes values for the fields of `[search]`. A trial runs every combination of
# the rest of the file with them; its value is their mean validation score. There is no database: a
# resumed search asks the same questions again and finds the answers in the run folders, whose names
# contain the values.

SEARCH_RECORD = "search.json"
SEED = 0
NUMBERS = sorted({*WHOLE, *AMOUNTS} - {"seed"})

Value = int | float


@dataclass(frozen=True)
class Trial:
    """One setting of the searched fields."""

    number: int  # from 1
    values: Mapping[str, Value]
    runs: tuple[SweepRun, ...]  # every combination of the rest of the file
    asked: Any  # Optuna's trial
    validation: float | None = None  # mean of the runs; None before they end or if one diverged

    def describe(self) -> str:
        """Describe values and score in one line."""
        shown = ", ".join(f"{name} {_search_short(value)}" for name, value in self.values.items())
        found = "diverged" if self.validation is None else f"validation {self.validation:.3f}"
        return f"trial {self.number}: {shown}: {found}"


class Search:
    """Proposes settings in rounds and learns from their scores."""

    def __init__(self, plan: Sweep, trials: int | None) -> None:
        _search_check(plan, trials)
        self.plan, self.trials = plan, trials or 0
        self.tried: list[Trial] = []
        self._round: list[Trial] = []
        self._optuna = _require_optuna()
        self._study = _new_study(self._optuna)

    @property
    def whole(self) -> Sweep:
        """All runs so far; a setting proposed twice is run once."""
        return self._sweep([*self.tried, *self._round])

    @property
    def lowest(self) -> SweepRun:
        """Run with the lowest values."""
        values = {name: _plain(name, low) for name, (low, _, _) in self.plan.ranges.items()}
        return with_values(self.plan, values)[0]

    def ask(self, count: int) -> Sweep | None:
        """Return the runs of the next settings, or None after the last trial."""
        left = min(count, self.trials - len(self.tried))
        self._round = [self._ask(len(self.tried) + number) for number in range(1, left + 1)]
        return self._sweep(self._round) if self._round else None

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Record the scores of the last settings; return a line per trial."""
        by_name = {row["run"]: row for row in rows}
        ended = [self._tell(trial, by_name) for trial in self._round]
        self.tried += ended
        self._round = []
        return [trial.describe() for trial in ended]

    def record(self) -> dict[str, Any]:
        """Return the trials and the best one as JSON."""
        found = [trial for trial in self.tried if trial.validation is not None]
        best = max(found, key=lambda trial: trial.validation, default=None)
        tried = [_record(trial) for trial in self.tried]
        return {"best": None if best is None else _record(best), "trials": tried}

    def finish_round(self, folder: Path, choose: Callable[[], int]) -> int:
        """Return the trials per round, fixed for the folder; raise if it is of another search."""
        path = folder / SEARCH_RECORD
        ranges = {name: list(given) for name, given in self.plan.ranges.items()}
        if not path.exists():
            write_json(path, {"ranges": ranges, "trials_at_once": choose()})
        stored, cure = read_json(path), "give a new --out"
        check_values(path, stored, cure, ("ranges", "trials_at_once"))
        if stored["ranges"] != ranges:
            raise InputError(
                f"{folder} holds a search over {stored['ranges']}, not {ranges}; {cure}"
            )
        return stored["trials_at_once"]

    def _ask(self, number: int) -> Trial:
        asked = self._study.ask()
        values = {name: _suggest(asked, name, given) for name, given in self.plan.ranges.items()}
        return Trial(number, values, with_values(self.plan, values), asked)

    def _tell(self, trial: Trial, rows: Mapping[str, Mapping[str, Any]]) -> Trial:
        ended = [rows[run.name] for run in trial.runs]
        if any(row["state"] != DONE for row in ended):
            # Pruned, not failed: the sampler counts the setting among the worst.
            self._study.tell(trial.asked, state=self._optuna.trial.TrialState.PRUNED)
            return trial
        value = statistics.fmean(row["validation"] for row in ended)
        self._study.tell(trial.asked, value)
        return replace(trial, validation=value)

    def _sweep(self, trials: Sequence[Trial]) -> Sweep:
        runs = {run.name: run for trial in trials for run in trial.runs}
        return replace(
            self.plan,
            runs=tuple(runs.values()),
            varied=(*self.plan.varied, *self.plan.ranges),
            ranges={},
        )


def with_values(plan: Sweep, values: Mapping[str, Value]) -> tuple[SweepRun, ...]:
    """Return the runs of a sweep with more fields set."""
    suffix = "".join(f"+{name}={_search_short(value)}" for name, value in values.items())
    return tuple(
        SweepRun(
            f"{run.setting}{suffix}{run.name.removeprefix(run.setting)}",
            f"{run.setting}{suffix}",
            {**run.values, **values},
        )
        for run in plan.runs
    )


def describe_search(record: Mapping[str, Any]) -> str:
    """Describe the best trial in one line."""
    count, best = len(record["trials"]), record["best"]
    if best is None:
        return f"all {count} trials diverged; search lower learning rates"
    shown = ", ".join(f"{name} {_search_short(value)}" for name, value in best["values"].items())
    return (
        f"best of {count} trials: {shown}, validation {best['validation']:.3f} "
        f"(trial {best['trial']})"
    )


def _record(trial: Trial) -> dict[str, Any]:
    found = {"values": dict(trial.values), "validation": trial.validation}
    return {"trial": trial.number, **found, "settings": sorted({run.setting for run in trial.runs})}


def _suggest(asked: Any, name: str, given: tuple[float, float, str]) -> Value:
    """Suggest a value, rounded as in the run's name: an integer, or six digits."""
    low, high, log = _plain(name, given[0]), _plain(name, given[1]), given[2] == "log"
    if name in WHOLE:
        return asked.suggest_int(name, low, high, log=log)
    return float(_search_short(asked.suggest_float(name, low, high, log=log)))


def _plain(name: str, value: float) -> Value:
    return round(value) if name in WHOLE else float(value)


def _search_short(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _search_check(plan: Sweep, trials: int | None) -> None:
    if not plan.ranges:
        raise InputError(
            "got a number of trials, but the sweep has no [search]; add it, for instance "
            "[search] learning_rate = { from = 1e-3, to = 1e-1 }"
        )
    if trials is None:
        raise InputError(
            "the sweep has [search] but no number of trials; give one, for instance --trials 20, "
            "or move the ranges to [grid], with count"
        )
    check_counts(trials=trials)
    for name, (low, high, _) in plan.ranges.items():
        if name not in NUMBERS:
            raise InputError(f"[search] has {name}; expected one of {', '.join(NUMBERS)}")
        for value in (low, high):
            for run in with_values(plan, {name: _plain(name, value)}):
                run.options  # noqa: B018 (validates every value)


def _require_optuna() -> ModuleType:
    try:
        import optuna
    except ImportError:
        raise InputError(
            "adaptive search needs the optuna package; run `pip install 'jpt[search]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _new_study(optuna: ModuleType) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both options are experimental in older versions
        # constant_liar: running trials count as bad, so that those of one round differ.
        sampler = optuna.samplers.TPESampler(seed=SEED, multivariate=True, constant_liar=True)
    return optuna.create_study(direction="maximize", sampler=sampler)


# --- Cleanup after killed processes
# Unfinished runs and groups clean up when they resume. Finished ones are not opened again, so their
# locks, temporary files and checkpoints are removed here.

GROUP_RUNS = "runs.json"  # in the folder of a group: its run names


def tidy_ended(folder: Path, ended: Sequence[str]) -> None:
    """Remove leftovers of finished runs and groups, unless another process holds their locks."""
    for name in on_first(lambda: [each for each in ended if _has_hidden(folder / RUNS / each)]):
        with suppress(InputError), _open(folder, name).lock():
            pass
    for group, names in on_first(lambda: _ended_groups(folder)):
        with suppress(InputError), ExitStack() as held:
            for name in names:
                held.enter_context(_open(folder, name).lock())
            remove_group_folder(folder / GROUPS / group)
    if is_first():
        with suppress(OSError):  # missing, or other groups are running
            (folder / GROUPS).rmdir()


def remove_group_folder(path: Path) -> None:
    """Remove the folder of a group, and with the last one the folder of all groups."""
    if is_first():
        # Checkpoints first: a leftover folder is recognised by the run names next to them.
        shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # other groups are running
            path.parent.rmdir()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Lock the folder while a job writes the tables; remove temporary files of killed jobs."""
    if not is_first():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file system without locks: leftovers stay
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for path in folder.glob(".jpt-*.tmp"):
                path.unlink()
        yield
    finally:
        os.close(descriptor)


def _has_hidden(path: Path) -> bool:
    return any(each.name.startswith(".") for each in path.iterdir())


def _open(folder: Path, name: str) -> RunFolder:
    path = folder / RUNS / name
    return RunFolder(path, on_first(lambda: read_config(path)))


def _ended_groups(folder: Path) -> list[tuple[str, list[str]]]:
    groups = [
        (path.parent.name, read_json(path)) for path in (folder / GROUPS).glob(f"*/{GROUP_RUNS}")
    ]
    return [
        (group, names)
        for group, names in groups
        if isinstance(names, list) and all(has_ended(folder, str(name)) for name in names)
    ]


def has_ended(folder: Path, name: str) -> bool:
    """Return whether a run has its result or diverged."""
    path = folder / RUNS / name
    return (path / RESULT).exists() or read_diverged(path) is not None


# --- Sweeps
# All state is in the folder: each run is an ordinary run folder below ``runs``, an unfinished group
# has its checkpoints below ``groups``, and the tables are derived from the results.

RECORD = "sweep.json"

Workers = Callable[[Sequence[RunGroup], Sequence[SweepRun], Path, SweepProgress], None]


@dataclass(frozen=True)
class SweepResult:
    """Result of `sweep`.

    Attributes:
        folder: Folder of the sweep; ``runs`` below it is a folder of prompts.
        rows: One row per run, as in ``runs.csv``.
        record: Counts by state, the rows, and the result of a search.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    record: dict[str, Any]

    def describe(self) -> str:
        """Describe the settings, the best of each task first."""
        counts = ", ".join(f"{count} {state}" for state, count in self.record["states"].items())
        search = self.record.get("search")
        found = f"{describe_search(search)}\n" if search else ""
        return f"{describe_rows(self.rows)}\n{found}{counts}: {self.folder}"


def sweep(
    grid: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    shard: str | None = None,
    trials: int | None = None,
    mesh: str | None = None,
    workers: Workers | None = None,
    progress: bool = False,
) -> SweepResult:
    """Tune a prompt for every run of a grid and collect the scores in one table.

    Args:
        grid: TOML file, or its tables as a dictionary.
        out: Folder of the sweep; re-run to resume. A larger grid adds runs to it.
        shard: Share ``"i/n"`` of the groups of runs, for job arrays on one folder.
        trials: Number of settings to try, for a grid with ``[search]``; needs optuna.
        mesh: Devices per mesh axis, if the grid sets none; runs of a group are sharded over
            ``prompt``.
        workers: Function that trains the groups (see `jpt.ray_workers`); trained one after the
            other in this process by default.
        progress: Show progress on stderr.

    Returns:
        A `SweepResult` with one row per run. With a shard, runs of other jobs may be waiting.

    Raises:
        InputError: The grid is invalid; raised before anything is compiled.
        StoppedError: SIGTERM or Ctrl-C was received; re-run to resume.

    Example:
        >>> fixed = {"backbone": "builtin/bert-small", "task": "builtin/imdb_number", "steps": 9}
        >>> grid = {"fixed": fixed, "grid": {"seed": [0, 1, 2]}}
        >>> [row["state"] for row in sweep(grid, "swept").rows]  # doctest: +SKIP
        ['done', 'done', 'done']
    """
    plan = read_sweep(grid) if isinstance(grid, str | Path) else parse_sweep(grid)
    plan = plan if mesh is None else on_mesh(plan, mesh)
    share = _shard(shard)
    if not plan.ranges and trials is None:
        return run_sweep(plan, OutFolder(out), share, workers, progress)
    if shard is not None:
        raise InputError("a search cannot be sharded; leave out shard")
    return _search(plan, trials, Path(out), workers, progress)


def run_sweep(
    plan: Sweep, out: OutFolder, share: tuple[int, int], workers: Workers | None, progress: bool
) -> SweepResult:
    """Train the runs of a sweep and collect the results."""
    loader, folder = RunLoader(), out.file()
    chosen = workers or partial(train_here, loader=loader)  # shares the loader's cache

    def work(*given: Any) -> None:
        try:
            chosen(*given)
        except InputError:  # of one group; others may have finished
            _collect(plan, out)
            raise

    _carry_out(plan, folder, share, work, progress, loader)
    return _collect(plan, out)


def _search(
    plan: Sweep, trials: int | None, out: Path, workers: Workers | None, progress: bool
) -> SweepResult:
    """Train the runs that a search proposes, round by round."""
    search, loader = Search(plan, trials), RunLoader()
    workers = workers or partial(train_here, loader=loader)

    def slots() -> int:
        parts, most = loader.prepare(search.lowest), plan.slots or MOST_SLOTS
        return choose_slots(parts, most, plan.slots, plan.memory_gb)

    home = OutFolder(out)
    folder = home.file()
    at_once = search.finish_round(folder, slots)
    while (part := search.ask(at_once)) is not None:
        _carry_out(part, home.file(), (1, 1), workers, progress, loader)
        for line in search.tell(_rows(part, folder)):
            if progress:
                print(line, file=sys.stderr)
        result = _collect(search.whole, home, search.record())
    return result


def _carry_out(
    plan: Sweep,
    folder: Path,
    share: tuple[int, int],
    workers: Workers,
    progress: bool,
    loader: RunLoader,
) -> None:
    """Train the unfinished runs of a sweep."""
    names = on_first(lambda: _done(plan, folder))
    done = [run for run in plan.runs if run.name in names]
    for run in done:
        _refuse_changed(folder, run)
    tidy_ended(folder, [run.name for run in done])
    with SweepProgress(len(plan.runs), len(done), progress) as reporter:
        if len(done) < len(plan.runs):
            groups = _groups(plan, folder, reporter, loader)[share[0] - 1 :: share[1]]
            left = still_to_do(groups, folder, [run.name for run in done])
            reporter.planned(sum(group.steps for group in left), len(left))
            workers(left, plan.runs, folder, reporter)


def _groups(
    plan: Sweep, folder: Path, reporter: SweepProgress, loader: RunLoader
) -> list[RunGroup]:
    """Prepare every run once, which validates it, and pack the runs into groups."""
    parts = {}
    for run in plan.runs:
        parts[run.name] = loader.prepare(run)
        RunFolder(folder / RUNS / run.name, parts[run.name].config())
    for splits in loader.splits.values():
        splits.warn()
    reporter.say(f"{len(parts)} runs, {len(loader.splits)} tasks loaded")
    slots = {
        key: choose_slots(parts[names[0]], len(names), plan.slots, plan.memory_gb)
        for key, names in group_runs(parts).items()
    }
    return pack(parts, slots)


def train_here(
    groups: Sequence[RunGroup],
    runs: Sequence[SweepRun],
    folder: Path,
    reporter: SweepProgress,
    loader: RunLoader | None = None,
) -> None:
    """Train groups in this process, one after the other."""
    loader = loader or RunLoader()
    for group in groups:
        train_group(group, runs, folder, reporter, loader)


def train_group(
    group: RunGroup,
    runs: Sequence[SweepRun],
    folder: Path,
    reporter: SweepProgress,
    loader: RunLoader | None = None,
) -> None:
    """Train one group to its end."""
    loader = loader or RunLoader()
    by_name = {run.name: run for run in runs}
    parts = {name: loader.prepare(by_name[name]) for name in group.runs}
    if not folder.is_dir():  # since the last group
        raise moved_error(folder)
    path = folder / GROUPS / group.name
    write_json(make_folder(path) / GROUP_RUNS, list(group.runs))
    reporter.group(group.runs, len(group.slot_schedule.slots))
    fit_runs(open_runs(group, parts, folder), group.slot_schedule, path / CHECKPOINTS, reporter)
    remove_group_folder(path)


def _done(plan: Sweep, folder: Path) -> list[str]:
    return [
        run.name for run in plan.runs if run_row(run, *_outcome(folder, run))["state"] != WAITING
    ]


def _refuse_changed(folder: Path, run: SweepRun) -> None:
    """Raise InputError if the sweep sets other options than a finished run's config."""
    path, values = folder / RUNS / run.name, dict(run.values)
    stored = read_config(path)
    values["task"] = resolve_task(values["task"], values.pop("data", None)).name
    wanted = identity_of(values)
    if found := differences({name: stored.get(name) for name in wanted}, wanted):
        raise InputError(f"{path} holds another run: {'; '.join(found)}; give a new --out")


def _outcome(folder: Path, run: SweepRun) -> tuple[dict[str, Any] | None, bool]:
    path = folder / RUNS / run.name
    result = read_result(path)
    return result, result is None and read_diverged(path) is not None


def _rows(plan: Sweep, folder: Path) -> list[dict[str, Any]]:
    return [run_row(run, *_outcome(folder, run)) for run in plan.runs]


def _collect(plan: Sweep, out: OutFolder, search: dict[str, Any] | None = None) -> SweepResult:
    folder = out.file()
    rows = _rows(plan, folder)
    states: dict[str, int] = {DONE: 0}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    record = {"states": states, "runs": rows} | ({"search": search} if search else {})
    record |= environment_info()
    with one_at_a_time(folder):
        write_tables(folder, plan, rows)
        write_json(folder / RECORD, record)
    return SweepResult(folder, tuple(rows), record)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"shard is {text!r}; expected i/n with 1 <= i <= n, for instance 1/4")
    return int(number), int(count)
