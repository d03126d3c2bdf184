"""Untrained projection methods, and the cross-model table."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.results.prompt_table import read_transfer
from jpt.testing import WORDS, write_tiny_backbone
from jpt.transfer.projection import (
    choose_anchors,
    least_squares_projector,
    relative_method,
    shared_tokens,
)
from jpt.types import Prompt, PromptCard
from tests.helpers.running import raises
from tests.helpers.toys import SIZES, SOURCE, source_prompt, source_prompts, write_case

pytestmark = pytest.mark.plain_programs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> jpt.Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("source"), "bert"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> jpt.Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("t5"), "t5", d_model=20))


def with_words(backbone: jpt.Backbone, words: np.ndarray) -> jpt.Backbone:
    embeddings = {**backbone.params["embeddings"], "word": jnp.asarray(words, jnp.float32)}
    return dataclasses.replace(backbone, params={**backbone.params, "embeddings": embeddings})


def prompt_of(backbone: jpt.Backbone, rows: np.ndarray) -> Prompt:
    return Prompt(rows.astype(np.float32), PromptCard(backbone.name, "mood"))


def test_shared_tokens_leave_special_ones_out(source, target) -> None:
    ids, same = shared_tokens(source, target)
    texts = [source.tokenizer.token_text(token) for token in ids]
    assert texts == [target.tokenizer.token_text(token) for token in same]
    assert set(WORDS) <= set(texts) and not {"[MASK]", "[PAD]", "</s>", "<extra_id_0>"} & set(texts)


class _Tokenizer:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.ids, self.vocabulary_size = tokens, (), len(tokens)

    def token_text(self, token: int) -> str:
        return self.tokens[token]


def test_word_start_marks(source) -> None:
    vocabularies = {
        "wordpiece": ["film", "##s", "the", "[unused0]"],
        "sentencepiece": ["s", "▁the", "▁film", "▁", "film"],
        "byte": ["Ġthe", "x", "s", "Ġfilm"],
    }

    def model(tokens: list[str]) -> jpt.Backbone:
        config = dataclasses.replace(source.config, vocabulary=len(tokens))
        return dataclasses.replace(source, tokenizer=_Tokenizer(tokens), config=config)

    def pairs(*names: str) -> list[tuple[str, str]]:
        first, second = (vocabularies[name] for name in names)
        ids = shared_tokens(model(first), model(second))
        return [(first[a], second[b]) for a, b in zip(*ids, strict=True)]

    expected = [("film", "▁film"), ("##s", "s"), ("the", "▁the")]
    assert pairs("wordpiece", "sentencepiece") == expected
    assert pairs("sentencepiece", "byte") == [("s", "s"), ("▁the", "Ġthe"), ("▁film", "Ġfilm")]


@pytest.mark.parametrize("method", [partial(least_squares_projector, length=4), relative_method])
def test_models_without_shared_tokens(source, method) -> None:
    other = dataclasses.replace(source, tokenizer=_Tokenizer(["foo", "bar"]))
    raises(method, source, other, match="expected shared tokens, got none")


def test_least_squares_recovers_a_map_and_minimises_the_error(source, target) -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(0, 1, (32, 20))
    ids, same = shared_tokens(source, target)
    # Fewer shared tokens than columns do not determine a map: some columns are 0.
    words = np.asarray(source.params["embeddings"]["word"]).copy()
    words[:, 12:] = 0
    new = np.asarray(target.params["embeddings"]["word"]).copy()
    new[same] = words[ids] @ matrix
    first, second = with_words(source, words), with_words(target, new)
    rows = random.normal(0, 1, (4, 32))
    rows[:, 12:] = 0
    found = least_squares_projector(first, second, 4)(prompt_of(source, rows))
    np.testing.assert_allclose(found, rows @ matrix, rtol=1e-4, atol=1e-4)
    ids, same = shared_tokens(source, target)
    first = np.asarray(source.params["embeddings"]["word"], np.float64)[ids]
    second = np.asarray(target.params["embeddings"]["word"], np.float64)[same]
    found = least_squares_projector(source, target, 4)
    matrix = np.asarray(found.params["row"]["kernel"], np.float64)
    np.testing.assert_allclose(first.T @ (first @ matrix - second), 0, atol=1e-5)
    assert found.card.objective == "least_squares" and found.card.target_layout == "encoder_decoder"


def test_relative_is_exact_for_a_rotated_and_scaled_space(source) -> None:
    random = np.random.default_rng(1)
    turn, _ = np.linalg.qr(random.normal(0, 1, (32, 32)))
    wide = random.normal(0, 1, (61, 32))
    wide[:, 12:] = 0  # fewer anchors than columns do not determine a token
    rows = random.normal(0, 1, (4, 32))
    rows[:, 12:] = 0
    first, second = with_words(source, wide), with_words(source, 3.0 * wide @ turn)
    found = relative_method(first, second)(prompt_of(source, rows))
    expected = rows @ turn
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(cosine / np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    ids, same = shared_tokens(first, second)
    norms = np.linalg.norm(3.0 * wide[same], axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), norms.mean(), rtol=1e-5)
    np.testing.assert_array_equal(found, relative_method(first, second)(prompt_of(source, rows)))


def test_anchors_spread_over_the_vocabulary() -> None:
    assert choose_anchors(100, 5) == [0, 25, 50, 74, 99]
    assert choose_anchors(7, 512) == list(range(7))
    raises(relative_method, None, None, anchors=0, match="anchors is 0")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[jpt.Backbone, list[Path], Path]:
    root = tmp_path_factory.mktemp("case")
    _, tasks = write_case(root)
    backbone = jpt.load_backbone(write_tiny_backbone(root / "t5", "t5", d_model=20))
    options = {**SIZES, "steps": 4, "length": 3, "out": root / "run"}
    jpt.train_projector(source_prompts(), backbone, tasks=tasks[:1], **options)
    return backbone, tasks, root / "run"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    for name, prompt in source_prompts().items():
        jpt.save_prompt(folder / f"{name}.safetensors", prompt)
    return folder


def test_projected_files_are_prompts_with_origin(case, prompts: Path, tmp_path: Path) -> None:
    backbone, tasks, run = case
    found = jpt.apply_projector(run, prompts, tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["a_first", "b_second"]
    stored = jpt.load_prompt(tmp_path / "out" / "a_first.safetensors")
    np.testing.assert_array_equal(stored.values, found["a_first"].values)
    assert stored.values.shape == (3, 20)
    card = stored.card
    assert (card.backbone, card.task, card.layout) == (backbone.name, "mood", "encoder_decoder")
    assert card.source == f"{run} (task on mood) from prompt a_first of {SOURCE}"
    score = jpt.evaluate(tmp_path / "out" / "a_first.safetensors", tasks[0], backbone=backbone)
    assert 0 <= score.value <= 1
    one = jpt.apply_projector(run, prompts / "b_second.safetensors")
    np.testing.assert_array_equal(one["b_second"].values, found["b_second"].values)


def test_the_table_equals_evaluate(case, prompts: Path, tmp_path: Path) -> None:
    backbone, tasks, run = case
    card = PromptCard(backbone.name, "mood", layout="encoder_decoder")
    tuned = Prompt(source_prompt(3, "mood", rows=3, width=20).values, card)
    options = {"targets": {"mine": tuned}, "target_backbone": backbone}
    result = jpt.evaluate_projector({"on_mood": run}, prompts, tasks, tmp_path / "out", **options)
    assert result.matrix.prompts == ("in_task", "random", "on_mood", "untrained")
    assert result.matrix.targets == ("mood", "amusing")
    projected = jpt.apply_projector(run, prompts)
    for row, name in enumerate(("a_first", "b_second")):
        score = jpt.evaluate(projected[name], tasks[row], backbone=backbone)
        assert result.matrix.values[row, 2] == score.value
    score = jpt.evaluate(tuned, tasks[0], backbone=backbone)
    assert result.scores["mood"]["in_task"] == score.value
    assert "in_task" not in result.scores["amusing"] and np.isnan(result.matrix.values[1, 0])
    untrained = result.prompts["untrained"]["mood"]
    assert untrained.values.shape == (3, 20) and untrained.card.source.startswith("untrained")
    assert not np.array_equal(untrained.values, projected["a_first"].values)
    table = read_transfer(tmp_path / "out" / "projection.csv")
    assert table.values[0, 2] == result.matrix.values[0, 2]
    record = json.loads((tmp_path / "out" / "projection.json").read_text())
    assert record["trained_on"] == {"on_mood": ["mood"]}
    assert record["targets"]["mood"]["majority"] == record["targets"]["mood"]["chance"] == 0.5
    errors = record["targets"]["mood"]["standard_errors"]
    assert errors["in_task"] == score.standard_error
    stored = read_transfer(tmp_path / "out" / "standard_errors.csv")
    assert dict(zip(stored.prompts, stored.values[0], strict=True)) == errors
    assert record["targets"]["amusing"]["standard_errors"]["in_task"] is None
    np.testing.assert_array_equal(table.errors, result.matrix.errors)
    assert record["versions"]["jpt"] == jpt.__version__ and record["device"] == "1 x cpu"
    assert len(list((tmp_path / "out" / "projected").rglob("*.safetensors"))) == 4
    lines = result.describe().splitlines()
    assert "*" in lines[1].split()[4] and "*" not in lines[2].split()[4]
    assert lines[0].split()[0] == "chance" and lines[1].split()[1] == "0.500"
    for cell, value, error in zip(
        lines[1].split()[2:], result.matrix.values[0], result.matrix.errors[0], strict=True
    ):
        assert cell.endswith("~") == (abs(value - 0.5) <= error)


def test_warm_start_begins_at_the_projected_prompt(case, prompts: Path, tmp_path: Path) -> None:
    backbone, tasks, run = case
    options = {"target_backbone": backbone, "methods": (), "warm_start": "on_mood"}
    options |= {"warm_steps": 2, "split": "validation"}
    out = tmp_path / "out"
    result = jpt.evaluate_projector({"on_mood": run}, prompts, tasks[:1], out, **options)
    assert result.matrix.prompts == ("random", "on_mood", "warm", "vanilla")
    values = result.matrix.values
    np.testing.assert_allclose(result.matrix.errors, np.sqrt(values * (1 - values) / 42))
    config = json.loads((out / "warm" / "mood" / "config.json").read_text())
    assert config["steps"] == 2 and config["init"].endswith("projected/on_mood/mood.safetensors")
    tuned = jpt.load_prompt(out / "warm" / "mood" / "last.safetensors").values
    start = jpt.load_prompt(out / "projected" / "on_mood" / "mood.safetensors").values
    plain = jpt.load_prompt(out / "vanilla" / "mood" / "last.safetensors").values
    assert np.abs(tuned - start).max() < np.abs(tuned - plain).max()
    again = jpt.evaluate_projector({"on_mood": run}, prompts, tasks[:1], out, **options)
    np.testing.assert_array_equal(again.matrix.values, result.matrix.values)


def test_untrained_methods_need_no_projector(case, tmp_path: Path) -> None:
    backbone, tasks, _ = case
    model = jpt.load_backbone(write_tiny_backbone(tmp_path / "source", "bert"))
    values = source_prompt(1, "mood", rows=5, width=32).values
    given = {"a": Prompt(values, PromptCard(model.name, "mood"))}
    options = {"target_backbone": backbone, "source_backbone": model}
    result = jpt.evaluate_projector([], given, tasks[:1], random=False, **options)
    assert result.matrix.prompts == ("untrained", "least_squares", "relative")
    for name in ("least_squares", "relative"):
        again = jpt.apply_projector(name, given, **options)["a"]
        np.testing.assert_array_equal(again.values, result.prompts[name]["mood"].values)
        assert again.card.source == f"{name} from prompt a of {model.name}"


def test_a_task_without_test_rows_is_scored_on_validation(case, prompts: Path, tmp_path) -> None:
    backbone, tasks, run = case
    task = shutil.copytree(tasks[0], tmp_path / "mood")
    (task / "test.jsonl").unlink()
    options = {"target_backbone": backbone, "methods": (), "random": False}
    result = jpt.evaluate_projector(run, prompts, [task], **options)
    assert "note: mood has no test split: scored on validation" in result.describe()
    other = jpt.evaluate_projector(run, prompts, tasks[:1], split="validation", **options)
    assert result.matrix.values[0, 0] == other.matrix.values[0, 0]


def test_invalid_input(case, prompts: Path, tmp_path: Path) -> None:
    backbone, tasks, run = case
    longer = {"a": source_prompt(1, "mood", rows=6)}
    same = Prompt(np.ones((3, 20), np.float32), PromptCard(backbone.name, "mood"))
    apply, evaluate = jpt.apply_projector, jpt.evaluate_projector
    target, no = {"target_backbone": backbone}, tmp_path / "no"
    mini, source = {"target_backbone": "builtin/t5-mini"}, {"a": source_prompt(1, "mood")}
    wrong = [
        (apply, (run, longer, no), {}, r"expected shape \[5, 12\] .* got \[6, 12\]"),
        (apply, (run, same, no), {}, r"got \[3, 20\]"),
        (apply, ("relative", prompts, no), {}, "give target_backbone"),
        (apply, ("relative", same), target, "expected another model than the source"),
        (apply, ("relative", prompts), {"length": 4, **target}, "expected 5, .* got 4"),
        (apply, (tmp_path, prompts), {}, "expected a finished run"),
        (evaluate, (run, longer, tasks), {}, r"got \[6, 12\]"),
        (evaluate, (run, prompts, tasks), mini, r"projector run: .* got \[3, 20\]"),
        (evaluate, ([], prompts, tasks), {}, "give it"),
        (evaluate, ({"in_task": run}, prompts, tasks), {}, "projector in_task: the name of"),
        (evaluate, ([run, run], prompts, tasks), {}, "projectors: .* got run 2 times"),
        (evaluate, (run, prompts, tasks), {"methods": ("best",), **target}, "unknown method"),
        (
            evaluate,
            (run, prompts, tasks),
            {"methods": (), "warm_start": "other", **target},
            "warm_start: expected one of run, got 'other'",
        ),
        (evaluate, (run, prompts, tasks), {"split": "dev", **target}, "split is 'dev'"),
        (
            evaluate,
            (run, prompts, tasks),
            {"methods": ("relative",), **target},
            "length: expected 5, the source's, which relative keeps, got 3",
        ),
        (evaluate, (run, prompts, tasks), {"targets": source}, "targets: expected prompts of"),
    ]
    for call, given, options, message in wrong:
        raises(call, *given, match=message, **options)
    assert not (tmp_path / "no").exists()
