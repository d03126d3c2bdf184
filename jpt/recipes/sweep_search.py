"""Adaptive search: which settings a sweep tries next, given how those before have done.

Optuna's sampler proposes values for the fields of `[search]`; a trial runs every combination of the
rest of the file with them, and its value is their mean score on validation. No database: a search
that goes on asks the same questions again and finds the answers in the folders of its runs, whose
names hold the values.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from jpt.config import AMOUNTS, check_counts
from jpt.errors import InputError
from jpt.files.atomic import write_json
from jpt.files.reading import read_json
from jpt.recipes.sweep_grid import WHOLE, Sweep, SweepRun
from jpt.recipes.sweep_table import DONE

RECORD = "search.json"
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
        shown = ", ".join(f"{name} {_short(value)}" for name, value in self.values.items())
        found = "diverged" if self.validation is None else f"validation {self.validation:.3f}"
        return f"trial {self.number}: {shown}: {found}"


class Search:
    """Asks for settings in rounds and is told how they did."""

    def __init__(self, plan: Sweep, trials: int | None) -> None:
        _check(plan, trials)
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

    def settle_round(self, folder: Path, choose: Callable[[], int]) -> int:
        """Settles how many trials are asked for at once, and that the folder is of this search."""
        path = folder / RECORD
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
        own = [rows[run.name] for run in trial.runs]
        if any(row["state"] != DONE for row in own):
            # Pruned, not failed: the sampler then counts the setting among the worst.
            self._study.tell(trial.asked, state=self._optuna.trial.TrialState.PRUNED)
            return trial
        value = statistics.fmean(row["validation"] for row in own)
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
    told = "".join(f"+{name}={_short(value)}" for name, value in values.items())
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
    shown = ", ".join(f"{name} {_short(value)}" for name, value in best["values"].items())
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
    return float(_short(asked.suggest_float(name, low, high, log=log)))


def _plain(name: str, value: float) -> Value:
    return round(value) if name in WHOLE else float(value)


def _short(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _check(plan: Sweep, trials: int | None) -> None:
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
