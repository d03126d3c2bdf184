"""The encoder gives what torch transformers gives: stored answers of five odd little models."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.encoder import ENCODER_WEIGHTS, Encoder
from jpt.backbones.layers import ModelOutput
from jpt.parallel import batch_sharding, make_mesh, parameter_shardings, place, replicated
from jpt.types import Parameters
from tests.backbones.golden import (
    ENCODERS,
    FAST_COMPILE,
    FIXTURES,
    Golden,
    difference,
    learn,
    load_golden,
    read,
)

TOLERANCE = 1e-4
# bfloat16 has 8 bits, so states of size 2 to 4 are rounded by up to 2^-7 in every layer. Found:
# logits 1.2e-2 off, neurons 1.1e-2, gradient 2.9e-2 (torch's own bfloat16: 0.9e-2, 1.1e-2, 2.6e-2).
BFLOAT16_TOLERANCE = 3e-2
BFLOAT16_GRADIENT_TOLERANCE = 8e-2

every_fixture = pytest.mark.parametrize("name", ENCODERS)


compiled = partial(jax.jit, static_argnums=(0, 1), compiler_options=FAST_COMPILE)


def _learn(golden: Golden, encoder: Encoder, params: Parameters) -> dict[str, jax.Array]:
    return learn(encoder, params, golden.batch, golden.input("label_ids"), golden.input("labels"))


@compiled
def _look(
    encoder: Encoder, golden: Golden, params: Parameters, neuron_mask: jax.Array
) -> ModelOutput:
    """Everything everywhere, with a neuron mask."""
    options = {"capture_neurons": True, "every_position": True, "neuron_mask": neuron_mask}
    return _read(encoder, golden, params, golden.input("prompt"), **options)


@compiled
def _read_otherwise(encoder: Encoder, golden: Golden, params: Parameters) -> dict[str, jax.Array]:
    """Without a prompt, as in pretraining, and with BERT's text one position later."""

    def plain(module: Encoder) -> jax.Array:
        states = module.hidden_states(*map(golden.input, ("tokens", "lengths", "token_types")))
        return module.vocabulary_logits(states)

    answers = {
        "no_prompt_logits": _read(encoder, golden, params, None).logits,
        "plain_logits": encoder.apply({"params": params}, method=plain),
    }
    if encoder.config.is_bert:
        options = {"label_ids": golden.input("label_ids"), "first_position": 1}
        shifted = _read(encoder, golden, params, golden.input("prompt"), **options)
        answers["shifted_logits"] = shifted.logits
    return answers


def _read(
    encoder: Encoder,
    golden: Golden,
    params: Parameters,
    prompt: jax.Array | None,
    **options: object,
) -> ModelOutput:
    tokens, lengths = golden.input("tokens"), golden.input("lengths")
    return encoder.apply({"params": params}, tokens, lengths, prompt, **options)


@cache
def _answers(name: str) -> dict[str, np.ndarray]:
    """All that jpt says of a fixture's batch, under the names of the stored answers."""
    golden = load_golden(name)
    call = (golden.module(), golden, golden.params)
    mask, label_ids = golden.input("neuron_mask"), golden.input("label_ids")
    whole, masked = _look(*call, jnp.ones_like(mask)), _look(*call, mask)
    answers = {
        "vocabulary_logits": whole.logits[:, 0],
        "hidden": whole.hidden,
        "neurons": whole.neurons,
        "masked_logits": masked.logits[:, 0, label_ids],
        **_learn(golden, golden.module(), golden.params),
        **_read_otherwise(*call),
    }
    return jax.device_get(answers)


@every_fixture
@pytest.mark.parametrize(
    "answer", ["logits", "vocabulary_logits", "loss", "masked_logits", "no_prompt_logits"]
)
def test_answer_agrees(name: str, answer: str) -> None:
    golden = load_golden(name)
    assert difference(_answers(name)[answer], golden.stored[answer]) < TOLERANCE


@every_fixture
def test_prompt_gradient_agrees(name: str) -> None:
    expected = load_golden(name).stored["prompt_gradient"]
    assert difference(_answers(name)["prompt_gradient"], expected) < TOLERANCE
    # Every row is read, so every row has a gradient that counts.
    assert (np.abs(expected).max(axis=1) > 0.01 * np.abs(expected).max()).all()


@every_fixture
def test_neurons_agree_at_the_answer_and_everywhere(name: str) -> None:
    golden, answers = load_golden(name), _answers(name)
    expected = golden.stored["neurons"]
    assert difference(answers["answer_neurons"], expected[:, :, 0]) < TOLERANCE
    is_text = golden.is_text(1 + golden.stored["prompt"].shape[0])
    assert difference(answers["neurons"][:, is_text], expected[:, is_text]) < TOLERANCE


@every_fixture
def test_states_and_plain_text_agree_where_text_is(name: str) -> None:
    golden, answers = load_golden(name), _answers(name)
    is_text = golden.is_text(1 + golden.stored["prompt"].shape[0])
    assert difference(answers["hidden"][is_text], golden.stored["hidden"][is_text]) < TOLERANCE
    is_text, expected = golden.is_text(), golden.stored["plain_logits"]
    assert difference(answers["plain_logits"][is_text], expected[is_text]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("bert")])
def test_bert_prompts_tuned_one_position_later_agree(name: str) -> None:
    golden, answers = load_golden(name), _answers(name)
    expected = golden.stored["shifted_logits"]
    assert difference(answers["shifted_logits"], expected) < TOLERANCE
    assert difference(answers["logits"], expected) > 100 * TOLERANCE


# Not the models with ReLU: values rounded to the other side of 0 change their gradient far more
# (0.17, as in torch).
@pytest.mark.parametrize(
    "name", ["roberta_tied", pytest.param("bert_one_layer", marks=pytest.mark.slow)]
)
def test_bfloat16_agrees_within_its_rounding(name: str) -> None:
    golden = load_golden(name)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), golden.params)
    found = jax.device_get(_learn(golden, golden.module(jnp.bfloat16), params))
    assert found["logits"].dtype == found["prompt_gradient"].dtype == np.float32
    largest = np.abs(golden.stored["vocabulary_logits"]).max()
    off = np.abs(found["logits"] - golden.stored["logits"]).max() / largest
    assert off < BFLOAT16_TOLERANCE
    neurons = found["answer_neurons"].astype(np.float32)
    assert difference(neurons, golden.stored["neurons"][:, :, 0]) < BFLOAT16_TOLERANCE
    gradient = golden.stored["prompt_gradient"]
    assert difference(found["prompt_gradient"], gradient) < BFLOAT16_GRADIENT_TOLERANCE


def test_mesh_gives_the_stored_answers() -> None:
    """Seven heads over two columns of devices: the split goes through a head."""
    golden, mesh = load_golden("bert_untied"), make_mesh("data:3,model:2")
    shardings, notes = parameter_shardings(golden.params, ENCODER_WEIGHTS.partition, mesh)
    assert any("feed_forward_in/bias: a dimension of 45 stays whole" in note for note in notes)
    params = place(golden.params, shardings)
    assert not params["last_layer"]["query"]["kernel"].is_fully_replicated
    rows = batch_sharding(mesh, golden.stored["lengths"].shape[0])
    tokens, lengths = (place(golden.input(name), rows) for name in ("tokens", "lengths"))
    prompt = place(golden.input("prompt"), replicated(mesh))
    output = read(golden.module(), params, tokens, lengths, prompt, capture_neurons=True)
    assert difference(output.logits, golden.stored["vocabulary_logits"]) < TOLERANCE
    assert difference(output.neurons, golden.stored["neurons"][:, :, 0]) < TOLERANCE


@every_fixture
def test_fixture_is_telling(name: str) -> None:
    """What the models must not have in common with a wrong reading of them."""
    stored = load_golden(name).stored
    assert difference(stored["masked_logits"], stored["logits"]) > 0.01
    assert not np.array_equal(np.sort(stored["label_ids"]), stored["label_ids"])
    assert stored["lengths"].min() <= 2 < stored["lengths"].max()


def test_fixtures_are_small() -> None:
    sizes = [file.stat().st_size for name in ENCODERS for file in (FIXTURES / name).iterdir()]
    assert max(sizes) < 100_000 and sum(sizes) < 600_000
