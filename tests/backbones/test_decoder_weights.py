"""Checkpoints of GPT-2, Llama and Qwen2: what is accepted, what is refused, what is written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.gpt2_weights import GPT2_WEIGHTS
from jpt.backbones.llama_weights import LLAMA_WEIGHTS
from jpt.errors import InputError
from jpt.types import Parameters
from tests.backbones.decoder_golden import NAMES, load_golden
from tests.backbones.golden import FIXTURES

Tensors = dict[str, np.ndarray]
GPT2, LLAMA = "gpt2_tied", "llama_grouped"
WORDS = {GPT2: "transformer.wte.weight", LLAMA: "model.embed_tokens.weight"}


@dataclass(frozen=True)
class Dictionary:
    """A checkpoint that lies in memory."""

    tensors: Tensors

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]


def stored(name: str) -> Tensors:
    return load_file(FIXTURES / name / "model.safetensors")


def load(
    name: str, tensors: Tensors, dtype: jnp.dtype = jnp.float32, **changes: object
) -> tuple[DecoderConfig, Parameters]:
    fields = json.loads((FIXTURES / name / "config.json").read_text())
    config = DecoderConfig.from_huggingface({**fields, **changes})
    load_family = GPT2_WEIGHTS.load if config.is_gpt2 else LLAMA_WEIGHTS.load
    return load_family(Dictionary(tensors), config, dtype, where="the folder x")


def refusal(name: str, tensors: Tensors) -> str:
    with pytest.raises(InputError) as error:
        load(name, tensors)
    message = str(error.value)
    assert "\n" not in message and "the folder x" in message
    return message


def flat(params: Parameters) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(found: Parameters, expected: Parameters) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype
        assert np.array_equal(found[path], leaf), path


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


EXTRAS = {
    "gpt2_tied": {
        "transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 23, 23), bool)),
        "transformer.h.2.attn.masked_bias": np.float32(-1e4),
        "h.1.attn.bias": np.tril(np.ones((1, 1, 23, 23), bool)),
        "lm_head.weight": "transformer.wte.weight",
    },
    "llama_grouped": {
        "model.layers.1.self_attn.rotary_emb.inv_freq": numbers(4),
        "model.rotary_emb.inv_freq": numbers(4),
        "lm_head.weight": "model.embed_tokens.weight",
    },
}


@pytest.mark.parametrize(
    ("name", "extra"), [(name, extra) for name in EXTRAS for extra in (*EXTRAS[name], "all")]
)
def test_extras_of_real_files_change_nothing(name: str, extra: str) -> None:
    tensors = stored(name)
    for key, value in EXTRAS[name].items():
        if extra in (key, "all"):
            tensors[key] = tensors[value] if isinstance(value, str) else np.asarray(value)
    config, params = load(name, tensors)
    assert config.tied_head
    assert_same(params, load_golden(name).params)


@pytest.mark.parametrize("name", ["gpt2_tied", "gpt2_untied"])
def test_gpt2_saved_without_its_head_has_names_without_prefix(name: str) -> None:
    tensors = {key.removeprefix("transformer."): value for key, value in stored(name).items()}
    assert "h.0.attn.c_attn.weight" in tensors
    assert_same(load(name, tensors)[1], load_golden(name).params)


def test_fused_map_of_gpt2_is_cut_into_three_and_not_turned() -> None:
    golden, tensors = load_golden(GPT2), stored(GPT2)
    for layer in range(3):
        fused = tensors[f"transformer.h.{layer}.attn.c_attn.weight"]
        bias = tensors[f"transformer.h.{layer}.attn.c_attn.bias"]
        for number, name in enumerate(("query", "key", "value")):
            last = layer == 2
            found = golden.params["last_layer" if last else "layers"][name]
            kernel, shift = (
                found[kind] if last else found[kind][layer] for kind in sorted(found)[::-1]
            )
            columns = slice(30 * number, 30 * (number + 1))
            assert np.array_equal(kernel, fused[:, columns])
            assert np.array_equal(shift, bias[columns])


def test_maps_of_llama_are_turned() -> None:
    golden, tensors = load_golden(LLAMA), stored(LLAMA)
    names = {"feed_forward_in": "gate_proj", "feed_forward_up": "up_proj"}
    for ours, theirs in names.items():
        kernel = tensors[f"model.layers.2.mlp.{theirs}.weight"].T
        assert np.array_equal(golden.params["last_layer"][ours]["kernel"], kernel)


def test_missing_tensors_are_named() -> None:
    tensors = stored(GPT2)
    del tensors["transformer.h.1.attn.c_attn.bias"], tensors["transformer.ln_f.bias"]
    message = refusal(GPT2, tensors)
    # A tensor that holds three parameters is named once.
    assert "missing: transformer.h.1.attn.c_attn.bias, transformer.ln_f.bias" in message
    tensors = stored(LLAMA)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    assert "missing: model.layers.0.mlp.up_proj.weight" in refusal(LLAMA, tensors)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        (GPT2, "transformer.h.3.ln_1.weight"),  # a layer more than the config says
        (GPT2, "score.weight"),  # the head of a classifier
        (LLAMA, "model.layers.0.self_attn.q_norm.weight"),
        (LLAMA, "layers.0.self_attn.q_proj.weight"),
        ("qwen2_tied", "model.layers.0.self_attn.o_proj.bias"),
    ],
)
def test_unexpected_tensors_are_named(name: str, extra: str) -> None:
    assert f"unexpected: {extra}" in refusal(name, {**stored(name), extra: numbers(30)})


@pytest.mark.parametrize(
    ("name", "key", "shape", "expected"),
    [
        (GPT2, "transformer.h.1.mlp.c_fc.weight", (37, 30), (30, 37)),  # turned
        (GPT2, "transformer.h.0.attn.c_attn.weight", (30, 30), (30, 90)),
        (GPT2, "transformer.wpe.weight", (24, 30), (23, 30)),
        (GPT2, "lm_head.weight", (54, 30), (53, 30)),
        (LLAMA, "model.layers.1.self_attn.k_proj.weight", (48, 30), (16, 30)),
        (LLAMA, "model.embed_tokens.weight", (60, 30), (59, 30)),
    ],
)
def test_misshaped_tensors_are_named_with_both_shapes(
    name: str, key: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    message = refusal(name, {**stored(name), key: numbers(*shape)})
    assert f"misshaped: {key} is {list(shape)}, expected {list(expected)}" in message


def test_nothing_is_read_before_everything_fits() -> None:
    class Unread(Dictionary):
        def read(self, name: str) -> np.ndarray:
            raise AssertionError(f"{name} was read")

    source = Unread({**stored(GPT2), "extra": numbers(1)})
    with pytest.raises(InputError, match="extra"):
        GPT2_WEIGHTS.load(source, load_golden(GPT2).config, jnp.float32, where="x")


@pytest.mark.parametrize("name", [GPT2, LLAMA])
def test_head_that_differs_from_the_word_table_is_untied(name: str) -> None:
    tensors, golden = stored(name), load_golden(name)
    tensors["lm_head.weight"] = numbers(golden.config.vocabulary, golden.config.width)
    config, params = load(name, tensors)
    assert not config.tied_head
    assert np.array_equal(params["head"]["words"], tensors["lm_head.weight"])
    assert np.array_equal(params["embeddings"]["word"], tensors[WORDS[name]])


@pytest.mark.parametrize("name", ["gpt2_untied", "llama_plain", "qwen2_untied"])
def test_untied_head_needs_its_table(name: str) -> None:
    tensors = stored(name)
    del tensors["lm_head.weight"]
    assert "missing: lm_head.weight" in refusal(name, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_writing_and_loading_again_is_exact(name: str) -> None:
    golden = load_golden(name)
    write = GPT2_WEIGHTS.write if golden.config.is_gpt2 else LLAMA_WEIGHTS.write
    written = write(golden.params, golden.config)
    config, params = load(name, written)
    assert config == golden.config
    assert_same(params, golden.params)
    expected = stored(name)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["gpt2_untied", "qwen2_untied"])
def test_files_of_another_precision_are_cast(name: str) -> None:
    tensors = {key: value.astype(np.float16) for key, value in stored(name).items()}
    expected = load(name, {key: value.astype(np.float32) for key, value in tensors.items()})[1]
    assert_same(load(name, tensors)[1], expected)
    halves = load(name, tensors, jnp.bfloat16)[1]
    assert_same(halves, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))


def test_parameters_are_placed_by_their_path() -> None:
    placed = []

    def place(path: str, values: np.ndarray) -> jax.Array:
        placed.append(path)
        return jnp.asarray(values)

    golden = load_golden(GPT2)
    _, params = GPT2_WEIGHTS.load(Dictionary(stored(GPT2)), golden.config, jnp.float32, "x", place)
    assert sorted(placed) == sorted(flat(params))


def table_of(name: str) -> tuple:
    return GPT2_WEIGHTS.partition if load_golden(name).config.is_gpt2 else LLAMA_WEIGHTS.partition


@pytest.mark.parametrize("name", NAMES)
def test_partition_table_names_every_parameter_once(name: str) -> None:
    for path, leaf in flat(load_golden(name).params).items():
        specs = [spec for pattern, spec in table_of(name) if re.fullmatch(pattern, path)]
        assert len(specs) == 1, path
        assert len(specs[0]) <= leaf.ndim, path
        assert not path.startswith("layers/") or specs[0][0] is None, "layers are not split"
        if leaf.ndim - path.startswith("layers/") == 2:
            assert "model" in specs[0], f"{path} is a matrix that stays whole"


@pytest.mark.parametrize("kinds", [NAMES[:2], NAMES[2:]])
def test_partition_table_has_no_idle_rule(kinds: tuple[str, ...]) -> None:
    paths = {path for name in kinds for path in flat(load_golden(name).params)}
    table = table_of(kinds[0])
    idle = [p for p, _ in table if not any(re.fullmatch(p, path) for path in paths)]
    assert idle == []
