"""Runs whose batches are packed: the batches that are, and that a run ends as a padded one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.data import batches
from jpt.testing import write_tiny_backbone
from tests.toy_task import write_task

pytestmark = pytest.mark.usefixtures("plain_programs")

# A small rate: AdamW divides a gradient by its size, so that where it is next to nothing a step
# follows its rounding, as far as the rate lets it.
OPTIONS: dict[str, Any] = {"steps": 6, "batch_size": 4, "length": 3, "learning_rate": 0.005}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of very different lengths: every third one is long."""
    rows = [
        {"text": f"the film {'is good and ' * (8 * (n % 3 == 0))}{word} {n}", "label": label}
        for n in range(9)
        for label, word in (("good", "fine"), ("bad", "poor"))
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    splits = dict.fromkeys(("train", "validation", "test"), text)
    return write_task(tmp_path_factory.mktemp("task"), **splits)


def model(tmp_path: Path, kind: str) -> jpt.Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path / kind, kind))


def given_batches(backbone: jpt.Backbone, task: Path, **more: Any) -> list[Any]:
    return list(jpt.training_batches(backbone, task, **{**OPTIONS, **more}))


@pytest.mark.parametrize(("mesh", "groups"), [("data:1", 1), ("data:2", 2), ("model:2", 1)])
def test_training_batches_name_their_real_tokens(
    tmp_path: Path, task: Path, mesh: str, groups: int
) -> None:
    found = given_batches(model(tmp_path, "llama"), task, mesh=mesh)
    packed = [batch for batch in found if batch.packed_index is not None]
    assert packed
    for batch in packed:
        tokens = batch.tokens.reshape(groups, -1)
        texts = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        for packed_index, row, is_text in zip(
            batch.packed_index, tokens, texts.reshape(groups, -1), strict=True
        ):
            np.testing.assert_array_equal(row[packed_index[packed_index < row.size]], row[is_text])


def test_rows_of_like_lengths_stay_padded(tmp_path: Path, task: Path) -> None:
    found = given_batches(model(tmp_path, "bert"), task, group_by_length=True)
    assert {batch.packed_index is None for batch in found} == {True}


@pytest.mark.parametrize(
    ("mesh", "kind"),
    [
        *(("data:1", kind) for kind in ("bert", "t5", "llama")),
        ("data:2,model:2", "llama"),
        *(pytest.param("data:2,model:2", kind, marks=pytest.mark.slow) for kind in ("bert", "t5")),
    ],
)
def test_a_packed_run_ends_as_a_padded_one(
    tmp_path: Path, task: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mesh: str
) -> None:
    backbone = model(tmp_path, kind)
    assert any(batch.packed_index is not None for batch in given_batches(backbone, task, mesh=mesh))
    packed = jpt.tune(backbone, task, **OPTIONS, mesh=mesh)
    monkeypatch.setattr(batches, "MOST_SHARES", 0)
    padded = jpt.tune(backbone, task, **OPTIONS)
    found, expected = packed.last.values, padded.last.values
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    losses = [
        [line["loss"] for line in run.history if line["split"] == "train"]
        for run in (packed, padded)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
