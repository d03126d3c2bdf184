"""DOC"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.testing import VOCABULARY, write_tiny_backbone
from jpt.types import Prompt, PromptCard

# --- planted

BACKBONE = "builtin/bert-small"
LENGTH, WIDTH = 6, 128
SHORT = {"max_tokens": 20, "batch_size": 8}


def write_easy(folder: Path) -> Path:
    """Writes fourteen rows in which the label word itself stands."""
    rows = [
        json.dumps({"text": f"a {word} film, number {number}", "label": word}) + "\n"
        for number in range(7)
        for word in ("good", "bad")
    ]
    text = "".join(rows)
    toml = (
        'name = "easy"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
        'template = "{text}"\n[label_words]\nbad = "bad"\ngood = "good"\n'
    )
    return write_task(folder, train=text, validation=text, test=text, toml=toml)


def planted(backbone: jpt.Backbone, task: Path) -> dict[str, Prompt]:
    """Tunes one prompt for the task, signs it as another task's, and adds two of noise."""
    options = {"length": LENGTH, "learning_rate": 0.03, "eval_every": 40, **SHORT}
    tuned = jpt.tune(backbone, task, steps=40, **options)
    assert tuned.record["test"]["accuracy"] == 1.0
    random = np.random.default_rng(0)
    sources = {
        name: Prompt(
            random.normal(0, 2, (LENGTH, WIDTH)).astype(np.float32),
            PromptCard(BACKBONE, name, kind, seed=0),
        )
        for name, kind in (("apples", "fruit"), ("bananas", None))
    }
    card = PromptCard(BACKBONE, "cherries", "sentiment", seed=0)
    return {**sources, "cherries": Prompt(tuned.prompt.values, card)}


# --- toy task


def write_task(folder: Path, **changes: str) -> Path:
    """Writes a small task of one's own: forty rows in two classes."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"good": ("fine", "great", "lovely"), "bad": ("poor", "awful", "boring")}
    for split in ("train", "validation", "test"):
        rows = [
            {"text": f"a {word} film, number {number}", "label": label}
            for number in range(7)
            for label in words
            for word in words[label]
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(changes.get(split, text))
    toml = (
        'name = "mood"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
        'template = "{text}"\n[label_words]\nbad = "bad"\ngood = "good"\n'
    )
    (folder / "task.toml").write_text(changes.get("toml", toml))
    return folder


# --- toy tokenizer

WORDS = "a the film is was good bad dull bright not and it i saw old new one two three four".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOY_TOKENIZER_VOCABULARY = [
    *SPECIAL,
    *WORDS,
    *(f"##{c}" for c in LETTERS),
    *(c for c in LETTERS if c not in "ai"),
]


def write_toy_tokenizer(folder: Path, config: dict | None = None) -> Path:
    """Writes tokenizer.json (and a tokenizer_config.json, when given) into a folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {piece: token for token, piece in enumerate(TOY_TOKENIZER_VOCABULARY)}
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


# --- tiny sweep

TINY_SWEEP_WORDS = [piece for piece in VOCABULARY if piece.isalpha()]
TOML = (
    'type = "sentiment"\nfields = ["text"]\nlabels = ["a", "b"]\ntemplate = "{text}"\n'
    f'[label_words]\na = "{TINY_SWEEP_WORDS[0]}"\nb = "{TINY_SWEEP_WORDS[1]}"\n'
)


def tiny_sweep_write_task(folder: Path) -> Path:
    """Writes a task whose labels hang on one word."""
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(TOML)
    rows = [
        {"text": f"{TINY_SWEEP_WORDS[2 + number % 3]} {word}", "label": label}
        for number in range(6)
        for label, word in (("a", TINY_SWEEP_WORDS[5]), ("b", TINY_SWEEP_WORDS[6]))
    ]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_fixed(folder: Path, **changes: Any) -> dict[str, Any]:
    """Writes backbone and task; gives the table of what is fixed."""
    task = tiny_sweep_write_task(folder / "first")
    backbone = write_tiny_backbone(folder / "bert", "bert")
    fixed = {"backbone": str(backbone), "task": str(task), "steps": 6, "batch_size": 4}
    return {**fixed, "length": 3, "eval_every": 3, **changes}


def read_prompts(folder: Path) -> dict[str, bytes]:
    """All prompts of a sweep as bytes."""
    runs = folder / "runs"
    return {str(path.relative_to(runs)): path.read_bytes() for path in runs.rglob("*.safetensors")}


def read_rows(path: Path) -> list[dict[str, str]]:
    """A table of a sweep but for what differs every time: how long it took."""
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "elapsed_s"} for row in csv.DictReader(file)]
