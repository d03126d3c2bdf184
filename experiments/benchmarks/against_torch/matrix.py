"""Case (d): write prompts and rows of a 13 x 13 matrix, and measure it as a torch user would.

Started by ``studies.py``: ``matrix.py prepare WORK MODEL DATA``, ``matrix.py SIDE WORK MODEL``.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rows import write_rows, write_task
from studies import MATRIX, TASKS

BATCH = 32
"""Rows at once in torch; 16 to 64 take the same time within a few per cent."""


def prepare(work: Path, model: str, data: Path) -> None:
    """Cut the test splits, sample a prompt for each task, tokenise for the torch side."""
    import jpt

    backbone = jpt.load_backbone(model)
    random = np.random.default_rng(0)
    (work / "rows").mkdir()
    (work / "prompts").mkdir()
    (work / "model.txt").write_text(str(find_folder(model)))
    for task in TASKS:
        rows = list(
            itertools.islice(
                jpt.read_rows(jpt.load_task(task, data / task), "test"), MATRIX["rows"]
            )
        )
        folder = work / "data" / task
        folder.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            text = "\n".join(json.dumps(row) for row in rows)
            (folder / f"{split}.jsonl").write_text(f"{text}\n")
        shape = (MATRIX["length"], backbone.config.width)
        values = random.normal(0, 0.1, shape).astype(np.float32)
        card = jpt.PromptCard(model, task, layout=backbone.layout)
        jpt.save_prompt(work / "prompts" / f"{task}.safetensors", jpt.Prompt(values, card))
        encode(work, backbone, task, folder, len(rows))


def find_folder(model: str) -> Path:
    """Return the weights folder of a built-in backbone, which transformers reads too."""
    return Path(str(files("jpt"))) / "backbones" / model


def encode(work: Path, backbone: Any, task: str, folder: Path, count: int) -> None:
    """Write every row once, in batches."""
    import jpt

    given = {"backbone": backbone, "task": task, "data": folder}
    options = {
        "batch_size": BATCH,
        "steps": count // BATCH,
        "max_tokens": MATRIX["max_tokens"],
        "length": 1,
        "group_by_length": False,
        "label_scoring": "first_token",
    }
    step, _ = jpt.train_step(**given, **options)
    batches = {str(n): batch for n, batch in enumerate(jpt.training_batches(**given, **options))}
    write_rows(work / "rows" / f"{task}.npz", batches)
    write_task(work / "rows" / f"{task}.json", backbone, step.answer.label_ids)


def measure(side: str, work: Path) -> None:
    """Score every prompt on every task in torch."""
    import torch
    import torch_models
    from safetensors.numpy import load_file

    tasks = {task: json.loads((work / "rows" / f"{task}.json").read_text()) for task in TASKS}
    place = Path((work / "model.txt").read_text())
    model = torch_models.build(side, place, MATRIX["length"], tasks[TASKS[0]])
    rows = {}
    for task in TASKS:
        found = np.load(work / "rows" / f"{task}.npz")
        count = MATRIX["rows"] // BATCH
        rows[task] = [torch_models.read_rows(found, str(number)) for number in range(count)]
    with (work / f"{side}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["target_task", "source_prompt", "metric", "value"])
        for source in TASKS:
            values = load_file(work / "prompts" / f"{source}.safetensors")["prompt"]
            model.start(values, 0.0)
            for target in TASKS:
                words = torch.tensor(tasks[target]["words"])
                value = model.accuracy(rows[target], words)
                table.writerow([target, source, "accuracy", value])


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    else:
        measure(sys.argv[1], Path(sys.argv[2]))
