"""T5 gives what torch transformers gives: stored answers of four odd little models.

Everything is compared on one device and on eight, two for the rows of the batch by four for heads,
neurons and the width of the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jpt.backbones.layers import ModelOutput
from jpt.backbones.t5 import T5
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from jpt.types import Parameters
from tests.backbones.golden import (
    FAST_COMPILE,
    FIXTURES,
    T5S,
    answers_and_gradient,
    cross_entropy,
    difference,
    load_golden,
    write,
)

TOLERANCE = 1e-4
# bfloat16 has 8 bits, so states are rounded by up to 2^-8 in every layer. Found: scores 2.8e-2 off,
# neurons 2.3e-2, gradients 4.4e-2 (torch's own bfloat16: 2.7e-2, 2.0e-2, 6.3e-2).
BFLOAT16_TOLERANCE = 3e-2
BFLOAT16_GRADIENT_TOLERANCE = 8e-2
PER_ROW = ("tokens", "lengths", "labels", "targets", "decoder_tokens")
WHOLE = ("prompt", "label_ids", "neuron_mask", "encoder_neuron_mask")

every_fixture = pytest.mark.parametrize("name", T5S)
# Compiling for a mesh takes seconds: one fixture always, the others with the slow tests.
every_case = pytest.mark.parametrize(
    ("mesh", "name"),
    [
        *(("data:1", name) for name in T5S),
        ("data:2,model:4", T5S[0]),
        *(pytest.param("data:2,model:4", name, marks=pytest.mark.slow) for name in T5S[1:]),
    ],
)

Inputs = dict[str, jax.Array]
compiled = partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)


def _apply(model: T5, params: Parameters, inputs: Inputs) -> Callable[..., ModelOutput]:
    return partial(model.apply, {"params": params}, inputs["tokens"], inputs["lengths"])


@compiled
def _learn(model: T5, params: Parameters, inputs: Inputs) -> dict[str, jax.Array]:
    """What train steps and the analysis ask for, under the names of the stored answers."""
    apply = _apply(model, params, inputs)

    def token_loss(prompt: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        output = apply(prompt, decoder_tokens=inputs["decoder_tokens"], capture_neurons=True)
        found = {"teacher_logits": output.logits, "neurons": output.neurons}
        return cross_entropy(output.logits, inputs["targets"]), found

    batch = (inputs["tokens"], inputs["lengths"], inputs["prompt"])
    found = answers_and_gradient(model, params, batch, inputs["label_ids"], inputs["labels"])
    found["hidden"] = found.pop("answer_hidden")  # a T5 stores only the decoder's first step
    (total, taught), gradient = jax.value_and_grad(token_loss, has_aux=True)(inputs["prompt"])
    return found | taught | {"token_loss": total[None], "token_gradient": gradient}


@compiled
def _look(model: T5, params: Parameters, inputs: Inputs) -> dict[str, jax.Array]:
    """The encoder's neurons, masks of both stacks, no prompt."""
    apply, prompt = _apply(model, params, inputs), inputs["prompt"]
    encoder = {"neuron_stack": "encoder", "capture_neurons": True}
    whole = apply(prompt, every_position=True, **encoder)
    masked = apply(prompt, neuron_mask=inputs["encoder_neuron_mask"], **encoder)
    return {
        "vocabulary_logits": whole.logits[:, 0],
        "encoder_neurons": whole.neurons,
        "masked_logits": apply(prompt, neuron_mask=inputs["neuron_mask"]).logits,
        "encoder_masked_logits": masked.logits,
        "masked_text_neurons": masked.neurons,
        "no_prompt_logits": apply(None).logits,
        "encoded": apply(prompt, method="encode"),
    }


def _placed(name: str, mesh: Mesh, dtype: jnp.dtype) -> tuple[Parameters, Inputs]:
    """Weights and inputs of a fixture on the devices of a mesh."""
    golden = load_golden(name)
    rows = batch_sharding(mesh, golden.stored["lengths"].shape[0])
    inputs = {key: place(golden.input(key), rows) for key in PER_ROW}
    inputs |= {key: place(golden.input(key), replicated(mesh)) for key in WHOLE}
    return golden.split(mesh, dtype), inputs


@cache
def _answers(name: str, mesh: str) -> dict[str, np.ndarray]:
    model = load_golden(name).module()
    params, inputs = _placed(name, make_mesh(mesh), jnp.float32)
    return jax.device_get(_learn(model, params, inputs) | _look(model, params, inputs))


@cache
def _written(name: str, mesh: str, taught: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores and tokens of generation: the best tokens, or those of the stored answers first."""
    golden = load_golden(name)
    params, inputs = _placed(name, make_mesh(mesh), jnp.float32)
    forced = np.full_like(golden.stored["greedy_tokens"], -1)
    if taught:
        known = golden.stored["decoder_tokens"][:, 1:]
        forced[:, : known.shape[1]] = known
    return write(golden, params, tuple(inputs[k] for k in ("tokens", "lengths", "prompt")), forced)


@every_case
@pytest.mark.parametrize(
    "answer",
    [
        "logits",
        "vocabulary_logits",
        "loss",
        "hidden",
        "teacher_logits",
        "token_loss",
        "no_prompt_logits",
        "masked_logits",
        "encoder_masked_logits",
    ],
)
def test_answer_agrees(name: str, mesh: str, answer: str) -> None:
    stored = load_golden(name).stored
    assert difference(_answers(name, mesh)[answer], stored[answer]) < TOLERANCE


@every_case
@pytest.mark.parametrize("gradient", ["prompt_gradient", "token_gradient"])
def test_prompt_gradient_agrees(name: str, mesh: str, gradient: str) -> None:
    expected = load_golden(name).stored[gradient]
    assert difference(_answers(name, mesh)[gradient], expected) < TOLERANCE
    # Every row is read, so every row has a gradient that counts.
    assert (np.abs(expected).max(axis=1) > 0.01 * np.abs(expected).max()).all()


@every_case
def test_neurons_of_the_decoder_agree_at_the_first_step_and_at_all(name: str, mesh: str) -> None:
    answers, expected = _answers(name, mesh), load_golden(name).stored["neurons"]
    assert difference(answers["answer_neurons"], expected[:, :, 0]) < TOLERANCE
    assert difference(answers["neurons"], expected) < TOLERANCE


@every_case
def test_states_and_neurons_of_the_encoder_agree_where_text_is(name: str, mesh: str) -> None:
    golden, answers = load_golden(name), _answers(name, mesh)
    stored = golden.stored
    is_read = golden.is_text(stored["prompt"].shape[0])
    assert difference(answers["encoded"][is_read], stored["encoded"][is_read]) < TOLERANCE
    expected = stored["encoder_neurons"]
    assert difference(answers["encoder_neurons"][:, is_read], expected[:, is_read]) < TOLERANCE
    # In the first layer the mask changes nothing that is returned.
    first = stored["prompt"].shape[0]
    assert difference(answers["masked_text_neurons"][0], expected[0, :, first]) < TOLERANCE


@every_case
def test_token_by_token_gives_the_scores_of_all_at_once(name: str, mesh: str) -> None:
    expected = load_golden(name).stored["teacher_logits"]
    scores, _ = _written(name, mesh, taught=True)
    assert difference(scores[:, : expected.shape[1]], expected) < TOLERANCE


@every_case
def test_greedy_tokens_agree_up_to_the_end(name: str, mesh: str) -> None:
    expected = load_golden(name).stored["greedy_tokens"]
    _, tokens = _written(name, mesh, taught=False)
    is_generative = expected >= 0
    assert np.array_equal(tokens[is_generative], expected[is_generative])


# Not the other two: torch's own bfloat16 is off by 3.5e-2 in scores and 0.12 to 0.46 in gradients.
@pytest.mark.parametrize(
    "name", ["t5_one_layer", pytest.param("t5_gated_silu", marks=pytest.mark.slow)]
)
def test_bfloat16_agrees_within_its_rounding(name: str) -> None:
    golden = load_golden(name)
    params, inputs = _placed(name, make_mesh("data:1"), jnp.bfloat16)
    found = jax.device_get(_learn(golden.module(jnp.bfloat16), params, inputs))
    assert found["logits"].dtype == found["prompt_gradient"].dtype == np.float32
    stored = golden.stored
    for answer in ("teacher_logits", "neurons", "hidden"):
        assert difference(found[answer].astype(np.float32), stored[answer]) < BFLOAT16_TOLERANCE
    for gradient in ("prompt_gradient", "token_gradient"):
        assert difference(found[gradient], stored[gradient]) < BFLOAT16_GRADIENT_TOLERANCE


@every_fixture
def test_fixture_is_telling(name: str) -> None:
    """What the models must not have in common with a wrong reading of them."""
    golden = load_golden(name)
    stored, config = golden.stored, golden.config
    for masked in ("masked_logits", "encoder_masked_logits"):
        assert difference(stored[masked], stored["vocabulary_logits"]) > 0.01
    assert difference(stored["no_prompt_logits"], stored["vocabulary_logits"]) > 0.01
    assert not np.array_equal(np.sort(stored["label_ids"]), stored["label_ids"])
    assert stored["lengths"].min() <= 2 < stored["lengths"].max()
    assert config.heads * config.head_width != config.width
    # Some rows end before the last token, some do not; beams do not find what greedy search finds.
    ends = (stored["greedy_tokens"] >= 0).sum(axis=1)
    assert ends.min() < stored["greedy_tokens"].shape[1] == ends.max()
    assert not np.array_equal(stored["greedy_tokens"], stored["beam4_n14_tokens"])
    # Distances reach beyond those that have a bucket of their own.
    reach = stored["encoded"].shape[1]
    assert reach > config.buckets // 4 + 1


def test_kinds_of_model_are_all_there() -> None:
    configs = [load_golden(name).config for name in T5S]
    kinds = [(c.activation, c.gated, c.tied_head, c.scaled_head) for c in configs]
    assert kinds == [
        ("gelu_new", True, False, False),
        ("silu", True, False, True),
        ("gelu", False, True, True),
        ("relu", False, True, True),
    ]
    depths = [(config.encoder_layers, config.layers) for config in configs]
    assert depths == [(3, 1), (1, 2), (1, 1), (2, 3)]


def test_fixtures_are_small() -> None:
    for name in T5S:
        files = list((FIXTURES / name).iterdir())
        assert {file.name for file in files} == {
            "config.json",
            "golden.safetensors",
            "model.safetensors",
            "probes.safetensors",
        }
        assert sum(file.stat().st_size for file in files) < 170_000
