"""One interface to Hugging Face tokenizers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jpt.errors import InputError
from jpt.io.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


TOKENIZER_FILE = "tokenizer.json"

# Special tokens of well-known vocabularies, for folders that do not name theirs.
USUAL_SPECIAL_TOKENS = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}


_MARK = re.compile(r"[\[<].+[\]>]", re.DOTALL)
"""Form of a special token."""


class SpecialIds(NamedTuple):
    """Ids of the special tokens; None where the vocabulary has no such token."""

    cls: int | None
    sep: int | None
    mask: int | None
    pad: int | None
    unk: int | None
    bos: int | None = None
    eos: int | None = None


class TextTokenizer:
    """Tokenizer that adds nothing: no special tokens, leading space, truncation or padding."""

    def __init__(
        self,
        backend: Tokenizer,
        ids: SpecialIds,
        add_bos: bool = False,
        end_ids: tuple[int, ...] = (),
        table_size: int | None = None,
    ) -> None:
        self._backend = backend
        self.ids = ids
        self.add_bos = add_bos
        eos = () if ids.eos is None else (ids.eos,)
        self.end_ids = tuple(dict.fromkeys((*eos, *end_ids)))
        self.vocabulary_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        # Rows of the model's word table, which may also be padded; None if there is no model.
        self.table_size = table_size
        self._special = self._special_tokens()

    def check_ids(self, ids: Iterable[int], where: str) -> None:
        """Raise InputError for a token that has no row in the model's word table."""
        # JAX would clamp the id and read the row of another token.
        largest = max(ids, default=0)
        if self.table_size is not None and largest >= self.table_size:
            raise InputError(
                f"{where}: expected token ids below {self.table_size}, the number of rows of the "
                f"model's word table, got {largest} ({self.token_text(largest)!r}); remove this "
                "token, or save the model after resize_token_embeddings(len(tokenizer))"
            )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokenise a batch of texts; special tokens in them count as such."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    # Rows come from anywhere: "[MASK]" or "</s>" in a text must not be read as a mask or an end.
    # As `split_special_tokens` of transformers, and also where the model itself knows the token.

    def encode_plain(
        self, texts: list[str], own: Sequence[Iterable[bool]] | None = None
    ) -> list[list[int]]:
        """Tokenise rows: special tokens are plain text, but those that `own` marks, in order."""
        if own is not None:  # those of a template
            encoded = zip(self.encode(texts), own, strict=True)
            return [self._keep(ids, iter(of)) for ids, of in encoded]
        self._backend.encode_special_tokens = True
        try:
            encodings = self.encode(texts)
        finally:
            self._backend.encode_special_tokens = False
        return [[part for token in ids for part in self._spell(token)] for ids in encodings]

    def count_special(self, texts: list[str]) -> list[int]:
        """Return how many special tokens each text has."""
        return [sum(token in self._special for token in ids) for ids in self.encode(texts)]

    def _special_tokens(self) -> frozenset[int]:
        """Return the tokens that are never text."""
        ids, added = self.ids, self._backend.get_added_tokens_decoder()
        named = {token for token in (*ids, *self.end_ids) if token is not None}
        # A word or a period that also ends or pads texts stays text, and so does what is unknown;
        # but GPT-2's unknown token is its end token.
        marks = {token for token in named if _MARK.fullmatch(self.token_text(token))}
        marks |= {token for token, of in added.items() if of.special}
        unknown = {ids.unk} - {ids.cls, ids.sep, ids.mask, ids.bos, *self.end_ids}
        return frozenset(marks - unknown)

    def _keep(self, ids: list[int], own: Iterator[bool]) -> list[int]:
        kept: list[int] = []
        for token in ids:
            if token not in self._special or next(own, False):
                kept.append(token)
            else:
                kept += self.encode_plain([self.token_text(token)])[0]
        return kept

    def _spell(self, token: int) -> list[int]:
        """Return a special token that the model knows as its first character and the rest."""
        if token not in self._special:
            return [token]
        text, model = self.token_text(token), self._backend.model
        parts = [part.id for half in (text[:1], text[1:]) if half for part in model.tokenize(half)]
        return [part for part in parts if part not in self._special]

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of everything that affects tokenisation."""
        kind = [self._backend.to_str(), self.ids, self.add_bos]
        return hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:16]

    def word_tokens(self, word: str) -> list[int]:
        """Return the token ids of a word at the start of a text."""
        return self._backend.encode(word, add_special_tokens=False).ids

    def word_after(self, text: str, word: str) -> list[int]:
        """Return the token ids of a word that follows a text and a space."""
        return self.encode_after(text, [word])[0]

    def encode_after(
        self, text: str, continuations: list[str], plain: bool = False
    ) -> list[list[int]]:
        """Tokenise texts that follow another text and a space; `plain` as in `encode_plain`."""
        before, wholes = self.word_tokens(text), [f"{text} {after}" for after in continuations]
        if not plain:
            encoded, alone = self.encode(wholes), self.encode
        else:
            own = [[True] * self.count_special([text])[0]] * len(wholes)
            encoded, alone = self.encode_plain(wholes, own if own[0] else None), self.encode_plain
        # Tokens never cross a space, but the end of the text may be tokenised differently.
        return [
            whole[len(before) :] if whole[: len(before)] == before else alone([after])[0]
            for whole, after in zip(encoded, continuations, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, without special tokens."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=True)

    def find(self, token_text: str) -> int | None:
        """Return the id of a token, or None if the vocabulary does not have it."""
        return self._backend.token_to_id(token_text)

    def token_text(self, token: int) -> str:
        """Return the text of a token as in the vocabulary."""
        return self._backend.id_to_token(int(token)) or f"<{int(token)}>"

    @property
    def unknown(self) -> int | None:
        """Id of the unknown token, if there is one."""
        return self.ids.unk


def load_tokenizer(
    folder: str | Path, required: tuple[str, ...] = ("cls", "sep", "mask", "pad")
) -> TextTokenizer:
    """Load the tokenizer of a Hugging Face folder, without running its code or downloading."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"tokenizer folder {folder} does not exist; check the path")
    fast = (folder / TOKENIZER_FILE).exists()
    backend = _read_file(folder / TOKENIZER_FILE) if fast else _ask_transformers(folder)
    backend.no_padding()
    backend.no_truncation()
    ids = _special_ids(folder, backend)
    for name in required:
        if getattr(ids, name) is None:
            raise InputError(
                f"the tokenizer in {folder} has no {name} token, which this model family needs; "
                f'name it in tokenizer_config.json as "{name}_token"'
            )
    return TextTokenizer(backend, ids, _adds_bos(backend, ids), _further_end_ids(folder))


def _adds_bos(backend: Tokenizer, ids: SpecialIds) -> bool:
    """Return whether the tokenizer itself prepends its bos token."""
    return ids.bos is not None and backend.encode("a").ids[:1] == [ids.bos]


def _further_end_ids(folder: Path) -> tuple[int, ...]:
    """Return further ids that end a text: instruction-tuned models have several."""
    named = _read_json(folder / "generation_config.json").get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return tuple(token for token in ids if type(token) is int)


def _read_file(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"cannot read {file}: {_one_line(error)}") from None


def _ask_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the folder's files make it raise
        raise InputError(
            f"folder {folder} has no {TOKENIZER_FILE} and transformers finds no tokenizer in "
            f"it ({_one_line(error)}); add the tokenizer's files"
        ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the tokenizer in {folder} ({type(tokenizer).__name__}) has no fast version; "
            f"convert it and save its {TOKENIZER_FILE}"
        )
    return backend


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _special_ids(folder: Path, backend: Tokenizer) -> SpecialIds:
    named = {**_read_json(folder / "special_tokens_map.json")}
    named.update(_read_json(folder / "tokenizer_config.json"))
    return SpecialIds(*(_special_id(name, named, backend) for name in SpecialIds._fields))


def _special_id(name: str, named: dict[str, Any], backend: Tokenizer) -> int | None:
    token_text = named.get(f"{name}_token")
    token_text = token_text.get("content") if isinstance(token_text, dict) else token_text
    candidates = (token_text,) if isinstance(token_text, str) else USUAL_SPECIAL_TOKENS[name]
    return next(
        (token for token in map(backend.token_to_id, candidates) if token is not None), None
    )


def _read_json(file: Path) -> dict[str, Any]:
    content = read_json(file) if file.exists() else {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, got {type(content).__name__}; repair it")
    return content
