"""Pieces of text that two vocabularies share, however each of them writes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from jpt.backbones.registry import Backbone
from jpt.errors import InputError
from jpt.mesh import fetch
from jpt.prompts.initialisers import sampled_ids

_WORD_STARTS = ("\u2581", "\u0120")
"""What stands before a piece that starts a word: SentencePiece's mark, and byte-level BPE's."""
_CONTINUES = "##"
"""What stands before a piece that does not, in WordPiece."""


def shared_pieces(
    source: Backbone, target: Backbone
) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
    """Finds the pieces of text that stand in both vocabularies."""
    # Pieces are the same where they have the same text and both begin a word or both go on with
    # one: ``film`` of WordPiece is SentencePiece's and byte-level BPE's with their mark of a word's
    # start. Special pieces and pieces that were never trained are left out.
    first, second = _pieces_of(source), _pieces_of(target)
    pairs = [(token, second[piece]) for piece, token in first.items() if piece in second]
    if not pairs:
        raise InputError(
            f"{source.name} ({len(first)} pieces) and {target.name} ({len(second)} pieces) share no"
            " piece of text, and this method needs some; train a projector with jpt project train"
        )
    found = np.array(sorted(pairs), np.int64)
    return found[:, 0], found[:, 1]


def piece_embeddings(backbone: Backbone, ids: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N D"]:
    """Looks up the embeddings of pieces."""
    rows = backbone.params["embeddings"]["word"][ids.astype(np.int32)]
    return fetch(rows).astype(np.float64)


def _pieces_of(backbone: Backbone) -> dict[tuple[bool, str], int]:
    """Ids of the pieces that stand for text, by (starts a word, text)."""
    tokenizer = backbone.tokenizer
    count = min(backbone.config.vocabulary, tokenizer.vocabulary_size)
    written = [tokenizer.piece(token) for token in range(count)]
    special = {token for token in tokenizer.ids if token is not None}
    mark = next((m for m in _WORD_STARTS if any(p.startswith(m) for p in written)), None)
    kept = sampled_ids(written, special).tolist()
    return {plain: token for token in reversed(kept) if (plain := _plain(written[token], mark))[1]}


def _plain(piece: str, mark: str | None) -> tuple[bool, str]:
    """Whether a piece starts a word, and its text without the vocabulary's marks."""
    if mark is not None:
        return piece.startswith(mark), piece.removeprefix(mark)
    return not piece.startswith(_CONTINUES), piece.removeprefix(_CONTINUES)


def choose_anchors(count: int, wanted: int) -> Sequence[int]:
    """Chooses anchors evenly over a list of shared pieces, the same each time."""
    # A vocabulary begins with digits, signs and single letters, so that its head alone would say
    # little.
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()
