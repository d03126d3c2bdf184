"""Two toy tasks, a tiny target, and prompts of a source model that is never loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jpt.testing import write_tiny_backbone
from jpt.types import Prompt, PromptCard
from tests.helpers.toys import write_task

SOURCE = "some/source-model"
ROWS, WIDTH = 5, 12
SIZES = {"steps": 12, "batch_size": 6, "bottleneck": 9, "eval_every": 4, "max_tokens": 24}


def write_case(root: Path) -> tuple[Path, list[Path]]:
    """Write the target and two tasks with different label words."""
    mood = write_task(root / "mood")
    toml = (mood / "task.toml").read_text()
    other = toml.replace('"mood"', '"amusing"').replace('= "bad"', '= "dull"')
    other = other.replace('= "good"', '= "fine"')
    rows = (mood / "train.jsonl").read_text().replace("film, number", "number")
    amusing = write_task(root / "amusing", toml=other, train=rows)
    return write_tiny_backbone(root / "target", "bert", hidden_size=20), [mood, amusing]


def source_prompt(seed: int, task: str, rows: int = ROWS, width: int = WIDTH) -> Prompt:
    values = np.random.default_rng(seed).normal(0, 1, (rows, width)).astype(np.float32)
    return Prompt(values, PromptCard(SOURCE, task, "sentiment"))


def source_prompts() -> dict[str, Prompt]:
    """Return a prompt per task; the names have another order than the tasks."""
    return {"a_first": source_prompt(1, "mood"), "b_second": source_prompt(2, "amusing")}
