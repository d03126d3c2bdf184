"""Indicators of prompts and activations together: the record, the table, every wrong input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.indicators.indicators import (
    OF_ROWS,
    Indicator,
    Indicators,
    compute_indicators,
    indicator_label,
    read_indicators,
    write_indicators,
)
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import write_activations
from jpt.types import Activations, Prompt, PromptCard

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
    "a pair twice": ("prompt_a,prompt_b,cosine_concat\na,a,1\na,a,1\n", "the pair a, a 2 times"),
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
        "line 2: cosine_concat is 'x'; a number expected",
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
    with pytest.raises(InputError, match="prompt b has the backbone gpt2 and prompt a bert"):
        compute_indicators(altered(backbone="gpt2"))
    with pytest.raises(InputError, match="prompt d has the length 5 and prompt a 4"):
        compute_indicators({**PROMPTS, "d": prompt("qqp", rows=5)})
    with pytest.raises(InputError, match="prompt d has the width 7 and prompt a 6"):
        compute_indicators({**PROMPTS, "d": prompt("qqp", width=7)})
    with pytest.raises(InputError, match="no prompts were given"):
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
    with pytest.raises(InputError, match="the activations names c 2 times"):
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
