"""Measure a zero-shot matrix: 6 prompts on 6 tasks, including loading and compilation.

Random prompts of 20 tokens on the small built-in encoder, 500 rows of each built-in task's test
split, texts of 64 tokens. The clock starts before loading the model; the built-in rows are made
before. The matrix is made twice in one folder: the second call finds every cell on disk.

Command:
    python experiments/benchmarks/transfer_matrix.py

Time and result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TASKS = (
    "imdb",
    "rotten_tomatoes",
    "imdb_number",
    "imdb_negation",
    "imdb_first_person",
    "imdb_ending",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and prints seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="builtin/bert-small")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--baselines", action="store_true", help="add both baseline columns")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JPT_CACHE"] = f"{folder}/tokens"  # empty
        tasks = [cut_task(f"builtin/{task}", options.rows) for task in TASKS]
        settings = {"max_tokens": options.max_tokens, "baselines": options.baselines}
        for what in ("first call", "second call, all cells on disk"):
            started_s, cpu_s = time.perf_counter(), time.process_time()
            study = Path(folder) / "study"
            values = measure(options.backbone, options.length, tasks, study, **settings)
            spent_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
            size = " x ".join(map(str, values.shape))
            text = f"{size} matrix of {options.rows} rows, {what}: {spent_s:.1f} s"
            print(f"{text} ({cpu_s:.1f} s of CPU time)", flush=True)


def measure(
    name: str, length: int, tasks: list[Any], out: Path, *, baselines: bool, max_tokens: int
) -> Any:
    """Load the model and compute the matrix."""
    import jpt

    backbone = jpt.load_backbone(name)
    prompts = random_prompts(backbone, length)
    options = {"random": baselines, "untouched": baselines, "max_tokens": max_tokens}
    found = jpt.transfer_matrix(prompts, tasks, out, backbone=backbone, **options)
    return found.matrix.values


def cut_task(name: str, rows: int) -> Any:
    """Return a built-in task with only the first rows of its test split."""
    import jpt

    task = jpt.load_task(name)
    found = jpt.read_rows(task, "test")[:rows]
    short = name.removeprefix("builtin/")
    return dataclasses.replace(task, name=short, rows={"test": found})


def random_prompts(backbone: Any, length: int) -> dict[str, Any]:
    """Sample one prompt per task, at the scale of word vectors."""
    import jpt

    random = np.random.default_rng(0)
    shape = (length, backbone.config.width)
    return {
        task: jpt.Prompt(
            random.normal(0, 0.1, shape).astype(np.float32),
            jpt.PromptCard(backbone.name, task, layout=backbone.layout),
        )
        for task in TASKS
    }


if __name__ == "__main__":
    main()
