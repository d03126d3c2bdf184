"""Selection of neurons by kind, and redundancy."""

import dataclasses
import math

import numpy as np
import pytest

from jpt.config import MASK_IN_TASK, MASK_KINDS, MASK_RANDOM
from jpt.neurons.selection import choose_neurons, redundancy
from jpt.types import Activations
from tests.helpers.running import raises

LAYERS, WIDTH = 5, 37
NAMES = ("a", "b", "c", "d")


def bank(seed: int = 0, shift: float = 0.0) -> Activations:
    random = np.random.default_rng(seed)
    # Later layers have larger values, as in real models.
    scale = np.arange(1, LAYERS + 1)[None, :, None]
    shared = random.normal(shift, 1, (1, LAYERS, WIDTH))
    values = scale * (shared + random.normal(0, 0.7, (len(NAMES), LAYERS, WIDTH)))
    return Activations(NAMES, values.astype(np.float32))


def choose(activations: Activations, kind: str, **options: object) -> np.ndarray:
    """Return masked neurons as True."""
    other = {"other": "c"} if kind == "other" else {}
    return choose_neurons(activations, "b", kind, **other, **options).mask == 0


def naive(keys: np.ndarray, count: int, layers: range) -> np.ndarray:
    """Select neurons one by one, the largest key first; keys [L, F, X] are compared in order."""
    neurons = [(layer, neuron) for layer in layers for neuron in range(WIDTH)]
    neurons.sort(key=lambda neuron: tuple(keys[neuron]), reverse=True)
    masked = np.zeros((LAYERS, WIDTH), bool)
    masked[tuple(np.transpose(neurons[:count]))] = True
    return masked


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.95])
@pytest.mark.parametrize(("layers", "rows"), [(None, range(5)), ("2-3", range(2, 4)), (4, [4])])
def test_every_kind_masks_the_same_number_within_the_layers(kind, ratio, layers, rows) -> None:
    options = {"ratio": ratio, "layers": (layers, layers) if layers == 4 else layers}
    whole = choose(bank(), kind, **options)
    assert whole.sum() == round(ratio * len(rows) * WIDTH)
    outside = [layer for layer in range(LAYERS) if layer not in rows]
    assert not whole[outside].any()
    each = choose(bank(), kind, per_layer=True, **options)
    assert (each.sum(axis=1)[list(rows)] == round(ratio * WIDTH)).all() and not each[outside].any()


def test_in_task_other_common_and_specific_by_hand() -> None:
    values, count = bank().values, round(0.2 * LAYERS * WIDTH)
    for kind, index in ((MASK_IN_TASK, 1), ("other", 2)):
        expected = naive(values[index][..., None], count, range(LAYERS))
        assert (choose(bank(), kind) == expected).all()
    # The paper takes the largest over all layers, so that the layers differ.
    assert np.ptp(choose(bank(), MASK_IN_TASK).sum(axis=1)) > 5
    values, count = bank().values, round(0.4 * 3 * WIDTH)
    active = (values > 0).sum(axis=0)
    keys = np.stack([active, values.astype(np.float64).mean(axis=0)], axis=-1)
    expected = naive(keys, count, range(1, 4))
    found = choose_neurons(bank(), "b", "common", ratio=0.4, layers="1-3")
    assert ((found.mask == 0) == expected).all() and found.source is None
    assert found.fitting == (expected & (active == 4)).sum() < count
    values, count = bank().values, round(0.2 * LAYERS * WIDTH)
    mine, others = values[1] > 0, (values[[0, 2, 3]] > 0).sum(axis=0)
    expected = naive(np.stack([mine, -others, values[1]], axis=-1), count, range(LAYERS))
    found = choose_neurons(bank(), "b", "specific")
    assert ((found.mask == 0) == expected).all() and found.source == "b"
    assert found.fitting == (expected & mine & (others == 0)).sum()


def test_text_probe_needs_half_of_the_rows_to_activate_a_neuron() -> None:
    values = np.full((2, 1, 4), 0.1, np.float32)
    values[0, 0] = [0.4, 0.3, 0.2, 0.1]
    rates = np.array([[[0.4, 0.5, 0.9, 0.0]], [[1.0, 0.5, 0.2, 0.0]]], np.float32)
    given = Activations(("a", "b"), values, rates)
    common = choose_neurons(given, "a", "common", ratio=0.25)
    assert common.mask.tolist() == [[1, 0, 1, 1]] and common.fitting == 1
    specific = choose_neurons(given, "a", "specific", ratio=0.25)
    assert specific.mask.tolist() == [[1, 1, 0, 1]] and specific.fitting == 1


def test_random_samples_each_layer_evenly_by_seed_and_draw() -> None:
    in_task = choose(bank(), MASK_IN_TASK)
    samples = [choose(bank(), MASK_RANDOM, draw=draw, seed=7) for draw in range(200)]
    assert all((sample.sum(axis=1) == in_task.sum(axis=1)).all() for sample in samples)
    assert (samples[3] == choose(bank(), MASK_RANDOM, draw=3, seed=7)).all()
    assert (samples[3] != choose(bank(), MASK_RANDOM, draw=3, seed=8)).any()
    share, expected = np.mean(samples, axis=0), in_task.mean(axis=1)[:, None]
    assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 200) + 1e-9).all()


def test_ties_and_the_order_of_prompts() -> None:
    zeros = Activations(NAMES, np.zeros((4, LAYERS, 200), np.float32))
    by_layer = choose(zeros, MASK_IN_TASK).sum(axis=1)
    assert by_layer.sum() == 200 and by_layer.min() > 20
    assert choose_neurons(zeros, "b", MASK_IN_TASK).fitting == 0
    given = bank()
    turned = Activations(("x", "b", "y", "z"), given.values[[3, 1, 0, 2]])
    for kind in (MASK_IN_TASK, "common", "specific", MASK_RANDOM):
        assert (choose(given, kind) == choose(turned, kind)).all()


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, math.nan, math.inf, "0.2"])
def test_ratio_outside_0_and_1(ratio) -> None:
    raises(choose_neurons, bank(), "a", ratio=ratio, match=r"ratio is .*above 0 and below 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.001}, "masks 0 of 185 neurons"),
        ({"ratio": 0.999}, "masks 185 of 185 neurons"),
        ({"layers": "4-5"}, "within 0 to 4, got 4-5.* 5 layers"),
        ({"layers": "top"}, "layers: .* got 'top'"),
        ({"kind": "most"}, "kind is 'most'; expected one of in_task, random"),
        ({"kind": "other"}, "other: expected a prompt other than a, got None"),
        ({"kind": "other", "other": "a"}, "other: expected a prompt other than a, got a"),
        ({"kind": "other", "other": "bb"}, "unknown prompt of the activations 'bb'"),
        ({"prompt": "e"}, r"unknown prompt of the activations 'e'.*a, b, c, d"),
    ],
)
def test_invalid_options(options, message) -> None:
    raises(choose_neurons, bank(), match=message, **{"prompt": "a", **options})


@pytest.mark.parametrize("kind", ["other", "common", "specific"])
def test_kinds_that_compare_need_several_prompts(kind: str) -> None:
    one = Activations(("a",), bank().values[:1])
    raises(choose_neurons, one, "a", kind, match=r"needs prompts of 2 or more tasks, got 1 \(a\)")


SHAPE = (4, 3, 400)


def redundancy_bank(values: np.ndarray) -> Activations:
    return Activations(tuple("abcdefgh"[: len(values)]), values.astype(np.float32))


def test_shares_equal_counts_neuron_by_neuron() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, SHAPE)
    values[:, 0, :7], values[:, 0, 7:20], values[:, 1, :5] = 1, -1, 0  # 0 is not activated
    found = redundancy(redundancy_bank(values))
    for layer in range(3):
        columns = [values[:, layer, neuron] for neuron in range(400)]
        assert found.always[layer] == sum(min(c) > 0 for c in columns) / 400
        assert found.never[layer] == sum(max(c) <= 0 for c in columns) / 400
        assert np.isclose(found.activated[layer], np.mean([np.mean(c > 0) for c in columns]))
    record = found.summary()
    assert record["prompts"] == 4 and np.isclose(record["always"], found.always.mean())
    assert record["by_layer"]["never"] == found.never.tolist()


def test_shares_at_random_equal_random_neurons_and_shared_ones_exceed_them() -> None:
    random = np.random.default_rng(1)
    rates = np.array([0.7, 0.8, 0.9, 0.6])[:, None, None]
    values = np.where(random.random((4, 3, 20000)) < rates, 1.0, -1.0)
    found = redundancy(redundancy_bank(values))
    assert np.allclose(found.always_at_random, 0.7 * 0.8 * 0.9 * 0.6, atol=0.01)
    assert np.allclose(found.always, found.always_at_random, atol=0.01)
    assert np.allclose(found.never, found.never_at_random, atol=0.005)
    found = redundancy(redundancy_bank(np.repeat(values[:1], 4, axis=0)))
    assert (found.always == found.activated).all() and (found.always > 2 * 0.7**4).all()


def test_shares_of_text_probes_by_prompts_and_in_text() -> None:
    values = np.ones((2, 1, 4), np.float32)
    rates = np.array([[[1.0, 0.5, 0.0, 0.0]], [[1.0, 1.0, 0.25, 0.0]]], np.float32)
    found = redundancy(dataclasses.replace(redundancy_bank(values), rates=rates))
    assert (found.always[0], found.never[0]) == (0.25, 0.25) and found.activated[0] == rates.mean()
    values = np.random.default_rng(2).normal(0, 1, SHAPE)
    few, many = redundancy(redundancy_bank(values[:2])), redundancy(redundancy_bank(values))
    assert (many.always <= few.always).all() and (many.never <= few.never).all()
    assert many.always.sum() < few.always.sum()
    text = redundancy(redundancy_bank(np.ones((2, 24, 8)))).describe()
    assert "always on (all 2 prompts): 100.0 % of the neurons" in text
    assert len(text.splitlines()) == 3 + 24 and max(map(len, text.splitlines())) <= 80
