"""Prompts learn from real text, and what is claimed of a score is true of its predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.data.rows import read_rows
from jpt.recipes.quickstart import TASKS as STUDIED
from jpt.tuning.tune import TuneResult

# The others are tuned by the slow test of the quickstart.
SHORT = {"max_tokens": 32}
TASKS = [name for name in jpt.task_names() if name.startswith("builtin/") and name not in STUDIED]


@pytest.fixture(scope="module")
def backbone() -> jpt.Backbone:
    """The one that learns fastest; the quickstart's tests tune the encoder."""
    return jpt.load_backbone("builtin/gpt2-mini")


@pytest.fixture(scope="module")
def tuned(backbone: jpt.Backbone) -> TuneResult:
    return jpt.tune(backbone, "builtin/rotten_tomatoes", steps=100, eval_every=50, **SHORT)


def test_a_prompt_learns_sentiment(tuned: TuneResult) -> None:
    test = tuned.record["test"]
    assert test["rows"] >= 500 and test["majority"] == 0.5
    assert test["accuracy"] >= 0.58, test
    first, last = (line["loss"] for line in tuned.history if line["split"] == "validation")
    assert last < first and test["loss"] < np.log(2)  # which even odds would give


def test_the_score_is_that_of_the_predictions(backbone: jpt.Backbone, tuned: TuneResult) -> None:
    score = jpt.evaluate(tuned.prompt, "builtin/rotten_tomatoes", backbone=backbone, **SHORT)
    task = jpt.load_task("builtin/rotten_tomatoes")
    labels = np.array([task.labels.index(row["label"]) for row in read_rows(task, "test")])
    assert score.value == np.mean(score.predictions == labels)
    assert score.value == tuned.record["test"]["accuracy"]
    assert sum(score.counts.values()) == score.rows == len(labels)


@pytest.mark.parametrize("eval_batch_size", [1000, 7])
def test_the_batch_size_changes_no_prediction(
    backbone: jpt.Backbone, tuned: TuneResult, eval_batch_size: int
) -> None:
    task = "builtin/rotten_tomatoes"
    options = {"backbone": backbone, **SHORT}
    plain = jpt.evaluate(tuned.prompt, task, **options)
    other = jpt.evaluate(tuned.prompt, task, eval_batch_size=eval_batch_size, **options)
    np.testing.assert_array_equal(plain.predictions, other.predictions)
    assert other.loss == pytest.approx(plain.loss, rel=1e-5)


@pytest.mark.slow
def test_bfloat16_scores_alike(tuned: TuneResult) -> None:
    score = jpt.evaluate(tuned.prompt, "builtin/rotten_tomatoes", dtype="bfloat16", **SHORT)
    assert abs(score.value - tuned.record["test"]["accuracy"]) < 0.03


@pytest.mark.parametrize("init", ["random", "vocab", "labels", "text:this film is"])
def test_all_prompts_of_a_study_start_equal(backbone: jpt.Backbone, init: str) -> None:
    from jpt.config import TuneOptions
    from jpt.tuning.bound_task import bind_task
    from jpt.tuning.tune import initial_prompt

    def start(task: str, seed: int) -> np.ndarray:
        options = TuneOptions(init=init, seed=seed).resolve(backbone.defaults)
        prepared = bind_task(jpt.load_task(task), backbone, 64, 8)
        return initial_prompt(backbone, prepared, options)

    first, second = start("builtin/imdb", 0), start("builtin/rotten_tomatoes", 0)
    np.testing.assert_array_equal(first, second)
    assert np.array_equal(start("builtin/imdb", 1), first) == init.startswith("text")


def test_a_prompt_can_start_from_another(
    backbone: jpt.Backbone, tuned: TuneResult, tmp_path: Path
) -> None:
    path = tmp_path / "source.safetensors"
    jpt.save_prompt(path, tuned.prompt)
    options = {"steps": 1, "eval_every": 1, "learning_rate": 1e-12, **SHORT}
    result = jpt.tune(backbone, "builtin/rotten_tomatoes", init=f"prompt:{path}", **options)
    np.testing.assert_allclose(result.last.values, tuned.prompt.values, atol=1e-6)
    assert result.record["test"]["accuracy"] == tuned.record["test"]["accuracy"]


@pytest.mark.slow
def test_real_rows_of_a_catalog_task_train(backbone: jpt.Backbone, reference_folder: Path) -> None:
    result = jpt.tune(
        backbone,
        reference_folder / "data" / "mnli",
        steps=3,
        eval_every=3,
    )
    assert result.record["task"] == "mnli"
    assert set(result.record["test"]["counts"]) == {"contradiction", "neutral", "entailment"}
    assert result.record["test"]["rows"] == 2999


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_built_in_task_is_learnt(name: str) -> None:
    """Eight points above the majority class, with the settings that ship."""
    test = jpt.tune("builtin/bert-small", name).record["test"]
    assert test["accuracy"] >= test["majority"] + 0.08, (name, test)
