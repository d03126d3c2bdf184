"""The embedding indicators equal plain loops, and what must hold holds to the last digit."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float32, Float64

from jpt.indicators import indicators
from jpt.indicators.indicators import EMBEDDING_INDICATORS, OF_ROWS, embedding_similarities

GENERATOR = np.random.default_rng(0)
BANK = GENERATOR.normal(size=(7, 5, 6)).astype(np.float32)


def cosine(a: Float64[np.ndarray, "D"], b: Float64[np.ndarray, "D"]) -> float:
    """As torch.nn.functional.cosine_similarity has it."""
    return float(a @ b / (max(np.linalg.norm(a), 1e-8) * max(np.linalg.norm(b), 1e-8)))


def by_loops(a: Float32[np.ndarray, "P D"], b: Float32[np.ndarray, "P D"]) -> dict[str, float]:
    """The formulas, row by row."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    distances = [np.linalg.norm(one - other) for one in a for other in b]
    cosines = [cosine(one, other) for one in a for other in b]
    return {
        "euclidean_concat": 1 / (1 + np.linalg.norm(a - b)),
        "euclidean_average": 1 / (1 + np.mean(distances)),
        "cosine_concat": cosine(a.ravel(), b.ravel()),
        "cosine_average": np.mean(cosines),
        "euclidean_rows": 1 / (1 + np.mean(np.linalg.norm(a - b, axis=1))),
        "cosine_rows": np.mean([cosine(one, other) for one, other in zip(a, b, strict=True)]),
    }


def assert_equal(bank: Float32[np.ndarray, "K P D"], rtol: float = 1e-12) -> None:
    (found,) = embedding_similarities(bank)
    assert tuple(found) == tuple(OF_ROWS) and tuple(found)[:4] == EMBEDDING_INDICATORS
    for i, a in enumerate(bank):
        for j, b in enumerate(bank):
            for name, value in by_loops(a, b).items():
                np.testing.assert_allclose(
                    found[name][i, j], value, rtol, atol=1e-13, err_msg=f"{name} {i} {j}"
                )


@pytest.mark.parametrize("block_rows", [1, 12, 800])
def test_equal_to_loops(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(indicators, "_BLOCK_ROWS", block_rows)
    assert_equal(BANK)


def near_banks() -> dict[str, Float32[np.ndarray, "K P D"]]:
    """Banks in which a gram matrix alone would lose the distances."""
    constant = np.full((2, 5, 6), 300.0, np.float32)
    start = GENERATOR.normal(size=(5, 6)).astype(np.float32) * 100
    moved = np.stack([start, start + np.float32(1e-4), start])
    repeated = np.repeat(GENERATOR.normal(size=(3, 1, 6)), 5, axis=1).astype(np.float32) + 1000
    return {"constant rows": constant, "equal starts": moved, "repeated rows": repeated}


@pytest.mark.parametrize("case", near_banks())
def test_near_rows_keep_their_digits(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(indicators, "_NEAR_ROWS", 3)
    assert_equal(near_banks()[case], rtol=1e-10)


def test_zeros_and_extremes() -> None:
    scales = np.array([0, 1e-12, 1e-3, 1, 1e10])[:, None, None]
    bank = (GENERATOR.normal(size=(5, 4, 6)) * scales).astype(np.float32)
    bank[3, 1] = 0  # one row of zeros in an ordinary prompt
    assert_equal(bank)
    (found,) = embedding_similarities(bank)
    assert found["cosine_concat"].diagonal().tolist()[2:] == [1, 1, 1]
    assert found["cosine_concat"][0].tolist() == [0] * 5


@pytest.mark.parametrize("seed", range(3))
def test_properties_hold_to_the_last_digit(seed: int) -> None:
    bank = np.random.default_rng(seed).normal(size=(30, 60, 16)).astype(np.float32)  # 3 blocks
    (found,) = embedding_similarities(bank)
    for matrix in found.values():
        np.testing.assert_array_equal(matrix, matrix.T)
        assert (np.abs(matrix) <= 1).all()
    for name in ("euclidean_concat", "cosine_concat", "euclidean_rows", "cosine_rows"):
        np.testing.assert_array_equal(found[name].diagonal(), 1)
        assert (found[name] <= 1).all()
    order = np.random.default_rng(seed).permutation(30)
    (moved,) = embedding_similarities(bank[order])
    for name, matrix in found.items():
        np.testing.assert_allclose(
            moved[name], matrix[np.ix_(order, order)], rtol=1e-12, atol=1e-15
        )


def test_first_rows_share_the_work() -> None:
    without, whole = embedding_similarities(BANK, (1, 0))
    for found, bank in ((without, BANK[:, 1:]), (whole, BANK)):
        (alone,) = embedding_similarities(np.ascontiguousarray(bank))
        for name, matrix in found.items():
            np.testing.assert_allclose(matrix, alone[name], rtol=1e-12)


def test_one_prompt_of_one_row() -> None:
    (found,) = embedding_similarities(np.ones((1, 1, 1), np.float32))
    assert {name: matrix.item() for name, matrix in found.items()} == dict.fromkeys(found, 1.0)
