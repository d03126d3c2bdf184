"""Tune a prompt for each of the paper's 17 tasks on built-in backbones, and print a table.

Encoders take the 13 tasks with labels, T5 and decoders all 17. Each run is an ordinary run folder
with its predictions, so a second call only prints the table, and an interrupted call resumes.

Command:
    python experiments/paper/catalog_tasks.py --data DIR --out runs/catalog
    python experiments/paper/catalog_tasks.py --data DIR --out runs/catalog-short --steps 20 \
        --backbones builtin/bert-small builtin/t5-mini builtin/gpt2-mini
where DIR has a folder of rows for each task, named like it.

Time and result: see experiments/RESULTS.md, which has this script's tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jpt


def main() -> None:
    """Run all pairs and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/catalog"))
    parser.add_argument("--backbones", nargs="*", default=["builtin/bert-small"])
    parser.add_argument("--tasks", nargs="*", default=catalog_tasks())
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=None)
    arguments = parser.parse_args()
    records = []
    for name in arguments.backbones:
        backbone = jpt.load_backbone(name)
        for task_name in arguments.tasks:
            task = jpt.load_task(task_name, arguments.data / task_name)
            if task.is_generative and backbone.layout == "encoder":
                continue
            folder = arguments.out / Path(name).name / task_name
            folder.parent.mkdir(parents=True, exist_ok=True)
            options = {"steps": arguments.steps, "batch_size": arguments.batch_size}
            result = jpt.tune(backbone, task, folder, predictions=True, progress=True, **options)
            lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").count("\n")
            if lines != result.record["test"]["rows"]:
                raise SystemExit(f"{folder}: {lines} predictions for {result.record['test']}")
            records.append(result.record | {"type": task.type})
            print(row(records[-1]), flush=True)
    (arguments.out / "table.json").write_text(json.dumps(records, indent=2), encoding="utf-8")
    print(table(records))


def catalog_tasks() -> list[str]:
    """List the paper's tasks."""
    return [name for name in jpt.task_names() if not name.startswith("builtin/")]


def table(records: list[dict[str, Any]]) -> str:
    """Format the results as Markdown, one row per run."""
    heads = ("backbone", "task", "type", "test rows", "metric", "majority", "prompt", "seconds")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *map(row, records)])


def row(record: dict[str, Any]) -> str:
    test, metric = record["test"], record["metric"]
    majority = f"{test['majority']:.3f}" if "majority" in test else ""
    cells = (
        record["backbone"],
        record["task"],
        record["type"],
        test["rows"],
        metric,
        majority,
        f"{test[metric]:.3f}",
        f"{record['elapsed_s']:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
