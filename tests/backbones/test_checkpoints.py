"""Checkpoints of every family: tensor names, extras, refusals, exact round trips, partition."""

import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpt.backbones.registry import Family
from jpt.errors import InputError
from jpt.types import Parameters
from tests.helpers.golden import (
    DECODERS,
    ENCODERS,
    FIXTURES,
    T5S,
    Dictionary,
    load_golden,
    read_fields,
)

EVERY = (*ENCODERS, *T5S, *DECODERS)
BERT_WORDS = "bert.embeddings.word_embeddings.weight"
BERT_LAYER = "bert.encoder.layer.1"
T5_WORDS, HEAD = "shared.weight", "lm_head.weight"
T5_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
T5_BLOCK = "decoder.block.1.layer"
T5_BIAS = "{}.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
WORDS = {
    "bert_tied": BERT_WORDS,
    "roberta_tied": "roberta.embeddings.word_embeddings.weight",
    "gpt2_tied": "transformer.wte.weight",
    "llama_grouped": "model.embed_tokens.weight",
    "t5_relu": T5_WORDS,
}
HEADS = dict.fromkeys(WORDS, HEAD) | {
    "bert_tied": "cls.predictions.decoder.weight",
    "roberta_tied": "lm_head.decoder.weight",
}

Tensors = dict[str, np.ndarray]


class Unread(Dictionary):
    def read(self, name: str) -> np.ndarray:
        raise AssertionError(f"{name} was read")


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def stored(name: str) -> Tensors:
    return load_file(FIXTURES / name / "model.safetensors")


def without(name: str, *keys: str) -> Tensors:
    return {key: value for key, value in stored(name).items() if key not in keys}


def shape_of(name: str, **changes: object) -> tuple[Family, Any]:
    family, fields = read_fields(FIXTURES / name)
    return family, family.config({**fields, **changes})


def load(
    name: str, tensors: Tensors, dtype: jnp.dtype = jnp.float32, **changes: object
) -> tuple[Any, Parameters]:
    family, config = shape_of(name, **changes)
    return family.weights.load(Dictionary(tensors), config, dtype, where="the folder x")


def refusal(name: str, tensors: Tensors, **changes: object) -> str:
    with pytest.raises(InputError) as error:
        load(name, tensors, **changes)
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


def assert_loads(name: str, tensors: Tensors) -> None:
    config, params = load(name, tensors)
    assert config == load_golden(name).config
    assert_same(params, load_golden(name).params)


CAUSAL = np.tril(np.ones((1, 1, 23, 23), bool))
EXTRAS: dict[str, dict[str, Any]] = {  # a name stands for a copy of that tensor
    "bert_tied": {
        "bert.pooler.dense.weight": numbers(30, 30),
        "bert.pooler.dense.bias": numbers(30),
        "cls.seq_relationship.weight": numbers(2, 30),
        "cls.seq_relationship.bias": numbers(2),
        "bert.embeddings.position_ids": np.arange(19)[None],
        "cls.predictions.decoder.weight": BERT_WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "roberta_tied": {
        "roberta.pooler.dense.weight": numbers(36, 36),
        "roberta.pooler.dense.bias": numbers(36),
        "roberta.embeddings.position_ids": np.arange(14)[None],
        "lm_head.decoder.weight": WORDS["roberta_tied"],
        "lm_head.decoder.bias": "lm_head.bias",
    },
    "gpt2_tied": {
        "transformer.h.0.attn.bias": CAUSAL,
        "transformer.h.2.attn.masked_bias": np.float32(-1e4),
        "h.1.attn.bias": CAUSAL,
        HEAD: WORDS["gpt2_tied"],
    },
    "llama_grouped": {
        "model.layers.1.self_attn.rotary_emb.inv_freq": numbers(4),
        "model.rotary_emb.inv_freq": numbers(4),
        HEAD: WORDS["llama_grouped"],
    },
    "t5_relu": {
        **dict.fromkeys((*T5_COPIES, HEAD), T5_WORDS),
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": numbers(9, 3),
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
    assert load_golden(name).config.tied_head
    assert_loads(name, tensors)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("bert_tied", "cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("roberta_tied", "lm_head.bias", "lm_head.decoder.bias"),
        ("bert_untied", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("gpt2_tied", "transformer.", ""),  # saved without its head
        ("gpt2_untied", "transformer.", ""),
    ],
)
def test_other_names_of_a_tensor_are_read(name: str, old: str, new: str) -> None:
    tensors = stored(name)
    chosen = [key for key in tensors if key.startswith(old)]
    assert chosen
    for key in chosen:
        tensors[key.replace(old, new)] = tensors.pop(key)
    assert_loads(name, tensors)


def test_gamma_and_beta_of_old_files_are_read() -> None:
    kinds = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = stored("bert_tied")
    for old, new in kinds.items():
        tensors = {key.replace(old, new): value for key, value in tensors.items()}
    assert "bert.embeddings.LayerNorm.gamma" in tensors
    assert_loads("bert_tied", tensors)


@pytest.mark.parametrize("copies", [T5_COPIES, T5_COPIES[:1], T5_COPIES[1:]])
@pytest.mark.parametrize("name", ["t5_relu", "t5_gated"])
def test_words_of_t5_are_found_in_their_copies(name: str, copies: tuple[str, ...]) -> None:
    tensors = stored(name)
    words = tensors.pop(T5_WORDS)
    assert_loads(name, {**tensors, **dict.fromkeys(copies, words)})


@pytest.mark.parametrize("copy", T5_COPIES)
def test_stacks_of_t5_with_different_words_are_refused(copy: str) -> None:
    tensors = stored("t5_relu")
    tensors[copy] = tensors[T5_WORDS][::-1]
    assert f"expected {copy} to equal {T5_WORDS}" in refusal("t5_relu", tensors)
    # Also without the shared table, if the two copies differ.
    tensors[T5_COPIES[0]], tensors[T5_COPIES[1]] = tensors.pop(T5_WORDS), numbers(53, 22)
    assert f"expected {T5_COPIES[1]} to equal {T5_COPIES[0]}" in refusal("t5_relu", tensors)


def test_t5_with_a_head_of_its_own_may_have_its_words_in_a_copy() -> None:
    tensors = {**stored("t5_relu"), HEAD: numbers(53, 22)}
    config, params = load("t5_relu", tensors)
    assert config.scaled_head  # whether scores are scaled is a matter of the config
    tensors[T5_COPIES[1]] = tensors.pop(T5_WORDS)
    assert_same(load("t5_relu", tensors)[1], params)


def test_t5_without_its_head_may_be_called_tied() -> None:
    # As transformers 5 calls every model.
    config, params = load("t5_gated", without("t5_gated", HEAD), tie_word_embeddings=True)
    assert config.tied_head and not config.scaled_head and "head" not in params


def test_untied_head_may_equal_the_words() -> None:
    tensors = stored("t5_gated")
    config, params = load("t5_gated", {**tensors, HEAD: tensors[T5_WORDS]})
    assert not config.tied_head
    assert np.array_equal(params["head"]["words"], params["embeddings"]["word"])


@pytest.mark.parametrize(("name", "head"), [("bert_tied", "cls."), ("roberta_tied", "lm_head.")])
def test_encoder_without_a_head_is_refused(name: str, head: str) -> None:
    tensors = {key: value for key, value in stored(name).items() if not key.startswith(head)}
    assert "no masked-LM head" in refusal(name, tensors)
    # The next-sentence head is not enough.
    tensors["cls.seq_relationship.bias"] = numbers(2)
    assert "no masked-LM head" in refusal(name, tensors)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("bert_tied", (f"{BERT_LAYER}.attention.self.key.bias", "cls.predictions.bias")),
        ("bert_untied", ("cls.predictions.decoder.weight",)),
        # A tensor of three parameters is named once.
        ("gpt2_tied", ("transformer.h.1.attn.c_attn.bias", "transformer.ln_f.bias")),
        ("llama_grouped", ("model.layers.0.mlp.up_proj.weight",)),
        *((name, (HEAD,)) for name in ("gpt2_untied", "llama_plain", "qwen2_untied", "t5_gated")),
        ("t5_relu", ("encoder.final_layer_norm.weight", f"{T5_BLOCK}.1.EncDecAttention.k.weight")),
        ("t5_relu", (T5_WORDS,)),
    ],
)
def test_missing_tensors_are_named(name: str, missing: tuple[str, ...]) -> None:
    found = refusal(name, without(name, *missing))
    assert found.endswith(f"; missing: {', '.join(missing)}")


def test_many_missing_tensors_are_counted() -> None:
    tensors = {key: value for key, value in stored("bert_tied").items() if BERT_LAYER not in key}
    message = refusal("bert_tied", tensors)
    assert f"missing: {BERT_LAYER}.attention.self.query.weight" in message
    assert "and 12 more" in message  # 16 tensors a layer, 4 are shown


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        # A layer too many, and a tensor of another family.
        (
            "bert_tied",
            ("bert.encoder.layer.3.output.dense.bias", "roberta.dense.bias"),
        ),
        ("gpt2_tied", ("transformer.h.3.ln_1.weight",)),
        ("gpt2_tied", ("score.weight",)),  # the head of a classifier
        ("llama_grouped", ("model.layers.0.self_attn.q_norm.weight",)),
        ("llama_grouped", ("layers.0.self_attn.q_proj.weight",)),
        ("qwen2_tied", ("model.layers.0.self_attn.o_proj.bias",)),
        # A layer too many, a gate in a model without gates, a bias, a foreign name.
        (
            "t5_relu",
            (
                "encoder.block.2.layer.0.layer_norm.weight",
                "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
                "decoder.block.0.layer.0.SelfAttention.q.bias",
                "classification_head.dense.weight",
            ),
        ),
        ("t5_relu", (T5_BIAS.format("encoder", 1),)),  # only the first layer has one
    ],
)
def test_unexpected_tensors_are_named(name: str, extras: tuple[str, ...]) -> None:
    found = refusal(name, {**stored(name), **dict.fromkeys(extras, numbers(30))})
    assert f"unexpected: {', '.join(extras)}" in found


@pytest.mark.parametrize(
    ("name", "key", "shape", "expected"),
    [
        ("bert_tied", f"{BERT_LAYER}.intermediate.dense.weight", (30, 37), (37, 30)),
        ("bert_tied", BERT_WORDS, (54, 30), (53, 30)),
        ("bert_tied", "bert.embeddings.position_embeddings.weight", (20, 30), (19, 30)),
        ("bert_tied", "cls.predictions.transform.dense.bias", (30, 1), (30,)),
        ("gpt2_tied", "transformer.h.1.mlp.c_fc.weight", (37, 30), (30, 37)),
        ("gpt2_tied", "transformer.h.0.attn.c_attn.weight", (30, 30), (30, 90)),
        ("gpt2_tied", "transformer.wpe.weight", (24, 30), (23, 30)),
        ("gpt2_tied", HEAD, (54, 30), (53, 30)),
        ("llama_grouped", "model.layers.1.self_attn.k_proj.weight", (48, 30), (16, 30)),
        ("llama_grouped", "model.embed_tokens.weight", (60, 30), (59, 30)),
        ("t5_relu", f"{T5_BLOCK}.2.DenseReluDense.wi.weight", (22, 27), (27, 22)),
        ("t5_relu", f"{T5_BLOCK}.0.SelfAttention.o.weight", (15, 22), (22, 15)),
        ("t5_relu", f"{T5_BLOCK}.1.EncDecAttention.v.weight", (22, 22), (15, 22)),
        ("t5_relu", T5_WORDS, (54, 22), (53, 22)),
        ("t5_relu", HEAD, (54, 22), (53, 22)),
        ("t5_relu", T5_BIAS.format("decoder", 0), (32, 3), (9, 3)),
    ],
)
def test_misshaped_tensors_are_named_with_both_shapes(
    name: str, key: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    message = refusal(name, {**stored(name), key: numbers(*shape)})
    assert f"misshaped: {key} is {list(shape)}, expected {list(expected)}" in message


def test_every_kind_of_mismatch_is_in_one_message() -> None:
    tensors = without("bert_tied", "bert.embeddings.LayerNorm.bias")
    message = refusal("bert_tied", {**tensors, BERT_WORDS: numbers(2, 2), "extra": numbers(1)})
    assert all(kind in message for kind in ("missing: ", "misshaped: ", "unexpected: extra"))


def test_gated_and_plain_files_are_told_apart() -> None:
    plain = refusal("t5_gated", stored("t5_gated"), feed_forward_proj="relu", is_gated_act=False)
    assert "missing: encoder.block.0.layer.1.DenseReluDense.wi.weight" in plain
    assert "unexpected: " in plain and "wi_0.weight" in plain


@pytest.mark.parametrize(
    ("name", "copies"), [("bert_tied", ()), ("gpt2_tied", ()), ("t5_relu", T5_COPIES[:1])]
)
def test_nothing_is_read_before_everything_matches(name: str, copies: tuple[str, ...]) -> None:
    (family, config), tensors = shape_of(name), stored(name)
    tensors |= {copy: tensors[T5_WORDS] for copy in copies}
    with pytest.raises(InputError, match="extra"):
        family.weights.load(Unread({**tensors, "extra": numbers(1)}), config, jnp.float32, "x")


@pytest.mark.parametrize("name", EVERY)
def test_writing_and_loading_again_is_exact(name: str) -> None:
    golden = load_golden(name)
    written = golden.family.weights.write(golden.params, golden.config)
    assert_loads(name, written)
    # Of an untied head only the bias in use is kept.
    unused = () if golden.config.tied_head else ("cls.predictions.bias", "lm_head.bias")
    expected = without(name, *unused)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("name", "layer", "key", "path"),
    [
        *(
            ("bert_tied", layer, "bert.encoder.layer.{}.intermediate.dense", "feed_forward_in")
            for layer in range(3)
        ),
        ("llama_grouped", 2, "model.layers.{}.mlp.gate_proj", "feed_forward_in"),
        ("llama_grouped", 2, "model.layers.{}.mlp.up_proj", "feed_forward_up"),
        *(
            ("t5_gated", layer, f"encoder.block.{{}}.layer.1.DenseReluDense.{theirs}", ours)
            for layer in range(3)
            for theirs, ours in (("wi_0", "feed_forward_gate"), ("wi_1", "feed_forward_in"))
        ),
    ],
)
def test_kernels_are_transposed_and_stacked(name: str, layer: int, key: str, path: str) -> None:
    params, tensor = load_golden(name).params, stored(name)[f"{key.format(layer)}.weight"]
    if name in T5S:
        found = params["encoder"]["layers"][path]["kernel"][layer]
    else:
        last = layer == load_golden(name).config.layers - 1
        found = params["last_layer" if last else "layers"][path]["kernel"]
        found = found if last else found[layer]
    assert np.array_equal(found, tensor.T)


def test_fused_map_of_gpt2_is_split_in_three_and_not_transposed() -> None:
    golden, tensors = load_golden("gpt2_tied"), stored("gpt2_tied")
    for layer in range(3):
        for number, name in enumerate(("query", "key", "value")):
            for kind, theirs in (("kernel", "weight"), ("bias", "bias")):
                fused = tensors[f"transformer.h.{layer}.attn.c_attn.{theirs}"]
                found = golden.params["last_layer" if layer == 2 else "layers"][name][kind]
                found = found if layer == 2 else found[layer]
                assert np.array_equal(found, fused[..., 30 * number : 30 * (number + 1)])


def test_one_layer_needs_no_stack() -> None:
    assert "layers" not in load_golden("bert_one_layer").params


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, np.float16) for name in ("gpt2_untied", "qwen2_untied")),
        *(
            (name, kind)
            for name in ("bert_one_layer", "t5_one_layer")
            for kind in (np.float16, jnp.bfloat16, np.float64)
        ),
    ],
)
def test_files_of_another_precision_are_cast(name: str, kind: np.dtype) -> None:
    tensors = {key: value.astype(kind) for key, value in stored(name).items()}
    expected = load(name, {key: value.astype(np.float32) for key, value in tensors.items()})[1]
    assert_same(load(name, tensors)[1], expected)
    halves = load(name, tensors, jnp.bfloat16)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {jnp.dtype(jnp.bfloat16)}
    assert_same(halves, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))


@pytest.mark.parametrize("name", ["gpt2_tied", "t5_gated"])
def test_every_parameter_is_placed_once_by_its_path(name: str) -> None:
    placed: list[str] = []

    def place(path: str, values: np.ndarray) -> jax.Array:
        placed.append(path)
        return jnp.asarray(values)

    family, config = shape_of(name)
    _, params = family.weights.load(Dictionary(stored(name)), config, jnp.float32, "x", place)
    assert sorted(placed) == sorted(flat(params))


@pytest.mark.parametrize("name", EVERY)
def test_partition_table_names_every_parameter_once(name: str) -> None:
    golden = load_golden(name)
    assert golden.params
    for path, leaf in flat(golden.params).items():
        table = golden.family.weights.partition
        (spec,) = (spec for pattern, spec in table if re.fullmatch(pattern, path))
        assert len(spec) <= leaf.ndim, path
        assert "/layers/" not in f"/{path}" or spec[0] is None, "layers are not split"
        if name in T5S:  # norms stay whole, everything else is split along one axis
            assert ("model" in spec) != path.endswith("scale"), path
        elif name in DECODERS and leaf.ndim - path.startswith("layers/") == 2:
            assert "model" in spec, f"{path} is a matrix that stays whole"


@pytest.mark.parametrize("names", [ENCODERS, T5S, DECODERS[:2], DECODERS[2:]])
def test_partition_table_has_no_idle_rule(names: Collection[str]) -> None:
    (table,) = {load_golden(name).family.weights.partition for name in names}
    paths = {path for name in names for path in flat(load_golden(name).params)}
    assert [p for p, _ in table if not any(re.fullmatch(p, path) for path in paths)] == []
