"""Train several prompts in one vmapped step, in slots whose occupants change."""

from __future__ import annotations

import bisect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, UInt32

from jpt.data.batches import pack_indices
from jpt.distributed import Vote
from jpt.errors import InputError, StoppedError
from jpt.io.files import write_json
from jpt.parallel import fetch, place, replicated
from jpt.prompts.store import save_prompt
from jpt.tuning.logging import CompileLog
from jpt.tuning.losses import NO_TOKEN, Answer
from jpt.tuning.run_dir import BEST, LAST, RESULT, Checkpoints, RunFolder
from jpt.tuning.step import StepMetrics, TuneState, init_state, paper_step, prompt_optimizer
from jpt.tuning.trainer import EXIT_CODES, LOG_EVERY, Schedule, stop_requests
from jpt.tuning.tune import PreparedRun, result_record
from jpt.types import Batch, Parameters, Score

# --- One step of several runs at once on one frozen model: the step of a single run, vmapped
# Nothing of the weights is copied: the products of all runs are one product, of which only the
# prompt side has an axis of its own.

MultiRunStep = Callable[
    [Parameters, TuneState, Batch, Answer, Float[Array, "K"], UInt32[Array, "K"]],
    tuple[TuneState, StepMetrics],
]


@lru_cache(maxsize=16)
def multi_run_train_step(
    module: nn.Module,
    objective: str = "labels",
    mesh: Mesh | None = None,
    clip_norm: float | None = None,
) -> MultiRunStep:
    """Gives the compiled step of a bank; rates and seeds are arguments, so that runs share it."""
    bank = jax.vmap(paper_step(module, objective, clip_norm), in_axes=(None, 0, 0, 0, 0, 0))
    shardings = {} if mesh is None else {"out_shardings": (run_sharding(mesh), replicated(mesh))}
    return jax.jit(bank, donate_argnums=1, **shardings)


def run_sharding(mesh: Mesh) -> NamedSharding:
    """Gives the sharding of what each run has of its own: runs over the axis ``prompt``."""
    return NamedSharding(mesh, PartitionSpec("prompt"))


def stack_trees(trees: Sequence[Any]) -> Any:
    """Stacks trees of one structure leaf by leaf."""

    def stack(*leaves: Any) -> Any:
        on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
        return np.stack(leaves) if on_host else jnp.stack(leaves)

    return jax.tree.map(stack, *trees)


def stack_batches(batches: Sequence[Batch], pad: int, groups: int | None = None) -> Batch:
    """Stacks the batches of several runs, their texts padded to the longest bucket among them."""
    longest = max(batch.tokens.shape[1] for batch in batches)

    def padded(batch: Batch) -> Batch:
        room = longest - batch.tokens.shape[1]
        tokens = np.pad(batch.tokens, ((0, 0), (0, room)), constant_values=pad)
        return batch._replace(tokens=tokens, packed_index=None)

    stacked = stack_trees([padded(batch) for batch in batches])
    if groups is None:
        return stacked
    return stacked._replace(packed_index=pack_indices(stacked.lengths, longest, groups))


def stack_answers(answers: Sequence[Answer]) -> Answer:
    """Stacks the label words of several tasks, which may have different numbers of them."""
    kinds = {answer_kind(answer) for answer in answers}
    if len(kinds) > 1:
        raise InputError(f"tasks with answers of {len(kinds)} kinds do not go into one bank")
    words = max(len(answer.label_ids) for answer in answers)
    tokens_each = max(
        (a.label_tokens.shape[1] for a in answers if a.label_tokens is not None), default=0
    )
    return stack_trees([_filled_up(answer, words, tokens_each) for answer in answers])


def answer_kind(answer: Answer) -> tuple[Any, ...]:
    """Says which answers go into one bank."""
    own = None
    if answer.owners is not None:
        shape = None if answer.label_tokens is None else answer.label_tokens.shape
        own = (len(answer.owners), answer.n_labels, shape)
    return answer.label_tokens is None, own, answer.first_position


def _filled_up(answer: Answer, words: int, tokens_each: int) -> Answer:
    """Repeats the last word and says how many are real; further pieces are none."""
    count = len(answer.label_ids)
    if answer.owners is not None or not count:
        return answer
    room = (0, words - count)
    filled = answer.replace(
        label_ids=jnp.pad(answer.label_ids, room, mode="edge"), n_valid=jnp.int32(count)
    )
    if answer.label_tokens is None:
        return filled
    wide = ((0, 0), (0, tokens_each - answer.label_tokens.shape[1]))
    longer = jnp.pad(answer.label_tokens, wide, constant_values=NO_TOKEN)
    return filled.replace(label_tokens=jnp.pad(longer, (room, (0, 0)), mode="edge"))


# --- The runs of a bank: what each keeps of its own, and which can be trained together

DIVERGED = "diverged.json"
"""Beside a run's log, where its loss has become no number: at which step."""


class MultiRunProgress(Protocol):
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
class SlotRun:
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


def multi_run_key(parts: PreparedRun) -> tuple[Any, ...]:
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


def finish_run(run: SlotRun, last: Float32[np.ndarray, "P D"]) -> dict[str, Any]:
    """Writes what a run ends with: its best and its last prompt, and its result."""
    values, score, step = run.best
    best = run.parts.prompt(values, step, score)
    record = result_record(run.parts, best, run.history, run.started_s, None)
    save_prompt(run.folder.path / BEST, best)
    save_prompt(run.folder.path / LAST, run.parts.prompt(last, run.parts.options.steps, None))
    run.folder.finish(record)
    return record


# --- Which run of a bank is at which step: a function of the plan, so that a stopped bank goes on
# A bank has places. Each holds runs one after the other: one that ends early frees its place for
# the next, and nothing is decided while it runs.


@dataclass(frozen=True)
class SlotSchedule:
    """Runs in their places."""

    slots: tuple[tuple[str, ...], ...]  # names of the runs of each place, in their order
    steps: Mapping[str, int]  # how many steps each run has

    @property
    def n_steps(self) -> int:
        """How many steps the longest place takes."""
        return max(sum(self.steps[run] for run in place) for place in self.slots)

    def at(self, global_step: int) -> list[tuple[str, int] | None]:
        """Says which run each place holds and which step it does."""
        return [self._at(place, global_step) for place in self.slots]

    def reached(self, global_step: int) -> dict[str, int]:
        """Says how many steps every run has done after a turn."""
        done = {}
        for slot in self.slots:
            left = global_step
            for run in slot:
                done[run] = max(0, min(left, self.steps[run]))
                left -= self.steps[run]
        return done

    def _at(self, place: tuple[str, ...], global_step: int) -> tuple[str, int] | None:
        ends = list(accumulate(self.steps[run] for run in place))
        number = bisect.bisect_left(ends, global_step)
        if number == len(place):
            return None
        before = ends[number - 1] if number else 0
        return place[number], global_step - before


def pack_runs(steps: Mapping[str, int], slots: int) -> list[SlotSchedule]:
    """Shares runs out over banks whose places all take about as long as the longest run."""
    # Long runs first, each into the place with the least to do: what `places` runs of the longest
    # length take is one bank.
    names = sorted(steps, key=lambda run: -steps[run])  # stable: equal ones stay in their order
    longest = max(steps.values())
    filled: list[list[str]] = []
    loads: list[int] = []
    for run in names:
        fitting = [n for n, load in enumerate(loads) if load + steps[run] <= longest]
        if fitting:
            number = fitting[0]
            filled[number].append(run)
            loads[number] += steps[run]
        else:
            filled.append([run])
            loads.append(steps[run])
    groups = [filled[first : first + slots] for first in range(0, len(filled), slots)]
    return [SlotSchedule(tuple(map(tuple, group)), dict(steps)) for group in groups]


# --- Several runs trained at once on one frozen model: each ends as if it had run alone
# Runs keep their own folders, logs, schedules and results; what they share is the compiled step,
# the weights, and one checkpoint of the whole bank, so that a stopped bank goes on where it was.

Turn = list[tuple[str, int] | None]


def fit_runs(
    runs: Mapping[str, SlotRun],
    slot_schedule: SlotSchedule,
    folder: str | Path,
    progress: MultiRunProgress,
    checkpoint_every: int | None = None,
) -> None:
    """Trains the runs of a bank to their end; each writes its result into its own folder."""
    if len({multi_run_key(run.parts) for run in runs.values()}) > 1:
        raise InputError("these runs differ in what a bank shares: backbone, sizes or objective")
    some = next(iter(runs.values())).parts
    every = checkpoint_every or some.options.checkpoint_every
    with ExitStack() as held:
        for run in runs.values():
            held.enter_context(run.folder.lock())
        checkpoints = held.enter_context(Checkpoints(Path(folder), some.backbone.fingerprint))
        _MultiRun(runs, slot_schedule, checkpoints, progress, every).carry_out()


@dataclass
class _MultiRun:
    """The loop over turns."""

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
        options = self.some.options
        self.step = multi_run_train_step(
            self.some.backbone.module, options.objective, self.mesh, options.clip_norm
        )
        self.given: tuple[tuple[str | None, ...], tuple[Any, ...]] = ((), ())

    def carry_out(self) -> None:
        first, state = self._start()
        pending, since_s, vote = None, time.monotonic(), Vote()
        with stop_requests() as stop, CompileLog(self.progress.say) as self.log:
            for global_step in range(first + 1, self.slot_schedule.n_steps + 1):
                now = self.slot_schedule.at(global_step)
                state = self._enter(state, now)
                state, metrics = self._do(state, now)
                speed = (global_step - first) / (time.monotonic() - since_s)
                self._report(pending, speed)
                pending = (now, metrics)
                due = self._due(now)
                last = global_step == self.slot_schedule.n_steps
                asked = vote(stop[0] if stop else 0)  # one signal stops all processes at one step
                save = global_step % self.checkpoint_every == 0 or last or bool(asked)
                if due or save:
                    self._report(pending, speed)
                    pending = None
                before_s = time.monotonic()
                self._score(state, due)
                ended = self._end(state, now)
                if save or ended:
                    self._save(global_step, state)
                since_s += time.monotonic() - before_s
                if asked and not last:
                    self._stop(asked, global_step)
            asked = vote(stop[0] if stop else 0)
        self.checkpoints.wait()
        if asked:  # during the last turn: no further bank is to begin
            self._stop(asked, self.slot_schedule.n_steps)

    def _start(self) -> tuple[int, TuneState]:
        """The state of the newest checkpoint, or that before the first turn."""
        blank = init_state(np.zeros_like(self.some.initial), prompt_optimizer(1.0))
        state = place(stack_trees([blank] * self.n_slots), run_sharding(self.mesh))
        like = self._whole(state)
        self.checkpoints.remove_leftovers()
        reached = self.checkpoints.latest_step
        if reached is None:
            for run in self.runs.values():
                run.rewind(0)
            return 0, state
        whole = self.checkpoints.load(like)
        global_step = int(fetch(whole["global_step"]))
        for name, step in self.slot_schedule.reached(global_step).items():
            self.runs[name].rewind(step)
        best = fetch(whole["best"])
        for number, held in enumerate(self.slot_schedule.at(global_step)):
            if held is not None:
                self.runs[held[0]].best = (best[0][number], float(best[1][number]), best[2][number])
        return global_step, whole["tune"]

    def _whole(self, state: TuneState, global_step: int = 0) -> dict[str, Any]:
        """What a checkpoint holds: the places, and the best prompt of the run in each."""
        held = self.slot_schedule.at(global_step) if global_step else []
        bests = [self.runs[one[0]].best if one else (None, -math.inf, 0) for one in held]
        bests += [(None, -math.inf, 0)] * (self.n_slots - len(bests))
        zeros = np.zeros_like(self.some.initial)
        best = (
            np.stack([zeros if values is None else values for values, _, _ in bests]),
            np.asarray([score for _, score, _ in bests], np.float32),
            np.asarray([step for _, _, step in bests], np.int32),
        )
        whole = NamedSharding(self.mesh, PartitionSpec())
        return {"tune": state, **place({"best": best, "global_step": np.int32(global_step)}, whole)}

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
        filled += [spare] * (self.n_slots - len(filled))
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
        self, run: SlotRun, held: tuple[str, int], numbers: list[float], rows_per_s: float
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

    def _save(self, global_step: int, state: TuneState) -> None:
        # A copy, because the next step donates these arrays while they are being written.
        self.checkpoints.save(global_step, self._whole(jax.tree.map(jnp.copy, state), global_step))

    def _stop(self, signal_number: int, global_step: int) -> None:
        self.checkpoints.wait()
        raise StoppedError(
            f"stopped and saved after step {global_step} of {self.slot_schedule.n_steps} of a multi-run "
            "group; re-run the command to resume",
            EXIT_CODES[signal_number],
        )


@jax.jit
def _put(state: TuneState, fresh: TuneState, number: int) -> TuneState:
    return jax.tree.map(lambda whole, part: whole.at[number].set(part), state, fresh)
