"""Checkpoints of BERT and RoBERTa: what is accepted, what is refused and how, what is written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpt.backbones.encoder_config import EncoderConfig
from jpt.backbones.encoder_weights import ENCODER_WEIGHTS
from jpt.errors import InputError
from jpt.types import Parameters
from tests.backbones.golden import FIXTURES, NAMES, load_golden

WORDS = "bert.embeddings.word_embeddings.weight"
LAYER = "bert.encoder.layer.1"
Tensors = dict[str, np.ndarray]


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


def stored_config(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name / "config.json").read_text())


def load(
    name: str, tensors: Tensors, dtype: jnp.dtype = jnp.float32
) -> tuple[EncoderConfig, Parameters]:
    config = EncoderConfig.from_huggingface(stored_config(name))
    return ENCODER_WEIGHTS.load(Dictionary(tensors), config, dtype, where="the folder x")


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
    tensors = stored(name)
    for key, value in EXTRAS[name].items():
        if extra in (key, "all"):
            tensors[key] = tensors[value] if isinstance(value, str) else value
    config, params = load(name, tensors)
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
    ("name", "own", "copy"),
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
    class Unread(Dictionary):
        def read(self, name: str) -> np.ndarray:
            raise AssertionError(f"{name} was read")

    config = EncoderConfig.from_huggingface(stored_config("bert_tied"))
    source = Unread({**stored("bert_tied"), "extra": numbers(1)})
    with pytest.raises(InputError, match="extra"):
        ENCODER_WEIGHTS.load(source, config, jnp.float32, where="x")


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


@pytest.mark.parametrize("name", NAMES)
def test_writing_and_loading_again_is_exact(name: str) -> None:
    golden = load_golden(name)
    written = ENCODER_WEIGHTS.write(golden.params, golden.config)
    config, params = load(name, written)
    assert config == golden.config
    assert_same(params, golden.params)
    # The names and values are those of the file; of an untied head only the bias in use is kept.
    unused = set() if config.tied_head else {"cls.predictions.bias", "lm_head.bias"}
    expected = {key: value for key, value in stored(name).items() if key not in unused}
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[key], value) for key, value in expected.items())


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
    tensors = {key: value.astype(kind) for key, value in stored("bert_one_layer").items()}
    expected = load("bert_one_layer", {k: v.astype(np.float32) for k, v in tensors.items()})[1]
    assert_same(load("bert_one_layer", tensors)[1], expected)
    halves = load("bert_one_layer", tensors, jnp.bfloat16)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {jnp.dtype(jnp.bfloat16)}
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected)
    assert_same(halves, expected)


@pytest.mark.parametrize("name", NAMES)
def test_partition_table_names_every_parameter_once(name: str) -> None:
    for path, leaf in flat(load_golden(name).params).items():
        specs = [spec for pattern, spec in ENCODER_WEIGHTS.partition if re.fullmatch(pattern, path)]
        assert len(specs) == 1, path
        assert len(specs[0]) <= leaf.ndim, path
        assert not path.startswith("layers/") or specs[0][0] is None, "layers are not split"


def test_partition_table_has_no_idle_rule() -> None:
    paths = {path for name in NAMES for path in flat(load_golden(name).params)}
    idle = [
        p for p, _ in ENCODER_WEIGHTS.partition if not any(re.fullmatch(p, path) for path in paths)
    ]
    assert idle == []
