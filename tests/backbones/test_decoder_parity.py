"""A live comparison of decoders with torch, and proof that the stored answers are still its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.backbones.golden import (
    DECODERS,
    FIXTURES,
    ask,
    difference,
    learn,
    load_golden,
    read_folder,
)

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4

# The shapes of real models but for their depth and vocabulary, at positions in the hundreds.
REAL = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 211, "n_embd": 768, "n_layer": 2, "n_head": 12},
    "llama": {
        "model_type": "llama",
        "vocab_size": 211,
        "hidden_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1024,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen2": {
        "model_type": "qwen2",
        "vocab_size": 211,
        "hidden_size": 448,
        "num_hidden_layers": 2,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 1216,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
    },
}
REAL["gpt2"]["n_positions"] = 1024


@pytest.fixture(scope="module")
def maker():
    """The script that writes the fixtures; it needs torch."""
    pytest.importorskip("torch")
    from tests.backbones import make_decoder_fixtures

    return make_decoder_fixtures


@pytest.mark.parametrize("name", DECODERS)
def test_fixtures_are_what_torch_says_today(maker, name: str) -> None:
    case = maker.CASES[name]
    model = maker.build_model(name, case)
    inputs = maker.draw_inputs(name, case, model)
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    for key, value in load_file(FIXTURES / name / "model.safetensors").items():
        assert np.array_equal(weights[key], value), key
    stored = load_file(FIXTURES / name / "golden.safetensors")
    for key, value in inputs.items():
        assert np.array_equal(stored.pop(key), value), key
    answers = maker.ask_torch(model, inputs)
    for key, value in maker.generate_rows(model, inputs).items():
        assert np.array_equal(stored.pop(key), value), key
    assert answers.keys() == stored.keys()
    assert all(difference(answers[key], stored[key]) < 1e-6 for key in stored)
    config = json.loads((FIXTURES / name / "config.json").read_text())
    assert case.config.items() <= config.items()


@pytest.mark.parametrize("name", REAL)
def test_models_of_real_shapes_agree(maker, name: str, tmp_path: Path) -> None:
    """Read from the folder that transformers writes today, with its form of every field."""
    lengths, seeds = (200, 37, 2), (0, 0, 0)
    case = maker.RecommendInputs(REAL[name], lengths, prompt_rows=100, eos_id=3, seeds=seeds)
    model = maker.build_model(f"real {name}", case)
    inputs = maker.draw_inputs(f"real {name}", case, model)
    model.save_pretrained(tmp_path)
    golden = read_folder(tmp_path, {**inputs, **maker.ask_torch(model, inputs)})
    label_ids, labels = golden.input("label_ids"), golden.input("labels")
    found = learn(golden.module(), golden.params, golden.batch, label_ids, labels)
    stored, rows = golden.stored, np.arange(3)
    for answer in ("logits", "loss", "prompt_gradient"):
        assert difference(found[answer], stored[answer]) < TOLERANCE, answer
    expected = stored["neurons"][:, rows, stored["lengths"] - 1]
    assert difference(found["answer_neurons"], expected) < TOLERANCE


@pytest.mark.parametrize("name", DECODERS)
def test_torch_loads_what_is_written(maker, name: str, tmp_path: Path) -> None:
    """The tensors that jpt writes are a checkpoint of transformers with the same answers."""
    import torch
    from transformers import AutoModelForCausalLM

    golden = load_golden(name)
    tensors = golden.family.weights.write(golden.params, golden.config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((FIXTURES / name / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    reader = maker.TorchReader(model, golden.stored)
    with torch.no_grad():
        scores = reader.at_answer(reader.read(torch.from_numpy(golden.stored["prompt"]))[1])
    found = ask(golden, *golden.batch).logits
    assert difference(found, scores.numpy()) < TOLERANCE


@pytest.mark.parametrize("is_copy", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["gpt2_tied", "llama_grouped"])
def test_head_of_its_own_is_read_as_transformers_reads_it(
    maker, name: str, tied: bool, is_copy: bool, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    tensors = load_file(FIXTURES / name / "model.safetensors")
    words = next(value for key, value in tensors.items() if "wte" in key or "embed_tokens" in key)
    tensors["lm_head.weight"] = words.copy() if is_copy else words[::-1].copy()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((FIXTURES / name / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": tied}))

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    params = read_folder(tmp_path, {}).params
    found = params.get("head", {}).get("words", params["embeddings"]["word"])
    assert np.array_equal(found, model.lm_head.weight.detach().numpy())
    expected = model.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(params["embeddings"]["word"], expected)
