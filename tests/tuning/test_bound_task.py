"""Prompts scored together have the scores that they have one by one, on every mesh."""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.registry import FAMILIES
from jpt.data.encode import EncodedSplit
from jpt.parallel import make_mesh, parameter_shardings, place
from jpt.testing import tiny_config, tiny_model
from jpt.tuning import bound_task
from jpt.tuning.bound_task import Batching, bank_logits, plan_chunks, prompts_at_once
from jpt.tuning.losses import NO_TOKEN, Answer, NeuronMask

BATCHING = Batching(batch_size=4, max_tokens=12, pad=0)

pytestmark = pytest.mark.plain_programs


def split_of(rows: int) -> EncodedSplit:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 12, rows))]).astype(np.int64)
    tokens = random.integers(3, 61, offsets[-1]).astype(np.int32)
    return EncodedSplit(tokens, offsets, random.integers(0, 2, rows).astype(np.int32), 0)


def prompts_of(*rows: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.normal(0, 0.3, (count, 32)).astype(np.float32) for count in rows]


@cache
def scored(family: str, mesh_text: str, masked: bool = False) -> np.ndarray:
    """Three prompts and None between them, over ten rows."""
    module, params = tiny_model(family)
    mesh = make_mesh(mesh_text)
    shardings, _ = parameter_shardings(params, FAMILIES[family].weights.partition, mesh)
    words = None if family == "bert" else jnp.array([[7, 9], [8, NO_TOKEN]], jnp.int32)
    prompts = prompts_of(5, 5, 5)
    prompts.insert(2, None)
    mask = NeuronMask(jnp.ones((2, 48), jnp.float32).at[:, ::3].set(0)) if masked else None
    answer = Answer(jnp.array([7, 8], jnp.int32), words)
    return bank_logits(
        module, place(params, shardings), prompts, split_of(10), answer, BATCHING, mesh, mask
    )


ALL = ("bert", "t5", "gpt2", "llama")
AXES = "prompt:2,data:2,model:2"
SLOW = [(family, AXES) for family in ("bert", "t5", "llama")]
SLOW += [(family, mesh) for family in ALL for mesh in ("prompt:8", "prompt:4,data:2")]


@pytest.mark.parametrize(
    ("family", "mesh"),
    [("gpt2", AXES), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_bank_scores_equal_single_scores(family: str, mesh: str) -> None:
    found, expected = scored(family, mesh), scored(family, "data:1")
    assert np.abs(expected[0] - expected[1]).max() > 1e-4, "prompts have to differ"
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_masked_bank() -> None:
    found, expected = scored("bert", "prompt:2", True), scored("bert", "data:1", True)
    assert np.abs(expected - scored("bert", "data:1")).max() > 1e-4
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_cpu_scores_one_by_one_without_the_prompt_axis() -> None:
    assert prompts_at_once(None) == prompts_at_once(make_mesh("data:4,model:2")) == 1
    assert prompts_at_once(make_mesh("prompt:4")) >= 4


def plan(prompts: list[np.ndarray | None], mesh: str) -> list[bound_task.Chunk]:
    config = FAMILIES["bert"].config(tiny_config("bert"))
    return plan_chunks(config, prompts, split_of(10), BATCHING, 0, make_mesh(mesh))


def test_every_prompt_is_in_one_chunk_with_its_values() -> None:
    prompts = prompts_of(5, 4, 5, 5, 4, 5, 5)
    prompts.insert(3, None)
    for mesh in ("data:1", "prompt:2", "prompt:4"):
        found = plan(prompts, mesh)
        assert sorted(index for chunk in found for index in chunk.indices) == list(range(8))
        for chunk in found:
            values = [chunk.values] if len(chunk.indices) == 1 else np.asarray(chunk.values)
            for index, each in zip(chunk.indices, values, strict=False):
                np.testing.assert_array_equal(each, prompts[index])
    sizes = {len(np.asarray(c.values)) for c in plan(prompts, "prompt:4") if len(c.indices) > 1}
    assert sizes == {8, 4}, "5 prompts of one length and 2 of the other, padded to the axis"


def test_chunks_keep_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(*[5] * 100)
    assert len(plan(prompts, "prompt:2")) == 1
    # 12 + 5 + 1 tokens of 6 x 32 + 48 states and neurons and 4 heads' attention, 4 rows, float32:
    one_mb = 4 * 4 * (18 * (6 * 32 + 48) + 4 * 18**2) / 2**20
    for budget_mb, expected in ((10.5 * one_mb, [20] * 5), (0, [2] * 50)):
        monkeypatch.setattr(bound_task, "BANK_MB", budget_mb)
        assert [len(chunk.indices) for chunk in plan(prompts, "prompt:2")] == expected
