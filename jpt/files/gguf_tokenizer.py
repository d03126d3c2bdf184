"""Tokenizers from the metadata of GGUF files: byte-level pairs (GPT-2's kind), or SentencePiece's.

The library's own algorithm merges in both. A SentencePiece file lists no merges: a pair of pieces
merges where its whole is a piece, the best score first, so the merges are written out from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jpt.errors import InputError
from jpt.files.gguf_file import GgufFile
from jpt.files.gguf_splits import SPLITS
from jpt.files.tokenizer import SpecialIds, TextTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODELS = ("gpt2", "llama")
"""What tokenizer.ggml.model may say: byte-level pairs, or SentencePiece's."""

_NORMAL, _UNKNOWN, _CONTROL, _WRITTEN = 1, 2, 3, 4  # of tokenizer.ggml.token_type
_LONGEST_TOKEN = 1024  # characters; real ones have up to 256
_SPACE = "▁"  # SentencePiece's spelling of a space
# What llama.cpp takes where a SentencePiece file does not say: Llama's own.
_LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0, "pad": None}
_ID_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def read_gguf_tokenizer(file: GgufFile, required: tuple[str, ...] = ("eos",)) -> TextTokenizer:
    """Builds the tokenizer that a GGUF file describes."""
    tokens = _Tokens(file.path, file.metadata)
    backend, add_bos = _byte_level(tokens) if tokens.model == "gpt2" else _sentencepiece(tokens)
    ids = tokens.special_ids()
    _add_special(backend, tokens, ids)
    add_bos = tokens.flag("add_bos_token", add_bos)
    if add_bos and ids["bos"] is None:
        raise tokens.error("bos_token_id", "missing; it should stand before every text")
    for name in required:
        if ids.get(name) is None:
            key = _ID_KEYS.get(name, name)
            raise tokens.error(f"{key}_token_id", "missing, which this family of models needs")
    return TextTokenizer(backend, SpecialIds(cls=None, sep=None, mask=None, **ids), add_bos)


class _Tokens:
    """The fields of the tokenizer, checked when asked for."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path, self._metadata = path, metadata
        self.model = self.get("model")
        if self.model not in MODELS:
            raise self.error("model", f"{str(self.model)[:40]!r}; known are {', '.join(MODELS)}")
        listed = self.texts("tokens")
        # llama.cpp calls an empty one so.
        self.pieces = [piece or f"[EMPTY_{token}]" for token, piece in enumerate(listed)]
        self.ids = {piece: token for token, piece in enumerate(self.pieces)}
        if not listed or len(self.ids) != len(listed):
            raise self.error("tokens", f"{len(listed)} tokens, {len(self.ids)} of them different")
        if max(map(len, listed)) > _LONGEST_TOKEN:
            raise self.error("tokens", f"of up to {max(map(len, listed))} characters")
        self.types = self.numbers("token_type", _NORMAL).tolist()
        self.typed = self.get("token_type") is not None

    def get(self, name: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}")

    def error(self, name: str, reason: str) -> InputError:
        return InputError(
            f"{self._path}: tokenizer.ggml.{name} is {reason}; take a file that a newer llama.cpp"
            " made, or the model's safetensors folder"
        )

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        value = self.get(name)
        if not isinstance(value, list):
            raise self.error(name, "no list of texts" if value is not None else "missing")
        return value

    def numbers(self, name: str, default: float) -> np.ndarray:
        """One number a token."""
        value = self.get(name)
        if value is None:
            return np.full(len(self.pieces), default)
        if not isinstance(value, np.ndarray) or len(value) != len(self.pieces):
            raise self.error(name, f"no list of {len(self.pieces)} numbers, one a token")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A flag that may be left out."""
        value = self.get(name)
        if not isinstance(value, bool | None):
            raise self.error(name, f"{str(value)[:40]!r}, neither true nor false")
        return default if value is None else value

    def special_ids(self) -> dict[str, int | None]:
        """Ids of the special pieces."""
        usual = _LLAMA_IDS if self.model == "llama" else dict.fromkeys(_ID_KEYS)
        ids: dict[str, int | None] = {}
        for name, key in _ID_KEYS.items():
            token = self.get(f"{key}_token_id")
            ids[name] = usual[name] if token is None else token
            if token is None and ids[name] is not None and ids[name] >= len(self.pieces):
                ids[name] = None
            if token is not None and not (type(token) is int and 0 <= token < len(self.pieces)):
                reason = f"{str(token)[:40]}, but there are {len(self.pieces)} tokens"
                raise self.error(f"{key}_token_id", reason)
        return ids


def _byte_level(tokens: _Tokens) -> tuple[Tokenizer, bool]:
    """Pairs of bytes, merged in the order of the file."""
    from tokenizers import decoders, normalizers

    kind = tokens.get("pre")
    if kind is None:
        raise tokens.error("pre", f"missing, so how text is split is unknown: {', '.join(SPLITS)}")
    if kind not in SPLITS:
        raise tokens.error("pre", f"{str(kind)[:40]!r}; known are {', '.join(SPLITS)}")
    split = SPLITS[kind]
    merges = [_pair(tokens, merge) for merge in tokens.texts("merges")]
    backend = _build(tokens, merges, ignore_merges=split.whole_words)
    if split.normalizes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split.build()
    backend.decoder = decoders.ByteLevel()
    return backend, split.add_bos


def _pair(tokens: _Tokens, merge: str) -> tuple[str, str]:
    """The two pieces of a merge; the first may itself begin with a space."""
    at = merge.find(" ", 1)
    left, right = merge[:at], merge[at + 1 :]
    if at < 0 or left not in tokens.ids or right not in tokens.ids:
        raise tokens.error("merges", f"with {merge[:40]!r}, which is no pair of tokens")
    if left + right not in tokens.ids:
        raise tokens.error("merges", f"with {merge[:40]!r}, whose whole is no token")
    return left, right


def _sentencepiece(tokens: _Tokens) -> tuple[Tokenizer, bool]:
    """Pieces of characters, merged by score; characters outside the vocabulary become bytes."""
    from tokenizers import decoders, normalizers

    if tokens.flag("remove_extra_whitespaces", False):
        raise tokens.error("remove_extra_whitespaces", "true, which is not computed")
    unknown = tokens.special_ids()["unk"]
    backend = _build(
        tokens,
        _scored_merges(tokens),
        unk_token=None if unknown is None else tokens.pieces[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    steps = [normalizers.Replace(" ", _SPACE)]
    ends = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if tokens.flag("add_space_prefix", True):
        # One more space even before a space, as SentencePiece has it; Metaspace would not.
        steps.insert(0, normalizers.Prepend(_SPACE))
        ends.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(ends)
    return backend, True


def _scored_merges(tokens: _Tokens) -> list[tuple[str, str]]:
    """All pairs of pieces whose whole is a piece, the best score of the whole first."""
    scores = tokens.numbers("scores", math.nan).astype(np.float64).tolist()
    if not all(map(math.isfinite, scores)):
        raise tokens.error("scores", "missing or not finite")
    mergeable = {
        piece: token for piece, token in tokens.ids.items() if tokens.types[token] == _NORMAL
    }
    pairs = [
        (-scores[token], token, mergeable[whole[:at]], mergeable[whole[at:]], at, whole)
        for whole, token in mergeable.items()
        for at in range(1, len(whole))
        if whole[:at] in mergeable and whole[at:] in mergeable
    ]
    # Equal scores by ids: the order of the tokenizer.json files that model makers publish.
    return [(whole[:at], whole[at:]) for *_, at, whole in sorted(pairs)]


def _build(tokens: _Tokens, merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    from tokenizers import Tokenizer, models

    try:
        return Tokenizer(models.BPE(vocab=tokens.ids, merges=merges, **options))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise tokens.error("tokens", f"not a vocabulary ({reason})") from None


def _add_special(backend: Tokenizer, tokens: _Tokens, ids: Mapping[str, int | None]) -> None:
    """Takes control pieces and written ones out of the text before anything else is done to it."""
    from tokenizers import AddedToken

    # Where the file gives types, a normal piece stays one, even if rows are filled up with it.
    named = set() if tokens.typed else set(ids.values())
    pieces = list(enumerate(zip(tokens.pieces, tokens.types, strict=True)))
    special = [
        AddedToken(piece, normalized=False, special=True)
        for token, (piece, kind) in pieces
        if token in named or kind in (_UNKNOWN, _CONTROL)
    ]
    written = [
        AddedToken(piece, normalized=False, special=False)
        for _, (piece, kind) in pieces
        if kind == _WRITTEN
    ]
    backend.add_special_tokens(special)
    backend.add_tokens(written)
