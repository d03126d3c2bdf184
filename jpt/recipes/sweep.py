"""Many runs from one file: grids, search, multi-run training, progress and result table."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import json
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
from types import ModuleType, TracebackType
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jpt.backbones.registry import Backbone
from jpt.config import AMOUNTS, COUNTS, TuneOptions, check_amount, check_counts
from jpt.data.encode import EncodedSplit
from jpt.distributed import is_first, on_first
from jpt.errors import InputError, unknown_name
from jpt.io.files import make_folder, read_bytes, read_json, write_json, write_table
from jpt.parallel import make_mesh
from jpt.results.prompt_table import short_task
from jpt.results.provenance import environment_info
from jpt.tuning.bound_task import resolve_backbone, resolve_options, resolve_task
from jpt.tuning.multi_run import (
    SlotRun,
    SlotSchedule,
    fit_runs,
    multi_run_key,
    multi_run_train_step,
    pack_runs,
    read_diverged,
    stack_answers,
    stack_batches,
    stack_trees,
)
from jpt.tuning.run_dir import CHECKPOINTS, CONFIG, MAY_DIFFER, RESULT, RunFolder
from jpt.tuning.step import init_state, prompt_optimizer
from jpt.tuning.tune import PreparedRun, prepare_run
from jpt.types import Score

# --- The file that says which runs a sweep has: what is fixed, what varies, what varies together
# [fixed] backbone = "builtin/bert-small" steps = 60 [grid] # every combination task =
# ["builtin/imdb_number", "builtin/imdb_negation"] seed = [0, 1, 2] learning_rate = { from = 1e-3,
# to = 1e-2, count = 3 } # in equal ratios [[zip]] # values that go together length = [10, 20]
# batch_size = [32, 16] [run] # how, not what places = 4 memory_gb = 8

OPTIONS = tuple(each.name for each in dataclasses.fields(TuneOptions))
FIELDS = ("backbone", "task", "data", *OPTIONS)
TABLES = ("fixed", "grid", "zip", "run", "search")
RUN_FIELDS = ("slots", "memory_gb")
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
    slots: int | None = None  # how many runs are trained at once; None leaves it to the machine
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
        setting = "+".join([task, *(f"{name}={_grid_short(values[name])}" for name in others)])
        name = f"{setting}/seed-{values['seed']}" if "seed" in varied else setting
        yield SweepRun(name, setting, values)


def _grid_short(value: Any) -> str:
    """A value as part of a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    parts = [part for part in text.split("/") if part]
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in parts[-1] if c)


def _grid_check(runs: Sequence[SweepRun]) -> None:
    seen: dict[str, SweepRun] = {}
    for run in runs:
        run.options  # noqa: B018 (building them checks every value)
        if run.name in seen:
            raise InputError(f"two runs are called {run.name}; give values whose names differ")
        seen[run.name] = run


# --- How many runs a machine can train at once

MOST_SLOTS = 8
"""Where nothing else is said, on an accelerator: more runs at once make its products no faster."""
GB = 1e9


def choose_slots(parts: PreparedRun, runs: int, asked: int | None, memory_gb: float | None) -> int:
    """Chooses how many runs of one kind are trained at once."""
    # On a CPU one after the other: its cores are busy with one run, and runs side by side pad their
    # texts to the longest among them. On an accelerator as many as fit, up to `MOST_SLOTS`.
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
            f"({weights / GB:.2f} of weights, {each / GB:.2f} a run), but {limit / GB:.2f} are "
            "allowed; give fewer places, a smaller batch_size or max_tokens, or more memory_gb"
        )
    return min(wanted, fit)


def run_bytes(parts: PreparedRun) -> tuple[int, int]:
    """Says what the compiled step of one run takes at its longest texts."""
    options, backbone = parts.options, parts.backbone
    batch = _longest(parts)
    state = stack_trees([init_state(parts.initial, prompt_optimizer(1.0))])
    step = multi_run_train_step(backbone.module, options.objective, None, options.clip_norm)
    given = (batch, stack_answers([parts.bound.answer]))
    numbers = (np.ones(1, np.float32), np.zeros(1, np.uint32))
    analysis = step.lower(backbone.params, state, *given, *numbers).compile().memory_analysis()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(backbone.params))
    rest = analysis.argument_size_in_bytes - weights + analysis.output_size_in_bytes
    return weights, max(1, rest + analysis.temp_size_in_bytes)


def _longest(parts: PreparedRun) -> Any:
    """A batch of this run, its texts as long as any can be."""
    options = parts.options
    batch = parts.batches.batch_at(0)
    room = options.max_tokens - batch.tokens.shape[1]
    tokens = np.pad(batch.tokens, ((0, 0), (0, max(0, room))))
    return stack_batches([batch._replace(tokens=tokens)], 0)


def _device_bytes() -> int | None:
    """What the device can hold, where it tells; a CPU does not."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


# --- Makes a sweep's runs ready and packs those that share a program into banks

RUNS, BANKS = "runs", "groups"


@dataclass(frozen=True)
class RunGroup:
    """Runs that are trained together."""

    slot_schedule: SlotSchedule  # which of them is in which place when

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of its runs."""
        return tuple(run for place in self.slot_schedule.slots for run in place)

    @property
    def name(self) -> str:
        """Its folder below ``groups``: a checksum of what is in it."""
        text = repr((self.slot_schedule.slots, sorted(self.slot_schedule.steps.items())))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def steps(self) -> int:
        """Steps of all its runs."""
        return sum(self.slot_schedule.steps[run] for run in self.runs)


@dataclass
class RunLoader:
    """Makes runs ready; backbones and rows that several of them need are read once."""

    # those that were loaded
    backbones: dict[tuple[Any, ...], Backbone] = field(default_factory=dict)
    # the encoded rows of tasks
    splits: dict[tuple[Any, ...], dict[str, EncodedSplit]] = field(default_factory=dict)

    def prepare(self, run: SweepRun) -> PreparedRun:
        """Loads and checks everything that a run needs, before anything is compiled."""
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
        settled = resolve_options(options, backbone, task)
        texts = (settled.max_tokens, settled.answer_tokens, settled.label_scoring)
        rows = (key, values["task"], values.get("data"), *texts)
        parts = prepare_run(backbone, task, None, options, splits=self.splits.get(rows))
        self.splits[rows] = parts.splits
        return parts


def pack(parts: Mapping[str, PreparedRun], slots: Mapping[Any, int]) -> list[RunGroup]:
    """Packs runs into banks, the same ones for the same sweep wherever it is planned."""
    banks = []
    for key, names in group_runs(parts).items():
        steps = {name: parts[name].options.steps for name in names}
        banks += [
            RunGroup(_in_task(slot_schedule)) for slot_schedule in pack_runs(steps, slots[key])
        ]
    return banks


def _in_task(slot_schedule: SlotSchedule) -> SlotSchedule:
    """Leaves out the steps of other banks' runs, so that its name does not hang on them."""
    names = {run for place in slot_schedule.slots for run in place}
    return dataclasses.replace(
        slot_schedule,
        steps={name: slot_schedule.steps[name] for name in slot_schedule.steps if name in names},
    )


def group_runs(parts: Mapping[str, PreparedRun]) -> dict[Any, list[str]]:
    """Puts runs together that can share a bank."""
    groups: dict[Any, list[str]] = {}
    for name, each in parts.items():
        groups.setdefault(multi_run_key(each), []).append(name)
    return groups


def still_to_do(banks: Iterable[RunGroup], out: Path, finished: Sequence[str]) -> list[RunGroup]:
    """Leaves out what is done: whole banks, and finished runs of banks that never began."""
    left = []
    for bank in banks:
        waiting = [run for run in bank.runs if run not in finished]
        begun = (out / BANKS / bank.name / CHECKPOINTS).exists()
        if waiting and (begun or len(waiting) == len(bank.runs)):
            left.append(bank)
        elif waiting:
            steps = {run: bank.slot_schedule.steps[run] for run in waiting}
            packed = pack_runs(steps, len(bank.slot_schedule.slots))
            left += [RunGroup(_in_task(slot_schedule)) for slot_schedule in packed]
    return left


def banked_runs(bank: RunGroup, parts: Mapping[str, PreparedRun], out: Path) -> dict[str, SlotRun]:
    """Opens the folders of a bank's runs."""
    return {
        name: SlotRun(parts[name], RunFolder(out / RUNS / name, parts[name].config()))
        for name in bank.runs
    }


def is_finished(out: Path, name: str) -> bool:
    """Whether a run has its result."""
    return (out / RUNS / name / RESULT).exists()


# --- What a person sees of a sweep: runs done and running, the best so far, the time left


class SweepProgress:
    """A bar over the steps of all runs, and a line for every run that ends."""

    def __init__(self, runs: int, done: int, shown: bool = True) -> None:
        self._runs, self._done, self._shown = runs, done, shown
        self._best: tuple[str, float] | None = None
        self._bar = tqdm(disable=True)

    def __enter__(self) -> SweepProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def planned(self, steps: int, banks: int) -> None:
        """Says what is left to do."""
        self._bar = tqdm(
            total=steps,
            disable=not self._shown,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self.say(f"{self._done} of {self._runs} done before; {steps} steps in {banks} banks left")

    def bank(self, runs: Sequence[str], slots: int) -> None:
        """A bank begins, or goes on."""
        listed = ", ".join(runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
        self.say(f"running, {slots} at once: {listed}")

    def stepped(self, steps: int, rows_per_s: float) -> None:
        """So many runs did a step."""
        best = "" if self._best is None else f"{self._best[1]:.3f} ({self._best[0]})"
        shown = {"done": f"{self._done}/{self._runs}", "rows/s": f"{rows_per_s:.0f}", "best": best}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(steps)

    def scored(self, run: str, score: Score) -> None:
        """A run was scored on validation."""
        if self._best is None or score.value > self._best[1]:
            self._best = (run, score.value)

    def ended(self, run: str, record: Mapping[str, Any]) -> None:
        """A run is finished, or has diverged."""
        self._done += 1
        said = record.get("diverged")
        if said is None:
            found = record["validation"][record["metric"]]
            said = f"validation {record['metric']} {found:.3f} at step {record['best_step']}"
        self.say(f"[{self._done}/{self._runs}] {run}: {said}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._shown:
            self._bar.write(line, file=sys.stderr)


# --- What a sweep found: its runs, its settings over their seeds, the best setting of each task

RUN_TABLE, SETTING_TABLE = "runs.csv", "settings.csv"
DONE, DIVERGED, WAITING = "done", "diverged", "waiting"
SPLITS = ("validation", "test")


def run_row(run: SweepRun, result: Mapping[str, Any] | None, diverged: bool) -> dict[str, Any]:
    """Puts together what is known of a run."""
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
    """Puts the seeds of each setting together, and marks the best setting of each task."""
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
    """Writes both tables."""
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
    """Says what came out: the best setting of each task first, then what is not done."""
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
    told = f" over {seeds} seeds (± one standard deviation)" if seeds > 1 else ""
    return [*lines, f"* the best setting of its task, by the mean on validation{told}"]


def _score(row: Mapping[str, Any], split: str) -> str:
    if split not in row:
        return ""
    deviation = f" ± {row[f'{split}_std']:.3f}" if row["seeds"] > 1 else ""
    return f"{row[split]:.3f}{deviation}"


# --- Adaptive search: which settings a sweep tries next, given how those before have done
# Optuna's sampler proposes values for the fields of `[search]`; a trial runs every combination of
# the rest of the file with them, and its value is their mean score on validation. No database: a
# search that goes on asks the same questions again and finds the answers in the folders of its
# runs, whose names hold the values.

SEARCH_RECORD = "search.json"
SEED = 0
NUMBERS = sorted({*WHOLE, *AMOUNTS} - {"seed"})

Value = int | float


@dataclass(frozen=True)
class Trial:
    """One setting that is tried."""

    number: int  # from 1
    values: Mapping[str, Value]  # of the searched fields
    runs: tuple[SweepRun, ...]  # every combination of the rest of the file with them
    asked: Any  # Optuna's own record of it
    # mean score of the runs; None before they have ended, or where one diverged
    validation: float | None = None

    def describe(self) -> str:
        """Says what was tried and what came out."""
        shown = ", ".join(f"{name} {_search_short(value)}" for name, value in self.values.items())
        found = "diverged" if self.validation is None else f"validation {self.validation:.3f}"
        return f"trial {self.number}: {shown}: {found}"


class Search:
    """Asks for settings in rounds and is told how they did."""

    def __init__(self, plan: Sweep, trials: int | None) -> None:
        _search_check(plan, trials)
        self.plan, self.trials = plan, trials or 0
        self.tried: list[Trial] = []
        self._round: list[Trial] = []
        self._optuna = _require_optuna()
        self._study = _new_study(self._optuna)

    @property
    def whole(self) -> Sweep:
        """All runs so far; a setting that was asked for twice is run once."""
        return self._sweep([*self.tried, *self._round])

    @property
    def lowest(self) -> SweepRun:
        """A run at the lowest values."""
        values = {name: _plain(name, low) for name, (low, _, _) in self.plan.ranges.items()}
        return with_values(self.plan, values)[0]

    def ask(self, count: int) -> Sweep | None:
        """Asks for the next settings."""
        left = min(count, self.trials - len(self.tried))
        self._round = [self._ask(len(self.tried) + number) for number in range(1, left + 1)]
        return self._sweep(self._round) if self._round else None

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Tells how the settings did that were asked for last."""
        by_name = {row["run"]: row for row in rows}
        ended = [self._tell(trial, by_name) for trial in self._round]
        self.tried += ended
        self._round = []
        return [trial.describe() for trial in ended]

    def record(self) -> dict[str, Any]:
        """Gives what was tried and the best of it, as JSON."""
        found = [trial for trial in self.tried if trial.validation is not None]
        best = max(found, key=lambda trial: trial.validation, default=None)
        tried = [_record(trial) for trial in self.tried]
        return {"best": None if best is None else _record(best), "trials": tried}

    def finish_round(self, folder: Path, choose: Callable[[], int]) -> int:
        """Settles how many trials are asked for at once, and that the folder is of this search."""
        path = folder / SEARCH_RECORD
        ranges = {name: list(given) for name, given in self.plan.ranges.items()}
        if not path.exists():
            write_json(path, {"ranges": ranges, "trials_at_once": choose()})
        stored = read_json(path)
        if stored["ranges"] != ranges:
            raise InputError(
                f"{folder} holds a search over {stored['ranges']}, not {ranges}; give a new --out"
            )
        return stored["trials_at_once"]

    def _ask(self, number: int) -> Trial:
        asked = self._study.ask()
        values = {name: _suggest(asked, name, given) for name, given in self.plan.ranges.items()}
        return Trial(number, values, with_values(self.plan, values), asked)

    def _tell(self, trial: Trial, rows: Mapping[str, Mapping[str, Any]]) -> Trial:
        in_task = [rows[run.name] for run in trial.runs]
        if any(row["state"] != DONE for row in in_task):
            # Pruned, not failed: the sampler then counts the setting among the worst.
            self._study.tell(trial.asked, state=self._optuna.trial.TrialState.PRUNED)
            return trial
        value = statistics.fmean(row["validation"] for row in in_task)
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
    """Repeats the runs of a sweep with more fields set."""
    told = "".join(f"+{name}={_search_short(value)}" for name, value in values.items())
    return tuple(
        SweepRun(
            f"{run.setting}{told}{run.name.removeprefix(run.setting)}",
            f"{run.setting}{told}",
            {**run.values, **values},
        )
        for run in plan.runs
    )


def describe_search(record: Mapping[str, Any]) -> str:
    """Says in one line what a search has found."""
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
    """A value as it stands in the name of a run: a whole number, or six digits."""
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
            "a number of trials is given, but no [search]; write it into the file, for instance "
            "[search] learning_rate = { from = 1e-3, to = 1e-1 }"
        )
    if trials is None:
        raise InputError(
            "the file has [search]; say how many settings to try, for instance --trials 20, or "
            "move its ranges to [grid], with count"
        )
    check_counts(trials=trials)
    for name, (low, high, _) in plan.ranges.items():
        if name not in NUMBERS:
            raise InputError(f"[search] has {name}, but searches numbers: {', '.join(NUMBERS)}")
        for value in (low, high):
            for run in with_values(plan, {name: _plain(name, value)}):
                run.options  # noqa: B018 (building them checks every value)


def _require_optuna() -> ModuleType:
    try:
        import optuna
    except ImportError:
        raise InputError(
            "an adaptive search needs the optuna package; run `pip install 'jpt[search]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _new_study(optuna: ModuleType) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both options were experimental once
        # A running trial counts as bad, so that those of one round differ.
        sampler = optuna.samplers.TPESampler(seed=SEED, multivariate=True, constant_liar=True)
    return optuna.create_study(direction="maximize", sampler=sampler)


# --- What a killed process leaves in the folder of a sweep when its runs had ended already
# Runs and banks that are not done clear up when they go on. Those that are done are not opened
# again, so their locks, temporary files and checkpoints are looked for here.

GROUP_RUNS = "runs.json"
"""In the folder of a bank: the names of its runs."""


def tidy_ended(folder: Path, ended: Sequence[str]) -> None:
    """Removes what was left of runs that have ended, and of banks that have no others."""
    # What another process is at work on stays.
    for name in on_first(lambda: [each for each in ended if _has_hidden(folder / RUNS / each)]):
        with suppress(InputError), _open(folder, name).lock():
            pass
    for bank, names in on_first(lambda: _ended_groups(folder)):
        with suppress(InputError), ExitStack() as held:
            for name in names:
                held.enter_context(_open(folder, name).lock())
            remove_multi_run_folder(folder / BANKS / bank)
    if is_first():
        with suppress(OSError):  # there is none, or banks are under way
            (folder / BANKS).rmdir()


def remove_multi_run_folder(path: Path) -> None:
    """Removes the checkpoints of a bank, and with the last one the folder of all banks."""
    if is_first():
        shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)  # first: its runs are named beside it
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # other banks are under way
            path.parent.rmdir()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one job at a time write the tables; the temporary files of one that was killed go."""
    if not is_first():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without locks: a leftover stays
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
    return RunFolder(path, on_first(lambda: read_json(path / CONFIG)))


def _ended_groups(folder: Path) -> list[tuple[str, list[str]]]:
    banks = [
        (path.parent.name, read_json(path)) for path in (folder / BANKS).glob(f"*/{GROUP_RUNS}")
    ]
    return [(bank, names) for bank, names in banks if all(_ended(folder, name) for name in names)]


def _ended(folder: Path, name: str) -> bool:
    path = folder / RUNS / name
    return (path / RESULT).exists() or read_diverged(path) is not None


# --- Many runs from one file: packed into banks, resumable, ending in one table
# The folder is the only truth. Each run is an ordinary run folder below ``runs``; a bank that is
# under way has its checkpoints below ``groups``; the tables are read from the results, never kept.

RECORD = "sweep.json"

Workers = Callable[[Sequence[RunGroup], Sequence[SweepRun], Path, SweepProgress], None]


@dataclass(frozen=True)
class SweepResult:
    """What `sweep` gives.

    Attributes:
        folder: of the sweep; ``runs`` below it is a folder of prompts.
        rows: a row for each run, as in ``runs.csv``.
        record: counts by state, the rows, and what a search has found.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    record: dict[str, Any]

    def describe(self) -> str:
        """Says what came out, the best setting of each task first."""
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
    """Tunes a prompt for every run of a grid, and puts their scores into one table.

    Args:
        grid: the TOML file, or its tables as a dictionary.
        out: folder of the sweep; the same call goes on there, and a larger grid adds to it.
        shard: ``"i/n"``: only every n-th bank from the i-th on, for job arrays on one folder.
        trials: how many settings are tried of a grid with ``[search]``; needs optuna.
        mesh: devices by axis, where the file names none; runs of a bank lie over ``prompt``.
        workers: who trains the banks; by default this process, one bank after the other.
        progress: whether to show on stderr how far it is.

    Returns:
        A row a run. With a shard, other jobs' runs may still be waiting.

    Raises:
        InputError: a grid that cannot work, before anything is compiled.
        StoppedError: after SIGTERM or Ctrl-C; the same call goes on.

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
        return run_sweep(plan, make_folder(out), share, workers, progress)
    if shard is not None:
        raise InputError("a search asks for its next settings in one place; leave out shard")
    return _search(plan, trials, Path(out), workers, progress)


def run_sweep(
    plan: Sweep, folder: Path, share: tuple[int, int], workers: Workers | None, progress: bool
) -> SweepResult:
    """Carries out what a sweep file says."""
    preparer = RunLoader()
    chosen = workers or partial(train_here, preparer=preparer)  # what was read is read once

    def work(*given: Any) -> None:
        try:
            chosen(*given)
        except InputError:  # of one bank; the others may have ended
            _collect(plan, folder)
            raise

    _carry_out(plan, folder, share, work, progress, preparer)
    return _collect(plan, folder)


def _search(
    plan: Sweep, trials: int | None, out: Path, workers: Workers | None, progress: bool
) -> SweepResult:
    """Lets a search choose the runs, round after round."""
    search, preparer = Search(plan, trials), RunLoader()
    workers = workers or partial(train_here, preparer=preparer)

    def slots() -> int:
        parts, most = preparer.prepare(search.lowest), plan.slots or MOST_SLOTS
        return choose_slots(parts, most, plan.slots, plan.memory_gb)

    folder = make_folder(out)
    at_once = search.finish_round(folder, slots)
    while (part := search.ask(at_once)) is not None:
        _carry_out(part, folder, (1, 1), workers, progress, preparer)
        for line in search.tell(_rows(part, folder)):
            if progress:
                print(line, file=sys.stderr)
        result = _collect(search.whole, folder, search.record())
    return result


def _carry_out(
    plan: Sweep,
    folder: Path,
    share: tuple[int, int],
    workers: Workers,
    progress: bool,
    preparer: RunLoader,
) -> None:
    """Trains what is left of a sweep."""
    names = on_first(lambda: _done(plan, folder))
    done = [run for run in plan.runs if run.name in names]
    for run in done:
        _refuse_changed(folder, run)
    tidy_ended(folder, [run.name for run in done])
    with SweepProgress(len(plan.runs), len(done), progress) as shown:
        if len(done) < len(plan.runs):
            banks = _banks(plan, folder, shown, preparer)[share[0] - 1 :: share[1]]
            left = still_to_do(banks, folder, [run.name for run in done])
            shown.planned(sum(bank.steps for bank in left), len(left))
            workers(left, plan.runs, folder, shown)


def _banks(plan: Sweep, folder: Path, shown: SweepProgress, preparer: RunLoader) -> list[RunGroup]:
    """Makes every run ready once, which finds what cannot work, and packs them."""
    parts = {}
    for run in plan.runs:
        parts[run.name] = preparer.prepare(run)
        RunFolder(folder / RUNS / run.name, parts[run.name].config())
    shown.say(f"{len(parts)} runs, {len(preparer.splits)} tasks read")
    slots = {
        key: choose_slots(parts[names[0]], len(names), plan.slots, plan.memory_gb)
        for key, names in group_runs(parts).items()
    }
    return pack(parts, slots)


def train_here(
    banks: Sequence[RunGroup],
    runs: Sequence[SweepRun],
    folder: Path,
    shown: SweepProgress,
    preparer: RunLoader | None = None,
) -> None:
    """Trains banks in this process, one after the other."""
    preparer = preparer or RunLoader()
    for bank in banks:
        train_group(bank, runs, folder, shown, preparer)


def train_group(
    bank: RunGroup,
    runs: Sequence[SweepRun],
    folder: Path,
    shown: SweepProgress,
    preparer: RunLoader | None = None,
) -> None:
    """Trains one bank to its end."""
    preparer = preparer or RunLoader()
    by_name = {run.name: run for run in runs}
    parts: dict[str, PreparedRun] = {name: preparer.prepare(by_name[name]) for name in bank.runs}
    place = folder / BANKS / bank.name
    write_json(make_folder(place) / GROUP_RUNS, list(bank.runs))
    shown.bank(bank.runs, len(bank.slot_schedule.slots))
    fit_runs(banked_runs(bank, parts, folder), bank.slot_schedule, place / CHECKPOINTS, shown)
    remove_group(bank, folder)


def remove_group(bank: RunGroup, folder: Path) -> None:
    """Removes the checkpoints of a bank whose runs have all ended."""
    remove_multi_run_folder(folder / BANKS / bank.name)


def _done(plan: Sweep, folder: Path) -> list[str]:
    return [
        run.name for run in plan.runs if run_row(run, *_outcome(folder, run))["state"] != WAITING
    ]


def _refuse_changed(folder: Path, run: SweepRun) -> None:
    """A finished run is not made ready again: what the file sets is held against its config."""
    path = folder / RUNS / run.name / CONFIG
    stored = read_json(path)
    changed = [
        f"{name} was {stored.get(name)!r} and is now {value!r}"
        for name, value in run.values.items()
        if name in OPTIONS and name not in MAY_DIFFER and stored.get(name) != value
    ]
    if changed:
        raise InputError(f"{path.parent} holds another run: {'; '.join(changed)}; give a new --out")


def _outcome(folder: Path, run: SweepRun) -> tuple[dict[str, Any] | None, bool]:
    path = folder / RUNS / run.name
    result = path / RESULT
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8")), False
    return None, read_diverged(path) is not None


def _rows(plan: Sweep, folder: Path) -> list[dict[str, Any]]:
    return [run_row(run, *_outcome(folder, run)) for run in plan.runs]


def _collect(plan: Sweep, folder: Path, search: dict[str, Any] | None = None) -> SweepResult:
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
        raise InputError(f"shard is {text!r}; give i/n, for instance 1/4 to 4/4")
    return int(number), int(count)
