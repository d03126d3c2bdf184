"""Lists of tasks and backbones are complete and fit a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from jpt.backbones.registry import backbone_names
from jpt.recipes.listing import describe_task, list_backbones, list_tasks
from jpt.tasks.catalog import load_task, task_names
from tests.helpers.toys import write_task

WIDEST = 80


def assert_fits(text: str) -> None:
    assert max(map(len, text.splitlines())) <= WIDEST


def test_every_task_is_listed_with_its_label_words() -> None:
    record, text = list_tasks()
    assert_fits(text)
    names = [line.split()[0] for line in text.splitlines()]
    assert set(task_names()) <= set(names)
    assert [task["name"] for task in record["tasks"]] == list(task_names())
    row = names.index("laptop")
    both = " ".join(text.splitlines()[row].split() + text.splitlines()[row + 1].split())
    assert both == "laptop sentiment accuracy negative, moderate, positive, conflict"


def test_every_backbone_is_listed() -> None:
    record, text = list_backbones()
    assert_fits(text)
    assert [line.split()[0] for line in text.splitlines()[1:5]] == backbone_names()
    assert record["backbones"][0]["vocabulary"] == 8192


@pytest.mark.parametrize("name", task_names())
def test_a_task_is_shown_in_full(name: str) -> None:
    task, (_, text) = load_task(name), describe_task(name, None, None, None)
    assert_fits(text)
    assert text.startswith(f"{name} ({task.type}), metric {task.metric}\n")
    joined = " ".join(text.split())
    for segments in task.templates.values():
        assert " ".join(" | ".join(segments).split()) in joined


def test_long_rows_are_wrapped(tmp_path: Path) -> None:
    row = "the film was good and bright and not dull " * 5
    folder = write_task(tmp_path / "mood", train=f'{{"text": "{row}", "label": "good"}}\n' * 4)
    _, text = describe_task(folder, "builtin/bert-small", None, None)
    assert_fits(text)
    joined = " ".join(text.split())
    assert f"row 0 [good] {row.strip()}" in joined and "[CLS] the film was good" in joined
