"""Scoring a prompt file on a task, its own or another."""

from __future__ import annotations

from pathlib import Path

from jpt.backbones.lengths import check_lengths
from jpt.backbones.registry import Backbone
from jpt.config import PAPER_CHOICES
from jpt.mesh import make_mesh
from jpt.prompts.store import check_prompt, load_prompt
from jpt.tasks.task import Task
from jpt.tuning.prepare import as_backbone, as_task, prepare_task
from jpt.tuning.scoring import Score, score_logits, split_logits
from jpt.types import Prompt


def evaluate(
    prompt: Prompt | str | Path,
    task: Task | str | Path,
    *,
    split: str = "test",
    backbone: Backbone | str | Path | None = None,
    max_tokens: int | None = None,
    eval_batch_size: int = 64,
    dtype: str = "float32",
    mesh: str | None = None,
    data: str | Path | None = None,
) -> Score:
    """Scores a prompt over every row of a split.

    Args:
        prompt: a prompt, its file, or the folder of its run.
        task: a task, its name, or its folder; any task whose label words the backbone has.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        backbone: instead of the one that the prompt's card names; the width is checked.
        max_tokens: longest text in tokens; by default the backbone's own choice.
        eval_batch_size: rows at once; changes speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis.
        data: folder of the task's rows.

    Returns:
        The score with its predictions.

    Raises:
        InputError: for a prompt that does not fit the backbone, or broken data.

    Example:
        >>> from jpt.tuning.tune import tune
        >>> tuned = tune("builtin/bert-small", "builtin/rotten_tomatoes", steps=1)
        >>> 0 <= evaluate(tuned.prompt, "builtin/rotten_tomatoes").value <= 1
        True
    """
    loaded = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    card = loaded.card
    devices = make_mesh(mesh)
    definition = as_task(task, data)
    model = as_backbone(backbone if backbone is not None else card.backbone, dtype, mesh=devices)
    check_prompt(loaded, model.name, model.config.width, model.layout, backbone is not None)
    tokens = max_tokens or {**PAPER_CHOICES, **model.defaults}["max_tokens"]
    first = card.first_position or 0
    check_lengths(model, len(loaded.values), tokens, first)
    prepared = prepare_task(definition, model, tokens, eval_batch_size, first)
    rows = prepared.split(split)
    module = model.module.clone(dropout_rate=0.0)
    logits = split_logits(
        module, model.params, loaded.values, rows, prepared.answer, prepared.batching, devices
    )
    return score_logits(logits, rows.labels, definition.labels, definition.metric)


def describe_score(score: Score, task: str, split: str) -> str:
    """Says a score in one line, and warns when only one class was answered.

    Args:
        score: of a prompt.
        task: name of the task.
        split: that was scored.

    Returns:
        The text.

    Example:
        >>> import numpy as np
        >>> score = score_logits(np.eye(2), np.array([0, 1]), ("no", "yes"), "accuracy")
        >>> describe_score(score, "mood", "test")
        'mood test: accuracy 1.000 over 2 rows (majority class 0.500; answered no 1, yes 1)'
    """
    counts = ", ".join(f"{label} {count}" for label, count in score.counts.items())
    line = (
        f"{task} {split}: {score.metric} {score.value:.3f} over {score.rows} rows "
        f"(majority class {score.majority:.3f}; answered {counts})"
    )
    return f"{line}\nwarning: {score.warning}" if score.warning else line
