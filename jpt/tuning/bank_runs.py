"""The runs of a bank: what each keeps of its own, and which can be trained together."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32

from jpt.prompts.store import save_prompt
from jpt.tuning.bank_step import answer_kind
from jpt.tuning.loop import Schedule
from jpt.tuning.run_folder import BEST, LAST, RESULT, RunFolder
from jpt.tuning.scoring import Score
from jpt.tuning.tune import PreparedRun, result_record

DIVERGED = "diverged.json"
"""Beside a run's log, where its loss has become no number: at which step."""


class BankProgress(Protocol):
    """Who is told how far a bank is."""

    def turned(self, steps: int, rows_per_s: float) -> None:
        """So many runs did a step."""

    def scored(self, run: str, score: Score) -> None:
        """A run was scored on validation."""

    def ended(self, run: str, record: Mapping[str, Any]) -> None:
        """A run is finished, or has diverged."""

    def say(self, line: str) -> None:
        """There is something to be told."""


@dataclass
class BankedRun:
    """One run of a bank."""

    parts: PreparedRun  # backbone, rows, options, initial prompt
    folder: RunFolder  # where it is written
    history: list[dict[str, Any]] = field(default_factory=list)  # logged lines
    # the best prompt on validation so far, its score and its step
    best: tuple[Float32[np.ndarray, "P D"] | None, float, int] = (None, -math.inf, 0)
    diverged: dict[str, Any] | None = None  # what is said of a run whose loss is no number any more
    started_s: float = field(default_factory=time.monotonic)

    @property
    def schedule(self) -> Schedule:
        """When what is done."""
        options = self.parts.options
        return Schedule(
            options.steps, options.eval_every, options.checkpoint_every, options.batch_size
        )

    def log(self, line: dict[str, Any]) -> None:
        """Keeps one line of the log."""
        self.history.append(line)
        self.folder.log(line)

    def rewind(self, step: int) -> None:
        """Forgets what came after a checkpoint of the bank."""
        self.folder.rewind(step if step else -1)
        self.history = self.folder.history()
        if step < self.parts.options.steps:
            (self.folder.path / RESULT).unlink(missing_ok=True)
        self.diverged = read_diverged(self.folder.path)
        if self.diverged is not None and self.diverged["step"] > step:
            (self.folder.path / DIVERGED).unlink()
            self.diverged = None


def read_diverged(folder: Path) -> dict[str, Any] | None:
    """Reads what is said of a run whose loss has become no number."""
    path = folder / DIVERGED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def bank_key(parts: PreparedRun) -> tuple[Any, ...]:
    """Says which runs can be trained in one bank."""
    options, split = parts.options, parts.splits["train"]
    written = None if split.answers is None else split.answers.width
    # As many rows as have so many tokens: every step has another shape.
    alone = (parts.prepared.task.name, options.seed) if options.tokens_per_batch else None
    return (
        parts.backbone.fingerprint,
        (options.dtype, options.dropout, options.remat, options.mesh),
        (options.length, options.batch_size, options.objective, options.clip_norm),
        answer_kind(parts.prepared.answer),
        (written, alone),
    )


def scoring_key(parts: PreparedRun) -> tuple[Any, ...]:
    """Says which runs can be scored together: those of one task, whose rows travel once."""
    split = parts.splits["validation"]
    return parts.prepared.task.name, split.content, parts.prepared.batching, split.n_rows


def finish_run(run: BankedRun, last: Float32[np.ndarray, "P D"]) -> dict[str, Any]:
    """Writes what a run ends with: its best and its last prompt, and its result."""
    values, score, step = run.best
    best = run.parts.prompt(values, step, score)
    record = result_record(run.parts, best, run.history, run.started_s, None)
    save_prompt(run.folder.path / BEST, best)
    save_prompt(run.folder.path / LAST, run.parts.prompt(last, run.parts.options.steps, None))
    run.folder.finish(record)
    return record
