"""What every family writes is what torch transformers writes, on one device and on a mesh."""

from __future__ import annotations

import re
from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn

from jpt.backbones.generation import Generation, beam_search, greedy
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from jpt.types import Parameters
from tests.backbones.golden import DECODERS, FAST_COMPILE, FIXTURES, T5S, Golden, load_golden

NAMES = (*T5S, *DECODERS)
SEARCH = re.compile(r"greedy_tokens|beam(?P<beams>\d+)_n\d+_tokens")


@partial(jax.jit, static_argnums=(0, 1, 2, 3), compiler_options=FAST_COMPILE)
def write(
    module: nn.Module, max_new: int, end: int, beams: int, params: Parameters, *inputs: jax.Array
) -> Generation:
    if beams == 1:
        return greedy(module, params, *inputs, max_new, (end,))
    return beam_search(module, params, *inputs, max_new, (end,), beams)


def on_mesh(golden: Golden, text: str) -> tuple[Parameters, jax.Array, jax.Array, jax.Array]:
    """Weights and inputs on the devices of a mesh."""
    mesh, (tokens, lengths, prompt) = make_mesh(text), golden.batch
    rows = batch_sharding(mesh, len(lengths))
    return golden.split(mesh), *place((tokens, lengths), rows), place(prompt, replicated(mesh))


# Each takes seconds to compile: some fixtures always, the others with the slow tests.
ALWAYS = {
    "data:1": ("t5_gated", "gpt2_tied", "llama_grouped"),
    "data:2,model:4": ("llama_grouped",),
}
CASES = [
    pytest.param(mesh, name, marks=() if name in always else pytest.mark.slow)
    for mesh, always in ALWAYS.items()
    for name in NAMES
]


@pytest.mark.parametrize(("mesh", "name"), CASES)
def test_what_is_written_is_identical(mesh: str, name: str) -> None:
    golden = load_golden(name)
    inputs, end = on_mesh(golden, mesh), golden.fields["eos_token_id"]
    searches = [name for name in golden.stored if SEARCH.fullmatch(name)]
    searches = sorted(searches, key=lambda search: golden.stored[search].shape[1])
    assert len(searches) > 4
    if mesh != "data:1":
        # Compiling takes seconds there: of each number of beams the longest texts.
        searches = {SEARCH.fullmatch(search)["beams"]: search for search in searches}.values()
    for search in searches:
        expected = golden.stored[search]
        beams = int(SEARCH.fullmatch(search)["beams"] or 1)
        found = write(golden.module(), expected.shape[1], end, beams, *inputs)
        assert np.array_equal(found.tokens, expected), search
        assert np.array_equal(found.lengths, (expected >= 0).sum(axis=1)), search


def test_every_fixture_that_holds_texts_is_read() -> None:
    kinds = {path.name.split("_")[0] for path in FIXTURES.iterdir()} - {"bert", "roberta"}
    assert kinds == {"t5", "gpt2", "llama", "qwen2"}
    folders = {path.name for path in FIXTURES.iterdir() if path.name.split("_")[0] in kinds}
    assert folders == set(NAMES)
