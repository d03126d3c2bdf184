"""T5 against torch transformers alive, and proof that the stored answers are still theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jpt.types import Parameters
from tests.backbones.golden import FIXTURES, T5S, difference, load_golden, read_folder

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4

# The shape of t5-small but for depths, vocabulary and non-linearity.
SMALL = {
    "vocab_size": 211,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_heads": 8,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gelu",  # ReLU: neurons that rounding moves over 0 have other gradients
}


@pytest.fixture(scope="module")
def maker():
    """The script that writes the fixtures; it needs torch."""
    pytest.importorskip("torch")
    from tests.backbones import make_t5_fixtures

    return make_t5_fixtures


@pytest.mark.parametrize("name", T5S)
def test_fixtures_are_what_torch_says_today(maker: Any, name: str) -> None:
    case = maker.CASES[name]
    model, inputs = maker.build_model(name, case), maker.draw_inputs(name, case)
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    for key, value in load_file(FIXTURES / name / "model.safetensors").items():
        assert np.array_equal(weights[key], value), key
    stored = load_file(FIXTURES / name / "golden.safetensors")
    for key, value in inputs.items():
        assert np.array_equal(stored.pop(key), value), key
    answers = maker.ask_torch(model, inputs)
    assert answers.keys() == stored.keys()
    for key, value in answers.items():
        if value.dtype == np.float32:
            assert difference(value, stored[key]) < 1e-6, key
        else:
            assert np.array_equal(value, stored[key]), key
    config = json.loads((FIXTURES / name / "config.json").read_text())
    assert case.config.items() <= config.items()


def test_long_text_behind_a_long_prompt_agrees(maker: Any, tmp_path: Path) -> None:
    case = maker.RecommendInputs(SMALL, own_head=False, lengths=(310, 157), prompt_rows=100, seed=0)
    model, inputs = maker.build_model("small", case), maker.draw_inputs("small", case)
    import torch

    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Scores of the size that real models have, where heads are wide.
            parameter *= 0.2 if ".q." in key else 1.0
    model.save_pretrained(tmp_path)
    golden = read_folder(tmp_path, inputs)
    module = golden.module()
    reader = maker.TorchReader(model, inputs)
    prompt = torch.from_numpy(inputs["prompt"]).requires_grad_()
    scores, _ = reader.read(prompt, torch.from_numpy(inputs["decoder_tokens"]).long())
    (gradient,) = torch.autograd.grad(scores.logsumexp(-1).mean(), prompt)
    tokens, lengths, values = golden.batch

    @jax.jit
    def ask(params: Parameters, prompt: jax.Array) -> tuple[tuple, jax.Array]:
        def loss(prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
            given = {"decoder_tokens": golden.input("decoder_tokens")}
            logits = module.apply({"params": params}, tokens, lengths, prompt, **given).logits
            return jax.nn.logsumexp(logits, axis=-1).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(prompt)

    (_, logits), found = ask(golden.params, values)
    assert difference(logits, scores.detach().numpy()) < TOLERANCE
    assert difference(found, gradient.numpy()) < TOLERANCE


@pytest.mark.parametrize("name", T5S)
def test_torch_loads_what_is_written(maker: Any, name: str, tmp_path: Path) -> None:
    """The tensors that jpt writes are a checkpoint of transformers with the same answers."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    golden = load_golden(name)
    tensors = golden.family.weights.write(golden.params, golden.config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((FIXTURES / name / "config.json").read_text())
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        reader = maker.TorchReader(model, golden.stored)
        found, _ = reader.read(torch.from_numpy(golden.stored["prompt"]))
    assert difference(found[:, 0].numpy(), golden.stored["vocabulary_logits"]) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        {"tie_word_embeddings": False, "scale_decoder_outputs": True},
    ],
)
@pytest.mark.parametrize("own_head", [True, False])
def test_head_and_scaling_are_read_as_transformers_reads_them(
    maker: Any, changes: dict[str, bool], own_head: bool, tmp_path: Path
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    del maker
    tensors = load_file(FIXTURES / "t5_relu" / "model.safetensors")
    words = tensors["shared.weight"]
    tensors["lm_head.weight"] = words[::-1].copy() if own_head else words
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((FIXTURES / "t5_relu" / "config.json").read_text())
    del config["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    golden = read_folder(tmp_path, {})
    shape, params = golden.config, golden.params
    assert shape.scaled_head == model.config.scale_decoder_outputs
    found = params["embeddings"]["word"] if shape.tied_head else params["head"]["words"]
    assert np.array_equal(found, model.lm_head.weight.detach().numpy())
