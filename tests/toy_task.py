"""A task folder of one's own, small and with every part that can be broken."""

from __future__ import annotations

import json
from pathlib import Path


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
