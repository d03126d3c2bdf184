"""Zero-shot transfer matrices: cells, baselines, files, and columns of several seeds."""

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
from jpt.prompts.store import load_seed_prompts
from jpt.results.prompt_table import read_transfer, relative_performance
from jpt.transfer.zero_shot import TransferResult, transfer_matrix
from jpt.tuning.bound_task import _score_step
from jpt.types import Prompt, PromptCard, TransferMatrix
from tests.helpers.running import raises
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

BACKBONE = "builtin/bert-small"
LENGTH, WIDTH = 6, 128


@pytest.fixture(scope="module")
def backbone() -> jpt.Backbone:
    return jpt.load_backbone(BACKBONE)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("tasks")
    mood = write_task(root / "mood")
    toml = (mood / "task.toml").read_text()
    taste = toml.replace("mood", "taste").replace('bad = "bad"', 'bad = "poor"')
    return [mood, write_task(root / "taste", toml=taste)]


def make_prompt(seed: int, task: str) -> Prompt:
    values = np.random.default_rng(seed).normal(0, 0.5, (LENGTH, WIDTH)).astype(np.float32)
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


def test_every_cell_equals_evaluate(backbone, prompts, tasks, result) -> None:
    matrix = result.matrix
    assert matrix.targets == ("mood", "taste")
    assert matrix.prompts == ("one", "two", "random", "none")
    for row, task in enumerate(tasks):
        for column, name in enumerate(("one", "two")):
            score = jpt.evaluate(prompts[name], task, backbone=backbone)
            assert matrix.values[row, column] == score.value
            found = result.scores[matrix.targets[row], name]
            np.testing.assert_array_equal(found.predictions, score.predictions)


@pytest.mark.slow
def test_the_columns_random_and_none(backbone, tasks, result) -> None:
    values = random_values(initial_generator(0, BACKBONE, "random"), LENGTH, WIDTH)
    start = Prompt(values, PromptCard(BACKBONE, "mood"))
    tuned = jpt.tune(backbone, tasks[0], steps=1, length=LENGTH, learning_rate=1e-30)
    np.testing.assert_array_equal(tuned.last.values, values)  # where a run really starts
    assert result.matrix.values[0, 2] == jpt.evaluate(start, tasks[0], backbone=backbone).value
    tokenizer, ids = backbone.tokenizer, backbone.tokenizer.ids

    @jax.jit
    def apply(text, label_ids):
        inputs = ({"params": backbone.params}, text[None], jnp.array([text.size], jnp.int32))
        return backbone.module.apply(*inputs, label_ids=label_ids).logits[0]

    for target, task, bad in (("mood", tasks[0], "bad"), ("taste", tasks[1], "poor")):
        rows = [json.loads(line) for line in (task / "test.jsonl").read_text().splitlines()]
        label_ids = jnp.array([tokenizer.encode([word])[0][0] for word in (bad, "good")])
        right = 0
        for row in rows:  # without batching or padding
            text = [ids.cls, *tokenizer.encode([row["text"]])[0], ids.sep]
            scores = apply(jnp.array(text, jnp.int32), label_ids)
            right += int(scores.argmax()) == ("bad", "good").index(row["label"])
        assert result.scores[target, "none"].value == right / len(rows)
    assert result.record["untouched"] == {"name": "none"}


def test_relative_performance_means_and_text(result) -> None:
    assert result.in_task == {"mood": "one"}
    absolute = result.matrix.values
    np.testing.assert_array_equal(result.relative.values[0], absolute[0] / absolute[0, 0])
    assert np.isnan(result.relative.values[1]).all()
    assert any("taste has no in-task prompt" in note for note in result.record["notes"])
    mood = result.matrix.values[0]  # taste has no in-task prompt, so no ratio
    record = json.loads(json.dumps(result.record, allow_nan=False))
    assert record["relative_by_type"] == {"sentiment": {"sentiment": mood[1] / mood[0]}}
    means = record["relative_transfer"]
    assert (means["same_type_mean"], means["n_same"]) == (mood[1] / mood[0], 1)
    assert means["different_type_mean"] is None
    assert (means["random_mean"], means["untouched_mean"]) == (mood[2] / mood[0], mood[3] / mood[0])
    assert record["ranking"] == {"mood": ["two"]}
    assert "mean relative performance by task type" in result.describe()
    lines = result.describe().splitlines()
    assert lines[0].split() == ["one", "two", "random", "none", "chance"]
    assert math.isclose(float(lines[1].split()[1].rstrip("*~")), result.matrix.values[0, 0])
    assert "*" in lines[1].split()[1] and "*" not in lines[2]
    assert lines[1].split()[-1] == lines[2].split()[-1] == "0.500"


def test_an_in_task_score_of_0_gives_no_ratio() -> None:
    matrix = TransferMatrix(("a",), ("in_task", "other"), np.array([[0.0, 0.5]]), ("f1",))
    assert np.isnan(relative_performance(matrix, {"a": "in_task"}).values).all()


@pytest.mark.slow
def test_files_and_order_of_the_input(tmp_path: Path, backbone, prompts, tasks, result) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, prompt in prompts.items():
        jpt.save_prompt(folder / f"{name}.safetensors", prompt)
    study = transfer_matrix(folder, tasks, tmp_path / "study", backbone=backbone)
    matrix = read_transfer(tmp_path / "study" / "transfer.csv")
    assert (matrix.targets, matrix.prompts) == (result.matrix.targets, result.matrix.prompts)
    np.testing.assert_array_equal(matrix.values, result.matrix.values)
    assert read_transfer(tmp_path / "study" / "relative.csv").targets == ("mood",)
    record = json.loads((tmp_path / "study" / "transfer.json").read_text())
    assert record["targets"]["mood"]["in_task_prompt"] == "one"
    assert record["targets"]["mood"]["majority"] == 0.5
    assert record["targets"]["taste"]["in_task_prompt"] is None
    assert record["prompts"]["two"] == {"task": "elsewhere", "type": "sentiment"}
    assert study.record["command"].startswith(f"jpt transfer --prompts {folder} --tasks ")
    options = {"backbone": backbone, "eval_batch_size": 5}
    again = transfer_matrix(dict(reversed(prompts.items())), tasks[::-1], **options)
    assert again.matrix.targets == ("taste", "mood")
    assert again.matrix.prompts == result.matrix.prompts  # sorted by name, baselines last
    np.testing.assert_array_equal(again.matrix.values[::-1], result.matrix.values)


def test_a_target_without_test_rows_is_scored_on_validation(tmp_path, backbone, prompts) -> None:
    task = write_task(tmp_path / "mood")
    (task / "test.jsonl").unlink()
    found = transfer_matrix(prompts, [task], backbone=backbone, random=False, untouched=False)
    assert found.record["untouched"] is None and found.record["random"] is None
    assert found.record["targets"]["mood"]["split"] == "validation"
    assert "mood has no test split: scored on validation" in found.record["notes"]
    assert found.matrix.prompts == ("one", "two")


def test_the_cards_name_the_default_targets(backbone) -> None:
    prompts = {"a": make_prompt(1, "builtin/imdb_number"), "b": make_prompt(2, "builtin/gone")}
    raises(transfer_matrix, prompts, backbone=backbone, match="unknown task 'builtin/gone'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.ones((7, WIDTH), np.float32)}, "length 6, that of prompt one, got 7"),
        ({"values": np.ones((LENGTH, 64), np.float32)}, "width 128, that of prompt one, got 64"),
        (
            {"card": PromptCard("builtin/bert-medium", "x")},
            "expected backbone .* got builtin/bert-medium",
        ),
        (
            {"card": PromptCard(BACKBONE, "x", first_position=1)},
            "expected first position 0, .* got 1",
        ),
    ],
)
def test_incompatible_prompts(prompts, tasks, tmp_path, change, message) -> None:
    mixed = {**prompts, "two": dataclasses.replace(prompts["two"], **change)}
    raises(transfer_matrix, mixed, tasks, tmp_path / "out", match=message)
    assert not (tmp_path / "out").exists()


def test_invalid_input_and_broken_rows(prompts, tasks, tmp_path) -> None:
    for given, options, message in (
        ((prompts, [tasks[0], tasks[0]]), {}, "tasks: .* got mood 2 times"),
        ((prompts, []), {}, "tasks: expected at least one"),
        (({**prompts, "none": prompts["one"]}, tasks), {}, "prompt none: .*; rename it"),
        ((tmp_path, tasks), {}, "holds no prompts"),
        ((prompts, tasks), {"backbone": "builtin/bert-medium"}, "of width .* got width 128"),
    ):
        raises(transfer_matrix, *given, match=message, **options)
    broken = write_task(tmp_path / "later", toml=(tasks[0] / "task.toml").read_text())
    (broken / "test.jsonl").write_text('{"text": "fine", "label": "no such"}\n')
    before = _score_step._cache_size()
    raises(transfer_matrix, prompts, [tasks[1], broken], tmp_path / "out", match="test.jsonl")
    assert _score_step._cache_size() == before and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seeds")
    mood = write_task(root / "mood")
    toml = (mood / "task.toml").read_text().replace("mood", "taste")
    write_task(root / "taste", toml=toml.replace('good = "good"', 'good = "great"'))
    model = jpt.load_backbone("builtin/bert-small")
    options = {"steps": 2, "length": 3, "batch_size": 8, "max_tokens": 16}
    (root / "prompts").mkdir()
    jpt.tune_seeds(model, mood, [0, 1, 2], root / "prompts" / "mood", **options)
    jpt.tune(model, root / "taste", root / "prompts" / "taste", **options)
    return root


@pytest.fixture(scope="module")
def seeds_result(root: Path) -> TransferResult:
    return transfer_matrix(root / "prompts", [root / "mood", root / "taste"], root / "out")


def test_columns_cells_and_relative_performance_of_seeds(root: Path, seeds_result) -> None:
    assert seeds_result.matrix.prompts == ("mood", "taste", "random", "none")
    model = jpt.load_backbone("builtin/bert-small")
    assert list(seeds_result.record["seeds"]) == ["mood"]
    record = seeds_result.record["seeds"]["mood"]
    assert record["seeds"] == [0, 1, 2]
    runs = [jpt.load_prompt(root / "prompts" / "mood" / f"seed-{seed}") for seed in range(3)]
    for row, target in enumerate(("mood", "taste")):
        values = [jpt.evaluate(run, root / target, backbone=model).value for run in runs]
        found, mean = record["targets"][target], sum(values) / 3
        assert found["values"] == values and found["mean"] == seeds_result.matrix.values[row, 0]
        assert seeds_result.matrix.values[row, 0] == pytest.approx(mean, abs=1e-15)
        spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert found["std"] == pytest.approx(spread, abs=1e-15)
        assert f"{mean:.3f}±{spread:.3f}" in seeds_result.describe()
    assert len(set(record["targets"]["mood"]["values"])) > 1
    assert seeds_result.in_task == {"mood": "mood", "taste": "taste"}
    values = seeds_result.matrix.values
    relative = values / values[[0, 1], [0, 1]][:, None]
    np.testing.assert_array_equal(seeds_result.relative.values, relative)
    np.testing.assert_array_equal(read_transfer(root / "out" / "transfer.csv").values, values)
    lines = (root / "out" / "cells.jsonl").read_text().splitlines()
    runs = ["mood/seed-0", "mood/seed-1", "mood/seed-2", "taste", "random", "none"]
    assert [json.loads(line)["source_prompt"] for line in lines] == runs * 2


def test_prompts_by_seed_in_python_and_in_a_report(root: Path, seeds_result) -> None:
    prompts = load_seed_prompts(root / "prompts")
    given = {"mood": {s: prompts["mood"][s] for s in (2, 0, 1)}, "taste": prompts["taste"][None]}
    found = transfer_matrix(given, [root / "mood"], random=False, untouched=False)
    np.testing.assert_array_equal(found.matrix.values, seeds_result.matrix.values[:1, :2])
    page = jpt.write_report(root / "out").read_text()
    assert f"{100 * seeds_result.matrix.values[0, 0]:.1f}" in page and "no prompt" in page


def prompt(length: int = 3, task: str = "mood") -> Prompt:
    return Prompt(np.ones((length, 8), np.float32), PromptCard("tiny", task))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"a": {0: prompt(), 1: prompt(4)}}, "a/seed-1: expected length 3, .* a/seed-0, got 4"),
        ({"a": {0: prompt(), 1: prompt(task="taste")}}, r"a: .* got mood \(seed 0\) and taste \(s"),
        ({"a": {}}, "prompt a: expected"),
        ({"a": {0: prompt()}, "b": prompt(5)}, "prompt b: expected length 3, .* got 5"),
    ],
)
def test_incompatible_seeds(prompts: dict, message: str) -> None:
    with pytest.raises(jpt.InputError, match=message) as error:
        transfer_matrix(prompts, ["builtin/imdb"])
    assert "\n" not in str(error.value)


def test_invalid_folders_of_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / "mood" / f"seed-{seed}").mkdir(parents=True)
    jpt.save_prompt(tmp_path / "mood" / "seed-0" / "prompt.safetensors", prompt())
    with pytest.raises(jpt.InputError, match="seed-1 has no prompt.safetensors: an unfinished run"):
        load_seed_prompts(tmp_path)
    second = dataclasses.replace(prompt(), card=PromptCard("tiny", "taste"))
    jpt.save_prompt(tmp_path / "mood" / "seed-1" / "prompt.safetensors", second)
    raises(load_seed_prompts, tmp_path, match=r"taste \(seed 1\)")
    jpt.save_prompt(tmp_path / "mood.safetensors", prompt())
    raises(load_seed_prompts, tmp_path, match="two prompts named mood")
    jpt.save_prompt(tmp_path / "mood" / "prompt.safetensors", prompt())
    raises(load_seed_prompts, tmp_path, match="expected a run or runs of seeds, got both")
    raises(load_seed_prompts, tmp_path / "nowhere", match="no such file")
