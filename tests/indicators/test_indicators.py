"""Indicators: embedding similarities, neuron overlap and other neuron indicators, tables."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float32, Float64

from jpt.errors import InputError
from jpt.indicators import indicators
from jpt.indicators.indicators import (
    EMBEDDING_INDICATORS,
    OF_NEURONS,
    OF_ROWS,
    Indicator,
    Indicators,
    compute_indicators,
    embedding_similarities,
    indicator_label,
    neuron_similarities,
    parse_layers,
    read_indicators,
    write_indicators,
)
from jpt.neurons.probe import align_kernels, row_kernels
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import write_activations
from jpt.types import Activations, Prompt, PromptCard
from tests.helpers.running import raises

GENERATOR = np.random.default_rng(0)
TASKS = {"c": "builtin/imdb", "a": "sst2", "b": "mnli"}


def prompt(task: str, rows: int = 4, width: int = 6, unused: bool = False) -> Prompt:
    values = GENERATOR.normal(size=(rows, width)).astype(np.float32)
    row = GENERATOR.normal(size=(1, width)).astype(np.float32) if unused else None
    return Prompt(values, PromptCard("bert", task), row)


PROMPTS = {name: prompt(task) for name, task in TASKS.items()}
WITH_ROW0 = {name: prompt(task, unused=True) for name, task in TASKS.items()}
NEURONS = Activations(("b", "c", "a"), GENERATOR.normal(size=(3, 4, 9)).astype(np.float32))
RATES = Activations(
    NEURONS.names,
    NEURONS.values,
    GENERATOR.integers(0, 5, size=(3, 4, 9)).astype(np.float32) / 4,
    np.stack([np.corrcoef(GENERATOR.normal(size=(3, 5))) for _ in range(4)]),
    {"kind": "text", "task": "sst2", "rows": 4},
)


def assert_same(found: Indicators, expected: Indicators) -> None:
    assert found.names == expected.names and list(found.columns) == list(expected.columns)
    for name, matrix in expected.columns.items():
        np.testing.assert_array_equal(found[name], matrix, err_msg=name)


def test_names_are_sorted_and_cards_come_along() -> None:
    found = compute_indicators(PROMPTS, NEURONS)
    assert found.names == ("a", "b", "c") and found.cards["c"].task == "builtin/imdb"
    overlap = ("", "_layers_0_2", "_layers_1_3", "_all")
    assert list(found.columns) == [
        *(*OF_ROWS, *(f"neuron_overlap{end}" for end in overlap)),
        *("neuron_jaccard", "neuron_jaccard_all", "activation_cosine", "activation_cosine_all"),
    ]
    # The activations have the prompts in another order.
    active = NEURONS.values > 0
    shared = (active[2] & active[0]).sum() / np.sqrt(active[2].sum() * active[0].sum())
    assert found.value("neuron_overlap_all", "a", "b") == pytest.approx(shared, abs=1e-15)


def test_unknown_names_and_a_single_prompt() -> None:
    found = compute_indicators(PROMPTS)
    with pytest.raises(InputError, match="unknown indicator 'cosine'; did you mean cosine_"):
        found["cosine"]
    raises(found.value, "cosine_concat", "a", "d", match="unknown prompt 'd'")
    found = compute_indicators({"a": PROMPTS["a"]})
    assert (found.names, found.value("cosine_concat", "a", "a")) == (("a",), 1)


def test_order_of_prompts_changes_no_bit() -> None:
    reverse = dict(reversed(WITH_ROW0.items()))
    turned = Activations(NEURONS.names[::-1], NEURONS.values[::-1])
    assert_same(compute_indicators(reverse, turned), compute_indicators(WITH_ROW0, NEURONS))
    fields = {name: getattr(RATES, name)[::-1] for name in ("names", "values", "rates")}
    turned = dataclasses.replace(RATES, **fields, cka=RATES.cka[:, ::-1, ::-1])
    assert_same(compute_indicators(reverse, turned), compute_indicators(WITH_ROW0, RATES))


def test_a_text_probe(tmp_path: Path) -> None:
    write_activations(tmp_path / "neurons.npz", RATES)
    found = compute_indicators(PROMPTS, tmp_path / "neurons.npz", tmp_path)
    assert_same(found, compute_indicators(PROMPTS, RATES))
    assert "4 rows of sst2: neuron_overlap is the cosine of activation rates" in found.notes[0]
    assert list(found.columns)[-2:] == ["activation_cka", "activation_cka_all"]
    # The activations have the prompts in the order b, c, a.
    np.testing.assert_allclose(found["activation_cka"][0, 1], RATES.cka[1:, 2, 0].mean())
    np.testing.assert_allclose(found["activation_cka_all"][1, 2], RATES.cka[:, 0, 1].mean())
    assert_same(read_indicators(tmp_path / "indicators.csv"), found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": RATES.rates[:, :3]}, r"rates of shape \[3, 4, 9\], got \[3, 3, 9\]"),
        ({"cka": RATES.cka[:, :2]}, r"cka of shape \[4, 3, 3\], got \[4, 2, 3\]"),
        ({"rates": np.full((3, 4, 9), np.nan)}, "NaN or infinite activation"),
        ({"values": np.full((3, 4, 9), np.nan)}, "NaN or infinite activation"),
        ({"values": RATES.values[:2]}, r"shape \[3, L, F\] for 3 prompts, got \[2, 4, 9\]"),
    ],
)
def test_invalid_activations(changes: dict, message: str) -> None:
    raises(compute_indicators, PROMPTS, dataclasses.replace(RATES, **changes), match=message)


def test_a_new_indicator_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = Indicator("C_first", "cosine of first rows", lambda pairs: pairs.row_cosines()[..., 0])
    monkeypatch.setitem(OF_ROWS, "cosine_first", new)
    found = compute_indicators(WITH_ROW0, NEURONS, tmp_path)
    a, b = (WITH_ROW0[name].values[0].astype(np.float64) for name in "ab")
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.value("cosine_first", "a", "b") == pytest.approx(expected, abs=1e-12)
    assert found.value("cosine_first", "c", "c") == 1 and "cosine_first_with_row0" in found.columns
    assert_same(read_indicators(tmp_path / "indicators.csv"), found)
    assert indicator_label("cosine_first") == "C_first"


def test_row_0() -> None:
    found = compute_indicators(WITH_ROW0)
    parts = {name: (each.unused_row, each.values) for name, each in WITH_ROW0.items()}
    whole, plain = (
        compute_indicators(
            {name: Prompt(values(rows), PROMPTS[name].card) for name, rows in parts.items()}
        )
        for values in (np.concatenate, lambda rows: rows[1])
    )
    for name in OF_ROWS:
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-13)
        np.testing.assert_allclose(found[f"{name}_with_row0"], whole[name], rtol=1e-13)
    assert list(found.columns)[len(OF_ROWS) :] == [f"{name}_with_row0" for name in OF_ROWS]
    found = compute_indicators({**WITH_ROW0, "d": prompt("snli")})
    assert list(found.columns) == list(OF_ROWS)
    assert found.notes == ("1 of 4 prompts have no unused row 0: indicators with it left out",)


def test_files(tmp_path: Path) -> None:
    for name, each in PROMPTS.items():
        save_prompt(tmp_path / f"{name}.safetensors", each)
    write_activations(tmp_path / "neurons.npz", NEURONS)
    found = compute_indicators(tmp_path, tmp_path / "neurons.npz", layers=(0, 1))
    assert_same(found, compute_indicators(PROMPTS, NEURONS, layers="0-1"))
    values = NEURONS.values.copy()
    values[0, :3] = -1
    found = compute_indicators(PROMPTS, Activations(NEURONS.names, values))
    file = tmp_path / "indicators.csv"
    write_indicators(file, found)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("prompt_a,prompt_b,euclidean_concat,euclidean_average,cosine_")
    assert len(lines) == 1 + 9
    assert_same(read_indicators(file), found)
    assert read_indicators(file).cards == {} and read_indicators(file, PROMPTS).cards == found.cards
    file = tmp_path / "a.csv"
    file.write_text("prompt_a,prompt_b,type_a,cosine_concat\na,a,nli,1\n")
    assert list(read_indicators(file).columns) == ["cosine_concat"]


HEAD = "prompt_a,prompt_b,cosine_concat\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt_a,prompt_b,cosine_concat\n", "no indicator columns; create it with jpt ind"),
        ("prompt_a,prompt_b,score\na,a,1\n", "no indicator columns"),
        (f"{HEAD}a,a,1\na,a,1\n", "got the pair a, a 2 times"),
        (f"{HEAD}a,a,1\na,b,1\nb,b,1\n", "expected the 4 ordered pairs of 2 prompts, got 3"),
        (f"{HEAD}a,b,1\n", "expected the 1 ordered pairs of 1 prompts, got 1"),
        (f"{HEAD}a,a,x\n", "line 2: cosine_concat is 'x'; expected a number"),
        ("prompt_a,cosine_concat\na,1\n", "lacks prompt_b"),
    ],
)
def test_broken_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    raises(read_indicators, tmp_path / "a.csv", match=message)


def test_incompatible_prompts_and_tables(tmp_path: Path) -> None:
    write_indicators(tmp_path / "a.csv", compute_indicators(PROMPTS))
    others = {**{name: PROMPTS[name] for name in "ab"}, "d": prompt("qqp")}
    raises(
        read_indicators, tmp_path / "a.csv", others, match="only .*a.csv: c; only the prompts: d"
    )
    gpt2 = dataclasses.replace(PROMPTS["b"].card, backbone="gpt2")
    mixed = {**PROMPTS, "b": dataclasses.replace(PROMPTS["b"], card=gpt2)}
    for given, message in (
        (mixed, "prompt b: expected backbone bert, that of prompt a, got gpt2"),
        ({**PROMPTS, "d": prompt("qqp", rows=5)}, "prompt d: expected length 4, .* got 5"),
        ({**PROMPTS, "d": prompt("qqp", width=7)}, "prompt d: expected width 6, .* got 7"),
        ({}, "expected at least 1 prompt, got 0"),
        (tmp_path, "holds no prompts"),
    ):
        raises(compute_indicators, given, match=message)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("values", "prompt b: .* NaN or infinity in 1 of 4 rows .first: row 0.; tune again"),
        ("unused_row", "prompt b: NaN or infinity .1 of 3 prompts."),
    ],
)
def test_non_finite_prompts(part: str, message: str) -> None:
    broken = getattr(WITH_ROW0["b"], part).copy()
    broken[0, 0] = np.nan
    prompts = {**WITH_ROW0, "b": dataclasses.replace(WITH_ROW0["b"], **{part: broken})}
    raises(compute_indicators, prompts, match=message)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("bc", "got only the prompts: a; record"),
        ("bcad", "got only the activations: d"),
        ("bcd", "got only the activations: d; only the prompts: a"),
        ("bcc", "the activations: .* got c 2 times"),
    ],
)
def test_activations_of_other_prompts(names: str, message: str) -> None:
    values = np.concatenate([NEURONS.values] * 2)[: len(names)]
    raises(compute_indicators, PROMPTS, Activations(tuple(names), values), match=message)


VALUES = np.random.default_rng(0).normal(size=(6, 5, 37)).astype(np.float32)
NAMES = tuple("abcdef")


def by_loops(first: int, last: int) -> np.ndarray:
    active = (VALUES[:, first : last + 1] > 0).reshape(len(VALUES), -1).astype(np.float64)
    return np.array([[a @ b / np.sqrt(a.sum() * b.sum()) for b in active] for a in active])


def test_every_window_and_order() -> None:
    found, notes = neuron_similarities(Activations(NAMES, VALUES))
    start = "neuron_overlap"
    overlaps = {k.removeprefix(start): each for k, each in found.items() if k.startswith(start)}
    windows = {"": (2, 4), "_layers_0_2": (0, 2), "_layers_1_3": (1, 3), "_layers_2_4": (2, 4)}
    windows["_all"] = (0, 4)
    assert (list(overlaps), notes) == (list(windows), [])
    for name, window in windows.items():
        np.testing.assert_allclose(overlaps[name], by_loops(*window), rtol=1e-14)
        np.testing.assert_array_equal(overlaps[name], overlaps[name].T)
        np.testing.assert_array_equal(overlaps[name].diagonal(), 1)
    for layers, names in ((2, 2), (3, 3)):
        found, _ = neuron_similarities(Activations(NAMES, VALUES[:, :layers]))
        assert sum(name.startswith("neuron_overlap") for name in found) == names
        np.testing.assert_array_equal(found["neuron_overlap"], found["neuron_overlap_all"])


@pytest.mark.parametrize("layers", ["1-3", (1, 3), " 1 - 3 "])
def test_chosen_layers(layers: str | tuple[int, int]) -> None:
    found, _ = neuron_similarities(Activations(NAMES, VALUES), layers)
    np.testing.assert_array_equal(found["neuron_overlap"], found["neuron_overlap_layers_1_3"])


def test_zero_is_not_activated_and_no_activation_is_undefined() -> None:
    values = VALUES.copy()
    values[1, :3] = 0
    values[2, 2:] = -1
    found, notes = neuron_similarities(Activations(NAMES, values))
    first = found["neuron_overlap_layers_0_2"]
    assert np.isnan(first[1]).all() and np.isnan(first[:, 1]).all()
    assert not np.isnan(np.delete(np.delete(first, 1, 0), 1, 1)).any()
    assert not np.isnan(found["neuron_overlap_all"]).any()
    assert notes == [
        "c: no neuron is activated in layers 2-4, neuron_overlap, neuron_overlap_layers_2_4,"
        " neuron_jaccard are undefined there",
        "b: no neuron is activated in layers 0-2, neuron_overlap_layers_0_2 is undefined there",
    ]


def test_layers() -> None:
    assert parse_layers("4", 5) == (4, 4) and parse_layers(None, 12) == (9, 11)
    raises(compute_indicators, PROMPTS, layers="1-3", match="layers: needs activations, got 1-3")
    raises(compute_indicators, PROMPTS, NEURONS, layers="3-5", match="within 0 to 3, got 3-5")


@pytest.mark.parametrize(("layers", "shown"), [("9-12", "9-12"), ("12", "12-12"), ("5-3", "5-3")])
def test_layers_out_of_range(layers: str, shown: str) -> None:
    raises(parse_layers, layers, 12, match=f"first <= last within 0 to 11, got {shown}; .* 12 la")


@pytest.mark.parametrize("layers", ["-1", "top", "1-2-3", "", "²", (-3, -1), (1.5, 2)])
def test_layers_that_cannot_be_parsed(layers: str | tuple[int, int]) -> None:
    message = re.escape(f"layers: expected first and last layer, got {layers!r}; give")
    raises(parse_layers, layers, 12, match=message)


BANK = GENERATOR.normal(size=(7, 5, 6)).astype(np.float32)


def cosine(a: Float64[np.ndarray, "D"], b: Float64[np.ndarray, "D"]) -> float:
    return float(a @ b / (max(np.linalg.norm(a), 1e-8) * max(np.linalg.norm(b), 1e-8)))


def similarity_by_loops(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
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
            for name, value in similarity_by_loops(a, b).items():
                assert found[name][i, j] == pytest.approx(value, rel=rtol, abs=1e-13), (name, i, j)


@pytest.mark.parametrize("block_rows", [1, 12, 800])
def test_equal_to_loops(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(indicators, "_BLOCK_ROWS", block_rows)
    assert_equal(BANK)


def near_banks() -> dict[str, Float32[np.ndarray, "K P D"]]:
    constant = np.full((2, 5, 6), 300.0, np.float32)
    start = GENERATOR.normal(size=(5, 6)).astype(np.float32) * 100
    moved = np.stack([start, start + np.float32(1e-4), start])
    repeated = np.repeat(GENERATOR.normal(size=(3, 1, 6)), 5, axis=1).astype(np.float32) + 1000
    return {"constant rows": constant, "equal starts": moved, "repeated rows": repeated}


@pytest.mark.parametrize("case", near_banks())
def test_near_rows_keep_their_digits(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(indicators, "_NEAR_ROWS", 3)
    assert_equal(near_banks()[case], rtol=1e-10)


def test_zeros_extremes_first_rows_and_one_token() -> None:
    scales = np.array([0, 1e-12, 1e-3, 1, 1e10])[:, None, None]
    bank = (GENERATOR.normal(size=(5, 4, 6)) * scales).astype(np.float32)
    bank[3, 1] = 0  # one row of zeros in an ordinary prompt
    assert_equal(bank)
    (found,) = embedding_similarities(bank)
    assert found["cosine_concat"].diagonal().tolist()[2:] == [1, 1, 1]
    assert found["cosine_concat"][0].tolist() == [0] * 5
    without, whole = embedding_similarities(BANK, (1, 0))
    for found, bank in ((without, BANK[:, 1:]), (whole, BANK)):
        (alone,) = embedding_similarities(np.ascontiguousarray(bank))
        for name, matrix in found.items():
            np.testing.assert_allclose(matrix, alone[name], rtol=1e-12)
    (found,) = embedding_similarities(np.ones((1, 1, 1), np.float32))
    assert {name: matrix.item() for name, matrix in found.items()} == dict.fromkeys(found, 1.0)


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
        expected = matrix[np.ix_(order, order)]
        np.testing.assert_allclose(moved[name], expected, rtol=1e-12, atol=1e-15)


LAYERS = 4
ROWS = GENERATOR.normal(size=(5, LAYERS, 7, 13)).astype(np.float32)  # of seven rows
ROWS[2, 3] = ROWS[1, 3] * 2 - 1  # similar for CKA only
MEANS = ROWS.mean(2)
SHARES = (ROWS > 0).mean(2, dtype=np.float64).astype(np.float32)
START = Activations(NAMES[:5], MEANS)
TEXT = Activations(NAMES[:5], MEANS, SHARES, align_kernels(row_kernels(ROWS)), {"kind": "text"})


def cka(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / norms)


def neurons_by_loops(given: Activations, first: int, last: int, i: int, j: int) -> dict[str, float]:
    window = slice(first, last + 1)
    shares = (given.values > 0) if given.rates is None else given.rates
    a, b = (shares[k, window].astype(np.float64).ravel() for k in (i, j))
    found = {
        "neuron_overlap": cosine(a, b),
        "neuron_jaccard": np.minimum(a, b).sum() / np.maximum(a, b).sum(),
        "activation_cosine": cosine(
            *(given.values[k, window].astype(np.float64).ravel() for k in (i, j))
        ),
    }
    if given.rates is not None:
        pairs = zip(*(ROWS[k, window].astype(np.float64) for k in (i, j)), strict=True)
        found["activation_cka"] = float(np.mean([cka(*pair) for pair in pairs]))
    return found


@pytest.mark.parametrize("given", [START, TEXT], ids=["start", "text"])
def test_neuron_indicators_equal_loops(given: Activations, monkeypatch) -> None:
    monkeypatch.setattr(indicators, "_PRODUCT_BYTES", 200)  # five neurons at a time
    found, _ = neuron_similarities(given, (1, 2))
    expected = set(OF_NEURONS) - ({"activation_cka"} if given is START else set())
    assert {name.removesuffix("_all") for name in found if "layers" not in name} == expected
    for i, j in np.ndindex(5, 5):
        for ending, window in (("", (1, 2)), ("_all", (0, LAYERS - 1))):
            for name, value in neurons_by_loops(given, *window, i, j).items():
                assert found[name + ending][i, j] == pytest.approx(value, abs=1e-12), name
    value = neurons_by_loops(given, 1, 3, 0, 3)["neuron_overlap"]
    assert found["neuron_overlap_layers_1_3"][0, 3] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("given", [START, TEXT], ids=["start", "text"])
def test_symmetric_and_one_with_itself(given: Activations) -> None:
    for name, matrix in neuron_similarities(given)[0].items():
        np.testing.assert_array_equal(matrix, matrix.T, err_msg=name)
        np.testing.assert_array_equal(matrix.diagonal(), 1, err_msg=name)
        assert (np.abs(matrix) <= 1 + 1e-12).all()


def test_cka_is_invariant_and_undefined_for_constants() -> None:
    assert TEXT.cka[3, 1, 2] == pytest.approx(1, abs=1e-6)
    turn = np.linalg.qr(GENERATOR.normal(size=(13, 13)))[0].astype(np.float32)
    pair = np.stack([ROWS[0], ROWS[0] @ turn])
    np.testing.assert_allclose(align_kernels(row_kernels(pair))[:, 0, 1], 1, atol=1e-5)
    same = ROWS.copy()
    same[1, 3] = same[1, 3, :1]
    given = dataclasses.replace(TEXT, cka=align_kernels(row_kernels(same)))
    found, notes = neuron_similarities(given)
    assert np.isnan(found["activation_cka"][1]).all()
    assert not np.isnan(np.delete(np.delete(found["activation_cka"], 1, 0), 1, 1)).any()
    start = "b: the activations of a layer are the same for all rows in layers 1-3, activation_cka"
    assert any(note.startswith(start) for note in notes)


def test_many_prompts_without_activated_neurons_are_counted() -> None:
    given = Activations(tuple("abcdefg"), -np.ones((7, 1, 3), np.float32))
    found, notes = neuron_similarities(given)
    assert notes[0].startswith("a, b, c, d, e and 2 more: no neuron is activated in layers 0-0")
    np.testing.assert_array_equal(found["activation_cosine"], 1)
