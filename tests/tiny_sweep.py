"""A sweep that takes seconds: a tiny backbone and tasks of twelve rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from jpt.testing import VOCABULARY, write_tiny_backbone

WORDS = [piece for piece in VOCABULARY if piece.isalpha()]
TOML = (
    'type = "sentiment"\nfields = ["text"]\nlabels = ["a", "b"]\ntemplate = "{text}"\n'
    f'[label_words]\na = "{WORDS[0]}"\nb = "{WORDS[1]}"\n'
)


def write_task(folder: Path) -> Path:
    """Writes a task whose labels hang on one word."""
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(TOML)
    rows = [
        {"text": f"{WORDS[2 + number % 3]} {word}", "label": label}
        for number in range(6)
        for label, word in (("a", WORDS[5]), ("b", WORDS[6]))
    ]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_fixed(folder: Path, **changes: Any) -> dict[str, Any]:
    """Writes backbone and task; gives the table of what is fixed."""
    task = write_task(folder / "first")
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
