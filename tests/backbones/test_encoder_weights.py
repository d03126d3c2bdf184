"""Checkpoints of BERT and RoBERTa: what is accepted, what is refused and how, what is written."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.checkpoints import (
    assert_cast,
    assert_no_idle_rule,
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
from tests.backbones.golden import ENCODERS, load_golden

WORDS = "bert.embeddings.word_embeddings.weight"
LAYER = "bert.encoder.layer.1"
EXTRAS = {
    "bert_tied": {
        "bert.pooler.dense.weight": numbers(30, 30),
        "bert.pooler.dense.bias": numbers(30),
        "cls.seq_relationship.weight": numbers(2, 30),
        "cls.seq_relationship.bias": numbers(2),
        "bert.embeddings.position_ids": np.arange(19)[None],
        "cls.predictions.decoder.weight": WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "roberta_tied": {
        "roberta.pooler.dense.weight": numbers(36, 36),
        "roberta.pooler.dense.bias": numbers(36),
        "roberta.embeddings.position_ids": np.arange(14)[None],
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
}


@pytest.mark.parametrize(
    ("name", "extra"), [(name, extra) for name in EXTRAS for extra in (*EXTRAS[name], "all")]
)
def test_extras_of_real_files_change_nothing(name: str, extra: str) -> None:
    config, params = load(name, with_extras(name, EXTRAS[name], extra))
    assert config.tied_head
    assert_same(params, load_golden(name).params)


def test_gamma_and_beta_of_old_files_are_read() -> None:
    tensors = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in stored("bert_tied").items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in tensors
    assert_same(load("bert_tied", tensors)[1], load_golden("bert_tied").params)


@pytest.mark.parametrize(
    ("name", "in_task", "copy"),
    [
        ("bert_tied", "cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("roberta_tied", "lm_head.bias", "lm_head.decoder.bias"),
        ("bert_untied", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
)
def test_bias_of_the_head_is_found_under_its_other_name(name: str, own: str, copy: str) -> None:
    tensors = stored(name)
    tensors[copy] = tensors.pop(own)
    assert_same(load(name, tensors)[1], load_golden(name).params)


def test_missing_tensors_are_named() -> None:
    tensors = stored("bert_tied")
    del tensors[f"{LAYER}.attention.self.key.bias"], tensors["cls.predictions.bias"]
    message = refusal("bert_tied", tensors)
    assert f"missing: {LAYER}.attention.self.key.bias, cls.predictions.bias" in message


def test_missing_tensors_are_counted_when_they_are_many() -> None:
    tensors = {key: value for key, value in stored("bert_tied").items() if LAYER not in key}
    assert f"missing: {LAYER}.attention.self.query.weight" in (
        message := refusal("bert_tied", tensors)
    )
    assert "and 12 more" in message  # 16 tensors a layer, 4 are shown


def test_unexpected_tensors_are_named() -> None:
    # A layer more than the config says, and a pooler under a name that BERT does not have.
    more = {
        "bert.encoder.layer.3.output.dense.bias": numbers(30),
        "roberta.pooler.dense.bias": numbers(30),
    }
    message = refusal("bert_tied", {**stored("bert_tied"), **more})
    assert f"unexpected: {', '.join(more)}" in message


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        (f"{LAYER}.intermediate.dense.weight", (30, 37), (37, 30)),  # the other way round
        (WORDS, (54, 30), (53, 30)),
        ("bert.embeddings.position_embeddings.weight", (20, 30), (19, 30)),
        ("cls.predictions.transform.dense.bias", (30, 1), (30,)),
    ],
)
def test_misshaped_tensors_are_named_with_both_shapes(
    key: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    message = refusal("bert_tied", {**stored("bert_tied"), key: numbers(*shape)})
    assert f"misshaped: {key} is {list(shape)}, expected {list(expected)}" in message


def test_every_kind_of_misfit_is_told_at_once() -> None:
    tensors = {**stored("bert_tied"), WORDS: numbers(2, 2), "extra": numbers(1)}
    del tensors["bert.embeddings.LayerNorm.bias"]
    message = refusal("bert_tied", tensors)
    assert all(kind in message for kind in ("missing: ", "misshaped: ", "unexpected: extra"))


def test_nothing_is_read_before_everything_fits() -> None:
    assert_refused_unread("bert_tied", {})


@pytest.mark.parametrize(("name", "head"), [("bert_tied", "cls."), ("roberta_tied", "lm_head.")])
def test_checkpoint_without_a_head_says_so(name: str, head: str) -> None:
    tensors = {key: value for key, value in stored(name).items() if not key.startswith(head)}
    assert "no masked-LM head" in refusal(name, tensors)
    # The next-sentence head alone is none either.
    tensors["cls.seq_relationship.bias"] = numbers(2)
    assert "no masked-LM head" in refusal(name, tensors)


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("bert_tied", "cls.predictions.decoder"), ("roberta_tied", "lm_head.decoder")],
)
def test_decoder_that_differs_from_the_word_table_unties_the_head(name: str, decoder: str) -> None:
    tensors, golden = stored(name), load_golden(name)
    shape = (golden.config.vocabulary, golden.config.width)
    tensors[f"{decoder}.weight"] = numbers(*shape)
    config, params = load(name, tensors)
    assert not config.tied_head
    assert np.array_equal(params["head"]["words"], numbers(*shape))
    assert np.array_equal(params["head"]["bias"], golden.params["head"]["bias"])
    # As in transformers, the decoder's own bias counts.
    tensors[f"{decoder}.bias"] = numbers(shape[0])
    assert np.array_equal(load(name, tensors)[1]["head"]["bias"], numbers(shape[0]))


def test_untied_head_needs_its_decoder() -> None:
    tensors = stored("bert_untied")
    del tensors["cls.predictions.decoder.weight"]
    assert "missing: cls.predictions.decoder.weight" in refusal("bert_untied", tensors)


@pytest.mark.parametrize("name", ENCODERS)
def test_writing_and_loading_again_is_exact(name: str) -> None:
    # Of an untied head only the bias in use is kept.
    is_tied = load_golden(name).config.tied_head
    assert_written_again(name, () if is_tied else {"cls.predictions.bias", "lm_head.bias"})


def test_layers_are_stacked_but_for_the_last() -> None:
    golden = load_golden("bert_tied")
    lower, last = golden.params["layers"], golden.params["last_layer"]
    tensors = stored("bert_tied")
    for layer in range(3):
        kernel = tensors[f"bert.encoder.layer.{layer}.intermediate.dense.weight"].T
        found = last["feed_forward_in"] if layer == 2 else lower["feed_forward_in"]
        assert np.array_equal(found["kernel"] if layer == 2 else found["kernel"][layer], kernel)
    assert "layers" not in load_golden("bert_one_layer").params


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float64])
def test_files_of_another_precision_are_cast(kind: np.dtype) -> None:
    assert_cast("bert_one_layer", kind)


@pytest.mark.parametrize("name", ENCODERS)
def test_partition_table_names_every_parameter_once(name: str) -> None:
    assert split_of(name)


def test_partition_table_has_no_idle_rule() -> None:
    assert_no_idle_rule(ENCODERS)
