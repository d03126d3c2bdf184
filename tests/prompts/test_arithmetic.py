"""Averages of prompts: values, order, cards and weights."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.prompts.arithmetic import (
    choose_parts,
    mix_bank,
    parse_weights,
    resolve_weights,
    softmax_weights,
)
from jpt.types import Prompt, PromptCard

CARD = PromptCard("bert", "builtin/imdb", "sentiment", seed=3, score=0.9, metric="accuracy")


def bank(count: int = 3) -> dict[str, Prompt]:
    random = np.random.default_rng(0)
    names = ["imdb", "mnli", "sst2"][:count]
    values = [random.normal(0, 1, (4, 6)).astype(np.float32) for _ in names]
    cards = [dataclasses.replace(CARD, task=name) for name in names]
    return {name: Prompt(*each) for name, *each in zip(names, values, cards, strict=True)}


def test_the_average_is_the_mean_of_every_value() -> None:
    parts = bank()
    values = [prompt.values.astype(float) for prompt in parts.values()]
    found = jpt.average_prompts(parts)
    np.testing.assert_array_equal(found.values, np.mean(values, axis=0).astype(np.float32))
    weighted = jpt.average_prompts(parts, {"imdb": 2, "sst2": 6, "mnli": 0})
    np.testing.assert_allclose(weighted.values, 0.25 * values[0] + 0.75 * values[2], rtol=1e-6)
    alone = jpt.average_prompts(parts, {"imdb": 0, "sst2": 1e300, "mnli": 0})
    np.testing.assert_array_equal(alone.values, parts["sst2"].values)


def test_order_and_scale_change_nothing() -> None:
    parts = bank()
    turned = dict(reversed(parts.items()))
    first = jpt.average_prompts(parts, [0.5, 0.3, 0.2])  # in the order given
    second = jpt.average_prompts(turned, [20, 30, 50])
    np.testing.assert_array_equal(first.values, second.values)
    assert first.card == second.card
    assert first.card.source == "average of imdb (0.5), mnli (0.3), sst2 (0.2)"


def test_the_card_keeps_what_all_parts_share(tmp_path: Path) -> None:
    found = jpt.average_prompts(bank()).card
    assert (found.task, found.task_type, found.init) == ("mixture", "sentiment", "average")
    assert (found.backbone, found.seed, found.score) == ("bert", None, None)
    seeds = {name: Prompt(prompt.values, CARD) for name, prompt in bank().items()}
    assert jpt.average_prompts(seeds).card.task == "builtin/imdb"
    jpt.save_prompt(tmp_path / "mean.safetensors", jpt.average_prompts(bank()))
    again = jpt.load_prompt(tmp_path / "mean.safetensors")
    assert again.card.source == found.source
    np.testing.assert_array_equal(again.values, jpt.average_prompts(bank()).values)


def test_first_position_is_kept_and_unused_rows_are_not() -> None:
    row, card = np.ones((1, 6), np.float32), dataclasses.replace(CARD, first_position=1)
    parts = {name: Prompt(prompt.values, card, row) for name, prompt in bank().items()}
    found = jpt.average_prompts(parts)
    assert found.card.first_position == 1 and found.unused_row is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.ones((5, 6), np.float32)}, "length 4, that of prompt imdb, got 5"),
        ({"values": np.ones((4, 7), np.float32)}, "width 6, that of prompt imdb, got 7"),
        (
            {"card": dataclasses.replace(CARD, backbone="roberta")},
            "expected backbone .* got roberta",
        ),
        ({"card": dataclasses.replace(CARD, layout="decoder")}, "expected layout .* got decoder"),
        (
            {"card": dataclasses.replace(CARD, first_position=1)},
            "expected first position 0, .* got 1",
        ),
    ],
)
def test_prompts_that_do_not_belong_together(change, message) -> None:
    parts = bank()
    parts["sst2"] = dataclasses.replace(parts["sst2"], **change)
    with pytest.raises(jpt.InputError, match=message):
        jpt.average_prompts(parts)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], r"expected 3 numbers \(imdb, mnli, sst2\), got 2"),
        ({"imdb": 1, "mnli": 1}, "expected 3 numbers, got 2; add sst2=0"),
        ({"imdb": 1, "mnli": 1, "sst": 1}, "unknown prompt with a weight 'sst'; did you mean sst2"),
        ([1, -1, 1], "a number of at least 0 for mnli, got -1"),
        ([1, math.nan, 1], "for mnli, got nan"),
        ([1, math.inf, 1], "for mnli, got inf"),
        ([1, "2", 1], "for mnli, got 2"),
        ([1, True, 1], "for mnli, got True"),
        ([0, 0, 0], "expected a positive weight, got 3 zeros"),
    ],
)
def test_wrong_weights(weights, message) -> None:
    with pytest.raises(jpt.InputError, match=message):
        jpt.average_prompts(bank(), weights)


def test_one_prompt_is_no_mixture(tmp_path: Path) -> None:
    with pytest.raises(jpt.InputError, match=r"at least 2 prompts to mix, got 1 \(imdb\)"):
        jpt.average_prompts(bank(1))
    with pytest.raises(jpt.InputError, match="holds no prompts"):
        jpt.average_prompts(tmp_path)


def test_only_the_chosen_prompts_of_a_folder_have_to_be_compatible(tmp_path: Path) -> None:
    for name, prompt in bank().items():
        jpt.save_prompt(tmp_path / f"{name}.safetensors", prompt)
    other = Prompt(np.ones((9, 9), np.float32), CARD)
    jpt.save_prompt(tmp_path / "other.safetensors", other)
    with pytest.raises(jpt.InputError, match="prompt other: expected length 4, .* got 9"):
        jpt.average_prompts(tmp_path)
    chosen = choose_parts(tmp_path, ["sst2", "imdb"])
    values = 0.5 * (bank()["imdb"].values + bank()["sst2"].values)
    np.testing.assert_allclose(jpt.average_prompts(chosen).values, values, rtol=1e-6)
    with pytest.raises(jpt.InputError, match="unknown prompt 'imbd'; did you mean imdb"):
        choose_parts(tmp_path, ["imbd"])
    with pytest.raises(jpt.InputError, match="imdb is listed 2 times"):
        choose_parts(tmp_path, ["imdb", "imdb"])


@pytest.mark.parametrize("text", ["imdb", "imdb=", "=2", "imdb=two", "imdb=1,,", "imdb=nan"])
def test_weights_that_cannot_be_read(text: str) -> None:
    with pytest.raises(jpt.InputError, match="expected NAME=NUMBER"):
        parse_weights(text)


def test_weights_are_read_by_name() -> None:
    assert parse_weights("a=b=1, c=2e-1") == {"a=b": 1.0, "c": 0.2}
    with pytest.raises(jpt.InputError, match="a is listed twice"):
        parse_weights("a=1,a=2")


def test_softmax_weights_sum_to_one_and_rows_may_differ() -> None:
    logits = np.random.default_rng(1).normal(0, 300, (5, 4)).astype(np.float32)
    weights = softmax_weights(logits)
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-12)
    values = np.random.default_rng(2).normal(0, 1, (5, 4, 6)).astype(np.float32)
    by_row = [sum(weights[k, p] * values[k, p] for k in range(5)) for p in range(4)]
    np.testing.assert_allclose(mix_bank(values, weights), by_row, rtol=1e-5, atol=1e-7)
    assert resolve_weights(["a", "b", "c"], None) == {n: 1 / 3 for n in "abc"}
