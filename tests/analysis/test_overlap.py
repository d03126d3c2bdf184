"""Overlap of activated neurons: exact counts, all windows, and windows that do not exist."""

from __future__ import annotations

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.indicators.indicators import neuron_similarities, parse_layers
from jpt.types import Activations

VALUES = np.random.default_rng(0).normal(size=(6, 5, 37)).astype(np.float32)
NAMES = tuple("abcdef")


def by_loops(first: int, last: int) -> np.ndarray:
    active = (VALUES[:, first : last + 1] > 0).reshape(len(VALUES), -1).astype(np.float64)
    return np.array([[a @ b / np.sqrt(a.sum() * b.sum()) for b in active] for a in active])


def test_every_window() -> None:
    found, notes = neuron_similarities(Activations(NAMES, VALUES))
    windows = {
        "neuron_overlap": (2, 4),
        "neuron_overlap_layers_0_2": (0, 2),
        "neuron_overlap_layers_1_3": (1, 3),
        "neuron_overlap_layers_2_4": (2, 4),
        "neuron_overlap_all": (0, 4),
    }
    assert ([name for name in found if name.startswith("neuron_overlap")], notes) == (
        list(windows),
        [],
    )
    for name, window in windows.items():
        np.testing.assert_allclose(found[name], by_loops(*window), rtol=1e-14)
        np.testing.assert_array_equal(found[name], found[name].T)
        np.testing.assert_array_equal(found[name].diagonal(), 1)


def test_order_changes_nothing() -> None:
    order = np.random.default_rng(1).permutation(6)
    found, _ = neuron_similarities(Activations(NAMES, VALUES))
    moved, _ = neuron_similarities(
        Activations(tuple(NAMES[place] for place in order), VALUES[order])
    )
    for name, matrix in found.items():
        np.testing.assert_array_equal(moved[name], matrix[np.ix_(order, order)])


@pytest.mark.parametrize("layers", ["1-3", (1, 3), " 1 - 3 "])
def test_chosen_layers(layers: str | tuple[int, int]) -> None:
    found, _ = neuron_similarities(Activations(NAMES, VALUES), layers)
    np.testing.assert_array_equal(found["neuron_overlap"], found["neuron_overlap_layers_1_3"])


def test_few_layers_are_taken_whole() -> None:
    for layers, names in ((2, 2), (3, 3)):
        found, _ = neuron_similarities(Activations(NAMES, VALUES[:, :layers]))
        assert sum(name.startswith("neuron_overlap") for name in found) == names
        np.testing.assert_array_equal(found["neuron_overlap"], found["neuron_overlap_all"])


def test_zero_is_not_activated_and_silence_is_undefined() -> None:
    values = VALUES.copy()
    values[1, :3] = 0
    values[2, 2:] = -1
    found, notes = neuron_similarities(Activations(NAMES, values))
    silent = found["neuron_overlap_layers_0_2"]
    assert np.isnan(silent[1]).all() and np.isnan(silent[:, 1]).all()
    assert not np.isnan(np.delete(np.delete(silent, 1, 0), 1, 1)).any()
    assert not np.isnan(found["neuron_overlap_all"]).any()
    assert notes == [
        "c: no neuron is activated in layers 2-4, neuron_overlap, neuron_overlap_layers_2_4,"
        " neuron_jaccard are not defined there",
        "b: no neuron is activated in layers 0-2, neuron_overlap_layers_0_2 is not defined there",
    ]


def test_layers_are_read() -> None:
    assert parse_layers("4", 5) == (4, 4)
    assert parse_layers(None, 12) == (9, 11)


WRONG = [
    ("9-12", "layers 9-12 are no window of the 12 layers of the activations; they are numbered 0"),
    ("12", "layers 12-12 are no window"),
    ("5-3", "layers 5-3 are no window"),
    ("-1", "layers is '-1'; first and last layer expected, for instance 9-11"),
    ("top", "layers is 'top'"),
    ("1-2-3", "layers is '1-2-3'"),
    ("", "layers is ''"),
    ("²", "layers is '²'"),
    ((-3, -1), r"layers is \(-3, -1\)"),
    ((1.5, 2), r"layers is \(1.5, 2\)"),
]


@pytest.mark.parametrize(("layers", "said"), WRONG)
def test_layers_that_do_not_exist(layers: str | tuple[int, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_layers(layers, 12)
