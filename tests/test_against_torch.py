"""The comparison with torch is one of like with like: both sides do the same steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.testing import write_tiny_backbone
from tests.conftest import ROOT
from tests.toy_task import write_task

FOLDER = ROOT / "experiments" / "benchmarks" / "against_torch"
KINDS = ("bert", "roberta", "t5", "gpt2", "llama")
STEPS = 6


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with those beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("worker", "rows", "torch_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import worker

    return worker


def test_operations_are_those_of_the_products(worker: ModuleType) -> None:
    """2mnk for each product, once a turn of a loop, in a derivative and under checkpoint too."""
    left, right = jnp.ones((3, 5)), jnp.ones((7, 5, 5))

    def chain(rows: jax.Array, matrices: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda rows, matrix: (rows @ matrix, None), rows, matrices)[0].sum()

    one = 2 * 3 * 5 * 5
    assert worker.count_flops(jax.make_jaxpr(jax.jit(chain))(left, right).jaxpr) == 7 * one
    back = jax.make_jaxpr(jax.jit(jax.grad(chain)))(left, right).jaxpr
    assert worker.count_flops(back) == 2 * 7 * one  # gradients of the rows alone


def describe(kind: str, folder: Path) -> dict[str, Any]:
    options = {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-2, "length": 5}
    if kind not in ("bert", "roberta"):
        options |= {"objective": "vocabulary", "label_scoring": "first_token"}
    return {
        "model": str(write_tiny_backbone(folder / "model", kind)),
        "task": str(write_task(folder / "task")),
        "data": None,
        "folder": str(folder),
        "device": "cpu",
        "options": options,
    }


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_have_the_same_losses(kind: str, worker: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    case = describe(kind, tmp_path)
    ours = worker.do(worker.jpt_side(case), {"steps": range(STEPS)})["losses"]
    assert max(ours) - min(ours) > 1e-3  # it moves
    for side in ("plain", "tuned") if kind in ("bert", "roberta") else ("peft",):
        other = worker.torch_side({**case, "side": side})
        found = worker.do(other, {"steps": range(STEPS), "flops": True})
        np.testing.assert_allclose(found["losses"], ours, rtol=2e-5)
        assert found["flops"] > 0


def test_the_table_says_what_was_expected_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import table

    results = json.loads((FOLDER / "results.json").read_text())["cases"]
    page = table.page(results)
    assert page == (FOLDER / "RESULTS.md").read_text()
    lines = [line for lines in results.values() for line in lines]
    assert {"name", "jpt", "torch", "ratio", "expected"} <= set.intersection(*map(set, lines))
    for line in lines:
        assert f"| {line['name']} | {line['jpt']} {line['unit']} |" in page
        low, high = line["spread"]
        assert low <= line["ratio"] <= high
