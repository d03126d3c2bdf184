"""The training loop: steps, validation, checkpoints, resume."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jpt.errors import DivergedError, StoppedError
from jpt.parallel import Vote, is_first, place
from jpt.tuning.logging import CompileLog, LogSinks, Progress
from jpt.tuning.losses import Answer
from jpt.tuning.run_dir import BEST, Checkpoints, RunFolder
from jpt.tuning.step import StepMetrics, TrainStep, TuneState
from jpt.types import Batch, Parameters, Score

LOG_EVERY = 10
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
SAVE = 1
"""What a process votes for whose last save is old: the number of no signal that is caught."""


class LoopState(NamedTuple):
    """What a checkpoint holds: the state of the step, and the best prompt so far."""

    tune: TuneState  # step number, prompt and optimizer state
    best_prompt: Float[Array, "P D"]  # the prompt with the highest score on validation
    best_score: Float[Array, ""]  # that score; minus infinity before the first scoring
    best_step: Int[Array, ""]  # when it was reached


@dataclass(frozen=True)
class Schedule:
    """When what is done, counted in steps unless said otherwise."""

    steps: int  # of the whole run
    eval_every: int  # between two scorings of validation; the last step is always scored
    checkpoint_every: int  # between two checkpoints; the last step is always saved
    batch_size: int  # rows a step, for the speed that is shown
    # whether the start is scored too, as step 0, and may be the best prompt
    score_start: bool = False
    checkpoint_minutes: float | None = None  # a checkpoint too when the last one is so old

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that is done every so many steps is due after this one."""
        return step % every == 0 or step == self.steps

    def is_late(self, saved_s: float) -> bool:
        """Whether the last save, at this time, is too long ago."""
        minutes = self.checkpoint_minutes
        return minutes is not None and time.monotonic() - saved_s > 60 * minutes


@dataclass
class Run:
    """The parts of a run that the loop puts together."""

    params: Parameters  # the frozen weights
    answer: Answer  # which words are scored
    step: TrainStep  # the compiled step
    batch_at: Callable[[int], Batch]  # gives the batch of a step, a pure function of its number
    score: Callable[[Float[Array, "P D"]], Score]  # scores a prompt on validation
    schedule: Schedule  # when what is done
    folder: RunFolder | None = None  # where the run is written; None keeps it in memory
    checkpoints: Checkpoints | None = None  # of the folder
    history: list[dict[str, Any]] = field(default_factory=list)  # logged lines of a run in memory
    # writes the best prompt of a state, whenever there is a better one than before
    keep_best: Callable[[LoopState], None] | None = None
    finite: tuple[int, float] | None = None  # the last step whose loss was a number, and that loss
    sinks: LogSinks | None = None  # where the log is shown too

    def log(self, line: dict[str, Any]) -> None:
        """Keeps one line of the log, on disk where there is a folder."""
        self.history.append(line)
        if self.folder is not None:
            self.folder.log(line)
        if self.sinks is not None:
            self.sinks.log(line)


class _Clock:
    """Measures the time spent on steps; scoring validation does not count."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._started_s = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        before_s = time.monotonic()
        yield
        self._started_s += time.monotonic() - before_s


def init_state_of(tune: TuneState) -> LoopState:
    """Builds the state before the first step."""
    # A copy: the step donates its prompt, and the best one has to outlive it.
    best = jax.tree.map(jnp.copy, tune.prompt)  # one array, or the weights of a projector
    return LoopState(tune, best, *_beside(tune, -math.inf, 0))


def _beside(tune: TuneState, score: float, step: int) -> tuple[Array, Array]:
    """A score and its step, on the devices that hold the state."""
    where = tune.step.sharding
    return place(jnp.float32(score), where), place(jnp.int32(step), where)


def resume(run: Run, state: LoopState) -> LoopState:
    """Goes back to the newest checkpoint and forgets what was logged after it."""
    if run.folder is None or run.checkpoints is None:
        return state
    # Without a checkpoint nothing is kept, not even the score of the start, which comes again.
    run.checkpoints.remove_leftovers()
    reached = run.checkpoints.latest_step
    if reached is not None:
        state = run.checkpoints.load(state)
    run.folder.rewind(-1 if reached is None else int(state.tune.step))
    run.history = run.folder.history()
    if run.keep_best is not None:  # a later one may have been written after the checkpoint
        if any(line["split"] == "validation" for line in run.history):
            run.keep_best(state)
        elif is_first():
            (run.folder.path / BEST).unlink(missing_ok=True)
    return state


def run_loop(run: Run, state: LoopState, progress: Progress) -> LoopState:
    """Runs the steps that are left."""
    # The device never waits for the log: the numbers of a step are read while the next one runs.
    schedule, first = run.schedule, int(state.tune.step)
    clock, pending, vote = _Clock(first), None, Vote()
    saved_s = time.monotonic()
    with stop_requests() as stop, CompileLog(progress.say) as log:
        if schedule.score_start and first == 0:
            with clock.paused():
                state = _score(run, state, 0, progress, log)
        for step in range(first + 1, schedule.steps + 1):
            batch = run.batch_at(step - 1)
            log.take()
            tune, metrics = run.step(run.params, state.tune, batch, run.answer)
            log.stepped(batch)
            state = state._replace(tune=tune)
            _report(run, progress, pending, clock)
            pending = (step, metrics)
            if schedule.is_due(step, schedule.eval_every):
                _report(run, progress, pending, clock)
                pending = None
                with clock.paused():
                    state = _score(run, state, step, progress, log)
            # One signal stops all processes at one step.
            asked = vote(stop[0] if stop else SAVE * schedule.is_late(saved_s))
            if schedule.is_due(step, schedule.checkpoint_every) or asked:
                _report(run, progress, pending, clock)
                pending = None
                _save(run, step, state)
                saved_s = time.monotonic()
            if asked > SAVE and step < schedule.steps:
                _stop(run, asked, step)
    if run.checkpoints is not None:
        run.checkpoints.wait()
    return state


def _score(run: Run, state: LoopState, step: int, progress: Progress, log: CompileLog) -> LoopState:
    log.take()
    score = run.score(state.tune.prompt)
    log.scored()
    loss = getattr(score, "loss", 0.0)  # a projector has none
    if not (math.isfinite(score.value) and math.isfinite(loss)):
        raise _diverged(run, step, f"validation loss {loss}, score {score.value}")
    run.log({"step": step, "split": "validation", **score.summary()})
    progress.scored(score)
    if score.value <= float(state.best_score):
        return state
    best = jax.tree.map(jnp.copy, state.tune.prompt)
    state = LoopState(state.tune, best, *_beside(state.tune, score.value, step))
    if run.keep_best is not None:
        run.keep_best(state)
    return state


def _report(
    run: Run,
    progress: Progress,
    pending: tuple[int, StepMetrics] | None,
    clock: _Clock,
) -> None:
    """Reads the numbers of a step: shows them, logs every tenth, stops at a loss that is none."""
    if pending is None:
        return
    step, metrics = pending
    loss, accuracy, gradient_norm = (float(number) for number in jax.device_get(metrics))
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        raise _diverged(run, step, f"loss {loss}, gradient norm {gradient_norm}")
    run.finite = (step, loss)
    elapsed_s = clock.elapsed_s()
    rows_per_s = (step - clock.first) * run.schedule.batch_size / elapsed_s
    progress.stepped(loss, rows_per_s)
    if step % LOG_EVERY == 0 or step == run.schedule.steps:
        run.log(
            {
                "step": step,
                "split": "train",
                "loss": loss,
                "accuracy": accuracy,
                "gradient_norm": gradient_norm,
                "rows_per_s": round(rows_per_s, 1),
                "elapsed_s": round(elapsed_s, 3),
            }
        )


def _diverged(run: Run, step: int, what: str) -> DivergedError:
    """Says between which steps it went wrong and what there is to go on from."""
    since, kept = "", "nothing is kept, the run was in memory"
    if run.finite is not None:
        since = f" after step {run.finite[0]}, whose loss was {run.finite[1]:.4g}"
    if run.checkpoints is not None:
        run.checkpoints.wait()
        saved = run.checkpoints.latest_step
        kept = f"the state of step {saved} is kept" if saved is not None else "no state was saved"
    return DivergedError(
        f"step {step} gives no finite numbers{since}: {what}; {kept}; try a lower learning_rate "
        "or a clip_norm"
    )


def _save(run: Run, step: int, state: LoopState) -> None:
    if run.checkpoints is not None:
        # A copy, because the next step donates these arrays while they are being written.
        run.checkpoints.save(step, jax.tree.map(jnp.copy, state))


def _stop(run: Run, signal_number: int, step: int) -> None:
    name = signal.Signals(signal_number).name
    if run.checkpoints is None:
        raise StoppedError(f"{name}: stopped after step {step}", EXIT_CODES[signal_number])
    run.checkpoints.wait()
    message = f"{name}: saved after step {step}; the same command goes on from there"
    raise StoppedError(message, EXIT_CODES[signal_number])


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C, so that a step ends and its state is saved first."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def note(number: int, frame: FrameType | None) -> None:
        if requests:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
        requests.append(number)

    before = {number: signal.signal(number, note) for number in EXIT_CODES}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def best_prompt(state: LoopState) -> tuple[Float[np.ndarray, "P D"], float, int]:
    """Gives the best prompt of a run with its score and step."""
    return np.asarray(state.best_prompt), float(state.best_score), int(state.best_step)
