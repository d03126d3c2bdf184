"""Scores under a mask of neurons: those of a model whose second matrices lack these rows."""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.errors import InputError
from jpt.testing import tiny_batch, tiny_model
from jpt.tuning.losses import (
    NO_TOKEN,
    Answer,
    NeuronMask,
    check_neuron_mask,
    label_scores,
    neuron_shape,
)
from jpt.types import Parameters
from tests.backbones.golden import FAST_COMPILE, difference

EQUAL = 1e-6
LAYERS, WIDTH = 2, 48
WORDS = Answer(jnp.array([7, 30]))
# Label 0 has the words (7 9 8) and (10), label 1 the word (30 11).
PHRASES = Answer(
    jnp.array([7, 10, 30]),
    jnp.array([[7, 9, 8], [10, NO_TOKEN, NO_TOKEN], [30, 11, NO_TOKEN]]),
    jnp.array([0, 0, 1]),
    2,
)
CASES = [
    ("bert", None, WORDS),
    *((model, None, words) for model in ("gpt2", "llama") for words in (WORDS, PHRASES)),
    *(("t5", stack, words) for stack in ("decoder", "encoder") for words in (WORDS, PHRASES)),
]
every_case = pytest.mark.parametrize(("model_type", "stack", "answer"), CASES)


@cache
def model_of(model_type: str) -> tuple:
    """A tiny model whose biases are not 0, and whose feed-forward layers count."""
    module, params = tiny_model(model_type)
    return module, jax.tree.map(lambda leaf: leaf * 2, params)


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def score(module, params, prompt, answer, mask) -> jax.Array:
    return label_scores(module, params, prompt, tiny_batch(), answer, neuron_mask=mask)


def scores_of(model_type: str, answer: Answer, mask: NeuronMask | None, params=None) -> np.ndarray:
    module, own = model_of(model_type)
    prompt = jnp.asarray(np.random.default_rng(0).normal(0, 1, (4, 32)), jnp.float32)
    return np.asarray(score(module, own if params is None else params, prompt, answer, mask))


def without_rows(params: Parameters, silent: np.ndarray, stack: str | None = None) -> Parameters:
    """The weights with the rows of the second matrices at silent neurons [L, F] set to zero."""
    changed = jax.tree.map(lambda leaf: leaf, params)
    place = changed[stack] if stack else changed
    kept = jnp.asarray(~silent, jnp.float32)[..., None]
    if "last_layer" in place:
        parts = {"layers": kept[:-1], "last_layer": kept[-1]}
    else:
        parts = {"layers": kept}
    for name, part in parts.items():
        second = place[name]["feed_forward_out"]
        second["kernel"] = second["kernel"] * part
    return changed


@every_case
def test_a_mask_of_ones_is_no_mask(model_type: str, stack: str | None, answer: Answer) -> None:
    ones = NeuronMask(jnp.ones((LAYERS, WIDTH)), stack)
    plain, found = (scores_of(model_type, answer, mask) for mask in (None, ones))
    assert difference(found, plain) < EQUAL


@every_case
def test_a_mask_is_as_zero_rows_of_the_second_matrices(model_type, stack, answer) -> None:
    silent = np.random.default_rng(1).random((LAYERS, WIDTH)) < 0.3
    mask = NeuronMask(jnp.asarray(~silent, jnp.float32), stack)
    found = scores_of(model_type, answer, mask)
    stack = "decoder" if model_type == "t5" and stack is None else stack
    changed = without_rows(model_of(model_type)[1], silent, stack)
    assert difference(found, scores_of(model_type, answer, None, changed)) < 1e-5
    assert difference(found, scores_of(model_type, answer, None)) > 1e-3


@every_case
def test_a_whole_layer_masked_leaves_the_bias_alone(model_type, stack, answer) -> None:
    """A layer whose neurons are silent is one whose second matrix is zero, bias kept."""
    for layer in range(LAYERS):
        silent = np.zeros((LAYERS, WIDTH), bool)
        silent[layer] = True
        mask = NeuronMask(jnp.asarray(~silent, jnp.float32), stack)
        changed = without_rows(model_of(model_type)[1], silent, stack)
        found = scores_of(model_type, answer, mask)
        assert difference(found, scores_of(model_type, answer, None, changed)) < 1e-5
    if model_type in ("bert", "gpt2"):
        place = changed["last_layer"]["feed_forward_out"]
        place["bias"] = place["bias"] + jnp.arange(place["bias"].size, dtype=jnp.float32)
        assert difference(found, scores_of(model_type, answer, None, changed)) > 1e-3


@pytest.fixture(scope="module")
def backbones() -> dict[str, jpt.Backbone]:
    return {name: jpt.load_backbone(f"builtin/{name}") for name in ("bert-small", "t5-mini")}


def test_shape_of_each_stack(backbones) -> None:
    t5 = dataclasses.replace(
        backbones["t5-mini"],
        config=dataclasses.replace(backbones["t5-mini"].config, layers=3, encoder_layers=7),
    )
    width = t5.config.neurons
    assert neuron_shape(t5) == neuron_shape(t5, "decoder") == (3, width)
    assert neuron_shape(t5, "encoder") == (7, width)


def test_wrong_masks_are_refused(backbones) -> None:
    bert, task = backbones["bert-small"], jpt.load_task("builtin/imdb")
    with pytest.raises(InputError, match="mask is 12 x 3072, but builtin/bert-small has 4 layers"):
        check_neuron_mask(NeuronMask(np.ones((12, 3072), np.float32)), bert, task)
    with pytest.raises(InputError, match="stack is 'encoder', but builtin/bert-small has one"):
        check_neuron_mask(NeuronMask(np.ones((4, 512), np.float32), "encoder"), bert, task)
    t5 = backbones["t5-mini"]
    mask = NeuronMask(np.ones(neuron_shape(t5), np.float32))
    with pytest.raises(InputError, match="answers of task samsum are written"):
        check_neuron_mask(mask, t5, jpt.load_task("samsum"))
