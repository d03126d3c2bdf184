"""What was answered to every row of a split, as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jpt.data.encode import EncodedSplit
from jpt.files.atomic import write_text
from jpt.tasks.task import Task
from jpt.tasks.text_metrics import TEXT_METRICS, row_scores
from jpt.tuning.scoring import Score


def prediction_lines(score: Score, split: EncodedSplit, task: Task) -> list[dict[str, Any]]:
    """Says for every row what was answered and what would have been right.

    Args:
        score: of a prompt on the split.
        split: the scored rows.
        task: what was asked.

    Returns:
        One object a row, in the split's order: its number from 0, ``prediction`` and ``label``
        with the logarithm of each label's share, or ``answers`` with every measure.

    Example:
        >>> import numpy as np
        >>> from jpt.tuning.scoring import score_logits
        >>> from jpt.tasks.registry import load_task
        >>> task = load_task("builtin/imdb")
        >>> score = score_logits(np.array([[0.0, 9.0]]), np.array([0]), task.labels, "accuracy")
        >>> none = np.zeros(0, np.int32)
        >>> split = EncodedSplit(none, np.array([0, 0]), np.array([0], np.int32), 0)
        >>> line = prediction_lines(score, split, task)[0]
        >>> line["prediction"], line["label"], round(line["log_probs"]["positive"], 3)
        ('positive', 'negative', -0.0)
    """
    if score.written is not None:
        return [
            {
                "row": number,
                "prediction": row.prediction,
                "answers": list(row.references),
                **row_scores(tuple(TEXT_METRICS), row),
            }
            for number, row in enumerate(score.written)
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
    """Writes the lines of `prediction_lines` to a file.

    Args:
        path: the file.
        score: of a prompt on the split.
        split: the scored rows.
        task: what was asked.

    Raises:
        InputError: where the file cannot be written.
    """
    lines = prediction_lines(score, split, task)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
