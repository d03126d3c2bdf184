"""A recommendation as JSON: what each ranking says of each source, and what a few rows hide."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jpt.analysis.choice import LeaveOneOut
from jpt.analysis.transfer_pairs import shorten
from jpt.prompts.seed_prompts import Prompts, list_runs
from jpt.recipes.recommend_case import Case
from jpt.recipes.recommend_rankings import Ranking, not_told_apart
from jpt.tasks.task import Task
from jpt.tuning.prepare import Data
from jpt.tuning.scoring import Score

START = "random"
"""The untrained start among the scores."""


def recommendation_record(
    case: Case,
    rankings: Mapping[str, Ranking],
    by: str,
    scores: Mapping[str, Score],
    judged: LeaveOneOut | None,
) -> dict[str, Any]:
    """Puts a recommendation together as JSON."""
    ordered = rankings[by].ordered()
    places = {name: ranking.places() for name, ranking in rankings.items()}
    sources = {
        name: {
            "task": case.sources[name].card.task,
            **({"score": scores[name].value, "loss": scores[name].loss} if case.labelled else {}),
            "values": {r: _number(ranking.values[name]) for r, ranking in rankings.items()},
            "places": {r: place[name] for r, place in places.items()},
        }
        for name in ordered
    }
    untrained = scores[START]
    return {
        "task": case.task.name,
        "backbone": case.backbone.name,
        "metric": case.task.metric,
        "rows": untrained.rows,
        "labelled": case.labelled,
        "probe_steps": case.options.probe_steps if case.labelled else None,
        "seed": case.options.seed,
        "source": ordered[0],
        "by": by,
        "sources": sources,
        "untrained": untrained.summary() if case.labelled else None,
        "command": None,
        "known": None if judged is None else judged.record,
        "notes": [*case.notes, *_cautions(case, rankings, scores)],
    }


def _cautions(
    case: Case, rankings: Mapping[str, Ranking], scores: Mapping[str, Score]
) -> list[str]:
    """What the scores on a few rows do not show."""
    if not case.labelled:
        return [
            "without labels nothing is measured: sureness (answers that are clear and differ from"
            " text to text) is a heuristic, and a sure prompt may be wrong"
        ]
    best, notes = next(iter(rankings.values())).ordered()[0], []
    untrained, majority = scores[START].value, 0.0
    if case.task.metric == "accuracy":
        of_sources = {name: scores[name] for name in case.sources}
        truth = case.prepared.split("train").labels
        near = not_told_apart(best, of_sources, truth)
        majority = scores[START].majority
        if near:
            notes.append(
                f"{len(truth)} rows do not tell {best} from {shorten(near)} (95 % interval of the"
                " difference)"
            )
    if scores[best].value <= max(untrained, majority):
        notes.append(
            f"no source scores above an untrained prompt ({untrained:.3f}) and the commonest"
            f" answer ({majority:.3f}): the scores give no reason to start from one"
        )
    return notes


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def start_command(
    task: Task | str | Path,
    prompts: Prompts,
    data: Data | None,
    case: Case,
    source: str,
) -> str | None:
    """Writes the command that starts from a source."""
    if isinstance(prompts, Mapping) or isinstance(data, Mapping):
        return None
    if isinstance(task, Task) and task.rows is not None:
        return None
    name = task.folder or task.name if isinstance(task, Task) else task
    words = ["jpt", "tune", "--backbone", case.backbone.name, "--task", str(name)]
    words += [] if data is None else ["--data", str(data)]
    words += ["--length", str(len(case.first.values))]
    words += ["--init", f"prompt:{list_runs(prompts)[source]}"]
    place = f"runs/{case.task.short_name}-from-{source.replace('/', '-')}"
    return shlex.join([*words, "--out", place])
