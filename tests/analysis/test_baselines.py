"""The model without a prompt stands beside the random prompt: a baseline, never a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jpt.indicators.correlation import correlate
from jpt.indicators.indicators import Indicators
from jpt.indicators.pairs import summarize_types
from jpt.report.findings import find
from jpt.report.report import notes, write_report
from jpt.report.study import order_study, read_study
from jpt.results.prompt_table import write_transfer
from jpt.types import TransferMatrix
from tests.analysis.sample_study import ORDERED, SCORES, TASKS, PageReader, write_study
from tests.analysis.sample_study import write_transfer_facts as write_facts

NONE = np.array([0.31, 0.48, 0.52, 0.46])
WIDE = np.column_stack([SCORES, NONE])


def with_none(values: np.ndarray = WIDE) -> TransferMatrix:
    return TransferMatrix(TASKS, (*TASKS, "random", "none"), values, ("accuracy",) * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("study") / "study")
    matrix = with_none()
    write_transfer(folder / "transfer.csv", matrix)
    relative = WIDE / np.diag(SCORES)[:, None]
    write_transfer(folder / "relative.csv", with_none(relative))
    write_facts(folder, untouched={"name": "none"})
    return folder


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, list[list[str]]]:
    return PageReader(write_report(folder).read_text(encoding="utf-8")).tables


def test_it_is_told_as_what_it_is(folder: Path, tables: dict) -> None:
    head, *rows = tables["Score of each prompt on each task"]
    wanted = ["random", "no prompt", "own prompt", "majority"]
    assert head == ["target", "type", "metric", *ORDERED, *wanted]
    column = {row[0]: row[head.index("no prompt")] for row in rows}
    assert column == {task: f"{value:.4f}" for task, value in zip(TASKS, NONE, strict=True)}
    head, *rows = tables["Score of each prompt over the score of the task's own prompt"]
    assert head[-2:] == ["random", "no prompt"]
    imdb = next(row for row in rows if row[0] == "imdb")
    assert imdb[-1] == f"{0.48 / 0.9:.4f}"
    assert read_study(folder).untouched == "none"


def test_findings_and_notes_are_as_without_it(folder: Path, tmp_path: Path) -> None:
    told = []
    for study in (read_study(write_study(tmp_path / "study")), read_study(folder)):
        layout = order_study(study)
        told.append((find(study, layout), notes(study, layout)))
        assert layout.sources == ORDERED and "none" not in layout.every
    assert told[0] == told[1] and told[0][0]


def test_correlations_and_means_leave_it_out() -> None:
    column = np.random.default_rng(0).uniform(size=(4, 4))
    found = Indicators(TASKS, {"cosine_concat": column + column.T})
    narrow = TransferMatrix(TASKS, (*TASKS, "random"), SCORES, ("accuracy",) * 4)
    before, after = correlate(found, narrow), correlate(found, with_none())
    assert (before.including_in_task, before.excluding_in_task) == (
        after.including_in_task,
        after.excluding_in_task,
    )
    assert before.notes == after.notes
    means = [summarize_types(found, matrix) for matrix in (narrow, with_none())]
    untouched = [each["relative_transfer"].pop("untouched_mean") for each in means]
    assert means[0] == means[1]
    assert untouched == [None, pytest.approx(np.mean(NONE / np.diag(SCORES)))]
