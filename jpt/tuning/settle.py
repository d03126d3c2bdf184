"""Choices that were left open, made for a backbone and a task; lengths held against positions."""

from __future__ import annotations

import dataclasses
from typing import Any

from jpt.backbones.lengths import check_lengths, longest_text
from jpt.backbones.registry import Backbone
from jpt.config import PAPER_CHOICES, TuneOptions
from jpt.tasks.task import Task


def settle_options(options: TuneOptions, backbone: Backbone, task: Task) -> TuneOptions:
    """Makes every choice that was left open: the backbone's, then the task's, then the paper's."""
    chosen = options.resolve({**_choices(task), **backbone.defaults})
    answer = chosen.answer_tokens or task.answer_tokens or 0
    if options.max_tokens is None:
        most = longest_text(backbone, chosen.length, answer_tokens=answer)
        chosen = dataclasses.replace(chosen, max_tokens=max(1, min(chosen.max_tokens, most)))
    check_lengths(backbone, chosen.length, chosen.max_tokens, answer_tokens=answer)
    return chosen


def settle_length(
    max_tokens: int | None,
    backbone: Backbone,
    task: Task,
    prompt_rows: int,
    first_position: int = 0,
    answer_tokens: int | None = None,
) -> int:
    """Chooses how long a text may be where a prompt is used, as `settle_options` does."""
    answer = answer_tokens or task.answer_tokens or 0
    if max_tokens is None:
        choice = {**PAPER_CHOICES, **_choices(task), **backbone.defaults}["max_tokens"]
        most = longest_text(backbone, prompt_rows, first_position, answer)
        max_tokens = max(1, min(choice, most))
    check_lengths(backbone, prompt_rows, max_tokens, first_position, answer)
    return max_tokens


def _choices(task: Task) -> dict[str, Any]:
    return {} if task.max_tokens is None else {"max_tokens": task.max_tokens}
