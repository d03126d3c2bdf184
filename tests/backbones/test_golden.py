"""Encoders and decoders agree with the stored outputs of torch; T5 has a file of its own."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.parallel import make_mesh
from tests.helpers.golden import (
    DECODERS,
    ENCODERS,
    FIXTURES,
    Golden,
    ask,
    difference,
    learn_batch,
    load_golden,
)

TOLERANCE = 1e-4
EVERY = (*ENCODERS, *DECODERS)
every_fixture = pytest.mark.parametrize("name", EVERY)


@cache
def outputs_of(name: str) -> dict[str, np.ndarray]:
    golden = load_golden(name)
    batch, mask = golden.batch, golden.input("neuron_mask")
    everything = {"capture_neurons": True, "every_position": True}
    whole = ask(golden, *batch, neuron_mask=jnp.ones_like(mask), **everything)
    masked = golden.at_answer(ask(golden, *batch, neuron_mask=mask, **everything).logits)
    found = {
        "vocabulary_logits": whole.logits if name in DECODERS else whole.logits[:, 0],
        "hidden": whole.hidden,
        "neurons": whole.neurons,
        "masked_logits": masked[:, golden.input("label_ids")],
        "no_prompt_logits": ask(golden, *batch[:2]).logits,
    }
    return {**jax.device_get(found), **learn_batch(golden)}


def vocabulary_logits(golden: Golden) -> np.ndarray:
    scores = golden.stored["vocabulary_logits"]
    return scores if scores.ndim == 2 else golden.at_answer(scores)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        *((name, "vocabulary_logits") for name in ENCODERS),
        *(
            (name, output)
            for name in EVERY
            for output in ("logits", "loss", "masked_logits", "no_prompt_logits")
        ),
    ],
)
def test_output_agrees(name: str, output: str) -> None:
    assert difference(outputs_of(name)[output], load_golden(name).stored[output]) < TOLERANCE


@every_fixture
def test_prompt_gradient_agrees(name: str) -> None:
    expected = load_golden(name).stored["prompt_gradient"]
    assert difference(outputs_of(name)["prompt_gradient"], expected) < TOLERANCE
    # Every row is read, so every row has a gradient that counts.
    assert (np.abs(expected).max(axis=1) > 0.01 * np.abs(expected).max()).all()


@pytest.mark.parametrize(
    ("name", "output"),
    [
        *((name, "vocabulary_logits") for name in DECODERS),
        *((name, output) for name in EVERY for output in ("hidden", "neurons")),
    ],
)
def test_every_text_position_agrees(name: str, output: str) -> None:
    golden = load_golden(name)
    front = 1 + len(golden.stored["prompt"]) if name in ENCODERS else 0
    text = (..., golden.is_text(front), slice(None))
    assert difference(outputs_of(name)[output][text], golden.stored[output][text]) < TOLERANCE


@every_fixture
@pytest.mark.parametrize("output", ["hidden", "neurons"])
def test_the_answers_position_agrees(name: str, output: str) -> None:
    golden = load_golden(name)
    expected = golden.at_answer(golden.stored[output])
    assert difference(outputs_of(name)[f"answer_{output}"], expected) < TOLERANCE


# Heads, key heads and neurons are not divisible by the columns of devices.
@pytest.mark.parametrize("name", ["bert_untied", *DECODERS])
def test_mesh_gives_the_stored_outputs(name: str) -> None:
    golden = load_golden(name)
    mesh = make_mesh("data:3,model:2" if name in ENCODERS else "data:2,model:4")
    found = learn_batch(golden, mesh=mesh)
    for output in ("logits", "loss", "prompt_gradient"):
        assert difference(found[output], golden.stored[output]) < TOLERANCE, output
    for output in ("hidden", "neurons"):
        expected = golden.at_answer(golden.stored[output])
        assert difference(found[f"answer_{output}"], expected) < TOLERANCE, output


# bfloat16 has 8 bits. Found in encoders: logits 1.2e-2 off, neurons 1.1e-2, gradient 2.9e-2
# (torch's own bfloat16: 0.9e-2, 1.1e-2, 2.6e-2). In decoders, whose weights are large: 1.8e-2,
# 3.0e-2, 1.1e-1 (torch: 1.4e-2, 3.5e-2, 1.4e-1; the median relative norm of the gradient over 15
# prompts is 2.7e-2 to 5.4e-2, torch's 2.5e-2 to 5.8e-2). Not the models with ReLU: values rounded
# to the other side of 0 change their gradient far more (0.17, as in torch).
@pytest.mark.parametrize(
    ("name", "tolerance", "gradient_tolerance"),
    [
        *((name, 3e-2, 8e-2) for name in ("roberta_tied", "bert_one_layer")),
        *((name, 4e-2, 1.5e-1) for name in ("llama_grouped", "gpt2_tied")),
    ],
)
def test_bfloat16_agrees_within_its_rounding(
    name: str, tolerance: float, gradient_tolerance: float
) -> None:
    golden = load_golden(name)
    stored, found = golden.stored, learn_batch(golden, jnp.bfloat16)
    assert found["logits"].dtype == found["prompt_gradient"].dtype == np.float32
    largest = np.abs(stored["vocabulary_logits"]).max()
    assert np.abs(found["logits"] - stored["logits"]).max() / largest < tolerance
    neurons = found["answer_neurons"].astype(np.float32)
    assert difference(neurons, golden.at_answer(stored["neurons"])) < tolerance
    assert difference(found["prompt_gradient"], stored["prompt_gradient"]) < gradient_tolerance


@every_fixture
def test_fixture_tells_wrong_models_apart(name: str) -> None:
    golden = load_golden(name)
    stored = golden.stored
    assert difference(stored["masked_logits"], stored["logits"]) > 0.01
    assert not np.array_equal(np.sort(stored["label_ids"]), stored["label_ids"])
    assert stored["lengths"].min() <= 2 < stored["lengths"].max()
    if name in DECODERS:
        assert difference(stored["no_prompt_logits"], vocabulary_logits(golden)) > 0.1
        # Rows end early, and beams find what greedy search does not.
        greedy, beams = stored["greedy_tokens"], stored["beam3_n9_tokens"]
        assert (greedy == -1).any() and (greedy[:, -1] >= 0).any()
        assert not np.array_equal(beams, greedy)
        assert not np.array_equal(beams, stored["beam4_n9_tokens"])


def test_fixtures_are_small() -> None:
    sizes = [[file.stat().st_size for file in (FIXTURES / name).iterdir()] for name in EVERY]
    encoders, decoders = sizes[: len(ENCODERS)], sizes[len(ENCODERS) :]
    assert max(map(max, encoders)) < 100_000 and sum(map(sum, encoders)) < 600_000
    assert max(map(sum, decoders)) < 170_000
