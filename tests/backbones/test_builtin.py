"""The backbones that ship: small, ordinary, and what their tasks need."""

from __future__ import annotations

import json
from itertools import chain

import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import BUILTIN, PREFIX
from jpt.io.tensors import open_tensors

pytestmark = pytest.mark.usefixtures("plain_programs")

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


def test_two_encoders_of_different_width_and_depth_ship() -> None:
    assert set(NAMES) <= set(jpt.backbone_names())
    shapes = [json.loads((folder_of(name) / "config.json").read_text()) for name in NAMES]
    assert len({shape["hidden_size"] for shape in shapes}) == 2
    assert len({shape["num_hidden_layers"] for shape in shapes}) == 2


def test_files_are_small() -> None:
    sizes = [path.stat().st_size for path in BUILTIN.rglob("*") if path.is_file()]
    assert max(sizes) <= 10_000_000
    assert sum(sizes) <= 26_000_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_stored_in_bfloat16(name: str) -> None:
    source = open_tensors(folder_of(name))
    assert {str(dtype) for dtype in source.dtypes.values()} == {"bfloat16"}


def test_label_words_are_single_pieces(backbone: jpt.Backbone) -> None:
    for word in PAPER_WORDS.split():
        assert len(backbone.tokenizer.word_tokens(word)) == 1, word
    for name in jpt.task_names():
        if name.startswith("builtin/"):
            for word in chain(*jpt.load_task(name).words("bert").values()):
                assert len(backbone.tokenizer.word_tokens(word)) == 1, (name, word)


def test_ordinary_english_has_few_unknown_pieces(backbone: jpt.Backbone) -> None:
    text = "The film is 2 hours long, costs $7.50 & has a naïve, over-the-top ending; see it!"
    pieces = backbone.tokenizer.encode([text])[0]
    assert backbone.tokenizer.ids.unk not in pieces
    assert len(pieces) < 3 * len(text.split())


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
