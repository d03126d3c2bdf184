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

from jpt.distributed import Vote, is_first
from jpt.errors import DivergedError, StoppedError
from jpt.parallel import place
from jpt.tuning.logging import CompileLog, LogSinks, Progress
from jpt.tuning.losses import Answer
from jpt.tuning.run_dir import BEST, Checkpoints, RunFolder
from jpt.tuning.step import StepMetrics, TrainStep, TuneState
from jpt.types import Batch, Parameters, Score

LOG_EVERY = 10
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
SAVE = 1  # vote of a process for a save by the clock; not a signal that is handled


class LoopState(NamedTuple):
    """Content of a checkpoint: state of the step, and best prompt so far."""

    tune: TuneState
    best_prompt: Float[Array, "P D"]  # highest score on validation
    best_score: Float[Array, ""]  # -inf before the first evaluation
    best_step: Int[Array, ""]


@dataclass(frozen=True)
class Schedule:
    """Intervals of a run, in steps unless the name has another unit."""

    steps: int
    eval_every: int  # the last step is always evaluated
    checkpoint_every: int  # the last step is always saved
    batch_size: int  # rows per step, for the speed that is shown
    score_start: bool = False  # evaluate the initial prompt as step 0; it may be the best
    checkpoint_minutes: float | None = None  # also save after this time

    def is_due(self, step: int, every: int) -> bool:
        """Return whether an action with this interval is due after a step."""
        return step % every == 0 or step == self.steps

    def is_save_late(self, saved_s: float) -> bool:
        """Return whether the last save is older than `checkpoint_minutes`."""
        minutes = self.checkpoint_minutes
        return minutes is not None and time.monotonic() - saved_s > 60 * minutes


@dataclass
class Run:
    """The parts of a training loop."""

    params: Parameters  # frozen weights
    answer: Answer
    step: TrainStep
    batch_at: Callable[[int], Batch]  # a pure function of the step
    score: Callable[[Float[Array, "P D"]], Score]  # on validation
    schedule: Schedule
    folder: RunFolder | None = None  # None keeps the run in memory
    checkpoints: Checkpoints | None = None
    history: list[dict[str, Any]] = field(default_factory=list)  # log lines
    keep_best: Callable[[LoopState], None] | None = None  # writes a new best prompt
    finite: tuple[int, float] | None = None  # last step with a finite loss, and that loss
    sinks: LogSinks | None = None

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to the log and the sinks."""
        self.history.append(line)
        if self.folder is not None:
            self.folder.log(line)
        if self.sinks is not None:
            self.sinks.log(line)


class _Clock:
    """Time spent on steps, evaluation excluded."""

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
    """Return the state before the first step."""
    # A copy: the step donates its prompt, and the best one has to outlive it.
    best = jax.tree.map(jnp.copy, tune.prompt)  # one array, or the weights of a projector
    return LoopState(tune, best, *_place_score(tune, -math.inf, 0))


def _place_score(tune: TuneState, score: float, step: int) -> tuple[Array, Array]:
    """Place a score and its step on the devices of the state."""
    sharding = tune.step.sharding
    return place(jnp.float32(score), sharding), place(jnp.int32(step), sharding)


def resume(run: Run, state: LoopState) -> LoopState:
    """Return the newest checkpoint, and drop the log lines after it."""
    if run.folder is None or run.checkpoints is None:
        return state
    # Without a checkpoint all lines are dropped, also the score of step 0, which is logged again.
    run.checkpoints.remove_leftovers()
    reached = run.checkpoints.latest_step
    if reached is not None:
        state = run.checkpoints.load(state)
        run.folder.check_best(float(state.best_score), int(state.best_step))
    run.folder.rewind(-1 if reached is None else int(state.tune.step))
    run.history = run.folder.history()
    if run.keep_best is not None:  # the file may be newer than the checkpoint
        if any(line["split"] == "validation" for line in run.history):
            run.keep_best(state)
        elif is_first():
            (run.folder.path / BEST).unlink(missing_ok=True)
    return state


def run_loop(run: Run, state: LoopState, progress: Progress) -> LoopState:
    """Run the remaining steps."""
    # The device never waits for the log: metrics of a step are read while the next one runs.
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
            # A signal to one process stops all of them at the same step.
            asked = vote(stop[0] if stop else SAVE * schedule.is_save_late(saved_s))
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
    loss = getattr(score, "loss", 0.0)  # projectors have no loss
    if not (math.isfinite(score.value) and math.isfinite(loss)):
        raise _diverged(run, step, f"validation loss {loss}, score {score.value}")
    run.log({"step": step, "split": "validation", **score.summary()})
    progress.scored(score, step, run.history)
    if score.value <= float(state.best_score):
        return state
    best = jax.tree.map(jnp.copy, state.tune.prompt)
    state = LoopState(state.tune, best, *_place_score(state.tune, score.value, step))
    if run.keep_best is not None:
        run.keep_best(state)
    return state


def _report(
    run: Run, progress: Progress, pending: tuple[int, StepMetrics] | None, clock: _Clock
) -> None:
    """Show the metrics of a step, log every LOG_EVERY-th, raise if the loss is not finite."""
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
    last, kept = "", "no state is kept, the run was in memory"
    if run.finite is not None:
        last = f" (last finite: {run.finite[1]:.4g} at step {run.finite[0]})"
    if run.checkpoints is not None:
        run.checkpoints.wait()
        saved = run.checkpoints.latest_step
        kept = f"the state of step {saved} is kept" if saved is not None else "no state was saved"
    return DivergedError(
        f"non-finite loss at step {step}{last}: {what}; {kept}; lower learning_rate or set "
        "clip_norm"
    )


def _save(run: Run, step: int, state: LoopState) -> None:
    if run.checkpoints is not None:
        # A copy: the next step donates these arrays while they are written.
        run.checkpoints.save(step, jax.tree.map(jnp.copy, state))


def _stop(run: Run, signal_number: int, step: int) -> None:
    name = signal.Signals(signal_number).name
    if run.checkpoints is None:
        raise StoppedError(f"{name}: stopped after step {step}", EXIT_CODES[signal_number])
    run.checkpoints.wait()
    message = f"{name}: saved after step {step}; re-run the command to resume"
    raise StoppedError(message, EXIT_CODES[signal_number])


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C, so that the current step finishes and is saved."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def note(number: int, frame: FrameType | None) -> None:
        if requests:  # the second signal: do not wait for the step
            raise KeyboardInterrupt
        requests.append(number)

    before = {number: signal.signal(number, note) for number in EXIT_CODES}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def best_prompt(state: LoopState) -> tuple[Float[np.ndarray, "P D"], float, int]:
    """Return the best prompt of a run with its score and step."""
    return np.asarray(state.best_prompt), float(state.best_score), int(state.best_step)
