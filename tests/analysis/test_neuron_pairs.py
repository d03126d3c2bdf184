"""Every indicator of neurons against plain loops, for both probes; CKA by its first definition."""

from __future__ import annotations

import numpy as np
import pytest

from jpt.indicators import indicators
from jpt.indicators.indicators import OF_NEURONS, neuron_similarities
from jpt.neurons.probe import align_kernels, row_kernels
from jpt.types import Activations

GENERATOR = np.random.default_rng(0)
NAMES = tuple("abcde")
LAYERS = 4
NEURONS = GENERATOR.normal(size=(5, LAYERS, 7, 13)).astype(np.float32)  # of seven rows
NEURONS[2, 3] = NEURONS[1, 3] * 2 - 1  # alike for CKA, not otherwise
VALUES = NEURONS.mean(2)
START = Activations(NAMES, VALUES)
TEXT = Activations(
    NAMES,
    VALUES,
    (NEURONS > 0).mean(2, dtype=np.float64).astype(np.float32),
    align_kernels(row_kernels(NEURONS)),
    {"kind": "text"},
)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """By products of features, F x F; ours goes by products of rows."""
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / norms)


def by_loops(given: Activations, first: int, last: int, i: int, j: int) -> dict[str, float]:
    window = slice(first, last + 1)
    shares = (given.values > 0) if given.rates is None else given.rates
    a, b = (shares[place, window].astype(np.float64).ravel() for place in (i, j))
    values = [given.values[place, window].astype(np.float64).ravel() for place in (i, j)]
    found = {
        "neuron_overlap": cosine(a, b),
        "neuron_jaccard": np.minimum(a, b).sum() / np.maximum(a, b).sum(),
        "activation_cosine": cosine(*values),
    }
    if given.rates is not None:
        layers = [NEURONS[place].astype(np.float64) for place in (i, j)]
        each = [cka(layers[0][n], layers[1][n]) for n in range(first, last + 1)]
        found["activation_cka"] = float(np.mean(each))
    return found


@pytest.mark.parametrize("given", [START, TEXT], ids=["start", "text"])
def test_equal_to_loops(given: Activations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indicators, "_PRODUCT_BYTES", 200)  # five neurons at a time
    found, _ = neuron_similarities(given, (1, 2))
    expected = set(OF_NEURONS) - ({"activation_cka"} if given is START else set())
    assert {name.removesuffix("_all") for name in found if "layers" not in name} == expected
    for i in range(5):
        for j in range(5):
            for ending, window in (("", (1, 2)), ("_all", (0, LAYERS - 1))):
                for name, value in by_loops(given, *window, i, j).items():
                    assert found[name + ending][i, j] == pytest.approx(value, abs=1e-12), name
    windows = found["neuron_overlap_layers_1_3"]
    assert windows[0, 3] == pytest.approx(by_loops(given, 1, 3, 0, 3)["neuron_overlap"], abs=1e-12)


@pytest.mark.parametrize("given", [START, TEXT], ids=["start", "text"])
def test_symmetric_and_one_with_itself(given: Activations) -> None:
    for name, matrix in neuron_similarities(given)[0].items():
        np.testing.assert_array_equal(matrix, matrix.T, err_msg=name)
        np.testing.assert_array_equal(matrix.diagonal(), 1, err_msg=name)
        assert (np.abs(matrix) <= 1 + 1e-12).all()


def test_cka_knows_no_scale_and_no_shift() -> None:
    assert align_kernels(row_kernels(NEURONS))[3, 1, 2] == pytest.approx(1, abs=1e-6)
    turned = np.linalg.qr(GENERATOR.normal(size=(13, 13)))[0]
    pair = np.stack([NEURONS[0], NEURONS[0] @ turned.astype(np.float32)])
    np.testing.assert_allclose(align_kernels(row_kernels(pair))[:, 0, 1], 1, atol=1e-5)


def test_what_is_the_same_for_all_rows_has_no_cka() -> None:
    same = NEURONS.copy()
    same[1, 3] = same[1, 3, :1]
    given = Activations(NAMES, VALUES, TEXT.rates, align_kernels(row_kernels(same)))
    found, notes = neuron_similarities(given)
    assert np.isnan(found["activation_cka"][1]).all()
    assert not np.isnan(np.delete(np.delete(found["activation_cka"], 1, 0), 1, 1)).any()
    said = "b: the activations of a layer are the same for all rows in layers 1-3, activation_cka"
    assert any(note.startswith(said) for note in notes)


def test_many_silent_prompts_are_counted() -> None:
    silent = Activations(tuple("abcdefg"), -np.ones((7, 1, 3), np.float32))
    found, notes = neuron_similarities(silent)
    assert notes[0].startswith("a, b, c, d, e and 2 more: no neuron is activated in layers 0-0")
    np.testing.assert_array_equal(found["activation_cosine"], 1)
