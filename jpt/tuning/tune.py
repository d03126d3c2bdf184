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
from jaxtyping import Array, Float, Float32

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.errors import InputError
from jpt.io.files import OutFolder, write_json
from jpt.parallel import (
    batch_sharding,
    describe_devices,
    make_mesh,
    place,
    replicated,
)
from jpt.prompts.initialisers import copied_values, initial_values, parse_init, sampled_ids
from jpt.prompts.parametrisations import PLAIN, Parametrisation
from jpt.prompts.store import load_prompt, save_prompt
from jpt.tasks.task import Task
from jpt.tuning.batches import TrainBatches, make_train_batches
from jpt.tuning.bound_task import (
    BoundTask,
    Splits,
    bind,
    data_record,
    resolve_backbone,
    resolve_options,
    resolve_task,
)
from jpt.tuning.evaluate import describe_level, write_predictions
from jpt.tuning.logging import parse_sinks, peak_memory_mb, plot_loss
from jpt.tuning.losses import Answer, AnswerLoss
from jpt.tuning.run_dir import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    LAST,
    PREDICTIONS,
    RESULT,
    Checkpoints,
    RunFolder,
    identity_of,
    read_config,
    read_result,
)
from jpt.tuning.step import BoundStep, Optimizer, StepMetrics, TrainState, bind_step, init_state
from jpt.tuning.trainer import Best, Fitted, Problem, fit, intervals_of, start_state
from jpt.types import Batch, Data, Prompt, PromptCard, Score
from jpt.version import __version__

# --- Training batches


def training_batches(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    *,
    data: Data | None = None,
    **options: Any,
) -> Iterator[Batch]:
    """Yield the batches that `jpt.tune` trains on, for a custom training loop.

    Args:
        backbone: loaded backbone, built-in name, folder of weights or hub id.
        task: task, task name or task folder.
        data: folder with the task's rows, or rows by split.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Yields:
        One numpy `Batch` per step.

    Raises:
        InputError: Data or options are invalid.

    Example:
        >>> batches = training_batches("builtin/bert-small", "builtin/imdb_number", batch_size=4)
        >>> next(batches).labels.shape
        (4,)
    """
    model, definition = resolve_backbone(backbone), resolve_task(task, data)
    chosen = resolve_options(TuneOptions(**options), model, definition)
    bound = bind(definition, model, chosen)
    shares = make_mesh(chosen.mesh).shape["data"]
    batches = make_train_batches(bound.split("train"), chosen, bound.batching, model.layout, shares)
    return (batches.batch_at(step) for step in range(chosen.steps))


# --- Initial prompts: the same for all tasks of a study, as in the paper


def initial_prompt(
    backbone: Backbone, bound: BoundTask, options: TuneOptions
) -> Float32[np.ndarray, "P D"]:
    """Return the initial prompt of a run."""
    label_ids = bound.label_words.all_ids
    return initial_rows(backbone, options.init, options.seed, options.length, label_ids)


def initial_rows(
    backbone: Backbone, init: str, seed: int, length: int, label_ids: Sequence[int] = ()
) -> Float32[np.ndarray, "P D"]:
    """Return the prompt rows of an initialiser."""
    tokenizer = backbone.tokenizer
    # The embedding table may be padded beyond the tokenizer's vocabulary.
    count = min(backbone.config.vocabulary, tokenizer.vocabulary_size)
    tokens = [tokenizer.token_text(token) for token in range(count)]
    special = {token for token in tokenizer.ids if token is not None}

    def encode(text: str) -> list[int]:
        ids = tokenizer.encode([text])[0]
        tokenizer.check_ids(ids, f"init text:{text[:60]}")
        return ids

    return initial_values(
        parse_init(init),
        seed=seed,
        backbone=backbone.name,
        length=length,
        embedding=backbone.params["embeddings"]["word"],
        ids=sampled_ids(tokens, special),
        label_ids=label_ids,
        encode=encode,
        std=backbone.init_std(),
    )


# --- Train step for a custom training loop


@dataclass(frozen=True)
class CompiledStep:
    """A compiled train step of one backbone and one task."""

    run: BoundStep
    frozen: Any  # weights and label words

    @property
    def answer(self) -> Answer:
        """The token ids of the label words."""
        return self.frozen[1]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """Run the step; the input state is donated."""
        return self.run(self.frozen, state, batch)

    def compile(self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
        """Compile the step for the shapes of a batch without running it."""
        return self.run.lower(self.frozen, state, batch).compile()


def step_of(model: Backbone, options: TuneOptions, mesh: Mesh) -> BoundStep:
    """Return the compiled step for the options of a run."""
    loss, optimizer = (
        AnswerLoss(model.module, options.objective),
        Optimizer(clip_norm=options.clip_norm),
    )
    return bind_step(loss, optimizer, options.learning_rate, dropout_seed(options), mesh)


def dropout_seed(options: TuneOptions) -> int:
    """Return the seed of a step's key."""
    return options.seed if options.dropout == "paper" else 0


def train_step(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    *,
    data: Data | None = None,
    **options: Any,
) -> tuple[CompiledStep, TrainState]:
    """Return the train step of `jpt.tune` and its initial state, for a custom training loop.

    `jpt.training_batches` with the same options yields the batches.

    Args:
        backbone: loaded backbone, built-in name, folder of weights or hub id.
        task: task, task name or task folder.
        data: folder with the task's rows, or rows by split.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Returns:
        A `CompiledStep`, called as ``step(state, batch) -> state, metrics``, and the initial
        `TrainState`, both on the mesh. The input state is donated; use the returned one.

    Raises:
        InputError: Options are invalid.

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
    bound = bind(definition, model, chosen)
    state = init_state(initial_prompt(model, bound, chosen))
    step = CompiledStep(step_of(model, chosen, mesh), (model.params, bound.answer))
    return step, place(state, replicated(mesh))


def tuning_problem(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    *,
    data: Data | None = None,
    parametrisation: Parametrisation = PLAIN,
    **options: Any,
) -> Problem:
    """Return what `jpt.tune` trains, for `jpt.fit`.

    Change it with `dataclasses.replace`: another loss, optimizer or start, or a parametrisation of
    your own.

    Args:
        backbone: loaded backbone, built-in name, folder of weights or hub id.
        task: task, task name or task folder.
        data: folder with the task's rows, or rows by split.
        parametrisation: what is trained in place of the prompt's rows: a frozen dataclass with
            ``init(rows) -> params`` and ``rows(params) -> rows``.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Returns:
        The `Problem`; its ``finish`` writes the files of a run of `jpt.tune`.

    Raises:
        InputError: Options are invalid.

    Example:
        >>> options = {"steps": 1, "batch_size": 2, "length": 4, "max_tokens": 16}
        >>> given = {"backbone": "builtin/bert-small", "task": "builtin/imdb_number", **options}
        >>> fit(tuning_problem(**given)).best.params.shape
        (4, 128)
    """
    prepared = prepare_run(backbone, task, data, TuneOptions(**options))
    prepared = dataclasses.replace(prepared, parametrisation=parametrisation)
    return prepared.problem()


# --- Warm starts


@dataclass(frozen=True)
class Moments:
    """Adam's moments of a prompt."""

    mean: Float32[np.ndarray, "P D"]  # running mean of the gradient
    square: Float32[np.ndarray, "P D"]  # running mean of its square


@dataclass(frozen=True)
class WarmStart:
    """A prompt to start from, instead of an initialiser."""

    name: str  # in cards and records
    prompt: Prompt
    moments: Moments | None = None  # copied into the optimizer state

    def values(self, length: int, width: int) -> Float32[np.ndarray, "P D"]:
        """Return the initial rows."""
        return copied_values(self.prompt, length, width, f"prompt {self.name}")

    def put_moments(self, state: TrainState) -> TrainState:
        """Copy the moments, if any, into the state before the first step."""
        if self.moments is None:
            return state
        mean, square = jnp.asarray(self.moments.mean), jnp.asarray(self.moments.square)
        return state._replace(opt_state=optax.tree.set(state.opt_state, mu=mean, nu=square))

    def record(self) -> dict[str, Any]:
        """Return name and checksum, which identify the start whatever its path."""
        arrays = [self.prompt.values]
        if self.moments is not None:
            arrays += [self.moments.mean, self.moments.square]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        checksum = digest.hexdigest()[:16]
        return {"name": self.name, "sha256": checksum, "moments": self.moments is not None}


def read_start(name: str, run: str | Path) -> WarmStart:
    """Return the last prompt of a finished run with Adam's moments, from its checkpoint."""
    # Not the best prompt: the moments belong to the last one.
    folder = Path(run)
    need = "to copy moments, give the folder of a finished run of jpt tune with its checkpoints"
    if not folder.is_dir():
        raise InputError(f"source {name}: {run} is not a run folder; {need}")
    for part in (RESULT, CONFIG, BEST, CHECKPOINTS):
        if not (folder / part).exists():
            raise InputError(f"source {name}: {run} holds no {part}; {need}")
    read_result(folder)  # raises if a file is of another run
    best = load_prompt(folder)
    like = start_state(init_state(np.zeros_like(best.values)))
    with Checkpoints(folder / CHECKPOINTS, identity_of(read_config(folder))) as checkpoints:
        if checkpoints.latest_step is None:
            raise InputError(f"source {name}: {run}/{CHECKPOINTS} holds no checkpoint; {need}")
        state = checkpoints.load(like, "use a source tuned with this version").train
    moments = Moments(
        *(np.asarray(optax.tree.get(state.opt_state, part), np.float32) for part in ("mu", "nu"))
    )
    card = dataclasses.replace(best.card, steps=int(state.step), score=None)
    return WarmStart(name, Prompt(np.asarray(state.params, np.float32), card), moments)


# --- Tuning


@dataclass(frozen=True)
class TuneResult:
    """Result of `jpt.tune`.

    Attributes:
        prompt: best prompt on validation.
        last: prompt after the last step.
        record: scores and settings, as in ``result.json``.
        history: log lines, as in ``metrics.jsonl``.
        folder: run folder, if there is one.
    """

    prompt: Prompt
    last: Prompt
    record: dict[str, Any]
    history: list[dict[str, Any]]
    folder: Path | None

    def describe(self) -> str:
        """Return scores, loss curve and prompt file in a few lines."""
        record, metric = self.record, self.record["metric"]
        scored = []
        for name in ("test", "validation"):
            if (score := record.get(name)) is not None:
                scored.append(f"{name} {metric} {score[metric]:.3f}")
                if "majority" in score:
                    level = describe_level(metric, score["majority"], score.get("chance"))
                    scored[-1] += f" ({level})"
        lines = [
            f"{record['task']} on {record['backbone']}: {', '.join(scored)}; best at step "
            f"{record['best_step']} of {record['steps']}, {record['elapsed_s']:.0f} s"
        ]
        lines += [curve] if (curve := plot_loss(self.history)) else []
        if self.folder is not None:
            lines.append(f"prompt: {self.folder / BEST}")
        return "\n".join(lines)


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first step: everything loaded and checked."""

    backbone: Backbone
    bound: BoundTask
    options: TuneOptions  # resolved
    splits: Splits
    initial: Float[np.ndarray, "P D"]
    mesh: Mesh
    batches: TrainBatches
    start: WarmStart | None = None
    score_start: bool = False
    parametrisation: Parametrisation = PLAIN

    def config(self) -> dict[str, Any]:
        """Return the config that identifies the run."""
        task = self.bound.task
        # Only where set, so that the configs of older run folders still match.
        extra = {"start": self.start.record()} if self.start else {}
        extra |= {"score_start": True} if self.score_start else {}
        if self.parametrisation != PLAIN:
            extra["parametrisation"] = repr(self.parametrisation)
        if self.options.init.startswith("prompt:") and not self.start:
            extra["init_sha256"] = hashlib.sha256(self.initial.tobytes()).hexdigest()[:16]
        shares = self.mesh.shape["data"]
        if self.options.tokens_per_batch is not None and shares > 1:
            extra["shares"] = shares  # the number of rows per batch depends on it
        return {
            "jpt_version": __version__,
            "backbone": self.backbone.name,
            "fingerprint": self.backbone.fingerprint,
            "task": task.name,
            "metric": task.metric,
            "template": list(task.template(self.backbone.layout)),
            "label_words": dict(zip(task.labels, self.bound.label_words.words, strict=True)),
            "label_ids": self.bound.label_words.token_ids,
            "data": data_record(self.splits),
            **dataclasses.asdict(self.options),
            **extra,
        }

    def batch_at(self, step: int) -> Batch:
        """Return the batch of a step on the devices."""
        return self.batches.batch(step, self.mesh)

    def score(self, prompt: Float[Array, "P D"], split: str) -> Score:
        """Score a prompt on a split."""
        return self.bound.score([prompt], self.splits[split], self.mesh, may_diverge=True)[0]

    def prompt(self, values: Float[np.ndarray, "P D"], step: int, score: float | None) -> Prompt:
        """Return trained values with a prompt card."""
        card = PromptCard(
            backbone=self.backbone.name,
            task=self.bound.task.name,
            task_type=self.bound.task.type,
            layout=self.backbone.layout,
            init=self.options.init,
            seed=self.options.seed,
            steps=step,
            score=score,
            metric=self.bound.task.metric,
            jpt_version=__version__,
            scoring=dataclasses.replace(self.bound.scoring, split="validation"),
        )
        return Prompt(np.asarray(values, np.float32), card)

    def problem(self, predictions: bool = False) -> Problem:
        """Return what is trained; with predictions, of the test rows to a file."""
        options = self.options
        return Problem(
            frozen=(self.backbone.params, self.bound.answer),
            init=self.parametrisation.init(self.initial),
            loss=AnswerLoss(self.backbone.module, options.objective, self.parametrisation),
            batch=self.batch_at,
            evaluate=lambda params: self.score(self.parametrisation.rows(params), "validation"),
            config=self.config(),
            finish=lambda fitted, folder: self._finish(fitted, folder, predictions),
            **intervals_of(options),
            score_start=self.score_start,
            learning_rate=options.learning_rate,
            optimizer=Optimizer(clip_norm=options.clip_norm),
            seed=dropout_seed(options),
            mesh=self.mesh,
            keep=self._keep,
            prepare=None if self.start is None else self.start.put_moments,
        )

    def prompts(self, fitted: Fitted) -> tuple[Prompt, Prompt]:
        """Return the best and the last prompt of a run."""
        last = self.parametrisation.rows(fitted.last)
        return self._best_prompt(fitted.best), self.prompt(last, self.options.steps, None)

    def _best_prompt(self, best: Best) -> Prompt:
        return self.prompt(self.parametrisation.rows(best.params), best.step, best.score)

    def _keep(self, best: Best, folder: RunFolder) -> None:
        save_prompt(folder.file(BEST), self._best_prompt(best))

    def _finish(
        self, fitted: Fitted, folder: RunFolder | None, predictions: bool = False
    ) -> dict[str, Any]:
        """Write both prompts; return the scores of the best one, and test if there is one."""
        best, last = self.prompts(fitted)
        path = folder.file(PREDICTIONS) if folder is not None and predictions else None
        scores = {"validation": fitted.logged(fitted.best.step)}
        name = "test" if "test" in self.splits else "validation"
        if name == "test" or path is not None:
            score = self.score(best.values, name)
            scores[name] = score.summary()
            if path is not None:
                write_predictions(path, score, self.splits[name], self.bound.task)
        if folder is not None:
            save_prompt(folder.file(BEST), best)
            save_prompt(folder.file(LAST), last)
        return {
            "backbone": self.backbone.name,
            "task": self.bound.task.name,
            "metric": self.bound.task.metric,
            "steps": self.options.steps,
            "best_step": best.card.steps,
            **scores,
            "elapsed_s": fitted.elapsed_s,
            "peak_memory_mb": peak_memory_mb(),
        }


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
    """Tune a soft prompt for a task on a frozen backbone.

    Args:
        backbone: loaded backbone, built-in name, folder of weights or hub id.
        task: task, task name or task folder.
        out: run folder. A finished run returns at once; a stopped one resumes, and its result is
            bit-identical to an uninterrupted run. None keeps the run in memory.
        data: folder with the task's rows, or rows by split.
        start: prompt to start from instead of ``init``, as in `jpt.warm_start`.
        score_start: also score the initial prompt on validation, as step 0; it may be the best.
        predictions: write the prediction of every test row as JSON lines.
        log: additional log sinks: ``"tensorboard"``, ``"wandb"``, or both.
        progress: show the setup and a progress bar on stderr.
        **options: fields of :class:`jpt.config.TuneOptions`.

    Returns:
        A `TuneResult` with best and last prompt, scores on validation and test, and the log.

    Raises:
        InputError: The input is invalid; raised before anything is compiled.
        DivergedError: The loss is not finite.
        StoppedError: After SIGTERM or Ctrl-C, once the state is saved.

    Example:
        >>> result = tune("builtin/bert-small", "builtin/rotten_tomatoes", steps=1, max_tokens=16)
        >>> result.prompt.values.shape
        (20, 128)
    """
    started_s = time.monotonic()
    parse_sinks(log)
    prepared = prepare_run(backbone, task, data, TuneOptions(**options), start, score_start)
    folder = None if out is None else RunFolder(Path(out), prepared.config())
    if folder is not None and folder.result is not None:
        folder.tidy()
        return _finished(folder)
    prepared.splits.warn()
    if progress:
        _describe_run(prepared)
    problem = prepared.problem(predictions)
    fitted = fit(problem, folder, progress=progress, log=log, started_s=started_s)
    best, last = prepared.prompts(fitted)
    return TuneResult(best, last, fitted.record, fitted.history, folder.path if folder else None)


def prepare_run(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    data: Data | None,
    options: TuneOptions,
    start: WarmStart | None = None,
    score_start: bool = False,
    splits: Splits | None = None,
) -> PreparedRun:
    """Load and check everything before anything is compiled, cheap things first."""
    mesh = make_mesh(options.mesh)
    definition = resolve_task(task, data)
    model = resolve_backbone(
        backbone, options.dtype, options.dropout == "paper", mesh, options.remat
    )
    options = resolve_options(options, model, definition)
    bound = bind(definition, model, options)
    if start is None:
        initial = initial_prompt(model, bound, options)
    else:
        initial = start.values(options.length, model.config.width)
        options = dataclasses.replace(options, init=f"prompt:{start.name}")
    for rows in (options.batch_size, options.eval_batch_size):
        batch_sharding(mesh, rows)
    splits = bound.splits() if splits is None else splits
    batches = make_train_batches(
        splits["train"], options, bound.batching, model.layout, mesh.shape["data"]
    )
    return PreparedRun(model, bound, options, splits, initial, mesh, batches, start, score_start)


def _finished(folder: RunFolder) -> TuneResult:
    record = folder.result or {}
    best, last = (load_prompt(folder.path / name) for name in (BEST, LAST))
    return TuneResult(best, last, record, folder.history(), folder.path)


def _describe_run(prepared: PreparedRun, say: Callable[[str], None] | None = None) -> None:
    """Print devices, mesh, parameter counts, label words and rows."""
    say = say or (lambda line: print(line, file=sys.stderr))
    backbone, options, mesh = prepared.backbone, prepared.options, prepared.mesh
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    rows = ", ".join(f"{split.n_rows} {name}" for name, split in prepared.splits.items())
    truncated = sum(split.cut_rows for split in prepared.splits.values())
    answers = [split.answers.cut_rows for split in prepared.splits.values() if split.answers]
    more = f"; {sum(answers)} answers truncated to {prepared.bound.answer_tokens}" * bool(answers)
    say(
        f"{describe_devices(mesh)} ({axes}) · "
        f"{backbone.name}: {backbone.frozen_count:,} frozen weights · prompt {options.length} x "
        f"{backbone.config.width} = {options.length * backbone.config.width:,} trainable"
    )
    say(f"{prepared.bound.task.name}: {prepared.bound.describe_label_words()}")
    say(f"rows: {rows}; {truncated} truncated to {options.max_tokens} tokens{more}")
    for note in backbone.notes:
        say(note)


# --- Several seeds

SEEDS = "seeds.json"


@dataclass(frozen=True)
class SeedsResult:
    """Result of `jpt.tune_seeds`.

    Attributes:
        results: `TuneResult` by seed.
        record: mean, standard deviation and values by split, as in ``seeds.json``.
    """

    results: dict[int, TuneResult]
    record: dict[str, Any]

    @property
    def best(self) -> TuneResult:
        """Run with the highest validation score."""
        metric = self.record["metric"]
        return max(self.results.values(), key=lambda result: result.record["validation"][metric])

    def describe(self) -> str:
        """Return mean, standard deviation and values, one line per split."""
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
    """Parse comma-separated seeds."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"seeds is {text!r}; give comma-separated whole numbers, such as 0,1,2")
    return [int(part) for part in parts]


def tune_seeds(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    seeds: Sequence[int],
    out: str | Path | None = None,
    **options: Any,
) -> SeedsResult:
    """Tune a prompt from each of several seeds.

    The seed sets initial prompt, row order and dropout. The backbone is loaded once; with dropout
    off, all runs share their compiled programs.

    Args:
        backbone: loaded backbone, built-in name, folder of weights or hub id.
        task: task, task name or task folder.
        seeds: two or more different seeds.
        out: folder for ``seeds.json`` and a run folder ``seed-S`` per seed; None keeps the runs in
            memory.
        **options: as for :func:`jpt.tune`, without ``seed``.

    Returns:
        A `SeedsResult` with every run, mean and sample standard deviation.

    Raises:
        InputError: Fewer than two seeds or a repeated one; also as for `jpt.tune`.

    Example:
        >>> rows = [{"text": "Fine.", "label": "positive"}, {"text": "Dull.", "label": "negative"}]
        >>> options = {"data": {"train": rows, "validation": rows}, "steps": 1, "batch_size": 2}
        >>> several = tune_seeds("builtin/bert-small", "sst2", [0, 1], **options)
        >>> len(several.record["validation"]["values"])
        2
    """
    seeds = list(seeds)
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {seeds}; give two or more different ones, such as 0,1,2")
    if not isinstance(backbone, Backbone):
        choices = {"dtype": options.get("dtype", "float32"), "remat": options.get("remat", "dots")}
        choices |= {"dropout": options.get("dropout") == "paper"}
        backbone = resolve_backbone(backbone, mesh=make_mesh(options.get("mesh")), **choices)
    folder = None if out is None else OutFolder(out)
    results = {
        seed: tune(
            backbone,
            task,
            None if folder is None else folder.run(f"seed-{seed}"),
            seed=seed,
            **options,
        )
        for seed in seeds
    }
    record = _record(results)
    if folder is not None:
        write_json(folder.file(SEEDS), record)
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
