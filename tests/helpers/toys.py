"""Toy tasks, a toy tokenizer and prompts with a known answer."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.testing import VOCABULARY, write_tiny_backbone
from jpt.types import Prompt, PromptCard

# --- Tasks

MOOD_TOML = (
    'name = "mood"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
    'template = "{text}"\n[label_words]\nbad = "bad"\ngood = "good"\n'
)


def json_lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_task(folder: Path, **changes: str) -> Path:
    """Write the task "mood": 42 rows in two classes; `changes` replace a split or the toml."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"good": ("fine", "great", "lovely"), "bad": ("poor", "awful", "boring")}
    text = json_lines(
        {"text": f"a {word} film, number {number}", "label": label}
        for number in range(7)
        for label in words
        for word in words[label]
    )
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(changes.get(split, text))
    (folder / "task.toml").write_text(changes.get("toml", MOOD_TOML))
    return folder


def write_easy(folder: Path) -> Path:
    """Write a task whose rows contain their label word."""
    text = json_lines(
        {"text": f"a {word} film, number {number}", "label": word}
        for number in range(7)
        for word in ("good", "bad")
    )
    splits = dict.fromkeys(("train", "validation", "test"), text)
    return write_task(folder, toml=MOOD_TOML.replace("mood", "easy"), **splits)


def first_rows(folder: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    """Read the first rows of each split of a task folder."""
    splits = {}
    for split in ("train", "validation", "test"):
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            splits[split] = [json.loads(line) for line in itertools.islice(file, count)]
    return splits


# --- A planted prompt

BACKBONE = "builtin/bert-small"
LENGTH, WIDTH = 6, 128
SHORT = {"max_tokens": 20, "batch_size": 8}


def planted(backbone: jpt.Backbone, task: Path) -> dict[str, Prompt]:
    """Tune one prompt for the task, under the name of another task, and add two of noise."""
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


# --- Toy tokenizer

WORDS = "a the film is was good bad dull bright not and it i saw old new one two three four".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SUFFIXES = [f"##{letter}" for letter in LETTERS]
TOY_VOCABULARY = [*SPECIAL, *WORDS, *SUFFIXES, *(c for c in LETTERS if c not in "ai")]


def write_toy_tokenizer(folder: Path, config: dict | None = None) -> Path:
    """Write tokenizer.json, and tokenizer_config.json if given."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {token: number for number, token in enumerate(TOY_VOCABULARY)}
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
    return write_toy_tokenizer


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return load_tokenizer(write_toy_tokenizer(tmp_path_factory.mktemp("toy_tokenizer")))


# --- Tiny sweeps


def write_sweep_task(folder: Path) -> Path:
    """Write a task whose label is given by one word."""
    words = [token for token in VOCABULARY if token.isalpha()]
    toml = (
        'type = "sentiment"\nfields = ["text"]\nlabels = ["a", "b"]\ntemplate = "{text}"\n'
        f'[label_words]\na = "{words[0]}"\nb = "{words[1]}"\n'
    )
    text = json_lines(
        {"text": f"{words[2 + number % 3]} {word}", "label": label}
        for number in range(6)
        for label, word in (("a", words[5]), ("b", words[6]))
    )
    splits = dict.fromkeys(("train", "validation", "test"), text)
    return write_task(folder, toml=toml, **splits)


def write_fixed(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write backbone and task; return the table `fixed` of a sweep file."""
    task = write_sweep_task(folder / "first")
    backbone = write_tiny_backbone(folder / "bert", "bert")
    fixed = {"backbone": str(backbone), "task": str(task), "steps": 6, "batch_size": 4}
    return {**fixed, "length": 3, "eval_every": 3, **changes}


def read_prompts(folder: Path) -> dict[str, bytes]:
    """Read all prompts of a sweep as bytes."""
    runs = folder / "runs"
    return {str(path.relative_to(runs)): path.read_bytes() for path in runs.rglob("*.safetensors")}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table of a sweep without its elapsed times."""
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "elapsed_s"} for row in csv.DictReader(file)]
