"""DOC"""

from __future__ import annotations

import json
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import BUILTIN, PREFIX
from jpt.data.builtin import reviews
from jpt.io.tensors import open_tensors

# --- builtin

NAMES = ("builtin/bert-medium", "builtin/bert-small")
# METHOD of the paper's code, section 4, column bert-base-uncased.
PAPER_WORDS = (
    "negative positive moderate conflict no neutral yes unacceptable acceptable false true"
)


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> jpt.Backbone:
    return jpt.load_backbone(request.param)


def folder_of(name: str):
    return BUILTIN / name.removeprefix(PREFIX)


@pytest.mark.plain_programs
def test_two_encoders_of_different_width_and_depth_ship() -> None:
    assert set(NAMES) <= set(jpt.backbone_names())
    shapes = [json.loads((folder_of(name) / "config.json").read_text()) for name in NAMES]
    assert len({shape["hidden_size"] for shape in shapes}) == 2
    assert len({shape["num_hidden_layers"] for shape in shapes}) == 2


@pytest.mark.plain_programs
def test_files_are_small() -> None:
    sizes = [path.stat().st_size for path in BUILTIN.rglob("*") if path.is_file()]
    assert max(sizes) <= 10_000_000
    assert sum(sizes) <= 26_000_000


@pytest.mark.plain_programs
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_stored_in_bfloat16(name: str) -> None:
    source = open_tensors(folder_of(name))
    assert {str(dtype) for dtype in source.dtypes.values()} == {"bfloat16"}


@pytest.mark.plain_programs
def test_label_words_are_single_pieces(backbone: jpt.Backbone) -> None:
    for word in PAPER_WORDS.split():
        assert len(backbone.tokenizer.word_tokens(word)) == 1, word
    for name in jpt.task_names():
        if name.startswith("builtin/"):
            for word in chain(*jpt.load_task(name).words("bert").values()):
                assert len(backbone.tokenizer.word_tokens(word)) == 1, (name, word)


@pytest.mark.plain_programs
def test_ordinary_english_has_few_unknown_pieces(backbone: jpt.Backbone) -> None:
    text = "The film is 2 hours long, costs $7.50 & has a naïve, over-the-top ending; see it!"
    pieces = backbone.tokenizer.encode([text])[0]
    assert backbone.tokenizer.ids.unk not in pieces
    assert len(pieces) < 3 * len(text.split())


@pytest.mark.plain_programs
def test_it_predicts_masked_words_better_than_word_frequency(backbone: jpt.Backbone) -> None:
    """Held-out reviews: cross-entropy at masked positions against a unigram model's."""
    from jpt.data.builtin import reviews

    random = np.random.default_rng(0)
    texts = [review.text for review in reviews("rotten_tomatoes", "test")[:200]]
    ids, tokenizer = backbone.tokenizer.encode(texts), backbone.tokenizer
    rows = [[tokenizer.ids.cls, *row[:30], tokenizer.ids.sep] for row in ids]
    tokens = np.zeros((len(rows), 32), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    positions = np.array([random.integers(1, length - 1) for length in lengths])
    answers = tokens[np.arange(len(rows)), positions].copy()
    tokens[np.arange(len(rows)), positions] = tokenizer.ids.mask
    variables = {"params": backbone.params}
    hidden = backbone.module.apply(
        variables, jnp.asarray(tokens), jnp.asarray(lengths), method="hidden_states"
    )[jnp.arange(len(rows)), positions]
    logits = np.asarray(backbone.module.apply(variables, hidden, method="vocabulary_logits"))
    logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -logits[np.arange(len(rows)), answers].mean()

    counts = np.ones(backbone.config.vocabulary)
    for row in tokenizer.encode([r.text for r in reviews("rotten_tomatoes", "train")]):
        np.add.at(counts, row, 1)
    unigram = -np.log(counts / counts.sum())[answers].mean()
    assert loss < unigram - 0.5, (loss, unigram)


@pytest.mark.plain_programs
@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_torch_transformers_loads_it_and_agrees(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    backbone = jpt.load_backbone(name)
    folder = folder_of(name)
    model, info = transformers.BertForMaskedLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    texts = ["A film to love, and to see twice.", "Dull."]
    their = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model.eval()(
            input_ids=their["input_ids"], attention_mask=their["attention_mask"]
        ).logits.numpy()
    tokens = jnp.asarray(their["input_ids"].numpy(), jnp.int32)
    lengths = jnp.asarray(their["attention_mask"].numpy().sum(1), jnp.int32)
    variables = {"params": backbone.params}
    hidden = backbone.module.apply(variables, tokens, lengths, method="hidden_states")
    logits = np.asarray(backbone.module.apply(variables, hidden, method="vocabulary_logits"))
    for row, length in enumerate(np.asarray(lengths)):
        np.testing.assert_allclose(
            logits[row, :length], expected[row, :length], atol=1e-4 * np.abs(expected).max()
        )


# --- builtin writers

BUILTIN_WRITERS_NAMES = ("builtin/gpt2-mini", "builtin/t5-mini")
TEXT, ASKED = 24, 8


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
@pytest.mark.parametrize("name", BUILTIN_WRITERS_NAMES)
def test_builtin_writers_torch_transformers_loads_it_and_agrees(name: str) -> None:
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
