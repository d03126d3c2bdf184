"""A WordPiece tokenizer of a few English words, written as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jpt.io.tokenizer import TextTokenizer, load_tokenizer

WORDS = "a the film is was good bad dull bright not and it i saw old new one two three four".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    *SPECIAL,
    *WORDS,
    *(f"##{c}" for c in LETTERS),
    *(c for c in LETTERS if c not in "ai"),
]


def write_toy_tokenizer(folder: Path, config: dict | None = None) -> Path:
    """Writes tokenizer.json (and a tokenizer_config.json, when given) into a folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {piece: token for token, piece in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(16)
    folder.mkdir(exist_ok=True, parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., Path]:
    """Gives the function that writes the toy tokenizer."""
    return write_toy_tokenizer


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Gives the toy tokenizer, read back from its folder."""
    return load_tokenizer(write_toy_tokenizer(tmp_path_factory.mktemp("toy_tokenizer")))
