"""What every family writes is what torch transformers writes, on one device and on a mesh."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn

from jpt.backbones.beams import beam_search
from jpt.backbones.decoder import Decoder
from jpt.backbones.families import FAMILIES
from jpt.backbones.generation import Written, greedy
from jpt.mesh import batch_sharding, make_mesh, parameter_shardings, place, replicated
from jpt.types import Parameters
from tests.backbones import decoder_golden, t5_golden
from tests.backbones.golden import FAST_COMPILE, FIXTURES

NAMES = (*t5_golden.NAMES, *decoder_golden.NAMES)


@dataclass(frozen=True, eq=False)
class Golden:
    """A small checkpoint of any family, and what torch wrote.

    Attributes:
        module: the model.
        params: its weights.
        inputs: tokens, lengths and prompt.
        end: the token that ends a row.
        stored: the tokens that torch wrote, by the name of the search; -1 behind the end.
    """

    module: nn.Module
    params: Parameters
    inputs: tuple[jax.Array, jax.Array, jax.Array]
    end: int
    stored: dict[str, np.ndarray]

    def on_mesh(self, text: str) -> tuple[Parameters, jax.Array, jax.Array, jax.Array]:
        """Weights and inputs on the devices of a mesh."""
        mesh, (tokens, lengths, prompt) = make_mesh(text), self.inputs
        table = FAMILIES[self.module.config.model_type].weights.partition
        params = place(self.params, parameter_shardings(self.params, table, mesh)[0])
        rows = batch_sharding(mesh, len(lengths))
        return params, *place((tokens, lengths), rows), place(prompt, replicated(mesh))


def load_golden(name: str) -> Golden:
    if name in t5_golden.NAMES:
        golden = t5_golden.load_golden(name)
        module = golden.model()
    else:
        golden = decoder_golden.load_golden(name)
        module = Decoder(golden.config)
    end = json.loads((FIXTURES / name / "config.json").read_text())["eos_token_id"]
    stored = {key: value for key, value in golden.stored.items() if SEARCH.fullmatch(key)}
    return Golden(module, golden.params, golden.batch, end, stored)


SEARCH = re.compile(r"greedy_tokens|beam(?P<beams>\d+)_n\d+_tokens")


@partial(jax.jit, static_argnums=(0, 1, 2, 3), compiler_options=FAST_COMPILE)
def write(
    module: nn.Module, max_new: int, end: int, beams: int, params: Parameters, *inputs: jax.Array
) -> Written:
    if beams == 1:
        return greedy(module, params, *inputs, max_new, (end,))
    return beam_search(module, params, *inputs, max_new, (end,), beams)


# Compiling for a mesh takes seconds: one fixture a family always, the others with the slow tests.
ALWAYS_ON_MESH = ("t5_relu", "gpt2_tied", "llama_grouped")
CASES = [
    *(("data:1", name) for name in NAMES),
    *(("data:2,model:4", name) for name in ALWAYS_ON_MESH),
    *(
        pytest.param("data:2,model:4", name, marks=pytest.mark.slow)
        for name in NAMES
        if name not in ALWAYS_ON_MESH
    ),
]


@pytest.mark.parametrize(("mesh", "name"), CASES)
def test_what_is_written_is_identical(mesh: str, name: str) -> None:
    golden = load_golden(name)
    inputs = golden.on_mesh(mesh)
    searches = sorted(golden.stored, key=lambda search: golden.stored[search].shape[1])
    assert len(searches) > 4
    if mesh != "data:1":
        # Compiling takes seconds there: of each number of beams the longest texts.
        searches = {SEARCH.fullmatch(search)["beams"]: search for search in searches}.values()
    for search in searches:
        expected = golden.stored[search]
        beams = int(SEARCH.fullmatch(search)["beams"] or 1)
        found = write(golden.module, expected.shape[1], golden.end, beams, *inputs)
        assert np.array_equal(found.tokens, expected), search
        assert np.array_equal(found.lengths, (expected >= 0).sum(axis=1)), search


def test_every_fixture_that_holds_texts_is_read() -> None:
    kinds = {path.name.split("_")[0] for path in FIXTURES.iterdir()} - {"bert", "roberta"}
    assert kinds == {"t5", "gpt2", "llama", "qwen2"}
    folders = {path.name for path in FIXTURES.iterdir() if path.name.split("_")[0] in kinds}
    assert folders == set(NAMES)
