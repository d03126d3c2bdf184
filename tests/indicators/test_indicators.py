"""DOC"""

from __future__ import annotations

import dataclasses
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

# --- indicators

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
    assert found.names == ("a", "b", "c")
    assert found.cards["c"].task == "builtin/imdb"
    assert list(found.columns) == [
        *OF_ROWS,
        "neuron_overlap",
        "neuron_overlap_layers_0_2",
        "neuron_overlap_layers_1_3",
        "neuron_overlap_all",
        "neuron_jaccard",
        "neuron_jaccard_all",
        "activation_cosine",
        "activation_cosine_all",
    ]
    # The activations name the prompts in another order.
    active = NEURONS.values > 0
    shared = (active[2] & active[0]).sum() / np.sqrt(active[2].sum() * active[0].sum())
    assert found.value("neuron_overlap_all", "a", "b") == pytest.approx(shared, abs=1e-15)


def test_names_that_are_not_there() -> None:
    found = compute_indicators(PROMPTS)
    with pytest.raises(InputError, match="unknown indicator 'cosine'; did you mean cosine_"):
        found["cosine"]
    with pytest.raises(InputError, match="unknown prompt 'd'"):
        found.value("cosine_concat", "a", "d")


def test_one_prompt_has_itself() -> None:
    found = compute_indicators({"a": PROMPTS["a"]})
    assert (found.names, found.value("cosine_concat", "a", "a")) == (("a",), 1)


def test_order_of_prompts_changes_no_bit() -> None:
    reverse = dict(reversed(WITH_ROW0.items()))
    turned = Activations(NEURONS.names[::-1], NEURONS.values[::-1])
    assert_same(compute_indicators(reverse, turned), compute_indicators(WITH_ROW0, NEURONS))
    turned = dataclasses.replace(
        RATES,
        names=RATES.names[::-1],
        values=RATES.values[::-1],
        rates=RATES.rates[::-1],
        cka=RATES.cka[:, ::-1, ::-1],
    )
    assert_same(compute_indicators(reverse, turned), compute_indicators(WITH_ROW0, RATES))


def test_neurons_behind_text_are_said_and_written(tmp_path: Path) -> None:
    write_activations(tmp_path / "neurons.npz", RATES)
    found = compute_indicators(PROMPTS, tmp_path / "neurons.npz", tmp_path)
    assert_same(found, compute_indicators(PROMPTS, RATES))
    assert "cosine of the shares of rows" in found.notes[0] and "4 rows of sst2" in found.notes[0]
    assert list(found.columns)[-2:] == ["activation_cka", "activation_cka_all"]
    # The activations name the prompts in another order: b, c, a.
    np.testing.assert_allclose(found["activation_cka"][0, 1], RATES.cka[1:, 2, 0].mean())
    np.testing.assert_allclose(found["activation_cka_all"][1, 2], RATES.cka[:, 0, 1].mean())
    assert_same(read_indicators(tmp_path / "indicators.csv"), found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rates": RATES.rates[:, :3]}, r"rates \[3, 3, 9\] of \[3, 4, 9\] activations"),
        ({"cka": RATES.cka[:, :2]}, r"cka \[4, 2, 3\] of \[3, 4, 9\] activations"),
        ({"rates": np.full((3, 4, 9), np.nan)}, "an activation is NaN or infinite"),
    ],
)
def test_parts_that_do_not_fit(changes: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compute_indicators(PROMPTS, dataclasses.replace(RATES, **changes))


def test_an_indicator_of_ones_own_is_one_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = Indicator("C_first", "cosine of first rows", lambda pairs: pairs.row_cosines()[..., 0])
    monkeypatch.setitem(OF_ROWS, "cosine_first", own)
    found = compute_indicators(WITH_ROW0, NEURONS, tmp_path)
    a, b = (WITH_ROW0[name].values[0].astype(np.float64) for name in "ab")
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.value("cosine_first", "a", "b") == pytest.approx(expected, abs=1e-12)
    assert found.value("cosine_first", "c", "c") == 1
    assert "cosine_first_with_row0" in found.columns
    assert_same(read_indicators(tmp_path / "indicators.csv"), found)
    assert indicator_label("cosine_first") == "C_first"


def test_row_0_has_columns_of_its_own() -> None:
    found = compute_indicators(WITH_ROW0)
    whole = {
        name: Prompt(np.concatenate([each.unused_row, each.values]), each.card)
        for name, each in WITH_ROW0.items()
    }
    plain = {name: Prompt(each.values, each.card) for name, each in WITH_ROW0.items()}
    for name in OF_ROWS:
        np.testing.assert_allclose(found[name], compute_indicators(plain)[name], rtol=1e-13)
        np.testing.assert_allclose(
            found[f"{name}_with_row0"], compute_indicators(whole)[name], rtol=1e-13
        )
    assert list(found.columns)[len(OF_ROWS) :] == [f"{name}_with_row0" for name in OF_ROWS]


def test_row_0_of_some_prompts_only_is_said() -> None:
    found = compute_indicators({**WITH_ROW0, "d": prompt("snli")})
    assert list(found.columns) == list(OF_ROWS)
    assert found.notes == (
        "1 of 4 prompts have no unused row 0: the indicators with it are left out",
    )


def test_folder_and_file(tmp_path: Path) -> None:
    for name, each in PROMPTS.items():
        save_prompt(tmp_path / f"{name}.safetensors", each)
    write_activations(tmp_path / "neurons.npz", NEURONS)
    found = compute_indicators(tmp_path, tmp_path / "neurons.npz", layers=(0, 1))
    assert_same(found, compute_indicators(PROMPTS, NEURONS, layers="0-1"))


def test_written_is_read(tmp_path: Path) -> None:
    silent = NEURONS.values.copy()
    silent[0, :3] = -1
    found = compute_indicators(PROMPTS, Activations(NEURONS.names, silent))
    file = tmp_path / "indicators.csv"
    write_indicators(file, found)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("prompt_a,prompt_b,euclidean_concat,euclidean_average,cosine_")
    assert len(lines) == 1 + 9
    assert_same(read_indicators(file), found)
    assert read_indicators(file).cards == {}
    assert read_indicators(file, PROMPTS).cards == found.cards


def test_columns_that_are_no_indicator_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt_a,prompt_b,type_a,cosine_concat\na,a,nli,1\n")
    assert list(read_indicators(file).columns) == ["cosine_concat"]


BROKEN_TABLES = {
    "no line": ("prompt_a,prompt_b,cosine_concat\n", "holds no indicators; make it with jpt ind"),
    "no indicator": ("prompt_a,prompt_b,score\na,a,1\n", "holds no indicators"),
    "a pair twice": (
        "prompt_a,prompt_b,cosine_concat\na,a,1\na,a,1\n",
        "got the pair a, a 2 times",
    ),
    "a pair too few": (
        "prompt_a,prompt_b,cosine_concat\na,a,1\na,b,1\nb,b,1\n",
        "has 3 pairs of 2 prompts; each of the 4 ordered pairs expected once",
    ),
    "a name on one side": (
        "prompt_a,prompt_b,cosine_concat\na,b,1\n",
        "has 1 pairs of 1 prompts; each of the 1 ordered pairs",
    ),
    "no number": (
        "prompt_a,prompt_b,cosine_concat\na,a,x\n",
        "line 2: cosine_concat is 'x'; expected a number",
    ),
    "no pair": ("prompt_a,cosine_concat\na,1\n", "lacks prompt_b"),
}


@pytest.mark.parametrize("case", BROKEN_TABLES)
def test_broken_tables(tmp_path: Path, case: str) -> None:
    text, said = BROKEN_TABLES[case]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_indicators(tmp_path / "a.csv")


def test_table_of_other_prompts(tmp_path: Path) -> None:
    write_indicators(tmp_path / "a.csv", compute_indicators(PROMPTS))
    others = {**{name: PROMPTS[name] for name in "ab"}, "d": prompt("qqp")}
    with pytest.raises(InputError, match="a.csv: c; only the prompts: d"):
        read_indicators(tmp_path / "a.csv", others)


def altered(**changes: object) -> dict[str, Prompt]:
    card = dataclasses.replace(PROMPTS["b"].card, **changes)
    return {**PROMPTS, "b": dataclasses.replace(PROMPTS["b"], card=card)}


def test_prompts_that_do_not_belong_together() -> None:
    with pytest.raises(
        InputError, match="prompt b: expected backbone bert, that of prompt a, got gpt2"
    ):
        compute_indicators(altered(backbone="gpt2"))
    with pytest.raises(InputError, match="prompt d: expected length 4, that of prompt a, got 5"):
        compute_indicators({**PROMPTS, "d": prompt("qqp", rows=5)})
    with pytest.raises(InputError, match="prompt d: expected width 6, that of prompt a, got 7"):
        compute_indicators({**PROMPTS, "d": prompt("qqp", width=7)})
    with pytest.raises(InputError, match="expected at least 1 prompt, got 0"):
        compute_indicators({})


def test_folder_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no prompts"):
        compute_indicators(tmp_path)


@pytest.mark.parametrize("place", ["values", "unused_row"])
def test_values_that_are_no_numbers(place: str) -> None:
    broken = getattr(WITH_ROW0["b"], place).copy()
    broken[0, 0] = np.nan
    prompts = {**WITH_ROW0, "b": dataclasses.replace(WITH_ROW0["b"], **{place: broken})}
    with pytest.raises(InputError, match=r"prompt b holds NaN or infinity \(1 of 3 prompts do\)"):
        compute_indicators(prompts)


def test_activations_of_other_prompts() -> None:
    fewer = Activations(NEURONS.names[:2], NEURONS.values[:2])
    with pytest.raises(InputError, match=r"name different ones \(only the prompts: a\); make"):
        compute_indicators(PROMPTS, fewer)
    more = Activations((*NEURONS.names, "d"), np.concatenate([NEURONS.values] * 2)[:4])
    with pytest.raises(InputError, match=r"\(only the activations: d\)"):
        compute_indicators(PROMPTS, more)
    other = Activations(("b", "c", "d"), NEURONS.values)
    with pytest.raises(InputError, match=r"\(only the activations: d; only the prompts: a\)"):
        compute_indicators(PROMPTS, other)
    twice = Activations(("b", "c", "c"), NEURONS.values)
    with pytest.raises(InputError, match="the activations: .* got c 2 times"):
        compute_indicators(PROMPTS, twice)


def test_broken_activations() -> None:
    with pytest.raises(InputError, match=r"name 3 prompts and have the shape \[2, 4, 9\]"):
        compute_indicators(PROMPTS, Activations(NEURONS.names, NEURONS.values[:2]))
    values = NEURONS.values.copy()
    values[1, 1, 1] = np.nan
    with pytest.raises(InputError, match="an activation is NaN or infinite"):
        compute_indicators(PROMPTS, Activations(NEURONS.names, values))


def test_layers_without_activations() -> None:
    with pytest.raises(InputError, match="layers is 1-3, but there are no activations"):
        compute_indicators(PROMPTS, layers="1-3")
    with pytest.raises(InputError, match="layers 3-5 are no window of the 4 layers"):
        compute_indicators(PROMPTS, NEURONS, layers="3-5")


# --- overlap

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


# --- similarity

BANK = GENERATOR.normal(size=(7, 5, 6)).astype(np.float32)


def cosine(a: Float64[np.ndarray, "D"], b: Float64[np.ndarray, "D"]) -> float:
    """As torch.nn.functional.cosine_similarity has it."""
    return float(a @ b / (max(np.linalg.norm(a), 1e-8) * max(np.linalg.norm(b), 1e-8)))


def similarity_by_loops(
    a: Float32[np.ndarray, "P D"], b: Float32[np.ndarray, "P D"]
) -> dict[str, float]:
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
            for name, value in similarity_by_loops(a, b).items():
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


# --- neuron pairs

NEURON_PAIRS_NAMES = tuple("abcde")
LAYERS = 4
NEURON_PAIRS_NEURONS = GENERATOR.normal(size=(5, LAYERS, 7, 13)).astype(np.float32)  # of seven rows
NEURON_PAIRS_NEURONS[2, 3] = NEURON_PAIRS_NEURONS[1, 3] * 2 - 1  # alike for CKA, not otherwise
NEURON_PAIRS_VALUES = NEURON_PAIRS_NEURONS.mean(2)
START = Activations(NEURON_PAIRS_NAMES, NEURON_PAIRS_VALUES)
TEXT = Activations(
    NEURON_PAIRS_NAMES,
    NEURON_PAIRS_VALUES,
    (NEURON_PAIRS_NEURONS > 0).mean(2, dtype=np.float64).astype(np.float32),
    align_kernels(row_kernels(NEURON_PAIRS_NEURONS)),
    {"kind": "text"},
)


def neuron_pairs_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """By products of features, F x F; ours goes by products of rows."""
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / norms)


def neuron_pairs_by_loops(
    given: Activations, first: int, last: int, i: int, j: int
) -> dict[str, float]:
    window = slice(first, last + 1)
    shares = (given.values > 0) if given.rates is None else given.rates
    a, b = (shares[place, window].astype(np.float64).ravel() for place in (i, j))
    values = [given.values[place, window].astype(np.float64).ravel() for place in (i, j)]
    found = {
        "neuron_overlap": neuron_pairs_cosine(a, b),
        "neuron_jaccard": np.minimum(a, b).sum() / np.maximum(a, b).sum(),
        "activation_cosine": neuron_pairs_cosine(*values),
    }
    if given.rates is not None:
        layers = [NEURON_PAIRS_NEURONS[place].astype(np.float64) for place in (i, j)]
        each = [cka(layers[0][n], layers[1][n]) for n in range(first, last + 1)]
        found["activation_cka"] = float(np.mean(each))
    return found


@pytest.mark.parametrize("given", [START, TEXT], ids=["start", "text"])
def test_neuron_pairs_equal_to_loops(given: Activations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indicators, "_PRODUCT_BYTES", 200)  # five neurons at a time
    found, _ = neuron_similarities(given, (1, 2))
    expected = set(OF_NEURONS) - ({"activation_cka"} if given is START else set())
    assert {name.removesuffix("_all") for name in found if "layers" not in name} == expected
    for i in range(5):
        for j in range(5):
            for ending, window in (("", (1, 2)), ("_all", (0, LAYERS - 1))):
                for name, value in neuron_pairs_by_loops(given, *window, i, j).items():
                    assert found[name + ending][i, j] == pytest.approx(value, abs=1e-12), name
    windows = found["neuron_overlap_layers_1_3"]
    assert windows[0, 3] == pytest.approx(
        neuron_pairs_by_loops(given, 1, 3, 0, 3)["neuron_overlap"], abs=1e-12
    )


@pytest.mark.parametrize("given", [START, TEXT], ids=["start", "text"])
def test_symmetric_and_one_with_itself(given: Activations) -> None:
    for name, matrix in neuron_similarities(given)[0].items():
        np.testing.assert_array_equal(matrix, matrix.T, err_msg=name)
        np.testing.assert_array_equal(matrix.diagonal(), 1, err_msg=name)
        assert (np.abs(matrix) <= 1 + 1e-12).all()


def test_cka_knows_no_scale_and_no_shift() -> None:
    assert align_kernels(row_kernels(NEURON_PAIRS_NEURONS))[3, 1, 2] == pytest.approx(1, abs=1e-6)
    turned = np.linalg.qr(GENERATOR.normal(size=(13, 13)))[0]
    pair = np.stack([NEURON_PAIRS_NEURONS[0], NEURON_PAIRS_NEURONS[0] @ turned.astype(np.float32)])
    np.testing.assert_allclose(align_kernels(row_kernels(pair))[:, 0, 1], 1, atol=1e-5)


def test_what_is_the_same_for_all_rows_has_no_cka() -> None:
    same = NEURON_PAIRS_NEURONS.copy()
    same[1, 3] = same[1, 3, :1]
    given = Activations(
        NEURON_PAIRS_NAMES, NEURON_PAIRS_VALUES, TEXT.rates, align_kernels(row_kernels(same))
    )
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
