"""Cases (f) and (g): rows of 12 runs for the torch side, its loop over them, and its first step.

Started by ``studies.py`` as ``sweeps.py WHAT WORK``.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matrix import find_folder
from rows import write_rows, write_task
from studies import RATES, SEEDS, SWEEP, SWEEP_TASKS, toml

MODEL = "builtin/gpt2-mini"
FIRST = "first"
TOML = """type = "toy"
fields = ["text"]
labels = ["absent", "number"]
template = "{text}"
[label_words]
absent = "bad"
number = "good"
"""
SCORED = 50
"""Evaluation batch size."""


def prepare(work: Path) -> None:
    """Write the grid for jpt, and for torch the rows and the initial prompt of every run."""
    import jpt

    fixed = {"backbone": MODEL, **SWEEP}
    names = [f"builtin/{task}" for task in SWEEP_TASKS]
    grid = {"task": names, "seed": list(SEEDS), "learning_rate": list(RATES)}
    (work / "grid.toml").write_text(toml({"fixed": fixed, "grid": grid}))
    backbone = jpt.load_backbone(MODEL)
    (work / "model.txt").write_text(str(find_folder(MODEL)))
    for task in SWEEP_TASKS:
        for seed in SEEDS:
            write_run(work, backbone, jpt.load_task(f"builtin/{task}"), seed)
        write_scored(work, backbone, jpt.load_task(f"builtin/{task}"))


def write_run(work: Path, backbone: Any, task: Any, seed: int) -> None:
    """Write batches and initial prompt of a task and seed; the learning rates share them."""
    import jpt

    options, name = {**SWEEP, "seed": seed}, task.name.removeprefix("builtin/")
    step, first = jpt.train_step(backbone, task, **options)
    batches = jpt.training_batches(backbone, task, **options)
    named = {str(number): batch for number, batch in enumerate(batches)}
    write_rows(work / f"{name}-{seed}.npz", named, start=np.asarray(first.params))
    write_task(work / f"{name}.json", backbone, step.answer.label_ids)


def write_scored(work: Path, backbone: Any, task: Any) -> None:
    """Write every row of validation and test once."""
    import jpt

    for split in ("validation", "test"):
        rows = list(jpt.read_rows(task, split))
        once = dataclasses.replace(task, folder=None, rows={"train": rows, "validation": rows[:1]})
        options = {**SWEEP, "batch_size": SCORED, "steps": len(rows) // SCORED}
        options |= {"eval_every": 1, "group_by_length": True}
        batches = jpt.training_batches(backbone, once, **options)
        found = {str(number): batch for number, batch in enumerate(batches)}
        name = task.name.removeprefix("builtin/")
        write_rows(work / f"{name}-{split}.npz", found, count=np.array(len(found)))


def in_torch(work: Path) -> None:
    """Run the loop that a PEFT user would write; the model is loaded once."""
    import torch
    import torch_models

    place, found = Path((work / "model.txt").read_text()), {}
    asked: dict[str, Any] = {}
    for name in SWEEP_TASKS:
        asked |= json.loads(
            (work / f"{name}.json").read_text()
        )  # the loss reads the label words from it
        if name == SWEEP_TASKS[0]:
            model = torch_models.build("peft", place, SWEEP["length"], asked)
        words = torch.tensor(asked["words"])
        scored = {split: read_all(work / f"{name}-{split}.npz") for split in ("validation", "test")}
        for seed, rate in itertools.product(SEEDS, RATES):
            rows = np.load(work / f"{name}-{seed}.npz")
            model.start(rows["start"], rate)
            for number in range(SWEEP["steps"]):
                model.step(torch_models.read_rows(rows, str(number)))
            scores = {split: model.accuracy(batches, words) for split, batches in scored.items()}
            found[f"{name} {seed} {rate}"] = scores
    (work / "peft.json").write_text(json.dumps(found))


def read_all(path: Path) -> list[Any]:
    import torch_models

    found = np.load(path)
    return [torch_models.read_rows(found, str(number)) for number in range(int(found["count"]))]


def compare(work: Path) -> None:
    """Print the differences between the scores of both sides."""
    theirs = json.loads((work / "peft.json").read_text())
    with (work / "jpt-0" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    apart = []
    for row in rows:
        name = f"{row['task'].removeprefix('builtin/')} {row['seed']} {float(row['learning_rate'])}"
        apart.append(abs(float(row["validation"]) - theirs[name]["validation"]))
    print(f"{max(apart):.3f} at most, {sum(apart) / len(apart):.3f} on average, {len(apart)} runs")


def start(work: Path) -> None:
    """Write a small task in files for jpt, and its rows for the torch side of (g)."""
    import jpt

    task = jpt.load_task(f"builtin/{SWEEP_TASKS[0]}")
    (work / FIRST).mkdir()
    for split in ("train", "validation", "test"):
        rows = itertools.islice(jpt.read_rows(task, split), SCORED)
        text = "\n".join(json.dumps(row) for row in rows)
        (work / FIRST / f"{split}.jsonl").write_text(f"{text}\n")
    (work / FIRST / "task.toml").write_text(TOML)
    backbone, task_in_files = jpt.load_backbone(MODEL), jpt.load_task(work / FIRST)
    (work / "model.txt").write_text(str(find_folder(MODEL)))
    write_run(work, backbone, task_in_files, 0)
    write_scored(work, backbone, task_in_files)


def first(work: Path) -> None:
    """Load, take one step, score validation and test, as ``jpt tune --steps 1`` does."""
    import torch
    import torch_models

    task = json.loads((work / f"{FIRST}.json").read_text())
    place = Path((work / "model.txt").read_text())
    model = torch_models.build("peft", place, SWEEP["length"], task)
    rows = np.load(work / f"{FIRST}-0.npz")
    model.start(rows["start"], RATES[0])
    model.step(torch_models.read_rows(rows, "0"))
    words = torch.tensor(task["words"])
    for split in ("validation", "test"):
        model.accuracy(read_all(work / f"{FIRST}-{split}.npz"), words)


if __name__ == "__main__":
    what = {
        "prepare": prepare,
        "peft": in_torch,
        "compare": compare,
        "start": start,
        "first": first,
    }
    what[sys.argv[1]](Path(sys.argv[2]))
