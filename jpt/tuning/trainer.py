"""The training loop: steps, validation, checkpoints, resume."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jpt.config import steps_between
from jpt.distributed import Vote, is_first
from jpt.errors import DivergedError, StoppedError
from jpt.io.tensors import write_safetensors
from jpt.parallel import place, replicated
from jpt.results.value_checks import OF_A_NUMBER
from jpt.tuning.logging import CompileLog, LogSinks, Progress, parse_sinks
from jpt.tuning.run_dir import BEST, Checkpoints, RunFolder
from jpt.tuning.step import (
    AnyOptimizer,
    Loss,
    Optimizer,
    StepMetrics,
    TrainState,
    bind_step,
    init_state,
)

LOG_EVERY = 10
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
SAVE = 1  # vote of a process for a save by the clock; not a signal that is handled


class LoopState(NamedTuple):
    """Content of a checkpoint: state of the step, and the best parameters so far."""

    train: TrainState
    best: Any  # parameters with the highest score on validation
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


@dataclass(frozen=True)
class Problem:
    """What a run trains.

    Attributes:
        frozen: Pytree that the loss reads and nothing changes, such as (weights, `Answer`).
        init: Pytree of the parameters before the first step, in float32.
        loss: ``loss(frozen, params, batch, key) -> (loss, accuracy)``, a pure function. Equal
            losses share compiled programs: a function, or a frozen dataclass with ``__call__``.
        batch: Batch of a step, counted from 0: a pure function, so that a run can be resumed.
        evaluate: Score of the parameters on validation, a number or a `jpt.types.Score`; those with
            the highest score are kept.
        config: Everything that the run depends on, ready for JSON. Only a run with the same config
            is resumed.
        finish: Writes the result into the run folder, if there is one, and returns its record. By
            default it writes ``params.safetensors``.
        steps: Number of steps.
        eval_every: Steps between two evaluations; default: a tenth of ``steps``, at least 25.
        checkpoint_every: Steps between two checkpoints; default: ``eval_every``.
        checkpoint_minutes: Also save after this time.
        batch_size: Rows per step, for the speed that is shown.
        score_start: Evaluate the parameters before the first step, too; they may be the best.
        learning_rate: Constant learning rate of ``optimizer``, if that takes one.
        optimizer: `jpt.tuning.step.Optimizer`, or any optimizer of optax.
        seed: Of the key that ``loss`` gets.
        mesh: Devices; the parameters are on all of them.
        keep: Writes the best parameters so far into the run folder.
        prepare: Changes the state before the first step, such as copied moments.
        log_fields: More fields of a logged step, counted from 0.
    """

    frozen: Any
    init: Any
    loss: Loss
    batch: Callable[[int], Any]
    evaluate: Callable[[Any], Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Fitted, RunFolder | None], dict[str, Any]] | None = None
    steps: int = 2000
    eval_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_minutes: float | None = None
    batch_size: int = 1
    score_start: bool = False
    learning_rate: float = 1e-3
    optimizer: AnyOptimizer = Optimizer()
    seed: int = 0
    mesh: Mesh | None = None
    keep: Callable[[Best, RunFolder], None] | None = None
    prepare: Callable[[TrainState], TrainState] | None = None
    log_fields: Callable[[int], dict[str, Any]] | None = None

    @property
    def schedule(self) -> Schedule:
        """Intervals of the run."""
        evaluation = self.eval_every or steps_between(self.steps)
        saving = self.checkpoint_every or evaluation
        more = (self.batch_size, self.score_start, self.checkpoint_minutes)
        return Schedule(self.steps, evaluation, saving, *more)

    def start(self) -> LoopState:
        """Return the state before the first step."""
        train = init_state(self.init, self.optimizer)
        train = train if self.prepare is None else self.prepare(train)
        return start_state(train if self.mesh is None else place(train, replicated(self.mesh)))


def intervals_of(options: Any) -> dict[str, Any]:
    """Return the steps and intervals of options as arguments of a `Problem`."""
    names = ("steps", "eval_every", "checkpoint_every", "checkpoint_minutes", "batch_size")
    return {name: getattr(options, name, None) for name in names}


class Best(NamedTuple):
    """The best parameters of a run, on the host, with their score and step."""

    params: Any
    score: float
    step: int


@dataclass(frozen=True)
class Fitted:
    """Result of `fit`.

    Attributes:
        best: Parameters with the highest score on validation, that score, and its step.
        last: Parameters after the last step.
        history: Log lines, as in ``metrics.jsonl``.
        record: What ``finish`` returned, as in ``result.json``.
        elapsed_s: Time since `fit` was called.
    """

    best: Best
    last: Any
    history: list[dict[str, Any]]
    record: dict[str, Any]
    started_s: float

    @property
    def elapsed_s(self) -> float:
        """Time since the run began or was resumed."""
        return round(time.monotonic() - self.started_s, 2)

    def logged(self, step: int) -> dict[str, Any]:
        """Return the validation score that the log has of a step."""
        lines = (line for line in self.history if line["split"] == "validation")
        found = next(line for line in lines if line["step"] == step)
        return {name: found[name] for name in found if name not in ("step", "split")}


def fit(
    problem: Problem,
    out: RunFolder | str | Path | None = None,
    *,
    progress: bool = False,
    log: str | Sequence[str] | None = None,
    started_s: float | None = None,
) -> Fitted:
    """Train anything on anything: the loop of `jpt.tune`, with a loss and parameters of your own.

    Args:
        problem: What is trained.
        out: Run folder. A finished run returns at once; a stopped one resumes, and its result is
            bit-identical to an uninterrupted run. None keeps the run in memory.
        progress: Show a progress bar on stderr.
        log: Additional log sinks: ``"tensorboard"``, ``"wandb"``, or both.
        started_s: When the work began, by `time.monotonic`, for ``elapsed_s``.

    Returns:
        The best and the last parameters, the log, and the record that ``problem.finish`` made.

    Raises:
        InputError: The folder holds another run.
        DivergedError: The loss is not finite.
        StoppedError: After SIGTERM or Ctrl-C, once the state is saved.

    Example:
        >>> import jax.numpy as jnp
        >>> def loss(frozen, params, batch, key):
        ...     return jnp.square(params - frozen).mean(), None
        >>> def evaluate(params):
        ...     return -float(jnp.abs(params - 1).max())
        >>> parts = {"frozen": 1.0, "init": jnp.zeros(3), "batch": lambda step: step}
        >>> parts |= {"loss": loss, "evaluate": evaluate, "learning_rate": 0.05}
        >>> fit(Problem(**parts, steps=20, eval_every=10)).best.step
        20
    """
    started_s = time.monotonic() if started_s is None else started_s
    sinks, folder = parse_sinks(log), out
    if isinstance(out, str | Path):
        folder = RunFolder(Path(out), dict(problem.config))
        if folder.result is not None:
            return _finished(problem, folder, started_s)
    with contextlib.ExitStack() as held:
        checkpoints = None
        if folder is not None:
            held.enter_context(folder.lock())
            checkpoints = held.enter_context(folder.checkpoints())
        schedule = problem.schedule
        run = _Run(problem, schedule, folder, checkpoints)
        state = _resume(run)
        config = dict(problem.config)
        run.sinks = held.enter_context(LogSinks(sinks, folder and folder.path, config, run.history))
        with Progress(schedule.steps, int(state.train.step), shown=progress) as bar:
            state = _loop(run, state, bar)
        last = jax.tree.map(np.asarray, state.train.params)
        fitted = Fitted(_best(state), last, run.history, {}, started_s)
        finish = problem.finish or partial(_finish, problem)
        record = finish(fitted, folder)
        if "test" in record:
            run.sinks.log({**record["test"], "step": schedule.steps, "split": "test"})
        if folder is not None:
            record = folder.finish(record)
        return dataclasses.replace(fitted, record=record)


PARAMS = "params.safetensors"


def _finish(problem: Problem, fitted: Fitted, folder: RunFolder | None) -> dict[str, Any]:
    """Write the best parameters, by dotted names; return their score."""
    if folder is not None:
        tensors = {
            jax.tree_util.keystr(path, simple=True, separator=".") or "params": leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(fitted.best.params)
        }
        write_safetensors(folder.file(PARAMS), tensors)
    return {
        "metric": problem.config.get("metric", OF_A_NUMBER),
        "steps": problem.steps,
        "best_step": fitted.best.step,
        "validation": fitted.logged(fitted.best.step),
        "elapsed_s": fitted.elapsed_s,
    }


def _finished(problem: Problem, folder: RunFolder, started_s: float) -> Fitted:
    """Return the result of a finished run, from its last checkpoint."""
    with folder.checkpoints() as checkpoints:
        state = checkpoints.load(problem.start())
    last = jax.tree.map(np.asarray, state.train.params)
    return Fitted(_best(state), last, folder.history(), folder.result or {}, started_s)


# --- The loop


@dataclass
class _Run:
    problem: Problem
    schedule: Schedule
    folder: RunFolder | None
    checkpoints: Checkpoints | None
    history: list[dict[str, Any]] = field(default_factory=list)  # log lines
    finite: tuple[int, float] | None = None  # last step with a finite loss, and that loss
    sinks: LogSinks | None = None

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to the log and the sinks."""
        self.history.append(line)
        if self.folder is not None:
            self.folder.log(line)
        if self.sinks is not None:
            self.sinks.log(line)

    def keep(self, state: LoopState) -> None:
        """Write the best parameters so far."""
        if self.problem.keep is not None and self.folder is not None:
            self.problem.keep(_best(state), self.folder)


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


def start_state(train: TrainState) -> LoopState:
    """Return the state before the first step, with no best parameters yet."""
    # A copy: the step donates its parameters, and the best ones have to outlive it.
    best = jax.tree.map(jnp.copy, train.params)
    return LoopState(train, best, *_place_score(train, -math.inf, 0))


def _place_score(train: TrainState, score: float, step: int) -> tuple[Array, Array]:
    """Place a score and its step on the devices of the state."""
    sharding = train.step.sharding
    return place(jnp.float32(score), sharding), place(jnp.int32(step), sharding)


def _best(state: LoopState) -> Best:
    params = jax.tree.map(np.asarray, state.best)
    return Best(params, float(state.best_score), int(state.best_step))


def _resume(run: _Run) -> LoopState:
    """Return the newest checkpoint, and drop the log lines after it."""
    state, folder = run.problem.start(), run.folder
    if folder is None or run.checkpoints is None:
        return state
    # Without a checkpoint all lines are dropped, also the score of step 0, which is logged again.
    run.checkpoints.remove_leftovers()
    reached = run.checkpoints.latest_step
    if reached is not None:
        state = run.checkpoints.load(state)
        folder.check_best(float(state.best_score), int(state.best_step))
    folder.rewind(-1 if reached is None else int(state.train.step))
    run.history = folder.history()
    # The file of the best parameters may be newer than the checkpoint.
    if any(line["split"] == "validation" for line in run.history):
        run.keep(state)
    elif is_first():
        (folder.path / BEST).unlink(missing_ok=True)
    return state


def _loop(run: _Run, state: LoopState, progress: Progress) -> LoopState:
    """Run the remaining steps."""
    # The device never waits for the log: metrics of a step are read while the next one runs.
    problem, schedule, first = run.problem, run.schedule, int(state.train.step)
    compiled = bind_step(
        problem.loss, problem.optimizer, problem.learning_rate, problem.seed, problem.mesh
    )
    clock, pending, vote = _Clock(first), None, Vote()
    saved_s = time.monotonic()
    with stop_requests() as stop, CompileLog(progress.say) as log:
        if schedule.score_start and first == 0:
            with clock.paused():
                state = _score(run, state, 0, progress, log)
        for step in range(first + 1, schedule.steps + 1):
            batch = problem.batch(step - 1)
            log.take()
            train, metrics = compiled(problem.frozen, state.train, batch)
            log.stepped(batch)
            state = state._replace(train=train)
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


def _score(
    run: _Run, state: LoopState, step: int, progress: Progress, log: CompileLog
) -> LoopState:
    log.take()
    score = _as_score(run.problem.evaluate(state.train.params))
    log.scored()
    loss = getattr(score, "loss", 0.0)  # projectors have no loss
    if not (math.isfinite(score.value) and math.isfinite(loss)):
        raise _diverged(run, step, f"validation loss {loss}, score {score.value}")
    run.log({"step": step, "split": "validation", **score.summary()})
    progress.scored(score, step, run.history)
    if score.value <= float(state.best_score):
        return state
    best = jax.tree.map(jnp.copy, state.train.params)
    state = LoopState(state.train, best, *_place_score(state.train, score.value, step))
    run.keep(state)
    return state


@dataclass(frozen=True)
class _Number:
    """A score that is a number."""

    value: float
    metric: str = OF_A_NUMBER
    loss: float = 0.0
    warning: str | None = None

    def summary(self) -> dict[str, Any]:
        return {self.metric: self.value}


def _as_score(found: Any) -> Any:
    return found if hasattr(found, "summary") else _Number(float(found))


def _report(
    run: _Run, progress: Progress, pending: tuple[int, StepMetrics] | None, clock: _Clock
) -> None:
    """Show the metrics of a step, log every LOG_EVERY-th, raise if the loss is not finite."""
    if pending is None:
        return
    step, metrics = pending
    loss, accuracy, gradient_norm = jax.tree.map(float, jax.device_get(tuple(metrics)))
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
                **({} if accuracy is None else {"accuracy": accuracy}),
                "gradient_norm": gradient_norm,
                "rows_per_s": round(rows_per_s, 1),
                "elapsed_s": round(elapsed_s, 3),
                **({} if run.problem.log_fields is None else run.problem.log_fields(step - 1)),
            }
        )


def _diverged(run: _Run, step: int, what: str) -> DivergedError:
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


def _save(run: _Run, step: int, state: LoopState) -> None:
    if run.checkpoints is not None:
        # A copy: the next step donates these arrays while they are written.
        run.checkpoints.save(step, jax.tree.map(jnp.copy, state))


def _stop(run: _Run, signal_number: int, step: int) -> None:
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
