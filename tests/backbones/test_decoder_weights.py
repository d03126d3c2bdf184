"""Checkpoints of GPT-2, Llama and Qwen2: what is accepted, what is refused, what is written."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backbones.checkpoints import (
    assert_cast,
    assert_no_idle_rule,
    assert_placed_one_by_one,
    assert_refused_unread,
    assert_same,
    assert_written_again,
    load,
    numbers,
    refusal,
    split_of,
    stored,
    with_extras,
)
from tests.backbones.golden import DECODERS, load_golden

GPT2, LLAMA = "gpt2_tied", "llama_grouped"
WORDS = {GPT2: "transformer.wte.weight", LLAMA: "model.embed_tokens.weight"}


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
    config, params = load(name, with_extras(name, EXTRAS[name], extra))
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
    assert_refused_unread(GPT2, {})


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


@pytest.mark.parametrize("name", DECODERS)
def test_writing_and_loading_again_is_exact(name: str) -> None:
    assert_written_again(name)


@pytest.mark.parametrize("name", ["gpt2_untied", "qwen2_untied"])
def test_files_of_another_precision_are_cast(name: str) -> None:
    assert_cast(name, np.float16)


def test_parameters_are_placed_by_their_path() -> None:
    assert_placed_one_by_one(GPT2)


@pytest.mark.parametrize("name", DECODERS)
def test_partition_table_names_every_parameter_once(name: str) -> None:
    for path, leaf, spec in split_of(name):
        if leaf.ndim - path.startswith("layers/") == 2:
            assert "model" in spec, f"{path} is a matrix that stays whole"


@pytest.mark.parametrize("kinds", [DECODERS[:2], DECODERS[2:]])
def test_partition_table_has_no_idle_rule(kinds: tuple[str, ...]) -> None:
    assert_no_idle_rule(kinds)
