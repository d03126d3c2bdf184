"""The train text as arrays of tokens: sentences with their words, and texts of 64 tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from vocabulary import SPECIAL, build_tokenizer, choose_pieces

from jpt.data.builtin import Split, cut_sentences, reviews

TEXT_TOKENS = 64
CLS, SEP, MASK = (SPECIAL.index(name) for name in ("[CLS]", "[SEP]", "[MASK]"))


@dataclass(frozen=True)
class Corpus:
    """Sentences of one split of both sources, in text order.

    Attributes:
        tokens: The tokens of all sentences, concatenated.
        words: for each token, which white-space separated word of its sentence it belongs to.
        offsets: where each sentence starts in `tokens`, and the end.
        review: for each sentence, the number of its review.
        rows: [N, 64] texts `[CLS] tokens [SEP]`, padded with 0; those of Rotten Tomatoes first.
        row_lengths: how many tokens of each row are text.
        row_review: for each row, the number of its review.
        rotten_tomatoes: how many reviews, the first ones, are of Rotten Tomatoes.
    """

    tokens: np.ndarray
    words: np.ndarray
    offsets: np.ndarray
    review: np.ndarray
    rows: np.ndarray
    row_lengths: np.ndarray
    row_review: np.ndarray
    rotten_tomatoes: int


def read_sentences(split: Split) -> list[list[str]]:
    """Return every review of a split as sentences, Rotten Tomatoes first."""
    sources = ("rotten_tomatoes", "imdb")
    return [cut_sentences(row.text) for source in sources for row in reviews(source, split)]


def load_pieces(teacher: Path, cache: Path) -> list[str]:
    """Choose the vocabulary on the train split, once; later calls read the cached list."""
    path = cache / "pieces.txt"
    if not path.exists():
        tokenizer = tokenizers.Tokenizer.from_file(str(teacher / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        count: Counter[str] = Counter()
        for text in read_sentences("train"):
            for piece in tokenizer.encode_batch(text, add_special_tokens=False):
                count.update(piece.tokens)
        teacher_pieces = (teacher / "vocab.txt").read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(choose_pieces(count, teacher_pieces)), encoding="utf-8")
    return path.read_text(encoding="utf-8").split("\n")


def load_corpus(split: Split, pieces: list[str], cache: Path) -> Corpus:
    """Tokenise a split, once; later calls read the cached arrays."""
    path = cache / f"corpus-{split}.npz"
    if not path.exists():
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **encode_corpus(read_sentences(split), build_tokenizer(pieces)))
        path.with_suffix(".tmp").rename(path)
    with np.load(path) as arrays:
        return Corpus(**arrays, rotten_tomatoes=len(reviews("rotten_tomatoes", split)))


def encode_corpus(texts: list[list[str]], tokenizer: tokenizers.Tokenizer) -> dict[str, np.ndarray]:
    """Return the arrays of a `Corpus` for reviews split into sentences."""
    tokens, words, lengths, review, rows, row_review = [], [], [], [], [], []
    for number, text in enumerate(texts):
        split = [sentence.split() for sentence in text]
        encoded = tokenizer.encode_batch(split, is_pretokenized=True, add_special_tokens=False)
        ids = [np.array(one.ids, np.uint16) for one in encoded]
        tokens += ids
        words += [np.array(one.word_ids, np.uint16) for one in encoded]
        lengths += [len(one) for one in ids]
        review += [number] * len(ids)
        made = fill_rows(ids)
        rows += made
        row_review += [number] * len(made)
    return {
        "tokens": np.concatenate(tokens),
        "words": np.concatenate(words),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "review": np.array(review, np.int32),
        "rows": np.stack([np.pad(row, (0, TEXT_TOKENS - len(row))) for row in rows]),
        "row_lengths": np.array([len(row) for row in rows], np.int32),
        "row_review": np.array(row_review, np.int32),
    }


def fill_rows(ids: list[np.ndarray]) -> list[np.ndarray]:
    """Cut a review into texts of at most 62 tokens; drop a short rest of a longer review."""
    room = TEXT_TOKENS - 2
    text = np.concatenate(ids)
    starts = [start for start in range(0, len(text), room) if not 0 < len(text) - start < 24]
    return [
        np.concatenate([[CLS], text[start : start + room], [SEP]]).astype(np.uint16)
        for start in starts or [0]
    ]
