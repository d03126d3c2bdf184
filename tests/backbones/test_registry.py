"""Built-in models: size on disk, vocabulary, better than word frequency, equal in torch."""

import json
from functools import cache
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import BUILTIN, PREFIX
from jpt.data.builtin import reviews
from jpt.io.tensors import open_tensors

ENCODERS = ("builtin/bert-medium", "builtin/bert-small")
GENERATORS = ("builtin/gpt2-mini", "builtin/t5-mini")
EVERY = (*ENCODERS, *GENERATORS)
# METHOD of the paper's code, section 4, column bert-base-uncased.
PAPER_WORDS = (
    "negative positive moderate conflict no neutral yes unacceptable acceptable false true"
)
TEXT, ASKED = 24, 8
TORCH = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}
every_model = pytest.mark.parametrize("name", EVERY)
load = cache(jpt.load_backbone)


def folder_of(name: str) -> Path:
    return BUILTIN / name.removeprefix(PREFIX)


def ids_of(backbone: jpt.Backbone, split: str, count: int, least: int = 0) -> list[list[int]]:
    texts = [review.text for review in reviews("rotten_tomatoes", split)]
    return [row for row in backbone.tokenizer.encode(texts) if len(row) >= least][:count]


def unigram_loss(backbone: jpt.Backbone, rows: list[list[int]], answers: np.ndarray) -> float:
    """Cross-entropy of answers under the word frequencies of some rows."""
    counts = np.ones(backbone.config.vocabulary)
    for row in rows:
        np.add.at(counts, row, 1)
    return float(-np.log(counts / counts.sum())[answers].mean())


def loss_of(logits: np.ndarray, answers: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-np.take_along_axis(logits, answers[..., None], axis=-1).mean())


def test_encoders_of_different_width_and_depth_ship() -> None:
    assert set(EVERY) <= set(jpt.backbone_names())
    shapes = [json.loads((folder_of(name) / "config.json").read_text()) for name in ENCODERS]
    assert len({shape["hidden_size"] for shape in shapes}) == 2
    assert len({shape["num_hidden_layers"] for shape in shapes}) == 2


def test_files_are_small() -> None:
    sizes = [path.stat().st_size for path in BUILTIN.rglob("*") if path.is_file()]
    assert max(sizes) <= 10_000_000 and sum(sizes) <= 26_000_000
    for name in GENERATORS:
        assert (folder_of(name) / "model.safetensors").stat().st_size < 8_000_000


@every_model
def test_weights_are_stored_in_bfloat16(name: str) -> None:
    dtypes = open_tensors(folder_of(name)).dtypes.values()
    assert {str(dtype) for dtype in dtypes} == {"bfloat16"}


@every_model
def test_label_words_are_single_tokens(name: str) -> None:
    backbone = load(name)
    tasks = [task for task in jpt.task_names() if task.startswith("builtin/")]
    words = [*chain(*(chain(*jpt.load_task(t).words(backbone.model_type).values()) for t in tasks))]
    for word in words if name in GENERATORS else [*words, *PAPER_WORDS.split()]:
        tokenizer = backbone.tokenizer
        is_encoder = name in ENCODERS
        ids = tokenizer.word_tokens(word) if is_encoder else tokenizer.word_after("Answer:", word)
        assert len(ids) == 1, word


@pytest.mark.parametrize("name", ENCODERS)
def test_ordinary_english_has_few_unknown_tokens(name: str) -> None:
    tokenizer = load(name).tokenizer
    text = "The film is 2 hours long, costs $7.50 & has a naïve, over-the-top ending; see it!"
    (tokens,) = tokenizer.encode([text])
    assert tokenizer.ids.unk not in tokens
    assert len(tokens) < 3 * len(text.split())


@pytest.mark.parametrize("name", GENERATORS)
def test_text_survives_encoding_and_decoding(name: str) -> None:
    tokenizer = load(name).tokenizer
    (ids,) = tokenizer.encode(["the film is unforgettable."])
    assert tokenizer.decode(ids) == "the film is unforgettable."


def test_gpt2_text_starts_with_the_token_it_was_trained_with() -> None:
    assert load("builtin/gpt2-mini").tokenizer.add_bos


def encoder_logits(backbone: jpt.Backbone, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    variables = {"params": backbone.params}
    inputs = jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)
    hidden = backbone.module.apply(variables, *inputs, method="hidden_states")
    return np.asarray(backbone.module.apply(variables, hidden, method="vocabulary_logits"))


def generator_logits(backbone: jpt.Backbone, rows: np.ndarray) -> np.ndarray:
    """Scores of the last tokens of every row, given all before them."""
    count, ids = len(rows), backbone.tokenizer.ids
    apply = jax.jit(backbone.module.apply, static_argnames="every_position")
    if backbone.layout == "decoder":
        tokens, options = np.pad(rows, ((0, 0), (1, 0)), constant_values=ids.bos), {}
        options["every_position"] = True
    else:
        tokens = np.pad(rows[:, :TEXT], ((0, 0), (0, 1)), constant_values=ids.eos)
        decoded = np.pad(rows[:, TEXT : TEXT + ASKED - 1], ((0, 0), (1, 0)))
        options = {"decoder_tokens": jnp.asarray(decoded, jnp.int32)}
    lengths = jnp.full(count, tokens.shape[1], jnp.int32)
    inputs = jnp.asarray(tokens, jnp.int32), lengths
    logits = np.asarray(apply({"params": backbone.params}, *inputs, **options).logits)
    return logits[:, TEXT : TEXT + ASKED] if backbone.layout == "decoder" else logits


@pytest.mark.slow
@pytest.mark.plain_programs
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_predicts_masked_words_better_than_word_frequency(name: str) -> None:
    backbone, random = load(name), np.random.default_rng(0)
    ids, every = backbone.tokenizer.ids, np.arange(200)
    rows = [[ids.cls, *row[:30], ids.sep] for row in ids_of(backbone, "test", 200)]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.array([row + [0] * (32 - len(row)) for row in rows], np.int32)
    positions = np.array([random.integers(1, length - 1) for length in lengths])
    answers = tokens[every, positions].copy()
    tokens[every, positions] = ids.mask
    loss = loss_of(encoder_logits(backbone, tokens, lengths)[every, positions], answers)
    frequency = unigram_loss(backbone, ids_of(backbone, "train", 10**6), answers)
    assert loss < frequency - 0.5, (loss, frequency)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_continues_unseen_text_better_than_word_frequency(name: str) -> None:
    backbone, least = load(name), TEXT + ASKED
    rows = np.array([row[:least] for row in ids_of(backbone, "test", 64, least)])
    loss = loss_of(generator_logits(backbone, rows), rows[:, TEXT:])
    frequency = unigram_loss(backbone, ids_of(backbone, "train", 3000, least), rows[:, TEXT:])
    assert loss < frequency - 0.3, (loss, frequency)


@pytest.mark.long
def test_a_prompt_on_the_t5_beats_the_majority_class() -> None:
    # The GPT-2 is tuned by the default tests.
    test = jpt.tune("builtin/t5-mini", "builtin/rotten_tomatoes").record["test"]
    assert test["accuracy"] >= test["majority"] + 0.08, test


@pytest.mark.parity
@pytest.mark.plain_programs
@every_model
def test_torch_transformers_loads_it_and_agrees(name: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    backbone, folder = load(name), folder_of(name)
    kind = getattr(transformers, TORCH[backbone.model_type])
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A film to love, and to see twice.", "Dull."]
    if name in ENCODERS:
        inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        is_text = inputs["attention_mask"].numpy().astype(bool)
        found = encoder_logits(backbone, inputs["input_ids"].numpy(), is_text.sum(1))
    else:
        ids, (framed,) = backbone.tokenizer.ids, backbone.tokenizer.encode(texts[:1])
        is_t5 = backbone.layout == "encoder_decoder"
        framed = [*framed, ids.eos] if is_t5 else [ids.bos, *framed]
        assert tokenizer(texts[0])["input_ids"] == framed
        rows = ids_of(backbone, "test", 4, TEXT + ASKED)
        rows = np.array([row[: TEXT + ASKED] for row in rows])
        if is_t5:
            tokens = np.pad(rows[:, :TEXT], ((0, 0), (0, 1)), constant_values=ids.eos)
            before = np.pad(rows[:, TEXT : TEXT + ASKED - 1], ((0, 0), (1, 0)))
            inputs = {"decoder_input_ids": torch.from_numpy(before)}
        else:
            tokens, inputs = np.pad(rows, ((0, 0), (1, 0)), constant_values=ids.bos), {}
        inputs["input_ids"] = torch.from_numpy(tokens)
        found, is_text = generator_logits(backbone, rows), np.ones((4, ASKED), bool)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits.numpy()
    if backbone.layout == "decoder":
        expected = expected[:, TEXT : TEXT + ASKED]
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found[is_text], expected[is_text], rtol=0, atol=tolerance)
