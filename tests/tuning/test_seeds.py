"""Several seeds in one call: each is the run that it would be alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jpt
from tests.toy_task import write_task

OPTIONS = {"steps": 4, "eval_every": 2, "batch_size": 8, "length": 4, "max_tokens": 16}


def test_each_seed_is_a_run_of_its_own(tmp_path: Path) -> None:
    mood, name = write_task(tmp_path / "mood"), "builtin/bert-small"
    several = jpt.tune_seeds(name, mood, [0, 3, 5], tmp_path / "out", **OPTIONS)
    alone = jpt.tune(name, mood, seed=3, **OPTIONS)
    np.testing.assert_array_equal(several.results[3].prompt.values, alone.prompt.values)
    assert several.results[3].record["test"] == alone.record["test"]
    values = [several.results[seed].record["test"]["accuracy"] for seed in (0, 3, 5)]
    record = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert record == several.record and record["test"]["values"] == values
    mean = sum(values) / 3
    assert record["test"]["mean"] == pytest.approx(mean)
    spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert record["test"]["std"] == pytest.approx(spread)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "seed-0", "seed-3", "seed-5", "seeds.json",
    }  # fmt: skip
    best = max(r.record["validation"]["accuracy"] for r in several.results.values())
    assert several.best.record["validation"]["accuracy"] == best
    assert f"test accuracy: {mean:.3f} ±" in several.describe()


@pytest.mark.parametrize("seeds", [[], [1], [1, 1]])
def test_one_seed_tells_no_spread(seeds: list[int]) -> None:
    with pytest.raises(jpt.InputError, match="two or more different ones"):
        jpt.tune_seeds("builtin/bert-small", "builtin/imdb", seeds)
