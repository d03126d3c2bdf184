"""A loop of one's own does what `jpt.tune` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.testing import write_tiny_backbone
from tests.toy_task import write_task

OPTIONS: dict[str, Any] = {"steps": 5, "batch_size": 4, "length": 3, "seed": 3, "clip_norm": 0.1}


@pytest.mark.parametrize("kind", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_it_ends_bit_for_bit_as_tune(kind: str, tmp_path: Path) -> None:
    backbone = jpt.load_backbone(write_tiny_backbone(tmp_path / kind, kind))
    task = write_task(tmp_path / "task")
    step, state = jpt.train_step(backbone, task, **OPTIONS)
    losses = []
    for batch in jpt.training_batches(backbone, task, **OPTIONS):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    whole = jpt.tune(backbone, task, **OPTIONS)
    np.testing.assert_array_equal(np.asarray(state.prompt), whole.last.values)
    assert losses[-1] == pytest.approx(
        next(line["loss"] for line in reversed(whole.history) if line["split"] == "train")
    )


def test_it_starts_where_it_is_told(tmp_path: Path) -> None:
    backbone = jpt.load_backbone(write_tiny_backbone(tmp_path / "bert", "bert"))
    values = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    file = tmp_path / "start.safetensors"
    jpt.save_prompt(file, jpt.Prompt(values, jpt.PromptCard(backbone.name, "mood")))
    task = write_task(tmp_path / "task")
    _, state = jpt.train_step(backbone, task, **OPTIONS, init=f"prompt:{file}")
    np.testing.assert_array_equal(np.asarray(state.prompt), values)
    assert int(state.step) == 0


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    backbone = jpt.load_backbone(write_tiny_backbone(tmp_path / "bert", "bert"))
    with pytest.raises(jpt.InputError, match="positions"):
        jpt.train_step(backbone, write_task(tmp_path / "task"), length=3, max_tokens=500)
