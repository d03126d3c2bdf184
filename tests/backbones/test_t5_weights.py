"""Checkpoints of T5: what is accepted, what is refused and how, what is written."""

from __future__ import annotations

import jax.numpy as jnp
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
from tests.backbones.golden import T5S, load_golden

WORDS, HEAD = "shared.weight", "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
BLOCK = "decoder.block.1.layer"
EXTRAS = {
    COPIES[0]: WORDS,
    COPIES[1]: WORDS,
    HEAD: WORDS,
    CROSS_BIAS: numbers(9, 3),
}


@pytest.mark.parametrize("extra", [*EXTRAS, "all"])
def test_extras_of_real_files_change_nothing(extra: str) -> None:
    config, params = load("t5_relu", with_extras("t5_relu", EXTRAS, extra))
    assert config.tied_head
    assert_same(params, load_golden("t5_relu").params)


@pytest.mark.parametrize("copies", [COPIES, COPIES[:1], COPIES[1:]])
@pytest.mark.parametrize("name", ["t5_relu", "t5_gated"])
def test_word_table_is_found_under_the_names_of_its_copies(
    name: str, copies: tuple[str, ...]
) -> None:
    tensors = stored(name)
    words = tensors.pop(WORDS)
    for copy in copies:
        tensors[copy] = words
    config, params = load(name, tensors)
    assert config == load_golden(name).config
    assert_same(params, load_golden(name).params)


@pytest.mark.parametrize("copy", COPIES)
def test_stack_with_words_of_its_own_is_refused(copy: str) -> None:
    tensors = stored("t5_relu")
    tensors[copy] = tensors[WORDS][::-1]
    assert f"{copy} differs from {WORDS}" in refusal("t5_relu", tensors)
    # Also where the shared table is missing and the two copies are two tables.
    tensors[COPIES[0]], tensors[COPIES[1]] = tensors.pop(WORDS), numbers(53, 22)
    assert f"{COPIES[1]} differs from {COPIES[0]}" in refusal("t5_relu", tensors)


def test_head_that_differs_from_the_word_table_is_its_own() -> None:
    tensors, golden = stored("t5_relu"), load_golden("t5_relu")
    tensors[HEAD] = numbers(53, 22)
    config, params = load("t5_relu", tensors)
    # Whether scores are scaled is the config's to say.
    assert not config.tied_head and config.scaled_head
    assert np.array_equal(params["head"]["words"], tensors[HEAD])
    words = tensors.pop(WORDS)
    tensors[COPIES[1]] = words
    assert_same(load("t5_relu", tensors)[1], params)
    assert np.array_equal(params["embeddings"]["word"], golden.params["embeddings"]["word"])


def test_untied_head_needs_its_table() -> None:
    tensors = stored("t5_gated")
    del tensors[HEAD]
    assert f"missing: {HEAD}" in refusal("t5_gated", tensors)
    # Called tied, as transformers 5 calls every model, the same file is one with a tied head.
    config, params = load("t5_gated", tensors, tie_word_embeddings=True)
    assert config.tied_head and not config.scaled_head and "head" not in params


def test_untied_head_may_equal_the_word_table() -> None:
    tensors = stored("t5_gated")
    tensors[HEAD] = tensors[WORDS]
    config, params = load("t5_gated", tensors)
    assert not config.tied_head
    assert np.array_equal(params["head"]["words"], params["embeddings"]["word"])


def test_missing_tensors_are_named() -> None:
    tensors = stored("t5_relu")
    del tensors[f"{BLOCK}.1.EncDecAttention.k.weight"], tensors["encoder.final_layer_norm.weight"]
    assert refusal("t5_relu", tensors).endswith(
        f"missing: encoder.final_layer_norm.weight, {BLOCK}.1.EncDecAttention.k.weight"
    )
    del tensors[WORDS]
    assert f"missing: {WORDS}" in refusal("t5_relu", tensors)


def test_unexpected_tensors_are_named() -> None:
    # A layer more than the config says, a gate in a model without gates, a bias, a foreign name.
    more = {
        "encoder.block.2.layer.0.layer_norm.weight": numbers(22),
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": numbers(27, 22),
        "decoder.block.0.layer.0.SelfAttention.q.bias": numbers(15),
        "classification_head.dense.weight": numbers(22, 22),
    }
    assert f"unexpected: {', '.join(more)}" in refusal("t5_relu", {**stored("t5_relu"), **more})
    # Only the first layer has a table of positions.
    second = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors = {**stored("t5_relu"), second: numbers(9, 3)}
    assert f"unexpected: {second}" in refusal("t5_relu", tensors)


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        (f"{BLOCK}.2.DenseReluDense.wi.weight", (22, 27), (27, 22)),  # the other way round
        (f"{BLOCK}.0.SelfAttention.o.weight", (15, 22), (22, 15)),
        (f"{BLOCK}.1.EncDecAttention.v.weight", (22, 22), (15, 22)),  # heads as wide as D / H
        (WORDS, (54, 22), (53, 22)),
        (HEAD, (54, 22), (53, 22)),
        (
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (32, 3),
            (9, 3),
        ),
    ],
)
def test_misshaped_tensors_are_named_with_both_shapes(
    key: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    message = refusal("t5_relu", {**stored("t5_relu"), key: numbers(*shape)})
    assert f"misshaped: {key} is {list(shape)}, expected {list(expected)}" in message


def test_gated_and_plain_files_are_not_taken_for_one_another() -> None:
    plain = refusal("t5_gated", stored("t5_gated"), feed_forward_proj="relu", is_gated_act=False)
    assert "missing: encoder.block.0.layer.1.DenseReluDense.wi.weight" in plain
    assert "unexpected: " in plain and "wi_0.weight" in plain


def test_nothing_is_read_before_everything_fits() -> None:
    assert_refused_unread("t5_relu", {COPIES[0]: stored("t5_relu")[WORDS]})


@pytest.mark.parametrize("name", T5S)
def test_writing_and_loading_again_is_exact(name: str) -> None:
    assert_written_again(name)


def test_layers_are_stacked_and_gates_told_from_what_they_gate() -> None:
    params, tensors = load_golden("t5_gated").params, stored("t5_gated")
    for layer in range(3):
        place = f"encoder.block.{layer}.layer.1.DenseReluDense"
        for ours, theirs in (("feed_forward_gate", "wi_0"), ("feed_forward_in", "wi_1")):
            found = params["encoder"]["layers"][ours]["kernel"][layer]
            assert np.array_equal(found, tensors[f"{place}.{theirs}.weight"].T)


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float64])
def test_files_of_another_precision_are_cast(kind: np.dtype) -> None:
    assert_cast("t5_one_layer", kind)


def test_parameters_go_to_their_devices_one_by_one() -> None:
    assert_placed_one_by_one("t5_gated")


@pytest.mark.parametrize("name", T5S)
def test_partition_table_names_every_parameter_once(name: str) -> None:
    for path, _, spec in split_of(name):
        # Norms stay whole; everything else is split along one axis.
        assert ("model" in spec) != path.endswith("scale"), path


def test_partition_table_has_no_idle_rule() -> None:
    assert_no_idle_rule(T5S)
