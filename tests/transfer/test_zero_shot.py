"""The zero-shot matrix is what scoring pair by pair gives, and says what it cannot say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.prompts.initialisers import initial_generator, random_values
from jpt.results.prompt_table import read_transfer, relative_performance
from jpt.transfer.zero_shot import transfer_matrix
from jpt.tuning.bound_task import _score_step
from jpt.types import Prompt, PromptCard, TransferMatrix
from tests.toy_task import write_task

BACKBONE = "builtin/bert-small"
LENGTH, WIDTH = 6, 128


@pytest.fixture(scope="module")
def backbone() -> jpt.Backbone:
    return jpt.load_backbone(BACKBONE)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tasks of one form whose label words differ."""
    root = tmp_path_factory.mktemp("tasks")
    mood = write_task(root / "mood")
    toml = (mood / "task.toml").read_text()
    taste = toml.replace("mood", "taste").replace('bad = "bad"', 'bad = "poor"')
    return [mood, write_task(root / "taste", toml=taste)]


def make_prompt(seed: int, task: str, length: int = LENGTH, width: int = WIDTH) -> Prompt:
    values = np.random.default_rng(seed).normal(0, 0.5, (length, width)).astype(np.float32)
    return Prompt(values, PromptCard(BACKBONE, task, "sentiment"))


@pytest.fixture(scope="module")
def prompts() -> dict[str, Prompt]:
    return {"one": make_prompt(1, "mood"), "two": make_prompt(2, "elsewhere")}


@pytest.fixture(scope="module")
def result(backbone: jpt.Backbone, prompts: dict[str, Prompt], tasks: list[Path]):
    before = _score_step._cache_size()
    found = transfer_matrix(prompts, tasks, backbone=backbone)
    assert _score_step._cache_size() - before <= 2, "one compiled program a shape"
    return found


def test_every_cell_is_what_evaluate_gives(backbone, prompts, tasks, result) -> None:
    matrix = result.matrix
    assert matrix.targets == ("mood", "taste")
    assert matrix.prompts == ("one", "two", "random", "none")
    for row, task in enumerate(tasks):
        for column, name in enumerate(("one", "two")):
            score = jpt.evaluate(prompts[name], task, backbone=backbone)
            assert matrix.values[row, column] == score.value
            found = result.scores[matrix.targets[row], name]
            np.testing.assert_array_equal(found.predictions, score.predictions)


def test_the_random_column_is_the_untrained_start(backbone, tasks, result) -> None:
    values = random_values(initial_generator(0, BACKBONE, "random"), LENGTH, WIDTH)
    start = Prompt(values, PromptCard(BACKBONE, "mood"))
    tuned = jpt.tune(backbone, tasks[0], steps=1, length=LENGTH, learning_rate=1e-30)
    np.testing.assert_array_equal(tuned.last.values, values)  # where a run really starts
    score = jpt.evaluate(start, tasks[0], backbone=backbone)
    assert result.matrix.values[0, 2] == score.value


def test_the_column_none_is_the_model_without_a_prompt(backbone, tasks, result) -> None:
    tokenizer, ids = backbone.tokenizer, backbone.tokenizer.ids
    apply = jax.jit(
        lambda text, label_ids: backbone.module.apply(
            {"params": backbone.params},
            text[None],
            jnp.array([text.size], jnp.int32),
            label_ids=label_ids,
        ).logits[0]
    )
    for target, task, words in (
        ("mood", tasks[0], ("bad", "good")),
        ("taste", tasks[1], ("poor", "good")),
    ):
        rows = [json.loads(line) for line in (task / "test.jsonl").read_text().splitlines()]
        label_ids = jnp.array([tokenizer.encode([word])[0][0] for word in words])
        right = 0
        for row in rows:  # as it stands, one row at a time: the mask, then the text
            text = [ids.cls, *tokenizer.encode([row["text"]])[0], ids.sep]
            scores = apply(jnp.array(text, jnp.int32), label_ids)
            right += int(scores.argmax()) == ("bad", "good").index(row["label"])
        assert result.scores[target, "none"].value == right / len(rows)
    assert result.record["untouched"] == {"name": "none"}


def test_relative_performance_is_left_out_where_a_target_has_no_own_prompt(result) -> None:
    assert result.own == {"mood": "one"}
    absolute = result.matrix.values
    np.testing.assert_array_equal(result.relative.values[0], absolute[0] / absolute[0, 0])
    assert np.isnan(result.relative.values[1]).all()
    assert any("taste has no prompt of its own" in note for note in result.record["notes"])


def test_means_by_type_are_in_the_record(result) -> None:
    mood = result.matrix.values[0]  # taste has no prompt of its own, so no ratio
    record = json.loads(json.dumps(result.record, allow_nan=False))
    assert record["relative_by_type"] == {"sentiment": {"sentiment": mood[1] / mood[0]}}
    told = record["relative_transfer"]
    assert (told["same_type_mean"], told["n_same"]) == (mood[1] / mood[0], 1)
    assert told["different_type_mean"] is None
    assert (told["random_mean"], told["untouched_mean"]) == (mood[2] / mood[0], mood[3] / mood[0])
    assert record["ranking"] == {"mood": ["two"]}
    assert "mean relative performance by type" in result.describe()


def test_an_own_score_of_nothing_gives_no_ratio() -> None:
    matrix = TransferMatrix(("a",), ("in_task", "other"), np.array([[0.0, 0.5]]), ("f1",))
    assert np.isnan(relative_performance(matrix, {"a": "in_task"}).values).all()


def test_neither_order_nor_batch_size_changes_a_number(backbone, prompts, tasks, result) -> None:
    turned = dict(reversed(prompts.items()))
    again = transfer_matrix(turned, tasks[::-1], backbone=backbone, eval_batch_size=5)
    assert again.matrix.targets == ("taste", "mood")
    assert again.matrix.prompts == result.matrix.prompts  # sorted by name, the baseline last
    np.testing.assert_array_equal(again.matrix.values[::-1], result.matrix.values)


def test_files_say_the_same(tmp_path: Path, backbone, prompts, tasks, result) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, prompt in prompts.items():
        jpt.save_prompt(folder / f"{name}.safetensors", prompt)
    written = transfer_matrix(folder, tasks, tmp_path / "study", backbone=backbone)
    matrix = read_transfer(tmp_path / "study" / "transfer.csv")
    assert (matrix.targets, matrix.prompts) == (result.matrix.targets, result.matrix.prompts)
    np.testing.assert_array_equal(matrix.values, result.matrix.values)
    relative = read_transfer(tmp_path / "study" / "relative.csv")
    assert relative.targets == ("mood",)
    record = json.loads((tmp_path / "study" / "transfer.json").read_text())
    assert record["targets"]["mood"]["in_task_prompt"] == "one"
    assert record["targets"]["mood"]["majority"] == 0.5
    assert record["targets"]["taste"]["in_task_prompt"] is None
    assert record["prompts"]["two"] == {"task": "elsewhere", "type": "sentiment"}
    assert written.record["command"].startswith(f"jpt transfer --prompts {folder} --tasks ")


def test_a_target_without_test_rows_is_scored_on_validation(tmp_path, backbone, prompts) -> None:
    task = write_task(tmp_path / "mood")
    (task / "test.jsonl").unlink()
    found = transfer_matrix(prompts, [task], backbone=backbone, random=False, untouched=False)
    assert found.record["untouched"] is None and found.record["random"] is None
    assert found.record["targets"]["mood"]["split"] == "validation"
    assert "mood has no test split: scored on validation" in found.record["notes"]
    assert found.matrix.prompts == ("one", "two")


def test_without_tasks_the_cards_say_the_targets(backbone) -> None:
    prompts = {"a": make_prompt(1, "builtin/imdb_number"), "b": make_prompt(2, "builtin/gone")}
    with pytest.raises(jpt.InputError, match="unknown task 'builtin/gone'"):
        transfer_matrix(prompts, backbone=backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.ones((7, WIDTH), np.float32)}, "the length 7 and prompt one 6"),
        ({"values": np.ones((LENGTH, 64), np.float32)}, "the width 64 and prompt one 128"),
        ({"card": PromptCard("builtin/bert-medium", "x")}, "the backbone builtin/bert-medium"),
        ({"card": PromptCard(BACKBONE, "x", first_position=1)}, "the first position 1"),
    ],
)
def test_prompts_that_do_not_belong_together(prompts, tasks, tmp_path, change, message) -> None:
    mixed = {**prompts, "two": dataclasses.replace(prompts["two"], **change)}
    with pytest.raises(jpt.InputError, match=message):
        transfer_matrix(mixed, tasks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_targets_and_folders(prompts, tasks, tmp_path) -> None:
    with pytest.raises(jpt.InputError, match="tasks names mood 2 times"):
        transfer_matrix(prompts, [tasks[0], tasks[0]])
    with pytest.raises(jpt.InputError, match="no tasks were given"):
        transfer_matrix(prompts, [])
    with pytest.raises(jpt.InputError, match="a prompt is called none, .*; rename it"):
        transfer_matrix({**prompts, "none": prompts["one"]}, tasks)
    with pytest.raises(jpt.InputError, match="holds no prompts"):
        transfer_matrix(tmp_path, tasks)
    with pytest.raises(jpt.InputError, match="prompt is 128 wide"):
        transfer_matrix(prompts, tasks, backbone="builtin/bert-medium")


def test_a_broken_row_of_any_target_is_said_before_anything_runs(prompts, tasks, tmp_path) -> None:
    broken = write_task(tmp_path / "later", toml=(tasks[0] / "task.toml").read_text())
    (broken / "test.jsonl").write_text('{"text": "fine", "label": "no such"}\n')
    before = _score_step._cache_size()
    with pytest.raises(jpt.InputError, match="test.jsonl"):
        transfer_matrix(prompts, [tasks[1], broken], tmp_path / "out")
    assert _score_step._cache_size() == before
    assert not (tmp_path / "out").exists()


def test_the_text_marks_own_prompts(result) -> None:
    lines = result.describe().splitlines()
    assert lines[0].split() == ["one", "two", "random", "none"]
    assert math.isclose(float(lines[1].split()[1].rstrip("*")), result.matrix.values[0, 0])
    assert lines[1].split()[1].endswith("*") and "*" not in lines[2]
