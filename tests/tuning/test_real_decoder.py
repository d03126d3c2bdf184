"""A prompt learns on a real decoder that comes as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest

import jpt
from tests.smollm2 import smollm2_file

pytestmark = pytest.mark.slow

START = "text:Decide whether the sentiment of the movie review is positive or negative. Review:"
VALIDATION_ROWS = 250


def test_a_prompt_on_smollm2_learns_sst2(tmp_path: Path, reference_folder: Path) -> None:
    model, rows = smollm2_file(), reference_folder / "data" / "sst2"
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes((rows / "train.jsonl").read_bytes())
    lines = (rows / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "validation.jsonl").write_text("".join(lines[:VALIDATION_ROWS]), encoding="utf-8")
    settings = {"learning_rate": 5e-3, "length": 16, "max_tokens": 64, "group_by_length": True}
    result = jpt.tune(model, folder, init=START, steps=60, eval_every=60, **settings)
    # All 872 rows: 0.821 (experiments/decoders/smollm2.py).
    assert result.record["validation"]["accuracy"] >= 0.80, result.record
