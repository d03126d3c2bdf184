"""Comparisons with torch: models of every family, generation, GGUF, probes, projector."""

import json
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
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
from tests.backbones.test_checkpoints import HEADS, WORDS
from tests.helpers.files import Sample
from tests.helpers.golden import (
    DECODERS,
    ENCODERS,
    FIXTURES,
    T5S,
    Golden,
    ask,
    difference,
    learn_batch,
    load_golden,
    read_folder,
)
from tests.helpers.toys import smollm2_file
from tests.io.test_gguf_tokenizer import odd_texts

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
EVERY = (*ENCODERS, *DECODERS, *T5S)


def maker_of(name: str) -> ModuleType:
    pytest.importorskip("torch")
    kind = "encoder" if name in ENCODERS else "decoder" if name in DECODERS else "t5"
    return import_module(f"tests.backbones.make_{kind}_fixtures")


def build(maker: ModuleType, name: str, case: Any) -> tuple[Any, dict[str, np.ndarray]]:
    model = maker.build_model(name, case)
    of_model = (model,) if maker.__name__.endswith("decoder_fixtures") else ()
    return model, maker.draw_inputs(name, case, *of_model)


def write_folder(folder: Path, name: str, tensors: dict[str, np.ndarray], **changes: Any) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((FIXTURES / name / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("name", EVERY)
def test_fixtures_are_the_output_of_torch(name: str) -> None:
    maker = maker_of(name)
    case = maker.CASES[name]
    model, inputs = build(maker, name, case)
    weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    for key, value in load_file(FIXTURES / name / "model.safetensors").items():
        assert np.array_equal(weights[key], value), key
    stored = load_file(FIXTURES / name / "golden.safetensors")
    for key, value in inputs.items():
        assert np.array_equal(stored.pop(key), value), key
    found = maker.ask_torch(model, inputs)
    if name in DECODERS:
        found |= maker.generate_rows(model, inputs)
    assert found.keys() == stored.keys()
    for key, value in found.items():
        if value.dtype == np.float32:
            assert difference(value, stored[key]) < 1e-6, key
        else:
            assert np.array_equal(value, stored[key]), key
    config = json.loads((FIXTURES / name / "config.json").read_text())
    assert case.config.items() <= config.items()


# What a file may have of a head.
HEAD_FORMS = ("other head", "equal head", "head alone", "other bias", "other head and bias")
MODELS = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM", "gpt2": "GPT2LMHeadModel"}
MODELS |= {"llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration"}


@pytest.mark.parametrize(
    ("name", "form", "tied"),
    [
        (name, form, tied)
        for name in HEADS
        for form in HEAD_FORMS
        for tied in (True, False)
        if "bias" not in form or name in ENCODERS
        if tied or form not in ("head alone", "other bias")  # these lack the untied head
    ],
)
def test_heads_are_those_of_transformers(name: str, form: str, tied: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tensors, head = load_file(FIXTURES / name / "model.safetensors"), HEADS[name]
    words = tensors[WORDS[name]]
    if "head" in form:
        tensors[head] = words[::-1].copy() if "other" in form else words.copy()
    if "bias" in form or (name in ENCODERS and not tied):
        tensors[head.replace("weight", "bias")] = np.arange(len(words), dtype=np.float32)
    if form == "head alone":
        del tensors[WORDS[name]]
    write_folder(tmp_path, name, tensors, tie_word_embeddings=tied)
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    model = getattr(import_module("transformers"), MODELS[kind]).from_pretrained(tmp_path)
    params, output = read_folder(tmp_path, {}).params, model.get_output_embeddings()
    table = params["embeddings"]["word"]
    assert np.array_equal(table, model.get_input_embeddings().weight.detach())
    found = params.get("head", {}).get("words", table)
    assert np.array_equal(found, output.weight.detach())
    if name in ENCODERS:
        assert np.array_equal(params["head"]["bias"], output.bias.detach())


# Real models but for depth and vocabulary; in decoders at positions in the hundreds.
LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0}
LLAMA3["low_freq_factor"] = 1.0
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def sizes(width: int, heads: int, neurons: int, positions: int) -> dict[str, int]:
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    return {
        **dict(zip(names, (width, heads, neurons, positions), strict=True)),
        "num_hidden_layers": 2,
    }


TIED = {"vocab_size": 211, "tie_word_embeddings": True}
ONE_TYPE = {"vocab_size": 211, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
GPT2 = {"vocab_size": 211, "n_embd": 768, "n_layer": 2, "n_head": 12, "n_positions": 1024}
GROUPED = {"num_key_value_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-5}
REAL: dict[str, dict[str, Any]] = {
    "roberta": {**sizes(768, 12, 3072, 514), **ONE_TYPE},
    "gpt2": GPT2,
    "llama": {**sizes(512, 16, 1024, 131072), **TIED, **GROUPED, "rope_parameters": LLAMA3},
    "qwen2": {**sizes(448, 14, 1216, 32768), **TIED, "num_key_value_heads": 2, "rope_theta": 1e6},
}
REAL = {name: {"model_type": name, **fields} for name, fields in REAL.items()}


@pytest.mark.parametrize("name", REAL)
def test_models_of_real_shapes_agree(name: str, tmp_path: Path) -> None:
    # Read from the folder that transformers writes today, with its form of every field.
    if name == "roberta":
        maker = maker_of(ENCODERS[0])
        case = maker.Case(REAL[name], lengths=(40, 17, 2), prompt_rows=20, mask_id=210)
    else:
        maker = maker_of(DECODERS[0])
        options = {"prompt_rows": 100, "eos_id": 3, "seeds": (0, 0, 0)}
        case = maker.Case(REAL[name], (200, 37, 2), **options)
    model, inputs = build(maker, "base" if name == "roberta" else f"real {name}", case)
    model.save_pretrained(tmp_path)
    golden = read_folder(tmp_path, {**inputs, **maker.ask_torch(model, inputs)})
    found, stored = learn_batch(golden), golden.stored
    for output in ("logits", "loss", "prompt_gradient"):
        assert difference(found[output], stored[output]) < TOLERANCE, output
    expected = golden.at_answer(stored["neurons"])
    assert difference(found["answer_neurons"], expected) < TOLERANCE


@pytest.mark.parametrize("name", EVERY)
def test_torch_loads_the_written_tensors_and_agrees(name: str, tmp_path: Path) -> None:
    maker, golden = maker_of(name), load_golden(name)
    import torch
    import transformers

    write_folder(tmp_path, name, golden.family.weights.write(golden.params, golden.config))
    kind = "MaskedLM" if name in ENCODERS else "CausalLM" if name in DECODERS else "Seq2SeqLM"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path).eval()
    stored, prompt = golden.stored, torch.from_numpy(golden.stored["prompt"])
    with torch.no_grad():
        if name in ENCODERS:
            found, expected = maker._plain_logits(model, stored), stored["plain_logits"]
        elif name in DECODERS:
            reader = maker.TorchReader(model, stored)
            found = reader.at_answer(reader.read(prompt)[1])
            expected = ask(golden, *golden.batch).logits
        else:
            found = maker.TorchReader(model, stored).read(prompt)[0][:, 0]
            expected = stored["vocabulary_logits"]
    assert difference(found.numpy(), expected) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        {"tie_word_embeddings": False, "scale_decoder_outputs": True},
    ],
)
@pytest.mark.parametrize("is_copy", [True, False])
def test_head_and_scaling_of_t5_are_read_as_in_transformers(
    changes: dict[str, bool], is_copy: bool, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForSeq2SeqLM

    tensors = load_file(FIXTURES / "t5_relu" / "model.safetensors")
    words = tensors["shared.weight"]
    tensors["lm_head.weight"] = words if is_copy else words[::-1].copy()
    write_folder(tmp_path, "t5_relu", tensors)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    golden = read_folder(tmp_path, {})
    shape, params = golden.config, golden.params
    assert shape.scaled_head == model.config.scale_decoder_outputs
    found = params["embeddings"]["word"] if shape.tied_head else params["head"]["words"]
    assert np.array_equal(found, model.lm_head.weight.detach().numpy())


# t5-small but for depths, vocabulary and activation.
SMALL: dict[str, Any] = {"vocab_size": 211, "d_model": 512, "d_kv": 64, "d_ff": 2048}
SMALL |= {"num_heads": 8, "num_layers": 2, "num_decoder_layers": 2}
# Not ReLU: neurons that rounding moves over 0 have other gradients.
SMALL["feed_forward_proj"] = "gelu"


def test_long_text_behind_a_long_prompt_agrees_in_t5(tmp_path: Path) -> None:
    maker = maker_of(T5S[0])
    import torch

    case = maker.Case(SMALL, own_head=False, lengths=(310, 157), prompt_rows=100, seed=0)
    model, inputs = build(maker, "small", case)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Attention scores of the size that real models have.
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
    def run(params: Parameters, prompt: jax.Array) -> tuple[tuple, jax.Array]:
        def loss(prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
            options = {"decoder_tokens": golden.input("decoder_tokens")}
            logits = module.apply({"params": params}, tokens, lengths, prompt, **options).logits
            return jax.nn.logsumexp(logits, axis=-1).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(prompt)

    (_, logits), found = run(golden.params, values)
    assert difference(logits, scores.detach().numpy()) < TOLERANCE
    assert difference(found, gradient.numpy()) < TOLERANCE


NEW = 9


def ask_torch(name: str, golden: Golden, ends: list[int], beams: int, penalty: float) -> list:
    """Generate with torch behind each row alone, without padding, up to the end."""
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
            generated = model.generate(
                inputs_embeds=torch.cat([prompt, words])[None],
                attention_mask=torch.ones(1, len(prompt) + len(words)),
                max_new_tokens=NEW,
                do_sample=False,
                num_beams=beams,
                early_stopping=False,
                length_penalty=penalty,
                **options,
            )[0].tolist()
        generated = generated[1:] if is_t5 else generated
        stop = next((step for step, token in enumerate(generated) if token in ends), NEW)
        found.append(generated[: stop + 1])
    return found


@pytest.mark.parametrize("name", ["gpt2_tied", "t5_relu"])
@pytest.mark.parametrize(
    ("beams", "n_ends", "penalty"),
    [(2, 0, 1.0), (3, 1, 0.0), (3, 2, 0.5), (4, 3, 2.0), (5, 2, -1.0)],
)
def test_beams_are_those_of_torch(name: str, beams: int, n_ends: int, penalty: float) -> None:
    golden = load_golden(name)
    inputs = (golden.module(), golden.params, *golden.batch, NEW)
    # Frequent tokens, so that texts end at many lengths.
    frequent, counts = np.unique(greedy(*inputs).tokens, return_counts=True)
    ends = frequent[np.argsort(-counts, kind="stable")][1 : n_ends + 1].tolist()
    tokens, lengths = jax.device_get(beam_search(*inputs, ends, beams, penalty))
    found = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    assert found == ask_torch(name, golden, ends, beams, penalty)


TEXTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "The year 1984 was"]
TEXTS += ["She opened the door and", "My favourite film is", "In 2023, the", "Dear Sir or Madam,"]
TEXTS += ["The sun rises in the east and"]
TEXTS += ["<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n"]
SMOLLM2_NEW = 20
# Sums in another order move a logit by about 5e-5, so they cannot change choices this far apart.
LEAST_MARGIN = 1e-3


def pad(backbone: Backbone, rows: list[list[int]]) -> tuple[jax.Array, jax.Array]:
    lengths = [len(row) for row in rows]
    filled = [row + [backbone.pad_id] * (max(lengths) - len(row)) for row in rows]
    return jnp.array(filled, jnp.int32), jnp.array(lengths, jnp.int32)


@pytest.mark.long
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
        # If each choice agrees given those before it, so does the greedy sequence.
        np.testing.assert_array_equal(logits.argmax(axis=-1), chosen[row], err_msg=TEXTS[row])
        best = np.sort(logits, axis=-1)[:, -2:]
        least_margin = min(least_margin, (best[:, 1] - best[:, 0]).min())
        scale = max(1.0, np.abs(logits[0]).max())
        largest_error = max(largest_error, np.abs(first[row] - logits[0]).max() / scale)
    print(f"SmolLM2: error of logits {largest_error:.1e}, least margin {least_margin:.1e}")
    assert largest_error < 1e-4
    assert least_margin > LEAST_MARGIN, "rounding may change a choice: use other texts"


# The probes of the other layouts are compared with torch by the fixtures of their families.
@pytest.mark.parametrize("name", ["builtin/bert-medium", "builtin/bert-small"])
def test_activated_neurons_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.backbones.make_encoder_fixtures import TorchReader

    backbone = jpt.load_backbone(name)
    values = np.random.default_rng(0).normal(0, 0.3, (3, 20, backbone.config.width))
    card = PromptCard(name, "task")
    prompts = {f"p{n}": Prompt(each.astype(np.float32), card) for n, each in enumerate(values)}
    found = activated_neurons(prompts, backbone=backbone)
    model = transformers.BertForMaskedLM.from_pretrained(
        find_folder(name), dtype=torch.float64, attn_implementation="eager"
    ).eval()
    ids = backbone.tokenizer.ids
    inputs = {"tokens": [[ids.cls]], "lengths": [1], "mask_id": [ids.mask]}
    reader = TorchReader(model, {name: np.array(each) for name, each in inputs.items()})
    for number, prompt in enumerate(prompts.values()):
        with torch.no_grad():
            reader.read(torch.from_numpy(prompt.values).double())
        expected = np.stack([layer[0, 0].numpy() for layer in reader.neurons])  # [L, F]
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found.values[number], expected, rtol=0, atol=1e-5 * largest)
        clear = np.abs(expected) > 1e-6  # activated or not, whatever the rounding
        assert ((found.values[number] > 0) == (expected > 0))[clear].all()


def test_projector_fixture_is_the_output_of_torch() -> None:
    pytest.importorskip("torch")
    from tests.transfer import make_projector_fixtures as maker

    stored, inputs = load_file(maker.FILE), maker.sample_inputs()
    for name, values in inputs.items():
        np.testing.assert_array_equal(stored.pop(name), values, err_msg=name)
    answers = maker.ask_torch(inputs)
    assert answers.keys() == stored.keys()
    for name, values in answers.items():
        np.testing.assert_allclose(values, stored[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.long
def test_weights_of_a_real_file_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    from transformers import AutoModelForCausalLM

    path = smollm2_file()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    theirs = {name: values.numpy() for name, values in model.state_dict().items()}
    del theirs["lm_head.weight"]  # a copy of the word embeddings
    file = open_gguf(path)
    assert file.source.shapes == {name: values.shape for name, values in theirs.items()}
    for name, values in theirs.items():
        np.testing.assert_array_equal(file.source.read(name), values, err_msg=name)
    config = model.config.to_dict()
    for name in set(file.config) & set(config) - {"rms_norm_eps"}:
        assert file.config[name] == config[name], name
    assert np.float32(file.config["rms_norm_eps"]) == np.float32(config["rms_norm_eps"])
    assert file.config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_tokens_of_a_real_file(reference_folder: Path) -> None:
    # The published tokenizer splits digits one by one, as llama.cpp does for "smollm"; the one that
    # transformers 5.23 builds from the file splits as GPT-2 and merges digits with spaces.
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
