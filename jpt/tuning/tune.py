"""Tuning a prompt from start to end: the main path of jpt."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.data.encode import EncodedSplit
from jpt.mesh import batch_sharding, describe_devices, make_mesh, place, replicated
from jpt.prompts.store import load_prompt, save_prompt
from jpt.tasks.task import Task
from jpt.tuning.checkpoints import Checkpoints
from jpt.tuning.feed import Feed, make_feed
from jpt.tuning.initial import initial_prompt
from jpt.tuning.log_sinks import LogSinks, parse_sinks
from jpt.tuning.loop import LoopState, Run, Schedule, best_prompt, resume, run_loop, start_state
from jpt.tuning.loss_curve import draw_loss
from jpt.tuning.own_loop import step_of
from jpt.tuning.predictions import write_predictions
from jpt.tuning.prepare import (
    Data,
    PreparedTask,
    as_backbone,
    as_task,
    data_record,
    prepare_for,
)
from jpt.tuning.progress import Progress, peak_memory_mb
from jpt.tuning.run_folder import BEST, CHECKPOINTS, LAST, PREDICTIONS, RunFolder
from jpt.tuning.scoring import Score
from jpt.tuning.settle import settle_options
from jpt.tuning.start import Start
from jpt.tuning.step import TuneState, init_state, prompt_optimizer
from jpt.types import Batch, Prompt, PromptCard
from jpt.version import __version__


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
        lines += [curve] if (curve := draw_loss(self.history)) else []
        if self.folder is not None:
            lines.append(f"prompt: {self.folder / BEST}")
        return "\n".join(lines)


def _majority(score: dict[str, Any]) -> str:
    return f" (majority class {score['majority']:.3f})" if "majority" in score else ""


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run is made of, before its first step."""

    backbone: Backbone
    prepared: PreparedTask
    options: TuneOptions
    splits: dict[str, EncodedSplit]
    initial: Float[np.ndarray, "P D"]
    mesh: Mesh
    feed: Feed
    start: Start | None = None
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
            "label_ids": self.prepared.words.pieces,
            "data": data_record(self.splits),
            **dataclasses.asdict(self.options),
            **asked,
        }

    def batch_at(self, step: int) -> Batch:
        """Gives the batch of a step, on the devices."""
        return self.feed.placed_at(step, self.mesh)

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
    start: Start | None = None,
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
        _say_facts(study)
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
    start: Start | None = None,
    score_start: bool = False,
    splits: dict[str, EncodedSplit] | None = None,
) -> PreparedRun:
    """Loads and checks everything, cheap things first, before anything is compiled."""
    mesh = make_mesh(options.mesh)
    definition = as_task(task, data)
    model = as_backbone(backbone, options.dtype, options.dropout == "paper", mesh, options.remat)
    options = settle_options(options, model, definition)
    prepared = prepare_for(definition, model, options)
    if start is None:
        initial = initial_prompt(model, prepared, options)
    else:
        initial = start.values(options.length, model.config.width)
        options = dataclasses.replace(options, init=f"prompt:{start.name}")
    for rows in (options.batch_size, options.eval_batch_size):
        batch_sharding(mesh, rows)
    splits = prepared.splits() if splits is None else splits
    feed = make_feed(splits["train"], options, prepared.batching, model.layout, mesh.shape["data"])
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
    state = resume(run, start_state(_initial_state(study)))
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


def _say_facts(study: PreparedRun, say: Callable[[str], None] | None = None) -> None:
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
    say(f"{study.prepared.task.name}: {study.prepared.describe_words()}")
    say(f"rows: {rows}; {cut} cut to {options.max_tokens} tokens{more}")
    for note in backbone.notes:
        say(note)
