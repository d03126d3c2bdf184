"""A live comparison with torch transformers, and proof that the stored answers are still theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.backbones.golden import ENCODERS, FIXTURES, difference, learn, load_golden, read_folder

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4

# The shape of roberta-base but for its depth and its vocabulary.
BASE = {
    "model_type": "roberta",
    "vocab_size": 211,
    "hidden_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}


@pytest.fixture(scope="module")
def maker():
    """The script that writes the fixtures; it needs torch."""
    pytest.importorskip("torch")
    from tests.backbones import make_encoder_fixtures

    return make_encoder_fixtures


@pytest.mark.parametrize("name", ENCODERS)
def test_fixtures_are_what_torch_says_today(maker, name: str) -> None:
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
    assert all(difference(answers[key], stored[key]) < 1e-6 for key in stored)
    config = json.loads((FIXTURES / name / "config.json").read_text())
    assert case.config.items() <= config.items()


def test_model_of_the_size_of_roberta_base_agrees(maker, tmp_path: Path) -> None:
    case = maker.RecommendInputs(BASE, lengths=(40, 17, 2), prompt_rows=20, mask_id=210)
    model, inputs = maker.build_model("base", case), maker.draw_inputs("base", case)
    model.save_pretrained(tmp_path)
    golden = read_folder(tmp_path, {**inputs, **maker.ask_torch(model, inputs)})
    label_ids, labels = golden.input("label_ids"), golden.input("labels")
    found = learn(golden.module(), golden.params, golden.batch, label_ids, labels)
    stored = golden.stored
    for answer in ("logits", "loss", "prompt_gradient"):
        assert difference(found[answer], stored[answer]) < TOLERANCE, answer
    assert difference(found["answer_neurons"], stored["neurons"][:, :, 0]) < TOLERANCE


@pytest.mark.parametrize("name", ENCODERS)
def test_torch_loads_what_is_written(maker, name: str, tmp_path: Path) -> None:
    """The tensors that jpt writes are a checkpoint of transformers with the same answers."""
    import torch
    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModelForMaskedLM

    golden = load_golden(name)
    tensors = golden.family.weights.write(golden.params, golden.config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    AutoConfig.from_pretrained(FIXTURES / name).save_pretrained(tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = maker._plain_logits(model, golden.stored).numpy()
    assert difference(found, golden.stored["plain_logits"]) < TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("in_task", ["weight", "bias", "weight and bias"])
def test_decoder_of_its_own_is_read_as_transformers_reads_it(
    maker, kind: str, tied: bool, own: str, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file
    from transformers import AutoModelForMaskedLM

    name = f"{kind}_tied"
    tensors = load_file(FIXTURES / name / "model.safetensors")
    decoder = {"bert": "cls.predictions.decoder", "roberta": "lm_head.decoder"}[kind]
    copies = {
        f"{decoder}.weight": f"{kind}.embeddings.word_embeddings.weight",
        f"{decoder}.bias": decoder.replace(".decoder", ".bias"),
    }
    for copy, original in copies.items():
        tensors[copy] = tensors[original][::-1].copy() if copy[-4:] in own else tensors[original]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((FIXTURES / name / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))

    head = AutoModelForMaskedLM.from_pretrained(tmp_path).get_output_embeddings()
    found = read_folder(tmp_path, {})
    words = found.params["head"].get("words", found.params["embeddings"]["word"])
    assert np.array_equal(words, head.weight.detach().numpy())
    assert np.array_equal(found.params["head"]["bias"], head.bias.detach().numpy())
