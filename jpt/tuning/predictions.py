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
    """Says for every row what was answered and what would have been right."""
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
    """Writes the lines of `prediction_lines` to a file."""
    lines = prediction_lines(score, split, task)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
