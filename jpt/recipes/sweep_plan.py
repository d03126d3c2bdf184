"""Makes a sweep's runs ready and packs those that share a program into banks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jpt.backbones.registry import Backbone
from jpt.data.encode import EncodedSplit
from jpt.errors import InputError
from jpt.mesh import make_mesh
from jpt.recipes.sweep_grid import SweepRun
from jpt.tuning.bank_runs import BankedRun, bank_key
from jpt.tuning.bank_timeline import Timeline, pack_runs
from jpt.tuning.prepare import as_backbone, as_task
from jpt.tuning.run_folder import CHECKPOINTS, RESULT, RunFolder
from jpt.tuning.settle import settle_options
from jpt.tuning.tune import PreparedRun, prepare_run

RUNS, BANKS = "runs", "banks"


@dataclass(frozen=True)
class Bank:
    """Runs that are trained together."""

    timeline: Timeline  # which of them is in which place when

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of its runs."""
        return tuple(run for place in self.timeline.places for run in place)

    @property
    def name(self) -> str:
        """Its folder below ``banks``: a checksum of what is in it."""
        text = repr((self.timeline.places, sorted(self.timeline.steps.items())))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def steps(self) -> int:
        """Steps of all its runs."""
        return sum(self.timeline.steps[run] for run in self.runs)


@dataclass
class Preparer:
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
            self.backbones[key] = as_backbone(values["backbone"], *choices)
        backbone = self.backbones[key]
        task = as_task(values["task"], values.get("data"))
        settled = settle_options(options, backbone, task)
        texts = (settled.max_tokens, settled.answer_tokens, settled.label_scoring)
        rows = (key, values["task"], values.get("data"), *texts)
        parts = prepare_run(backbone, task, None, options, splits=self.splits.get(rows))
        self.splits[rows] = parts.splits
        return parts


def pack(parts: Mapping[str, PreparedRun], places: Mapping[Any, int]) -> list[Bank]:
    """Packs runs into banks, the same ones for the same sweep wherever it is planned."""
    banks = []
    for key, names in group_runs(parts).items():
        steps = {name: parts[name].options.steps for name in names}
        banks += [Bank(_own(timeline)) for timeline in pack_runs(steps, places[key])]
    return banks


def _own(timeline: Timeline) -> Timeline:
    """Leaves out the steps of other banks' runs, so that its name does not hang on them."""
    names = {run for place in timeline.places for run in place}
    return dataclasses.replace(
        timeline, steps={name: timeline.steps[name] for name in timeline.steps if name in names}
    )


def group_runs(parts: Mapping[str, PreparedRun]) -> dict[Any, list[str]]:
    """Puts runs together that can share a bank."""
    groups: dict[Any, list[str]] = {}
    for name, each in parts.items():
        groups.setdefault(bank_key(each), []).append(name)
    return groups


def still_to_do(banks: Iterable[Bank], out: Path, finished: Sequence[str]) -> list[Bank]:
    """Leaves out what is done: whole banks, and finished runs of banks that never began."""
    left = []
    for bank in banks:
        waiting = [run for run in bank.runs if run not in finished]
        begun = (out / BANKS / bank.name / CHECKPOINTS).exists()
        if waiting and (begun or len(waiting) == len(bank.runs)):
            left.append(bank)
        elif waiting:
            steps = {run: bank.timeline.steps[run] for run in waiting}
            packed = pack_runs(steps, len(bank.timeline.places))
            left += [Bank(_own(timeline)) for timeline in packed]
    return left


def banked_runs(bank: Bank, parts: Mapping[str, PreparedRun], out: Path) -> dict[str, BankedRun]:
    """Opens the folders of a bank's runs."""
    return {
        name: BankedRun(parts[name], RunFolder(out / RUNS / name, parts[name].config()))
        for name in bank.runs
    }


def is_finished(out: Path, name: str) -> bool:
    """Whether a run has its result."""
    return (out / RUNS / name / RESULT).exists()
