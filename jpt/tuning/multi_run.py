"""Train several prompts in one vmapped step, in slots whose occupants change."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32

from jpt.config import TuneOptions
from jpt.data.batches import pack_indices
from jpt.distributed import Vote
from jpt.errors import InputError, StoppedError
from jpt.io.files import read_json, write_json
from jpt.parallel import fetch, place, replicated
from jpt.results.value_checks import check_values
from jpt.tuning.logging import CompileLog, ConstantPredictions
from jpt.tuning.losses import NO_TOKEN, Answer, AnswerLoss
from jpt.tuning.run_dir import RESULT, Checkpoints, RunFolder
from jpt.tuning.step import Optimizer, StepMetrics, TrainState, compile_steps, init_state
from jpt.tuning.trainer import EXIT_CODES, LOG_EVERY, Best, Fitted, Schedule, stop_requests
from jpt.tuning.tune import PreparedRun
from jpt.types import Batch, Score

# --- The vmapped train step
# The weights are shared, not copied: the matrix products of all runs become one product.


def group_step(module: nn.Module, options: TuneOptions, mesh: Mesh | None = None) -> Any:
    """Return the compiled step of a group; learning rates and seeds are arguments."""
    shardings = None if mesh is None else (run_sharding(mesh), replicated(mesh))
    loss, optimizer = AnswerLoss(module, options.objective), Optimizer(clip_norm=options.clip_norm)
    return compile_steps(loss, optimizer, shardings)


def run_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of per-run arrays: runs over the axis `prompt`."""
    return NamedSharding(mesh, PartitionSpec("prompt"))


def stack_trees(trees: Sequence[Any]) -> Any:
    """Stack pytrees of one structure leaf by leaf."""

    def stack(*leaves: Any) -> Any:
        on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
        return np.stack(leaves) if on_host else jnp.stack(leaves)

    return jax.tree.map(stack, *trees)


def stack_batches(batches: Sequence[Batch], pad: int, shards: int | None = None) -> Batch:
    """Stack the batches of several runs, padded to their longest text; pack with `shards`."""
    longest = max(batch.tokens.shape[1] for batch in batches)

    def padded(batch: Batch) -> Batch:
        room = longest - batch.tokens.shape[1]
        tokens = np.pad(batch.tokens, ((0, 0), (0, room)), constant_values=pad)
        return batch._replace(tokens=tokens, packed_index=None)

    stacked = stack_trees([padded(batch) for batch in batches])
    if shards is None:
        return stacked
    return stacked._replace(packed_index=pack_indices(stacked.lengths, longest, shards))


def stack_answers(answers: Sequence[Answer]) -> Answer:
    """Stack the label words of several tasks, padded to the same number of words and tokens."""
    kinds = {answer_kind(answer) for answer in answers}
    if len(kinds) > 1:
        raise InputError(f"expected tasks with one kind of answers in a group, got {len(kinds)}")
    words = max(len(answer.label_ids) for answer in answers)
    tokens = max(
        (a.label_tokens.shape[1] for a in answers if a.label_tokens is not None), default=0
    )
    return stack_trees([_pad_answer(answer, words, tokens) for answer in answers])


def answer_kind(answer: Answer) -> tuple[Any, ...]:
    """Return a key, equal for answers that can share a group."""
    shapes = None
    if answer.owners is not None:
        shape = None if answer.label_tokens is None else answer.label_tokens.shape
        shapes = (len(answer.owners), answer.n_labels, shape)
    return answer.label_tokens is None, shapes, answer.first_position


def _pad_answer(answer: Answer, words: int, tokens: int) -> Answer:
    """Pad with copies of the last word, and tokens with NO_TOKEN."""
    count = len(answer.label_ids)
    if answer.owners is not None or not count:
        return answer
    new_words = (0, words - count)
    padded = answer.replace(
        label_ids=jnp.pad(answer.label_ids, new_words, mode="edge"), n_valid=jnp.int32(count)
    )
    if answer.label_tokens is None:
        return padded
    new_tokens = ((0, 0), (0, tokens - answer.label_tokens.shape[1]))
    longer = jnp.pad(answer.label_tokens, new_tokens, constant_values=NO_TOKEN)
    return padded.replace(label_tokens=jnp.pad(longer, (new_words, (0, 0)), mode="edge"))


# --- Runs of a group

DIVERGED = "diverged.json"  # in the folder of a run with a non-finite loss


class MultiRunProgress(Protocol):
    """Progress reporter of a group."""

    def stepped(self, steps: int, rows_per_s: float) -> None:
        """Report that this number of runs did a step."""

    def scored(self, run: str, score: Score) -> None:
        """Report a score on validation."""

    def ended(self, run: str, record: Mapping[str, Any]) -> None:
        """Report that a run has finished or diverged."""

    def say(self, line: str) -> None:
        """Print a line."""


@dataclass
class SlotRun:
    """One run of a group."""

    parts: PreparedRun
    folder: RunFolder
    history: list[dict[str, Any]] = field(default_factory=list)  # log lines
    # best prompt on validation, its score and its step
    best: tuple[Float32[np.ndarray, "P D"] | None, float, int] = (None, -math.inf, 0)
    diverged: dict[str, Any] | None = None  # content of `diverged.json`
    started_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.constant = ConstantPredictions(self.parts.options.steps)

    @property
    def schedule(self) -> Schedule:
        """Intervals of the run."""
        options = self.parts.options
        return Schedule(
            options.steps, options.eval_every, options.checkpoint_every, options.batch_size
        )

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to the log."""
        self.history.append(line)
        self.folder.log(line)

    def rewind(self, step: int) -> None:
        """Drop log, result and divergence after a checkpoint of the group."""
        self.folder.rewind(step if step else -1)
        self.history = self.folder.history()
        if step < self.parts.options.steps:
            (self.folder.path / RESULT).unlink(missing_ok=True)
        self.diverged = read_diverged(self.folder.path)
        if self.diverged is not None and self.diverged["step"] > step:
            (self.folder.path / DIVERGED).unlink()
            self.diverged = None


def read_diverged(folder: Path) -> dict[str, Any] | None:
    """Return the step and the message of a diverged run, or None."""
    path = folder / DIVERGED
    if not path.exists():
        return None
    record = read_json(path)
    check_values(path, record, "remove this file to train the run again", ("step", "diverged"))
    return record


def multi_run_key(parts: PreparedRun) -> tuple[Any, ...]:
    """Return a key, equal for runs that can be trained in one group."""
    options, split = parts.options, parts.splits["train"]
    answer_width = None if split.answers is None else split.answers.width
    # With a token budget the shape of a batch depends on the rows of its step.
    rows = (parts.bound.task.name, options.seed) if options.tokens_per_batch else None
    return (
        parts.backbone.fingerprint,
        (options.dtype, options.dropout, options.remat, options.mesh),
        (options.length, options.batch_size, options.objective, options.clip_norm),
        answer_kind(parts.bound.answer),
        (answer_width, rows),
    )


def scoring_key(parts: PreparedRun) -> tuple[Any, ...]:
    """Return a key, equal for runs that can be scored in one pass over validation."""
    split = parts.splits["validation"]
    return parts.bound.task.name, split.content, parts.bound.batching, split.n_rows


def finish_run(run: SlotRun, last: Float32[np.ndarray, "P D"]) -> dict[str, Any]:
    """Write the best prompt, the last prompt and the result of a run."""
    fitted = Fitted(Best(*run.best), last, run.history, {}, run.started_s)
    return run.folder.finish(run.parts.problem().finish(fitted, run.folder))


# --- Slot schedule
# Each slot holds runs one after the other: a run that ends early frees its slot for the next one.
# Which run is at which step is fixed in advance, so that a stopped group can be resumed.


@dataclass(frozen=True)
class SlotSchedule:
    """The runs of each slot."""

    slots: tuple[tuple[str, ...], ...]  # names of the runs, in order
    steps: Mapping[str, int]  # number of steps of each run

    @property
    def n_steps(self) -> int:
        """Number of global steps: those of the longest slot."""
        return max(sum(self.steps[run] for run in slot) for slot in self.slots)

    def at(self, global_step: int) -> list[tuple[str, int] | None]:
        """Return the run of each slot and the step that it does; None for an empty slot."""
        return [self._at(slot, global_step) for slot in self.slots]

    def reached(self, global_step: int) -> dict[str, int]:
        """Return the number of steps that each run has done after a global step."""
        done = {}
        for slot in self.slots:
            left = global_step
            for run in slot:
                done[run] = max(0, min(left, self.steps[run]))
                left -= self.steps[run]
        return done

    def _at(self, slot: tuple[str, ...], global_step: int) -> tuple[str, int] | None:
        ends = list(accumulate(self.steps[run] for run in slot))
        index = bisect.bisect_left(ends, global_step)
        if index == len(slot):
            return None
        before = ends[index - 1] if index else 0
        return slot[index], global_step - before


def pack_runs(steps: Mapping[str, int], slots: int) -> list[SlotSchedule]:
    """Pack runs into groups of slots, none of them longer than the longest run."""
    # First fit decreasing: long runs first, each into the first slot with enough steps left.
    names = sorted(steps, key=lambda run: -steps[run])  # stable: equal runs keep their order
    longest = max(steps.values())
    filled: list[list[str]] = []
    loads: list[int] = []
    for run in names:
        fitting = [n for n, load in enumerate(loads) if load + steps[run] <= longest]
        if fitting:
            filled[fitting[0]].append(run)
            loads[fitting[0]] += steps[run]
        else:
            filled.append([run])
            loads.append(steps[run])
    groups = [filled[first : first + slots] for first in range(0, len(filled), slots)]
    return [SlotSchedule(tuple(map(tuple, group)), dict(steps)) for group in groups]


# --- Training
# Each run ends as if it had been trained alone, with its own folder, log, schedule and result.
# Runs share the compiled step, the weights, and one checkpoint of the whole group.

Slots = list[tuple[str, int] | None]  # run and step of each slot at one global step


def fit_runs(
    runs: Mapping[str, SlotRun],
    slot_schedule: SlotSchedule,
    folder: str | Path,
    progress: MultiRunProgress,
    checkpoint_every: int | None = None,
) -> None:
    """Train the runs of a group; each writes its result into its own folder."""
    if len({multi_run_key(run.parts) for run in runs.values()}) > 1:
        raise InputError("runs of a group must have the same backbone, sizes and objective")
    some = next(iter(runs.values())).parts
    every = checkpoint_every or some.options.checkpoint_every
    with ExitStack() as held:
        for run in runs.values():
            held.enter_context(run.folder.lock())
        checkpoints = held.enter_context(_group_checkpoints(Path(folder), runs, slot_schedule))
        _MultiRun(runs, slot_schedule, checkpoints, progress, every).fit()


def _group_checkpoints(
    folder: Path, runs: Mapping[str, SlotRun], slot_schedule: SlotSchedule
) -> Checkpoints:
    """Return the checkpoints of a group, which carry the identities of all its runs."""
    identity = {
        "slots": slot_schedule.slots,
        "fingerprint": next(iter(runs.values())).parts.backbone.fingerprint,
        "runs": {name: run.folder.identity for name, run in runs.items()},
    }
    # In a sweep: OUT/groups/NAME/checkpoints.
    home = folder.absolute().parents[2]
    return Checkpoints(folder, identity, lambda: [r.folder.check() for r in runs.values()], home)


@dataclass
class _MultiRun:
    """The loop over global steps."""

    runs: Mapping[str, SlotRun]
    slot_schedule: SlotSchedule
    checkpoints: Checkpoints
    progress: MultiRunProgress
    checkpoint_every: int

    def __post_init__(self) -> None:
        self.some = next(iter(self.runs.values())).parts
        self.mesh = self.some.mesh
        axis = self.mesh.shape["prompt"]
        self.n_slots = math.ceil(len(self.slot_schedule.slots) / axis) * axis
        self.step = group_step(self.some.backbone.module, self.some.options, self.mesh)
        self.given: tuple[tuple[str | None, ...], tuple[Any, ...]] = ((), ())

    def fit(self) -> None:
        first, state = self._resume()
        pending, since_s, vote = None, time.monotonic(), Vote()
        with stop_requests() as stop, CompileLog(self.progress.say) as self.log:
            for global_step in range(first + 1, self.slot_schedule.n_steps + 1):
                slots = self.slot_schedule.at(global_step)
                state = self._init_runs(state, slots)
                state, metrics = self._step(state, slots)
                steps_per_s = (global_step - first) / (time.monotonic() - since_s)
                self._report(pending, steps_per_s)
                pending = (slots, metrics)
                due = self._due(slots)
                last = global_step == self.slot_schedule.n_steps
                # A signal to one process stops all of them at the same step.
                asked = vote(stop[0] if stop else 0)
                save = global_step % self.checkpoint_every == 0 or last or bool(asked)
                if due or save:
                    self._report(pending, steps_per_s)
                    pending = None
                before_s = time.monotonic()
                self._score(state, due)
                ended = self._end(state, slots)
                if save or ended:
                    self._save(global_step, state)
                since_s += time.monotonic() - before_s
                if asked and not last:
                    self._stop(asked, global_step)
            asked = vote(stop[0] if stop else 0)
        self.checkpoints.wait()
        if asked:  # during the last step: the next group must not start
            self._stop(asked, self.slot_schedule.n_steps)

    def _resume(self) -> tuple[int, TrainState]:
        """Return global step and state of the newest checkpoint, or those before the first step."""
        blank = init_state(np.zeros_like(self.some.initial))
        state = place(stack_trees([blank] * self.n_slots), run_sharding(self.mesh))
        like = self._checkpoint(state)
        self.checkpoints.remove_leftovers()
        reached = self.checkpoints.latest_step
        if reached is None:
            for run in self.runs.values():
                run.rewind(0)
            return 0, state
        loaded = self.checkpoints.load(like)
        global_step = int(fetch(loaded["global_step"]))
        prompts, scores, steps = fetch(loaded["best"])
        for slot, occupant in enumerate(self.slot_schedule.at(global_step)):
            if occupant is not None:
                run = self.runs[occupant[0]]
                run.best = (prompts[slot], float(scores[slot]), int(steps[slot]))
                run.folder.check_best(*run.best[1:])
        for name, step in self.slot_schedule.reached(global_step).items():
            self.runs[name].rewind(step)
        return global_step, loaded["train"]

    def _checkpoint(self, state: TrainState, global_step: int = 0) -> dict[str, Any]:
        """Return the content of a checkpoint: slot states, and the best prompt of each slot."""
        slots = self.slot_schedule.at(global_step) if global_step else []
        bests = [self.runs[each[0]].best if each else (None, -math.inf, 0) for each in slots]
        bests += [(None, -math.inf, 0)] * (self.n_slots - len(bests))
        zeros = np.zeros_like(self.some.initial)
        best = (
            np.stack([zeros if values is None else values for values, _, _ in bests]),
            np.asarray([score for _, score, _ in bests], np.float32),
            np.asarray([step for _, _, step in bests], np.int32),
        )
        extra = {"best": best, "global_step": np.int32(global_step)}
        extra = place(extra, replicated(self.mesh))
        return {"train": state, **extra}

    def _init_runs(self, state: TrainState, slots: Slots) -> TrainState:
        """Put the initial prompt of every run that starts into its slot."""
        for slot, occupant in enumerate(slots):
            if occupant is not None and occupant[1] == 1:
                run = self.runs[occupant[0]]
                fresh = init_state(run.parts.initial)
                state = _put(state, place(fresh, replicated(self.mesh)), slot)
                run.started_s = time.monotonic()
        return state

    def _step(self, state: TrainState, slots: Slots) -> tuple[TrainState, StepMetrics]:
        # An empty slot repeats another one's step; its result is never read.
        spare = next(occupant for occupant in slots if occupant is not None)
        filled = [occupant or spare for occupant in slots]
        filled += [spare] * (self.n_slots - len(filled))
        names = tuple(name for name, _ in filled)
        if self.given[0] != names:
            self.given = (names, self._arguments([self.runs[name].parts for name in names]))
        batches = [self.runs[name].parts.batches.batch_at(step - 1) for name, step in filled]
        shards = self.mesh.shape["data"] if self.some.batches.is_packed else None
        batch = stack_batches(batches, self.some.bound.batching.pad, shards)
        placed = place(batch, NamedSharding(self.mesh, PartitionSpec("prompt", "data")))
        self.log.take()
        answer, rates, seeds = self.given[1]
        frozen = (self.some.backbone.params, answer)
        result = self.step(frozen, state, placed, rates, seeds)
        self.log.stepped(batch._replace(tokens=batch.tokens[0]))
        return result

    def _arguments(self, parts: Sequence[PreparedRun]) -> tuple[Any, ...]:
        answer = stack_answers([each.bound.answer for each in parts])
        rates = jnp.asarray([each.options.learning_rate for each in parts], jnp.float32)
        seeds = jnp.asarray([each.options.seed for each in parts], jnp.uint32)
        return place((answer, rates, seeds), run_sharding(self.mesh))

    def _report(self, pending: tuple[Slots, StepMetrics] | None, steps_per_s: float) -> None:
        if pending is None:
            return
        slots, metrics = pending
        numbers = np.stack(fetch(tuple(metrics)))  # [3, K]
        rows_per_s = steps_per_s * self.some.options.batch_size
        for occupant, column in zip(slots, numbers.T, strict=False):
            if occupant is not None:
                self._log_step(*occupant, [float(number) for number in column], rows_per_s)
        active = sum(occupant is not None for occupant in slots)
        self.progress.stepped(active, rows_per_s * active)

    def _log_step(self, name: str, step: int, numbers: list[float], rows_per_s: float) -> None:
        run, (loss, accuracy, norm) = self.runs[name], numbers
        if run.diverged is not None:
            return
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._give_up(
                name, step, f"non-finite loss at step {step}: {loss} (gradient norm {norm})"
            )
        elif step % LOG_EVERY == 0 or step == run.schedule.steps:
            line = {"loss": loss, "accuracy": accuracy, "gradient_norm": norm}
            speed = {"rows_per_s": round(rows_per_s, 1)}
            elapsed_s = round(time.monotonic() - run.started_s, 3)
            run.log({"step": step, "split": "train", **line, **speed, "elapsed_s": elapsed_s})

    def _give_up(self, name: str, step: int, message: str) -> None:
        run = self.runs[name]
        run.diverged = {"step": step, "diverged": message}
        write_json(run.folder.file(DIVERGED), run.diverged)
        self.progress.ended(name, run.diverged)

    def _due(self, slots: Slots) -> list[tuple[int, str, int]]:
        """Return slot, name and step of the runs to be scored after this step."""
        occupied = [(slot, *occupant) for slot, occupant in enumerate(slots) if occupant]
        schedules = {name: self.runs[name].schedule for _, name, _ in occupied}
        return [
            (slot, name, step)
            for slot, name, step in occupied
            if schedules[name].is_due(step, schedules[name].eval_every)
        ]

    def _score(self, state: TrainState, due: list[tuple[int, str, int]]) -> None:
        """Score runs on validation, those of one task in one pass over its rows."""
        due = [each for each in due if self.runs[each[1]].diverged is None]
        self.log.take()
        prompts = fetch(state.params) if due else None
        by_task: dict[Any, list[tuple[int, str, int]]] = {}
        for each in due:
            by_task.setdefault(scoring_key(self.runs[each[1]].parts), []).append(each)
        for together in by_task.values():
            parts = self.runs[together[0][1]].parts
            bank = [jnp.asarray(prompts[slot]) for slot, _, _ in together]
            rows = parts.splits["validation"]
            scores = parts.bound.score(bank, rows, self.mesh, may_diverge=True)
            for (slot, name, step), score in zip(together, scores, strict=True):
                run = self.runs[name]
                if not math.isfinite(score.loss):
                    self._give_up(name, step, f"non-finite validation loss: {score.loss}")
                    continue
                run.log({"step": step, "split": "validation", **score.summary()})
                self.progress.scored(name, score)
                if warning := run.constant.warning(score, step, run.history):
                    self.progress.say(f"warning: {name}: {warning}")
                if score.value > run.best[1]:
                    # In float32, as in a checkpoint and in the loop of a single run.
                    run.best = (np.array(prompts[slot]), float(np.float32(score.value)), step)
        if due:
            self.log.scored()

    def _end(self, state: TrainState, slots: Slots) -> bool:
        """Write the result of every run that has done its last step."""
        ended = [
            (slot, occupant[0])
            for slot, occupant in enumerate(slots)
            if occupant is not None and occupant[1] == self.runs[occupant[0]].schedule.steps
        ]
        for slot, name in ended:
            run = self.runs[name]
            if run.diverged is None:
                record = finish_run(run, np.asarray(fetch(state.params)[slot]))
                self.progress.ended(name, record)
        return bool(ended)

    def _save(self, global_step: int, state: TrainState) -> None:
        # A copy: the next step donates these arrays while they are written.
        copied = jax.tree.map(jnp.copy, state)
        self.checkpoints.save(global_step, self._checkpoint(copied, global_step))

    def _stop(self, signal_number: int, global_step: int) -> None:
        self.checkpoints.wait()
        raise StoppedError(
            f"saved after step {global_step} of {self.slot_schedule.n_steps} of a multi-run group; "
            "re-run the command to resume",
            EXIT_CODES[signal_number],
        )


@jax.jit
def _put(state: TrainState, fresh: TrainState, slot: int) -> TrainState:
    return jax.tree.map(lambda stacked, leaf: stacked.at[slot].set(leaf), state, fresh)
