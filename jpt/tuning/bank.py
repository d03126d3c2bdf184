"""Several runs trained at once on one frozen model: each ends as if it had run alone.

Runs keep their own folders, logs, schedules and results; what they share is the compiled step, the
weights, and one checkpoint of the whole bank, so that a stopped bank goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jpt.errors import InputError, StoppedError
from jpt.files.atomic import write_json
from jpt.mesh import fetch, place
from jpt.processes import Vote
from jpt.tuning.bank_runs import (
    DIVERGED,
    BankedRun,
    BankProgress,
    bank_key,
    finish_run,
    scoring_key,
)
from jpt.tuning.bank_step import (
    bank_train_step,
    run_sharding,
    stack_answers,
    stack_batches,
    stack_trees,
)
from jpt.tuning.bank_timeline import Timeline
from jpt.tuning.checkpoints import Checkpoints
from jpt.tuning.compile_log import CompileLog
from jpt.tuning.loop import EXIT_CODES, LOG_EVERY, stop_requests
from jpt.tuning.step import StepMetrics, TuneState, init_state, prompt_optimizer
from jpt.tuning.tune import PreparedRun

Turn = list[tuple[str, int] | None]


def run_bank(
    runs: Mapping[str, BankedRun],
    timeline: Timeline,
    folder: str | Path,
    progress: BankProgress,
    checkpoint_every: int | None = None,
) -> None:
    """Trains the runs of a bank to their end; each writes its result into its own folder."""
    if len({bank_key(run.parts) for run in runs.values()}) > 1:
        raise InputError("these runs differ in what a bank shares: backbone, sizes or objective")
    some = next(iter(runs.values())).parts
    every = checkpoint_every or some.options.checkpoint_every
    with ExitStack() as held:
        for run in runs.values():
            held.enter_context(run.folder.lock())
        checkpoints = held.enter_context(Checkpoints(Path(folder), some.backbone.fingerprint))
        _Bank(runs, timeline, checkpoints, progress, every).carry_out()


@dataclass
class _Bank:
    """The loop over turns."""

    runs: Mapping[str, BankedRun]
    timeline: Timeline
    checkpoints: Checkpoints
    progress: BankProgress
    checkpoint_every: int

    def __post_init__(self) -> None:
        self.some = next(iter(self.runs.values())).parts
        self.mesh = self.some.mesh
        axis = self.mesh.shape["prompt"]
        self.n_places = math.ceil(len(self.timeline.places) / axis) * axis
        options = self.some.options
        self.step = bank_train_step(
            self.some.backbone.module, options.objective, self.mesh, options.clip_norm
        )
        self.given: tuple[tuple[str | None, ...], tuple[Any, ...]] = ((), ())

    def carry_out(self) -> None:
        first, state = self._start()
        pending, since_s, vote = None, time.monotonic(), Vote()
        with stop_requests() as stop, CompileLog(self.progress.say) as self.log:
            for turn in range(first + 1, self.timeline.turns + 1):
                now = self.timeline.at(turn)
                state = self._enter(state, now)
                state, metrics = self._do(state, now)
                speed = (turn - first) / (time.monotonic() - since_s)
                self._report(pending, speed)
                pending = (now, metrics)
                due = self._due(now)
                last = turn == self.timeline.turns
                asked = vote(stop[0] if stop else 0)  # one signal stops all processes at one step
                save = turn % self.checkpoint_every == 0 or last or bool(asked)
                if due or save:
                    self._report(pending, speed)
                    pending = None
                before_s = time.monotonic()
                self._score(state, due)
                ended = self._end(state, now)
                if save or ended:
                    self._save(turn, state)
                since_s += time.monotonic() - before_s
                if asked and not last:
                    self._stop(asked, turn)
            asked = vote(stop[0] if stop else 0)
        self.checkpoints.wait()
        if asked:  # during the last turn: no further bank is to begin
            self._stop(asked, self.timeline.turns)

    def _start(self) -> tuple[int, TuneState]:
        """The state of the newest checkpoint, or that before the first turn."""
        blank = init_state(np.zeros_like(self.some.initial), prompt_optimizer(1.0))
        state = place(stack_trees([blank] * self.n_places), run_sharding(self.mesh))
        like = self._whole(state)
        self.checkpoints.remove_leftovers()
        reached = self.checkpoints.latest_step
        if reached is None:
            for run in self.runs.values():
                run.rewind(0)
            return 0, state
        whole = self.checkpoints.load(like)
        turn = int(fetch(whole["turn"]))
        for name, step in self.timeline.reached(turn).items():
            self.runs[name].rewind(step)
        best = fetch(whole["best"])
        for number, held in enumerate(self.timeline.at(turn)):
            if held is not None:
                self.runs[held[0]].best = (best[0][number], float(best[1][number]), best[2][number])
        return turn, whole["tune"]

    def _whole(self, state: TuneState, turn: int = 0) -> dict[str, Any]:
        """What a checkpoint holds: the places, and the best prompt of the run in each."""
        held = self.timeline.at(turn) if turn else []
        bests = [self.runs[one[0]].best if one else (None, -math.inf, 0) for one in held]
        bests += [(None, -math.inf, 0)] * (self.n_places - len(bests))
        zeros = np.zeros_like(self.some.initial)
        best = (
            np.stack([zeros if values is None else values for values, _, _ in bests]),
            np.asarray([score for _, score, _ in bests], np.float32),
            np.asarray([step for _, _, step in bests], np.int32),
        )
        whole = NamedSharding(self.mesh, PartitionSpec())
        return {"tune": state, **place({"best": best, "turn": np.int32(turn)}, whole)}

    def _enter(self, state: TuneState, now: Turn) -> TuneState:
        """Puts the initial prompt of every run that begins into its place."""
        for number, held in enumerate(now):
            if held is not None and held[1] == 1:
                parts = self.runs[held[0]].parts
                fresh = init_state(parts.initial, prompt_optimizer(1.0))
                state = _put(state, place(fresh, NamedSharding(self.mesh, PartitionSpec())), number)
                self.runs[held[0]].started_s = time.monotonic()
        return state

    def _do(self, state: TuneState, now: Turn) -> tuple[TuneState, StepMetrics]:
        # A place without a run repeats another one's step; nobody reads what comes out.
        spare = next(held for held in now if held is not None)
        filled = [held or spare for held in now]
        filled += [spare] * (self.n_places - len(filled))
        names = tuple(name for name, _ in filled)
        if self.given[0] != names:
            self.given = (names, self._arguments([self.runs[name].parts for name in names]))
        batches = [self.runs[name].parts.feed.batch_at(step - 1) for name, step in filled]
        groups = self.mesh.shape["data"] if self.some.feed.is_packed else None
        batch = stack_batches(batches, self.some.prepared.batching.pad, groups)
        rows = NamedSharding(self.mesh, PartitionSpec("prompt", "data"))
        placed = place(batch, rows)
        self.log.take()
        result = self.step(self.some.backbone.params, state, placed, *self.given[1])
        self.log.stepped(batch._replace(tokens=batch.tokens[0]))
        return result

    def _arguments(self, parts: Sequence[PreparedRun]) -> tuple[Any, ...]:
        answer = stack_answers([each.prepared.answer for each in parts])
        rates = jnp.asarray([each.options.learning_rate for each in parts], jnp.float32)
        seeds = jnp.asarray([each.options.seed for each in parts], jnp.uint32)
        return place((answer, rates, seeds), run_sharding(self.mesh))

    def _report(self, pending: tuple[Turn, StepMetrics] | None, turns_per_s: float) -> None:
        if pending is None:
            return
        now, metrics = pending
        numbers = np.stack(fetch(tuple(metrics)))  # [3, K]
        rows_per_s = turns_per_s * self.some.options.batch_size
        for held, column in zip(now, numbers.T, strict=False):
            if held is not None:
                self._note(
                    self.runs[held[0]], held, [float(number) for number in column], rows_per_s
                )
        active = sum(held is not None for held in now)
        self.progress.turned(active, rows_per_s * active)

    def _note(
        self, run: BankedRun, held: tuple[str, int], numbers: list[float], rows_per_s: float
    ) -> None:
        (name, step), (loss, accuracy, norm) = held, numbers
        if run.diverged is not None:
            return
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._give_up(name, step, f"the loss of step {step} is {loss} (gradient norm {norm})")
        elif step % LOG_EVERY == 0 or step == run.schedule.steps:
            line = {"loss": loss, "accuracy": accuracy, "gradient_norm": norm}
            speed = {"rows_per_s": round(rows_per_s, 1)}
            elapsed_s = round(time.monotonic() - run.started_s, 3)
            run.log({"step": step, "split": "train", **line, **speed, "elapsed_s": elapsed_s})

    def _give_up(self, name: str, step: int, message: str) -> None:
        run = self.runs[name]
        run.diverged = {"step": step, "diverged": message}
        write_json(run.folder.path / DIVERGED, run.diverged)
        self.progress.ended(name, run.diverged)

    def _due(self, now: Turn) -> list[tuple[int, str, int]]:
        """Places, names and steps of the runs that are scored after this turn."""
        return [
            (number, *held)
            for number, held in enumerate(now)
            if held is not None
            and self.runs[held[0]].schedule.is_due(
                held[1], self.runs[held[0]].parts.options.eval_every
            )
        ]

    def _score(self, state: TuneState, due: list[tuple[int, str, int]]) -> None:
        """Scores runs on validation, those of one task together: their rows travel once."""
        due = [each for each in due if self.runs[each[1]].diverged is None]
        self.log.take()
        prompts = fetch(state.prompt) if due else None
        by_task: dict[Any, list[tuple[int, str, int]]] = {}
        for each in due:
            by_task.setdefault(scoring_key(self.runs[each[1]].parts), []).append(each)
        for together in by_task.values():
            parts = self.runs[together[0][1]].parts
            bank = [jnp.asarray(prompts[number]) for number, _, _ in together]
            scores = parts.prepared.score(bank, parts.splits["validation"], self.mesh)
            for (number, name, step), score in zip(together, scores, strict=True):
                run = self.runs[name]
                if not math.isfinite(score.loss):
                    self._give_up(name, step, f"the loss on validation is {score.loss}")
                    continue
                run.log({"step": step, "split": "validation", **score.summary()})
                self.progress.scored(name, score)
                if score.value > run.best[1]:
                    # In float32, as a checkpoint and the loop of a single run hold it.
                    run.best = (np.array(prompts[number]), float(np.float32(score.value)), step)
        if due:
            self.log.scored()

    def _end(self, state: TuneState, now: Turn) -> bool:
        """Writes the result of every run whose last step this was."""
        ended = [
            (number, held[0])
            for number, held in enumerate(now)
            if held is not None and held[1] == self.runs[held[0]].schedule.steps
        ]
        for number, name in ended:
            run = self.runs[name]
            if run.diverged is None:
                record = finish_run(run, np.asarray(fetch(state.prompt)[number]))
                self.progress.ended(name, record)
        return bool(ended)

    def _save(self, turn: int, state: TuneState) -> None:
        # A copy, because the next step donates these arrays while they are being written.
        self.checkpoints.save(turn, self._whole(jax.tree.map(jnp.copy, state), turn))

    def _stop(self, signal_number: int, turn: int) -> None:
        self.checkpoints.wait()
        raise StoppedError(
            f"stopped and saved after step {turn} of {self.timeline.turns} of a bank; the same "
            "command goes on from there",
            EXIT_CODES[signal_number],
        )


@jax.jit
def _put(state: TuneState, fresh: TuneState, number: int) -> TuneState:
    return jax.tree.map(lambda whole, part: whole.at[number].set(part), state, fresh)
