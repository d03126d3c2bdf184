"""DOC"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpt
from jpt.backbones.generation import beam_search, greedy
from jpt.backbones.registry import Backbone, find_folder, load_backbone
from jpt.io.gguf import KINDS, open_gguf, read_gguf_tokenizer
from jpt.neurons.probe import activated_neurons
from jpt.types import Parameters, Prompt, PromptCard
from tests.helpers.gguf_samples import Sample
from tests.helpers.golden import (
    DECODERS,
    ENCODERS,
    FIXTURES,
    T5S,
    Golden,
    ask,
    difference,
    learn,
    load_golden,
    read_folder,
)
from tests.helpers.smollm2 import smollm2_file
from tests.io.test_gguf_tokenizer import odd_texts

# --- encoder parity

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


@pytest.mark.parity
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


@pytest.mark.parity
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


@pytest.mark.parity
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


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("own", ["weight", "bias", "weight and bias"])
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


# --- decoder parity

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
def decoder_parity_maker():
    """The script that writes the fixtures; it needs torch."""
    pytest.importorskip("torch")
    from tests.backbones import make_decoder_fixtures

    return make_decoder_fixtures


@pytest.mark.parity
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_parity_fixtures_are_what_torch_says_today(decoder_parity_maker, name: str) -> None:
    case = decoder_parity_maker.CASES[name]
    model = decoder_parity_maker.build_model(name, case)
    inputs = decoder_parity_maker.draw_inputs(name, case, model)
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    for key, value in load_file(FIXTURES / name / "model.safetensors").items():
        assert np.array_equal(weights[key], value), key
    stored = load_file(FIXTURES / name / "golden.safetensors")
    for key, value in inputs.items():
        assert np.array_equal(stored.pop(key), value), key
    answers = decoder_parity_maker.ask_torch(model, inputs)
    for key, value in decoder_parity_maker.generate_rows(model, inputs).items():
        assert np.array_equal(stored.pop(key), value), key
    assert answers.keys() == stored.keys()
    assert all(difference(answers[key], stored[key]) < 1e-6 for key in stored)
    config = json.loads((FIXTURES / name / "config.json").read_text())
    assert case.config.items() <= config.items()


@pytest.mark.parity
@pytest.mark.parametrize("name", REAL)
def test_models_of_real_shapes_agree(decoder_parity_maker, name: str, tmp_path: Path) -> None:
    """Read from the folder that transformers writes today, with its form of every field."""
    lengths, seeds = (200, 37, 2), (0, 0, 0)
    case = decoder_parity_maker.RecommendInputs(
        REAL[name], lengths, prompt_rows=100, eos_id=3, seeds=seeds
    )
    model = decoder_parity_maker.build_model(f"real {name}", case)
    inputs = decoder_parity_maker.draw_inputs(f"real {name}", case, model)
    model.save_pretrained(tmp_path)
    golden = read_folder(tmp_path, {**inputs, **decoder_parity_maker.ask_torch(model, inputs)})
    label_ids, labels = golden.input("label_ids"), golden.input("labels")
    found = learn(golden.module(), golden.params, golden.batch, label_ids, labels)
    stored, rows = golden.stored, np.arange(3)
    for answer in ("logits", "loss", "prompt_gradient"):
        assert difference(found[answer], stored[answer]) < TOLERANCE, answer
    expected = stored["neurons"][:, rows, stored["lengths"] - 1]
    assert difference(found["answer_neurons"], expected) < TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_parity_torch_loads_what_is_written(
    decoder_parity_maker, name: str, tmp_path: Path
) -> None:
    """The tensors that jpt writes are a checkpoint of transformers with the same answers."""
    import torch
    from transformers import AutoModelForCausalLM

    golden = load_golden(name)
    tensors = golden.family.weights.write(golden.params, golden.config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((FIXTURES / name / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    reader = decoder_parity_maker.TorchReader(model, golden.stored)
    with torch.no_grad():
        scores = reader.at_answer(reader.read(torch.from_numpy(golden.stored["prompt"]))[1])
    found = ask(golden, *golden.batch).logits
    assert difference(found, scores.numpy()) < TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("is_copy", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["gpt2_tied", "llama_grouped"])
def test_head_of_its_own_is_read_as_transformers_reads_it(
    decoder_parity_maker, name: str, tied: bool, is_copy: bool, tmp_path: Path
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


# --- t5 parity

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
def t5_parity_maker():
    """The script that writes the fixtures; it needs torch."""
    pytest.importorskip("torch")
    from tests.backbones import make_t5_fixtures

    return make_t5_fixtures


@pytest.mark.parity
@pytest.mark.parametrize("name", T5S)
def test_t5_parity_fixtures_are_what_torch_says_today(t5_parity_maker: Any, name: str) -> None:
    case = t5_parity_maker.CASES[name]
    model, inputs = t5_parity_maker.build_model(name, case), t5_parity_maker.draw_inputs(name, case)
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    for key, value in load_file(FIXTURES / name / "model.safetensors").items():
        assert np.array_equal(weights[key], value), key
    stored = load_file(FIXTURES / name / "golden.safetensors")
    for key, value in inputs.items():
        assert np.array_equal(stored.pop(key), value), key
    answers = t5_parity_maker.ask_torch(model, inputs)
    assert answers.keys() == stored.keys()
    for key, value in answers.items():
        if value.dtype == np.float32:
            assert difference(value, stored[key]) < 1e-6, key
        else:
            assert np.array_equal(value, stored[key]), key
    config = json.loads((FIXTURES / name / "config.json").read_text())
    assert case.config.items() <= config.items()


@pytest.mark.parity
def test_long_text_behind_a_long_prompt_agrees(t5_parity_maker: Any, tmp_path: Path) -> None:
    case = t5_parity_maker.RecommendInputs(
        SMALL, own_head=False, lengths=(310, 157), prompt_rows=100, seed=0
    )
    model, inputs = (
        t5_parity_maker.build_model("small", case),
        t5_parity_maker.draw_inputs("small", case),
    )
    import torch

    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Scores of the size that real models have, where heads are wide.
            parameter *= 0.2 if ".q." in key else 1.0
    model.save_pretrained(tmp_path)
    golden = read_folder(tmp_path, inputs)
    module = golden.module()
    reader = t5_parity_maker.TorchReader(model, inputs)
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


@pytest.mark.parity
@pytest.mark.parametrize("name", T5S)
def test_t5_parity_torch_loads_what_is_written(
    t5_parity_maker: Any, name: str, tmp_path: Path
) -> None:
    """The tensors that jpt writes are a checkpoint of transformers with the same answers."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    golden = load_golden(name)
    tensors = golden.family.weights.write(golden.params, golden.config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((FIXTURES / name / "config.json").read_text())
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        reader = t5_parity_maker.TorchReader(model, golden.stored)
        found, _ = reader.read(torch.from_numpy(golden.stored["prompt"]))
    assert difference(found[:, 0].numpy(), golden.stored["vocabulary_logits"]) < TOLERANCE


@pytest.mark.parity
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
    t5_parity_maker: Any, changes: dict[str, bool], own_head: bool, tmp_path: Path
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    del t5_parity_maker
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


# --- generation parity

NEW = 9


def ask_torch(name: str, golden: Golden, ends: list[int], beams: int, penalty: float) -> list:
    """What torch writes behind each row alone, without padding, up to the end."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2LMHeadModel, T5ForConditionalGeneration
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    is_t5 = name.startswith("t5")
    model = (T5ForConditionalGeneration if is_t5 else GPT2LMHeadModel).from_pretrained(
        FIXTURES / name
    )
    model.eval()
    model.generation_config.eos_token_id = ends or None
    options: dict[str, Any] = {"eos_token_id": ends or None, "pad_token_id": 0}
    tokens, lengths, prompt = (torch.from_numpy(np.array(each)) for each in golden.batch)
    found = []
    for row, length in zip(tokens.long(), lengths, strict=True):
        if is_t5:  # transformers would make a cache of as many layers as the encoder has
            options["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        words = model.get_input_embeddings()(row[:length])
        with torch.no_grad():
            written = model.generate(
                inputs_embeds=torch.cat([prompt, words])[None],
                attention_mask=torch.ones(1, len(prompt) + len(words)),
                max_new_tokens=NEW,
                do_sample=False,
                num_beams=beams,
                early_stopping=False,
                length_penalty=penalty,
                **options,
            )[0].tolist()
        written = written[1:] if is_t5 else written
        stop = next((place for place, word in enumerate(written) if word in ends), NEW)
        found.append(written[: stop + 1])
    return found


@pytest.mark.parity
@pytest.mark.parametrize("name", ["gpt2_tied", "t5_relu"])
@pytest.mark.parametrize(
    ("beams", "n_ends", "penalty"),
    [(2, 0, 1.0), (3, 1, 0.0), (3, 2, 0.5), (4, 3, 2.0), (5, 2, -1.0)],
)
def test_beams_are_those_of_torch(name: str, beams: int, n_ends: int, penalty: float) -> None:
    golden = load_golden(name)
    inputs = (golden.module(), golden.params, *golden.batch, NEW)
    # Words that the model likes to write, so that texts of many lengths end.
    words, counts = np.unique(greedy(*inputs).tokens, return_counts=True)
    ends = words[np.argsort(-counts, kind="stable")][1 : n_ends + 1].tolist()
    tokens, lengths = jax.device_get(beam_search(*inputs, ends, beams, penalty))
    found = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    assert found == ask_torch(name, golden, ends, beams, penalty)


# --- smollm2

TEXTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The year 1984 was",
    "She opened the door and",
    "My favourite film is",
    "In 2023, the",
    "Dear Sir or Madam,",
    "The sun rises in the east and",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
]
SMOLLM2_NEW = 20
# Sums in another order move a logit by some 5e-5 here; a choice this far apart cannot turn.
LEAST_MARGIN = 1e-3


def pad(backbone: Backbone, rows: list[list[int]]) -> tuple[jax.Array, jax.Array]:
    """All rows in one batch, and their lengths."""
    lengths = [len(row) for row in rows]
    filled = [row + [backbone.pad_id] * (max(lengths) - len(row)) for row in rows]
    return jnp.array(filled, jnp.int32), jnp.array(lengths, jnp.int32)


@pytest.mark.parity
@pytest.mark.slow
def test_greedy_continuations_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    from transformers import AutoModelForCausalLM

    path = smollm2_file()
    with jax.default_matmul_precision("highest"):
        backbone = load_backbone(path)
        rows = backbone.tokenizer.encode(TEXTS)
        batch = (*pad(backbone, rows), None)
        chosen = np.asarray(greedy(backbone.module, backbone.params, *batch, SMOLLM2_NEW).tokens)
        plain = jax.jit(backbone.module.apply)({"params": backbone.params}, *batch)
        first = np.asarray(plain.logits)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    largest_error, least_margin = 0.0, np.inf
    for row, ids in enumerate(rows):
        whole = torch.tensor([[*ids, *chosen[row].tolist()]])
        with torch.no_grad():
            logits = model(whole).logits[0, len(ids) - 1 : -1].numpy()  # [NEW, V]
        # Where each choice agrees, given those before it, the whole greedy sequence does.
        np.testing.assert_array_equal(logits.argmax(axis=-1), chosen[row], err_msg=TEXTS[row])
        best = np.sort(logits, axis=-1)[:, -2:]
        least_margin = min(least_margin, (best[:, 1] - best[:, 0]).min())
        scale = max(1.0, np.abs(logits[0]).max())
        largest_error = max(largest_error, np.abs(first[row] - logits[0]).max() / scale)
    print(f"SmolLM2: error of logits {largest_error:.1e}, least margin {least_margin:.1e}")
    assert largest_error < 1e-4
    assert least_margin > LEAST_MARGIN, "a choice that rounding may turn: take other texts"


# --- probe parity


# The probes of the other layouts are held to torch by the golden fixtures of their families.
@pytest.mark.parity
@pytest.mark.parametrize("name", ["builtin/bert-medium", "builtin/bert-small"])
def test_activated_neurons_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.backbones.make_encoder_fixtures import TorchReader

    backbone = jpt.load_backbone(name)
    random = np.random.default_rng(0)
    prompts = {
        f"p{number}": Prompt(
            random.normal(0, 0.3, (20, backbone.config.width)).astype(np.float32),
            PromptCard(name, "task"),
        )
        for number in range(3)
    }
    found = activated_neurons(prompts, backbone=backbone)
    model = transformers.BertForMaskedLM.from_pretrained(
        find_folder(name), dtype=torch.float64, attn_implementation="eager"
    ).eval()
    ids = backbone.tokenizer.ids
    inputs = {
        "tokens": np.array([[ids.cls]]),
        "lengths": np.array([1]),
        "mask_id": np.array([ids.mask]),
    }
    reader = TorchReader(model, inputs)
    for place, prompt in enumerate(prompts.values()):
        with torch.no_grad():
            reader.read(torch.from_numpy(prompt.values).double())
        expected = np.stack([layer[0, 0].numpy() for layer in reader.neurons])  # [L, F]
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found.values[place], expected, rtol=0, atol=1e-5 * largest)
        firm = np.abs(expected) > 1e-6  # which neurons count as activated
        assert ((found.values[place] > 0) == (expected > 0))[firm].all()


# --- projector parity


@pytest.mark.parity
def test_fixture_is_what_torch_says_today() -> None:
    pytest.importorskip("torch")
    from tests.transfer import make_projector_fixtures as maker

    stored, inputs = maker.read_stored(), maker.draw()
    for name, values in inputs.items():
        np.testing.assert_array_equal(stored.pop(name), values, err_msg=name)
    answers = maker.ask_torch(inputs)
    assert answers.keys() == stored.keys()
    for name, values in answers.items():
        np.testing.assert_allclose(values, stored[name], rtol=1e-6, atol=1e-7, err_msg=name)


# --- gguf parity


@pytest.mark.parity
def test_weights_of_a_real_file_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    from transformers import AutoModelForCausalLM

    path = smollm2_file()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    theirs = {name: values.numpy() for name, values in model.state_dict().items()}
    del theirs["lm_head.weight"]  # the word table once more
    file = open_gguf(path)
    assert file.source.shapes == {name: values.shape for name, values in theirs.items()}
    for name, values in theirs.items():
        np.testing.assert_array_equal(file.source.read(name), values, err_msg=name)
    config = model.config.to_dict()
    for name in set(file.config) & set(config) - {"rms_norm_eps"}:
        assert file.config[name] == config[name], name
    assert np.float32(file.config["rms_norm_eps"]) == np.float32(config["rms_norm_eps"])
    assert file.config["rope_theta"] == config["rope_parameters"]["rope_theta"]


@pytest.mark.parity
def test_pieces_of_a_real_file(reference_folder: Path) -> None:
    """Equal to transformers but for digits, where transformers misses the file's kind.

    The model's own tokenizer takes digits one by one, as llama.cpp does for ``smollm``; what
    transformers 5.23 builds from the file splits as GPT-2 does and merges digits with spaces.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer

    path = smollm2_file()
    ours = read_gguf_tokenizer(open_gguf(path))
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert ours.ids == (None, None, None, 2, 0, 1, 2) and not ours.add_bos
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    rows = (reference_folder / "data" / "imdb" / "validation.jsonl").read_text().splitlines()[:100]
    texts = [*odd_texts(3000), *rows, "<|im_start|>user\nHi<|im_end|>"]
    plain = [text for text in texts if not any(letter.isnumeric() for letter in text)]
    assert len(plain) > 100
    assert ours.encode(plain) == theirs(plain, add_special_tokens=False)["input_ids"]
    # With the splitter of the published tokenizer.json, all of them.
    published = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    expected = published.encode_batch(texts, add_special_tokens=False)
    assert ours.encode(texts) == [encoding.ids for encoding in expected]


@pytest.mark.parity
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].is_quantised])
def test_every_type_by_another_implementation(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

    if KINDS[kind].number not in GGML_BLOCK:
        pytest.skip(f"transformers does not read {kind}")
    sample = Sample(width=256, heads=2, key_heads=1, head_width=128, neurons=256, kind=kind)
    path = sample.write(tmp_path / "a.gguf")
    source = open_gguf(path).source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: the array is not writable
        for name, tensor in source.tensors.items():
            if len(tensor.shape) == 1 or "q_proj" in name or "k_proj" in name:
                continue
            data = np.fromfile(path, np.uint8, tensor.extent_bytes, offset=tensor.offset_bytes)
            expected = dequantize(torch.from_numpy(data), KINDS[kind].number).numpy()
            np.testing.assert_array_equal(source.read(name).reshape(-1), expected)
