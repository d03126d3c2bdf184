"""Tune a prompt on a task, for one seed or several."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, Int64

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.data.batches import TokenBudget, fill_up, make_batch, pack_indices, training_rows
from jpt.data.encode import EncodedSplit
from jpt.errors import InputError
from jpt.io.files import make_folder, write_json
from jpt.parallel import (
    batch_sharding,
    describe_devices,
    local_rows,
    make_mesh,
    place,
    place_batch,
    replicated,
)
from jpt.prompts.initialisers import copied_values, initial_values, parse_init, sampled_ids
from jpt.prompts.store import load_prompt, save_prompt
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    Batching,
    BoundTask,
    bind,
    data_record,
    resolve_backbone,
    resolve_options,
    resolve_task,
)
from jpt.tuning.evaluate import write_predictions
from jpt.tuning.logging import LogSinks, Progress, parse_sinks, peak_memory_mb, plot_loss
from jpt.tuning.losses import Answer
from jpt.tuning.run_dir import BEST, CHECKPOINTS, LAST, PREDICTIONS, RESULT, Checkpoints, RunFolder
from jpt.tuning.step import (
    BoundStep,
    StepMetrics,
    TuneState,
    init_state,
    paper_train_step,
    prompt_optimizer,
)
from jpt.tuning.trainer import (
    LoopState,
    Run,
    Schedule,
    best_prompt,
    init_state_of,
    resume,
    run_loop,
)
from jpt.types import Batch, Data, Parameters, Prompt, PromptCard, Score
from jpt.version import __version__

# --- The batches that a run is trained on, each a function of seed and step


@dataclass(frozen=True)
class TrainBatches:
    """Rows of a split as training batches."""

    split: EncodedSplit  # the encoded rows
    options: TuneOptions  # with every choice made; seed, sizes and order count
    batching: Batching  # longest text and padding
    budget: TokenBudget | None = None  # tokens of a batch, where they and not the rows are counted
    shares: int = 1  # the rows of a batch are divided by this number of devices

    @property
    def is_packed(self) -> bool:
        """Whether real tokens are computed alone; rows of like lengths have little padding."""
        return not self.options.group_by_length

    def batch_at(self, step: int) -> Batch:
        """Gives the batch of a step."""
        rows, size = self._rows_at(step)
        batch = make_batch(self.split, rows, size, self.batching.max_tokens, self.batching.pad)
        return batch._replace(packed_index=self._pack(rows, size, batch.tokens.shape[1]))

    def batch(self, step: int, mesh: Mesh) -> Batch:
        """Gives the batch of a step on the devices; a process reads the rows of its own part."""
        rows, size = self._rows_at(step)
        shape = (size, self.batching.max_tokens, self.batching.pad)
        batch = make_batch(self.split, rows, *shape, local_rows(mesh, size))
        packed_index = self._pack(rows, size, batch.tokens.shape[1])
        if packed_index is not None:
            packed_index = place(packed_index, batch_sharding(mesh, self.shares))
        return place_batch(batch, mesh, size)._replace(packed_index=packed_index)

    def _pack(
        self, rows: Int64[np.ndarray, "N"], size: int, text: int
    ) -> Int32[np.ndarray, "G N"] | None:
        if not self.is_packed:
            return None
        return pack_indices(self.split.lengths[fill_up(rows, size)], text, self.shares)

    def _rows_at(self, step: int) -> tuple[Int64[np.ndarray, "N"], int]:
        """The numbers of a step's rows, and the places of its batch."""
        options, size = self.options, self.options.batch_size
        if self.budget is not None:
            return self.budget.training_rows(options.seed, step)
        lengths = self.split.lengths if options.group_by_length else None
        return training_rows(options.seed, step, size, self.split.n_rows, lengths), size


def make_train_batches(
    split: EncodedSplit, options: TuneOptions, batching: Batching, layout: str, shares: int = 1
) -> TrainBatches:
    """Decides how rows are put into batches."""
    budget = None
    if options.tokens_per_batch is not None:
        beside = {"encoder": options.length + 1, "encoder_decoder": options.length}.get(layout, 0)
        tokens = options.tokens_per_batch
        budget = TokenBudget(split.lengths, options.max_tokens, tokens, beside, shares)
    return TrainBatches(split, options, batching, budget, shares)


def training_batches(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    *,
    data: Data | None = None,
    **options: Any,
) -> Iterator[Batch]:
    """Gives the very batches that `jpt.tune` trains on, for a loop of one's own.

    Args:
        backbone: whose vocabulary and choices count: a loaded one, a name, a folder or a hub id.
        task: a task, its name, or its folder.
        data: folder of the task's rows, or the rows by split.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Yields:
        One batch a step, in numpy, for as many steps as the options say.

    Raises:
        InputError: for broken data, or options that do not fit.

    Example:
        >>> batches = training_batches("builtin/bert-small", "builtin/imdb_number", batch_size=4)
        >>> next(batches).labels.shape
        (4,)
    """
    model, definition = resolve_backbone(backbone), resolve_task(task, data)
    chosen = resolve_options(TuneOptions(**options), model, definition)
    prepared = bind(definition, model, chosen)
    shares = make_mesh(chosen.mesh).shape["data"]
    feed = make_train_batches(
        prepared.split("train"), chosen, prepared.batching, model.layout, shares
    )
    return (feed.batch_at(step) for step in range(chosen.steps))


# --- The prompt that a run starts from: the same for all tasks of a study, as in the paper


def initial_prompt(
    backbone: Backbone, prepared: BoundTask, options: TuneOptions
) -> Float32[np.ndarray, "P D"]:
    """Builds the initial rows of a run."""
    return initial_rows(
        backbone, options.init, options.seed, options.length, prepared.words.all_ids
    )


def initial_rows(
    backbone: Backbone, init: str, seed: int, length: int, label_ids: Sequence[int] = ()
) -> Float32[np.ndarray, "P D"]:
    """Builds the rows that a start stands for."""
    tokenizer = backbone.tokenizer
    # The table may have rows that the tokenizer does not name (padding to a round number).
    count = min(backbone.config.vocabulary, tokenizer.vocabulary_size)
    pieces = [tokenizer.token_text(token) for token in range(count)]
    special = {token for token in tokenizer.ids if token is not None}
    return initial_values(
        parse_init(init),
        seed=seed,
        backbone=backbone.name,
        length=length,
        embedding=backbone.params["embeddings"]["word"],
        ids=sampled_ids(pieces, special),
        label_ids=label_ids,
        encode=lambda text: tokenizer.encode([text])[0],
        std=backbone.init_std(),
    )


# --- The compiled train step with all that it needs, for a loop of one's own


@dataclass(frozen=True)
class CompiledStep:
    """A compiled step on one backbone and one task."""

    run: BoundStep  # the compiled step; runs of every rate and seed share its program
    params: Parameters  # the frozen weights
    answer: Answer  # which words stand for the labels

    def __call__(self, state: TuneState, batch: Batch) -> tuple[TuneState, StepMetrics]:
        """Does one step; the state that is given is used up."""
        return self.run(self.params, state, batch, self.answer)

    def compile(self, state: TuneState, batch: Batch) -> jax.stages.Compiled:
        """Compiles the step for a batch's shape without doing it."""
        return self.run.lower(self.params, state, batch, self.answer).compile()


def step_of(model: Backbone, options: TuneOptions, mesh: Mesh) -> BoundStep:
    """Gives the compiled step that the options of a run ask for."""
    return paper_train_step(
        model.module,
        options.learning_rate,
        options.seed if options.dropout == "paper" else 0,
        options.objective,
        mesh,
        options.clip_norm,
    )


def train_step(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    *,
    data: Data | None = None,
    **options: Any,
) -> tuple[CompiledStep, TuneState]:
    """Gives the very step that `jpt.tune` does, and the state before the first one.

    With the same options `jpt.training_batches` gives the batches.

    Args:
        backbone: a loaded backbone, a built-in name, a folder of weights or a hub id.
        task: a task, its name, or its folder.
        data: folder of the task's rows, or the rows by split.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Returns:
        ``step(state, batch) -> state, metrics`` and the first state, on the mesh.

    Raises:
        InputError: for options that do not fit.

    Example:
        >>> from jpt.tuning.tune import training_batches
        >>> given = {"backbone": "builtin/bert-small", "task": "builtin/imdb_number"}
        >>> options = {"steps": 1, "batch_size": 2, "length": 4, "max_tokens": 16}
        >>> step, state = train_step(**given, **options)
        >>> for batch in training_batches(**given, **options):
        ...     state, metrics = step(state, batch)
        >>> int(state.step), metrics.loss.shape
        (1, ())
    """
    given = TuneOptions(**options)
    mesh, definition = make_mesh(given.mesh), resolve_task(task, data)
    model = resolve_backbone(backbone, given.dtype, given.dropout == "paper", mesh, given.remat)
    chosen = resolve_options(given, model, definition)
    prepared = bind(definition, model, chosen)
    values = initial_prompt(model, prepared, chosen)
    state = init_state(values, prompt_optimizer(chosen.learning_rate))
    run = step_of(model, chosen, mesh)
    step = CompiledStep(run, model.params, prepared.answer)
    return step, place(state, replicated(mesh))


# --- A run that starts from a prompt that is there already, with or without Adam's memory of it


@dataclass(frozen=True)
class Moments:
    """What Adam remembers of the gradients of a prompt."""

    mean: Float32[np.ndarray, "P D"]  # running mean of the gradient
    square: Float32[np.ndarray, "P D"]  # running mean of its square


@dataclass(frozen=True)
class WarmStart:
    """Where a run starts in place of an initialiser."""

    name: str  # what it is called in cards and records
    prompt: Prompt  # the values
    moments: Moments | None = None  # copied into the optimizer; None lets it start afresh

    def values(self, length: int, width: int) -> Float32[np.ndarray, "P D"]:
        """Gives the initial rows."""
        return copied_values(self.prompt, length, width, f"prompt {self.name}")

    def put_moments(self, state: TuneState) -> TuneState:
        """Puts the moments, if there are any, into the state before the first step."""
        if self.moments is None:
            return state
        mean, square = jnp.asarray(self.moments.mean), jnp.asarray(self.moments.square)
        return state._replace(optimizer=optax.tree.set(state.optimizer, mu=mean, nu=square))

    def record(self) -> dict[str, Any]:
        """Tells this start from every other, wherever its files lie."""
        arrays = [self.prompt.values]
        if self.moments is not None:
            arrays += [self.moments.mean, self.moments.square]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        checksum = digest.hexdigest()[:16]
        return {"name": self.name, "sha256": checksum, "moments": self.moments is not None}


def read_start(name: str, run: str | Path) -> WarmStart:
    """Reads the newest checkpoint of a finished run: its last prompt with Adam's moments."""
    # The last prompt and not the best one, because the moments belong to it.
    folder = Path(run)
    need = "to copy moments, give the folder of a finished run of jpt tune with its checkpoints"
    if not folder.is_dir():
        raise InputError(f"source {name}: {run} is no run folder; {need}")
    for part in (RESULT, BEST, CHECKPOINTS):
        if not (folder / part).exists():
            raise InputError(f"source {name}: {run} holds no {part}; {need}")
    best = load_prompt(folder)
    like = init_state_of(init_state(np.zeros_like(best.values), prompt_optimizer(1.0)))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        if checkpoints.latest_step is None:
            raise InputError(f"source {name}: {run}/{CHECKPOINTS} holds no checkpoint; {need}")
        state = checkpoints.load(like, "give a source of this version's optimizer").tune
    moments = Moments(
        *(np.asarray(optax.tree.get(state.optimizer, part), np.float32) for part in ("mu", "nu"))
    )
    card = dataclasses.replace(best.card, steps=int(state.step), score=None)
    return WarmStart(name, Prompt(np.asarray(state.prompt, np.float32), card), moments)


# --- Tuning a prompt from start to end: the main path of jpt


@dataclass(frozen=True)
class TuneResult:
    """What a finished run gives.

    Attributes:
        prompt: the best prompt on validation.
        last: the prompt after the last step.
        record: scores and settings, as in ``result.json``.
        history: the logged lines.
        folder: where the run lies, where it was written.
    """

    prompt: Prompt
    last: Prompt
    record: dict[str, Any]
    history: list[dict[str, Any]]
    folder: Path | None

    def describe(self) -> str:
        """Says in a few lines what came out, the curve of the loss among them."""
        record, metric = self.record, self.record["metric"]
        scored = [
            f"{name} {metric} {record[name][metric]:.3f}{_majority(record[name])}"
            for name in ("test", "validation")
            if name in record
        ]
        lines = [
            f"{record['task']} on {record['backbone']}: {', '.join(scored)}; best at step "
            f"{record['best_step']} of {record['steps']}, {record['elapsed_s']:.0f} s"
        ]
        lines += [curve] if (curve := plot_loss(self.history)) else []
        if self.folder is not None:
            lines.append(f"prompt: {self.folder / BEST}")
        return "\n".join(lines)


def _majority(score: dict[str, Any]) -> str:
    return f" (majority class {score['majority']:.3f})" if "majority" in score else ""


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run is made of, before its first step."""

    backbone: Backbone
    prepared: BoundTask
    options: TuneOptions
    splits: dict[str, EncodedSplit]
    initial: Float[np.ndarray, "P D"]
    mesh: Mesh
    feed: TrainBatches
    start: WarmStart | None = None
    score_start: bool = False

    def config(self) -> dict[str, Any]:
        """Defines the run: another config is another run."""
        task = self.prepared.task
        # Only where they are asked for, so that folders of ordinary runs stay what they were.
        asked = {"start": self.start.record()} if self.start else {}
        asked |= {"score_start": True} if self.score_start else {}
        shares = self.mesh.shape["data"]
        if self.options.tokens_per_batch is not None and shares > 1:
            asked["shares"] = shares  # how many rows a batch has depends on them
        return {
            "jpt_version": __version__,
            "backbone": self.backbone.name,
            "fingerprint": self.backbone.fingerprint,
            "task": task.name,
            "template": list(task.template(self.backbone.layout)),
            "label_words": dict(zip(task.labels, self.prepared.words.words, strict=True)),
            "label_ids": self.prepared.words.token_ids,
            "data": data_record(self.splits),
            **dataclasses.asdict(self.options),
            **asked,
        }

    def batch_at(self, step: int) -> Batch:
        """Gives the batch of a step, on the devices."""
        return self.feed.batch(step, self.mesh)

    def score(self, prompt: Float[Array, "P D"], split: str) -> Score:
        """Scores a prompt over a whole split, without dropout."""
        return self.prepared.score([prompt], self.splits[split], self.mesh)[0]

    def prompt(self, values: Float[np.ndarray, "P D"], step: int, score: float | None) -> Prompt:
        """Adds the card to trained values."""
        card = PromptCard(
            backbone=self.backbone.name,
            task=self.prepared.task.name,
            task_type=self.prepared.task.type,
            layout=self.backbone.layout,
            init=self.options.init,
            seed=self.options.seed,
            steps=step,
            score=score,
            metric=self.prepared.task.metric,
            jpt_version=__version__,
        )
        return Prompt(np.asarray(values, np.float32), card)


def tune(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    out: str | Path | None = None,
    *,
    data: Data | None = None,
    start: WarmStart | None = None,
    score_start: bool = False,
    predictions: bool = False,
    log: str | Sequence[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> TuneResult:
    """Tunes a soft prompt for a task on a frozen backbone.

    Args:
        backbone: a loaded backbone, a built-in name, a folder of weights or a hub id.
        task: a task, its name, or its folder.
        out: run folder. A finished run there returns at once, a broken one goes on and ends bit
            for bit as if it had never stopped. None keeps the run in memory.
        data: folder of the task's rows, or the rows by split.
        start: a prompt to start from in place of ``init``, as `jpt.warm_start` does.
        score_start: whether the start is scored on validation too, as step 0, and kept where
            nothing later is better.
        predictions: whether the answer to every scored row is written too, as JSON lines.
        log: where the log is shown too: ``"tensorboard"``, ``"wandb"``, or both.
        progress: whether to show facts and a bar on stderr.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Returns:
        Best and last prompt, scores on validation and test, and the log.

    Raises:
        InputError: for anything that cannot work, before anything is compiled.
        DivergedError: for a loss that is no finite number.
        StoppedError: after SIGTERM or Ctrl-C; the state is saved.

    Example:
        >>> result = tune("builtin/bert-small", "builtin/rotten_tomatoes", steps=1, max_tokens=16)
        >>> result.prompt.values.shape
        (20, 128)
    """
    started_s, sinks = time.monotonic(), parse_sinks(log)
    study = prepare_run(backbone, task, data, TuneOptions(**options), start, score_start)
    folder = None if out is None else RunFolder(Path(out), study.config())
    if folder is not None and folder.result is not None:
        folder.tidy()
        return _finished(folder)
    if progress:
        _describe_environment(study)
    if folder is None:
        return _run(study, None, None, progress, started_s, sinks=sinks)
    where, weights = folder.path / CHECKPOINTS, study.backbone.fingerprint
    with folder.lock(), Checkpoints(where, weights) as checkpoints:
        return _run(study, folder, checkpoints, progress, started_s, predictions, sinks)


def prepare_run(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    data: Data | None,
    options: TuneOptions,
    start: WarmStart | None = None,
    score_start: bool = False,
    splits: dict[str, EncodedSplit] | None = None,
) -> PreparedRun:
    """Loads and checks everything, cheap things first, before anything is compiled."""
    mesh = make_mesh(options.mesh)
    definition = resolve_task(task, data)
    model = resolve_backbone(
        backbone, options.dtype, options.dropout == "paper", mesh, options.remat
    )
    options = resolve_options(options, model, definition)
    prepared = bind(definition, model, options)
    if start is None:
        initial = initial_prompt(model, prepared, options)
    else:
        initial = start.values(options.length, model.config.width)
        options = dataclasses.replace(options, init=f"prompt:{start.name}")
    for rows in (options.batch_size, options.eval_batch_size):
        batch_sharding(mesh, rows)
    splits = prepared.splits() if splits is None else splits
    feed = make_train_batches(
        splits["train"], options, prepared.batching, model.layout, mesh.shape["data"]
    )
    return PreparedRun(model, prepared, options, splits, initial, mesh, feed, start, score_start)


def _run(
    study: PreparedRun,
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    progress: bool,
    started_s: float,
    predictions: bool = False,
    sinks: Sequence[str] = (),
) -> TuneResult:
    options = study.options

    def keep_best(state: LoopState) -> None:
        values, score, step = best_prompt(state)
        save_prompt(folder.path / BEST, study.prompt(values, step, score))

    run = Run(
        params=study.backbone.params,
        answer=study.prepared.answer,
        step=step_of(study.backbone, options, study.mesh),
        batch_at=study.batch_at,
        score=lambda prompt: study.score(prompt, "validation"),
        schedule=Schedule(
            options.steps,
            options.eval_every,
            options.checkpoint_every,
            options.batch_size,
            study.score_start,
            options.checkpoint_minutes,
        ),
        folder=folder,
        checkpoints=checkpoints,
        keep_best=None if folder is None else keep_best,
    )
    state = resume(run, init_state_of(_initial_state(study)))
    with LogSinks(sinks, folder and folder.path, study.config(), run.history) as run.sinks:
        with Progress(options.steps, int(state.tune.step), shown=progress) as bar:
            state = run_loop(run, state, bar)
        values, score, step = best_prompt(state)
        best = study.prompt(values, step, score)
        last = study.prompt(np.asarray(state.tune.prompt), options.steps, None)
        path = folder.path / PREDICTIONS if folder is not None and predictions else None
        record = result_record(study, best, run.history, started_s, path)
        run.sinks.log({**record.get("test", {}), "step": options.steps, "split": "test"})
    if folder is not None:
        save_prompt(folder.path / BEST, best)
        save_prompt(folder.path / LAST, last)
        folder.finish(record)
    return TuneResult(best, last, record, run.history, folder.path if folder else None)


def _initial_state(study: PreparedRun) -> TuneState:
    state = init_state(study.initial, prompt_optimizer(study.options.learning_rate))
    if study.start is not None:
        state = study.start.put_moments(state)
    return place(state, replicated(study.mesh))


def result_record(
    study: PreparedRun,
    best: Prompt,
    history: list[dict[str, Any]],
    started_s: float,
    predictions: Path | None,
) -> dict[str, Any]:
    """Puts the result together: validation as it was scored when the prompt was kept, and test."""
    kept = next(
        line
        for line in history
        if line["split"] == "validation" and line["step"] == best.card.steps
    )
    scores = {"validation": {name: kept[name] for name in kept if name not in ("step", "split")}}
    last = "test" if "test" in study.splits else "validation"
    if last == "test" or predictions is not None:
        score = study.score(best.values, last)
        scores[last] = score.summary()
        if predictions is not None:
            write_predictions(predictions, score, study.splits[last], study.prepared.task)
    return {
        "backbone": study.backbone.name,
        "task": study.prepared.task.name,
        "metric": study.prepared.task.metric,
        "steps": study.options.steps,
        "best_step": best.card.steps,
        **scores,
        "elapsed_s": round(time.monotonic() - started_s, 2),
        "peak_memory_mb": peak_memory_mb(),
    }


def _finished(folder: RunFolder) -> TuneResult:
    record = folder.result
    assert record is not None
    return TuneResult(
        load_prompt(folder.path / BEST),
        load_prompt(folder.path / LAST),
        record,
        folder.history(),
        folder.path,
    )


def _describe_environment(study: PreparedRun, say: Callable[[str], None] | None = None) -> None:
    """Prints what runs where: devices, mesh, counts, label words with ids, rows."""
    say = say or (lambda line: print(line, file=sys.stderr))
    backbone, options, mesh = study.backbone, study.options, study.mesh
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    rows = ", ".join(f"{split.n_rows} {name}" for name, split in study.splits.items())
    cut = sum(split.cut_rows for split in study.splits.values())
    answers = [split.answers.cut_rows for split in study.splits.values() if split.answers]
    width = study.prepared.answer_tokens
    more = f"; {sum(answers)} answers cut to {width}" if answers else ""
    say(
        f"{describe_devices(mesh)} ({axes}) · "
        f"{backbone.name}: {backbone.frozen_count:,} weights frozen · prompt {options.length} x "
        f"{backbone.config.width} = {options.length * backbone.config.width:,} trainable"
    )
    say(f"{study.prepared.task.name}: {study.prepared.describe_label_words()}")
    say(f"rows: {rows}; {cut} cut to {options.max_tokens} tokens{more}")
    for note in backbone.notes:
        say(note)


# --- One prompt tuned from several seeds, and how much the seed matters

SEEDS = "seeds.json"


@dataclass(frozen=True)
class SeedsResult:
    """What `tune_seeds` gives.

    Attributes:
        results: of each seed's run.
        record: mean, standard deviation and every value, as in ``seeds.json``.
    """

    results: dict[int, TuneResult]
    record: dict[str, Any]

    @property
    def best(self) -> TuneResult:
        """The run with the highest score on validation."""
        metric = self.record["metric"]
        return max(self.results.values(), key=lambda result: result.record["validation"][metric])

    def describe(self) -> str:
        """Says a line for each split: mean, standard deviation, and the values."""
        record = self.record
        lines = [
            f"{record['task']} on {record['backbone']}, {len(self.results)} seeds "
            f"({', '.join(map(str, self.results))})"
        ]
        for split in ("test", "validation"):
            if split in record:
                found = record[split]
                values = ", ".join(f"{value:.3f}" for value in found["values"])
                lines.append(
                    f"{split} {record['metric']}: {found['mean']:.3f} ± {found['std']:.3f} "
                    f"({values})"
                )
        return "\n".join(lines)


def parse_seeds(text: str) -> list[int]:
    """Reads seeds from text."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(
            f"seeds is {text!r}; give whole numbers with commas between, such as 0,1,2"
        )
    return [int(part) for part in parts]


def tune_seeds(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    seeds: Sequence[int],
    out: str | Path | None = None,
    **options: Any,
) -> SeedsResult:
    """Tunes a prompt from each of several seeds.

    The seed sets initial prompt, order of the rows and dropout. The backbone is loaded once,
    and all runs share their compiled programs where dropout is off.

    Args:
        backbone: a loaded backbone, a built-in name, a folder of weights or a hub id.
        task: a task, its name, or its folder.
        seeds: two or more different ones.
        out: folder for a run folder ``seed-S`` each and ``seeds.json``; None keeps all in memory.
        **options: as for :func:`jpt.tune`, without ``seed``.

    Returns:
        Every run, with mean and sample standard deviation.

    Raises:
        InputError: for fewer than two seeds, or one that comes twice; and as `jpt.tune`.

    Example:
        >>> rows = [{"text": "Fine.", "label": "positive"}, {"text": "Dull.", "label": "negative"}]
        >>> options = {"data": {"train": rows, "validation": rows}, "steps": 1, "batch_size": 2}
        >>> several = tune_seeds("builtin/bert-small", "sst2", [0, 1], **options)
        >>> len(several.record["validation"]["values"])
        2
    """
    seeds = list(seeds)
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {seeds}; give two or more different ones, for instance 0,1,2")
    if not isinstance(backbone, Backbone):
        choices = {"dtype": options.get("dtype", "float32"), "remat": options.get("remat", "dots")}
        choices |= {"dropout": options.get("dropout") == "paper"}
        backbone = resolve_backbone(backbone, mesh=make_mesh(options.get("mesh")), **choices)
    folder = None if out is None else make_folder(out)
    results = {
        seed: tune(
            backbone,
            task,
            None if folder is None else folder / f"seed-{seed}",
            seed=seed,
            **options,
        )
        for seed in seeds
    }
    record = _record(results)
    if folder is not None:
        write_json(folder / SEEDS, record)
    return SeedsResult(results, record)


def _record(results: dict[int, TuneResult]) -> dict[str, Any]:
    first = next(iter(results.values())).record
    record = {
        **{name: first[name] for name in ("backbone", "task", "metric", "steps")},
        "seeds": list(results),
    }
    for split in ("validation", "test"):
        if split in first:
            values = [result.record[split][first["metric"]] for result in results.values()]
            record[split] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)),
                "values": values,
            }
    return record
