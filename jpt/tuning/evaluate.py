"""Score a prompt on a task, and write its predictions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jpt.backbones.registry import Backbone
from jpt.config import ScoringOptions
from jpt.data.encode import EncodedSplit
from jpt.io.files import write_text
from jpt.parallel import make_mesh
from jpt.prompts.store import check_prompt, load_prompt
from jpt.tasks.metrics import TEXT_METRICS, row_scores
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    bind,
    in_task_card,
    resolve_backbone,
    resolve_task,
    scoring_notes,
    weights_of,
)
from jpt.types import Data, Prompt, Score


def prediction_lines(score: Score, split: EncodedSplit, task: Task) -> list[dict[str, Any]]:
    """Return the prediction and the reference of every row, ready for JSON."""
    if score.generated is not None:
        return [
            {
                "row": number,
                "prediction": row.prediction,
                "answers": list(row.references),
                **row_scores(tuple(TEXT_METRICS), row),
            }
            for number, row in enumerate(score.generated)
        ]
    return [
        {
            "row": number,
            "prediction": task.labels[found],
            "label": task.labels[right],
            "log_probs": dict(zip(task.labels, map(float, shares), strict=True)),
        }
        for number, (found, right, shares) in enumerate(
            zip(score.predictions, split.labels, score.log_probs, strict=True)
        )
    ]


def write_predictions(path: str | Path, score: Score, split: EncodedSplit, task: Task) -> None:
    """Write `prediction_lines` as JSON lines."""
    lines = prediction_lines(score, split, task)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def evaluate(
    prompt: Prompt | str | Path,
    task: Task | str | Path,
    *,
    split: str = "test",
    backbone: Backbone | str | Path | None = None,
    max_tokens: int | None = None,
    answer_tokens: int | None = None,
    label_scoring: str | None = None,
    settings: str = "tuned",
    eval_batch_size: int = 64,
    dtype: str = "float32",
    mesh: str | None = None,
    data: Data | None = None,
    predictions: str | Path | None = None,
) -> Score:
    """Score a prompt on a split of a task.

    Args:
        prompt: prompt, prompt file or run folder.
        task: task, task name or task folder; its label words must be in the vocabulary.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        backbone: overrides that of the prompt card; must have the same width.
        max_tokens: longest text in tokens; default: as tuned on its own task, else the backbone's.
        answer_tokens: longest generated answer in tokens; likewise, else the task's.
        label_scoring: by all tokens of a label word (``"phrase"``, the last default) or by its
            ``"first_token"``; likewise.
        settings: template and label words on its own task: as ``"tuned"``, or of the ``"task"``.
        eval_batch_size: rows per batch; affects speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis, such as ``"data:4,model:2"``.
        data: folder with the task's rows, or rows by split.
        predictions: file for the prediction of every row, as JSON lines.

    Returns:
        A `Score`; its ``notes`` name differences from how the prompt was tuned.

    Raises:
        InputError: The prompt does not fit the backbone, or the data are invalid.

    Example:
        >>> import jpt, numpy as np
        >>> card, values = jpt.PromptCard("builtin/bert-small", "imdb"), np.zeros((4, 128), "f4")
        >>> evaluate(jpt.Prompt(values, card), "builtin/rotten_tomatoes", max_tokens=16).rows
        1000
    """
    options = ScoringOptions(max_tokens, eval_batch_size, label_scoring, answer_tokens, settings)
    loaded = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    devices, definition = make_mesh(mesh), resolve_task(task, data)
    model = _backbone_of(loaded, backbone, dtype, devices)
    tuned = in_task_card(loaded.card, definition)
    bound = bind(definition, model, options, loaded, tuned)
    rows = bound.split(split)
    name = loaded.card.task if isinstance(prompt, Prompt) else str(prompt)
    (score,) = bound.score([loaded.values], rows, devices, names=[name])
    notes = scoring_notes({name: loaded.card}, definition, options, weights_of(model), tuned)
    score = dataclasses.replace(score, notes=(*notes, *bound.notes))
    if predictions is not None:
        write_predictions(predictions, score, rows, definition)
    return score


def _backbone_of(
    prompt: Prompt, backbone: Backbone | str | Path | None, dtype: str, mesh: Mesh
) -> Backbone:
    """Load the backbone of the prompt card, or the given one after checking that it fits."""
    name = backbone if backbone is not None else prompt.card.backbone
    model = resolve_backbone(name, dtype, mesh=mesh)
    check_prompt(prompt, model.name, model.config.width, model.layout, backbone is not None)
    return model


def describe_level(metric: str, majority: float | None, chance: float | None) -> str:
    """Return the score of a constant prediction as text."""
    if metric == "accuracy" or chance is None:  # others are no share of rows
        return f"majority class {majority:.3f}"
    return f"chance level {chance:.3f}"


def describe_score(score: Score, task: str, split: str) -> str:
    """Return a score as one line, and a warning if all rows have the same prediction."""
    line = f"{task} {split}: {score.metric} {score.value:.3f} over {score.rows} rows"
    if score.generated is None:
        counts = ", ".join(f"{label} {count}" for label, count in score.counts.items())
        level = describe_level(score.metric, score.majority, score.chance)
        line += f" ({level}; predicted {counts})"
    else:
        others = [f"{n} {v:.3f}" for n, v in score.measures.items() if n != score.metric]
        line += f" ({', '.join(others)})"
    warnings = list(score.notes)
    if score.warning:
        warnings.append(score.warning + ", perhaps because of the above" * bool(score.notes))
    return "\n".join([line, *(f"warning: {text}" for text in warnings)])
