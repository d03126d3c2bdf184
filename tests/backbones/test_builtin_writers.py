"""The built-in T5 and GPT-2: ordinary files, real models, and a prompt that learns on them."""

from __future__ import annotations

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import BUILTIN, PREFIX
from jpt.data.builtin import reviews
from jpt.io.tensors import open_tensors

NAMES = ("builtin/gpt2-mini", "builtin/t5-mini")
TEXT, ASKED = 24, 8


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> jpt.Backbone:
    return jpt.load_backbone(request.param)


def pieces(backbone: jpt.Backbone, split: str, count: int) -> list[list[int]]:
    texts = [review.text for review in reviews("rotten_tomatoes", split)]
    return [row for row in backbone.tokenizer.encode(texts) if len(row) >= TEXT + ASKED][:count]


def unigram_loss(backbone: jpt.Backbone, answers: np.ndarray) -> float:
    counts = np.ones(backbone.config.vocabulary)
    for row in pieces(backbone, "train", 3000):
        np.add.at(counts, row, 1)
    return float(-np.log(counts / counts.sum())[answers].mean())


def written_logits(backbone: jpt.Backbone, rows: np.ndarray) -> np.ndarray:
    """Scores of each of the last pieces of every row, given all before it."""
    apply, variables = (
        jax.jit(backbone.module.apply, static_argnames="every_position"),
        {"params": backbone.params},
    )
    count = len(rows)
    if backbone.layout == "decoder":
        tokens = np.concatenate([np.full((count, 1), backbone.tokenizer.ids.bos), rows], axis=1)
        lengths = jnp.full(count, tokens.shape[1], jnp.int32)
        output = apply(variables, jnp.asarray(tokens, jnp.int32), lengths, every_position=True)
        return np.asarray(output.logits[:, TEXT : TEXT + ASKED])
    ends = np.full((count, 1), backbone.tokenizer.ids.eos)
    tokens = jnp.asarray(np.concatenate([rows[:, :TEXT], ends], axis=1), jnp.int32)
    before = np.concatenate([np.zeros((count, 1), int), rows[:, TEXT : TEXT + ASKED - 1]], axis=1)
    lengths = jnp.full(count, TEXT + 1, jnp.int32)
    decoded = jnp.asarray(before, jnp.int32)
    return np.asarray(apply(variables, tokens, lengths, decoder_tokens=decoded).logits)


def test_it_goes_on_with_unseen_text_better_than_word_frequency(backbone: jpt.Backbone) -> None:
    rows = np.array([row[: TEXT + ASKED] for row in pieces(backbone, "test", 64)])
    logits = written_logits(backbone, rows).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    answers = rows[:, TEXT:]
    loss = -np.take_along_axis(logits, answers[..., None], axis=-1).mean()
    frequency = unigram_loss(backbone, answers)
    assert loss < frequency - 0.3, (loss, frequency)


def test_weights_are_stored_in_bfloat16_and_small(backbone: jpt.Backbone) -> None:
    folder = BUILTIN / backbone.name.removeprefix(PREFIX)
    assert {str(dtype) for dtype in open_tensors(folder).dtypes.values()} == {"bfloat16"}
    assert (folder / "model.safetensors").stat().st_size < 8_000_000


def test_label_words_are_single_pieces_and_text_comes_back(backbone: jpt.Backbone) -> None:
    for name in jpt.task_names():
        if name.startswith("builtin/"):
            for word in chain(*jpt.load_task(name).words(backbone.model_type).values()):
                assert len(backbone.tokenizer.word_after("Answer:", word)) == 1, (name, word)
    ids = backbone.tokenizer.encode(["the film is unforgettable."])[0]
    assert backbone.tokenizer.decode(ids) == "the film is unforgettable."


def test_a_decoders_text_starts_with_the_piece_it_was_trained_with() -> None:
    assert jpt.load_backbone("builtin/gpt2-mini").tokenizer.add_bos


@pytest.mark.slow
def test_a_prompt_on_the_t5_beats_the_majority_class() -> None:
    """The GPT-2 is tuned by the default tests."""
    test = jpt.tune("builtin/t5-mini", "builtin/rotten_tomatoes").record["test"]
    assert test["accuracy"] >= test["majority"] + 0.08, test


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_torch_transformers_loads_it_and_agrees(name: str) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    backbone, folder = jpt.load_backbone(name), BUILTIN / name.removeprefix(PREFIX)
    kinds = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}
    kind = getattr(transformers, kinds[backbone.model_type])
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = np.array([row[: TEXT + ASKED] for row in pieces(backbone, "test", 4)])
    text = "A film to love, and to see twice."
    special = {"gpt2": backbone.tokenizer.ids.bos, "t5": backbone.tokenizer.ids.eos}
    expected_ids = backbone.tokenizer.encode([text])[0]
    is_t5 = backbone.layout == "encoder_decoder"
    framed = [*expected_ids, special["t5"]] if is_t5 else [special["gpt2"], *expected_ids]
    assert tokenizer(text)["input_ids"] == framed
    if is_t5:
        inputs = np.concatenate([rows[:, :TEXT], np.full((4, 1), special["t5"])], axis=1)
        before = np.concatenate([np.zeros((4, 1), int), rows[:, TEXT : TEXT + ASKED - 1]], axis=1)
        given = {"decoder_input_ids": torch.from_numpy(before)}
    else:
        inputs = np.concatenate([np.full((4, 1), special["gpt2"]), rows], axis=1)
        given = {}
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.from_numpy(inputs), **given).logits.numpy()
    expected = expected if is_t5 else expected[:, TEXT : TEXT + ASKED]
    found = written_logits(backbone, rows)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
