"""Neurons that are always or never on: against counting one by one, and against drawing by lot."""

from __future__ import annotations

import dataclasses

import numpy as np

from jpt.neurons.selection import redundancy
from jpt.types import Activations

SHAPE = (4, 3, 400)


def bank(values: np.ndarray) -> Activations:
    return Activations(tuple("abcdefgh"[: len(values)]), values.astype(np.float32))


def test_shares_are_those_counted_neuron_by_neuron() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, SHAPE)
    values[:, 0, :7], values[:, 0, 7:20], values[:, 1, :5] = 1, -1, 0  # 0 is not activated
    found = redundancy(bank(values))
    for layer in range(3):
        columns = [values[:, layer, neuron] for neuron in range(400)]
        assert found.always[layer] == sum(min(c) > 0 for c in columns) / 400
        assert found.never[layer] == sum(max(c) <= 0 for c in columns) / 400
        assert np.isclose(found.activated[layer], np.mean([np.mean(c > 0) for c in columns]))
    record = found.summary()
    assert record["prompts"] == 4 and np.isclose(record["always"], found.always.mean())
    assert record["by_layer"]["never"] == found.never.tolist()


def test_chance_is_what_neurons_drawn_by_lot_give_and_shared_ones_exceed_it() -> None:
    random = np.random.default_rng(1)
    rates = np.array([0.7, 0.8, 0.9, 0.6])[:, None, None]
    by_lot = np.where(random.random((4, 3, 20000)) < rates, 1.0, -1.0)
    found = redundancy(bank(by_lot))
    assert np.allclose(found.always_at_random, 0.7 * 0.8 * 0.9 * 0.6, atol=0.01)
    assert np.allclose(found.always, found.always_at_random, atol=0.01)
    assert np.allclose(found.never, found.never_at_random, atol=0.005)
    alike = np.repeat(by_lot[:1], 4, axis=0)
    found = redundancy(bank(alike))
    assert (found.always == found.activated).all() and (found.always > 2 * 0.7**4).all()


def test_of_a_probe_on_text_always_means_in_every_row() -> None:
    values = np.ones((2, 1, 4), np.float32)
    rates = np.array([[[1.0, 0.5, 0.0, 0.0]], [[1.0, 1.0, 0.25, 0.0]]], np.float32)
    found = redundancy(dataclasses.replace(bank(values), rates=rates))
    assert (found.always[0], found.never[0]) == (0.25, 0.25)
    assert found.activated[0] == rates.mean()


def test_more_prompts_leave_fewer_always_and_fewer_never_on() -> None:
    values = np.random.default_rng(2).normal(0, 1, SHAPE)
    few, many = redundancy(bank(values[:2])), redundancy(bank(values))
    assert (many.always <= few.always).all() and (many.never <= few.never).all()
    assert many.always.sum() < few.always.sum()


def test_text_has_a_line_for_each_layer_within_80_columns() -> None:
    text = redundancy(bank(np.ones((2, 24, 8)))).describe()
    assert "always on (all 2 prompts): 100.0 % of the neurons" in text
    assert len(text.splitlines()) == 3 + 24 and max(map(len, text.splitlines())) <= 80
