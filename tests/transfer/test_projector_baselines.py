"""Ways to another model without training: exact where the answer is known."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.testing import WORDS, write_tiny_backbone
from jpt.transfer.projection import (
    choose_anchors,
    least_squares_projector,
    relative_method,
    shared_tokens,
)
from jpt.types import Prompt, PromptCard


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> jpt.Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("source"), "bert"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> jpt.Backbone:
    """A T5 of another width, with the same pieces."""
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("t5"), "t5", d_model=20))


def with_words(backbone: jpt.Backbone, words: np.ndarray) -> jpt.Backbone:
    embeddings = {**backbone.params["embeddings"], "word": jnp.asarray(words, jnp.float32)}
    return dataclasses.replace(backbone, params={**backbone.params, "embeddings": embeddings})


def prompt_of(backbone: jpt.Backbone, rows: np.ndarray) -> Prompt:
    return Prompt(rows.astype(np.float32), PromptCard(backbone.name, "mood"))


def test_shared_pieces_leave_special_ones_out(source, target) -> None:
    ids, same = shared_tokens(source, target)
    texts = [source.tokenizer.token_text(token) for token in ids]
    assert texts == [target.tokenizer.token_text(token) for token in same]
    assert set(WORDS) <= set(texts)
    assert not {"[MASK]", "[PAD]", "</s>", "<extra_id_0>"} & set(texts)


class _Tokenizer:
    """A vocabulary that is only looked at."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.ids, self.vocabulary_size = pieces, (), len(pieces)

    def piece(self, token: int) -> str:
        return self.pieces[token]


def test_marks_of_a_words_start_are_understood(source) -> None:
    """The same text in the three customs of writing a vocabulary."""
    written = {
        "wordpiece": ["film", "##s", "the", "[unused0]"],
        "sentencepiece": ["s", "▁the", "▁film", "▁", "film"],
        "byte": ["Ġthe", "x", "s", "Ġfilm"],
    }
    models = {
        name: dataclasses.replace(
            source,
            tokenizer=_Tokenizer(pieces),
            config=dataclasses.replace(source.config, vocabulary=len(pieces)),
        )
        for name, pieces in written.items()
    }

    def pairs(first: str, second: str) -> list[tuple[str, str]]:
        ids, same = shared_tokens(models[first], models[second])
        return [(written[first][a], written[second][b]) for a, b in zip(ids, same, strict=True)]

    assert pairs("wordpiece", "sentencepiece") == [
        ("film", "▁film"),
        ("##s", "s"),
        ("the", "▁the"),
    ]
    assert pairs("sentencepiece", "byte") == [("s", "s"), ("▁the", "Ġthe"), ("▁film", "Ġfilm")]


def test_models_without_a_common_piece_are_refused(source) -> None:
    other = dataclasses.replace(source, tokenizer=_Tokenizer(["foo", "bar"]))
    methods = (partial(least_squares_projector, length=4), relative_method)
    for method in methods:
        with pytest.raises(jpt.InputError, match="share no piece of text"):
            method(source, other)


def test_least_squares_finds_a_linear_map_that_is_there(source, target) -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(0, 1, (32, 20))
    ids, same = shared_tokens(source, target)
    # Fewer shared pieces than columns cannot tell a map: some columns of the source are left 0.
    words = np.asarray(source.params["embeddings"]["word"]).copy()
    words[:, 12:] = 0
    new = np.asarray(target.params["embeddings"]["word"]).copy()
    new[same] = words[ids] @ matrix
    first, second = with_words(source, words), with_words(target, new)
    rows = random.normal(0, 1, (4, 32))
    rows[:, 12:] = 0
    found = least_squares_projector(first, second, 4)(prompt_of(source, rows))
    np.testing.assert_allclose(found, rows @ matrix, rtol=1e-4, atol=1e-4)


def test_least_squares_leaves_the_least_error(source, target) -> None:
    ids, same = shared_tokens(source, target)
    first = np.asarray(source.params["embeddings"]["word"], np.float64)[ids]
    second = np.asarray(target.params["embeddings"]["word"], np.float64)[same]
    found = least_squares_projector(source, target, 4)
    matrix = np.asarray(found.params["row"]["kernel"], np.float64)
    np.testing.assert_allclose(first.T @ (first @ matrix - second), 0, atol=1e-5)
    assert found.card.objective == "least_squares" and found.card.target_layout == "encoder_decoder"


def test_relative_is_exact_where_the_target_is_the_source_turned(source) -> None:
    """Turning and scaling a space leaves all similarities as they are."""
    random = np.random.default_rng(1)
    turn, _ = np.linalg.qr(random.normal(0, 1, (32, 32)))
    wide = random.normal(0, 1, (61, 32))
    wide[:, 12:] = 0  # fewer anchors than columns could not tell a row
    rows = random.normal(0, 1, (4, 32))
    rows[:, 12:] = 0
    first, second = with_words(source, wide), with_words(source, 3.0 * wide @ turn)
    found = relative_method(first, second)(prompt_of(source, rows))
    expected = rows @ turn
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(cosine / np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    ids, same = shared_tokens(first, second)
    norms = np.linalg.norm(3.0 * wide[same], axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), norms.mean(), rtol=1e-5)
    again = relative_method(first, second)(prompt_of(source, rows))
    np.testing.assert_array_equal(found, again)


def test_anchors_spread_over_the_vocabulary() -> None:
    assert choose_anchors(100, 5) == [0, 25, 50, 74, 99]
    assert choose_anchors(7, 512) == list(range(7))
    with pytest.raises(jpt.InputError, match="anchors is 0"):
        relative_method(None, None, anchors=0)
