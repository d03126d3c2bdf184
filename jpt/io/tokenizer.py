"""One interface to Hugging Face tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jpt.errors import InputError

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
    ) -> None:
        self._backend = backend
        self.ids = ids
        self.add_bos = add_bos
        eos = () if ids.eos is None else (ids.eos,)
        self.end_ids = tuple(dict.fromkeys((*eos, *end_ids)))
        self.vocabulary_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokenise a batch of texts."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

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

    def encode_after(self, text: str, continuations: list[str]) -> list[list[int]]:
        """Tokenise texts that follow another text and a space."""
        before = self.word_tokens(text)
        wholes = self.encode([f"{text} {after}" for after in continuations])
        # Tokens never cross a space, but the end of the text may be tokenised differently.
        return [
            whole[len(before) :] if whole[: len(before)] == before else self.word_tokens(after)
            for whole, after in zip(wholes, continuations, strict=True)
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
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (ValueError, OSError) as error:
        raise InputError(f"cannot read {file}: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"cannot read {file}: expected a JSON object, got another value")
    return content
