"""Tune a prompt for every built-in task on every built-in backbone, and print a table of scores.

Nothing is downloaded. Each run is an ordinary run folder, so a second call only prints the table,
and an interrupted call resumes.

Command:
    python experiments/paper/builtin_prompts.py --out runs/builtin

Time and result: see the table in docs/tune.md, which is this script's output.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jpt

MARGIN = 0.08


def main() -> None:
    """Run all pairs and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--backbones", nargs="*", default=jpt.backbone_names())
    parser.add_argument("--tasks", nargs="*", default=built_in_tasks())
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args()
    records = []
    for backbone in arguments.backbones:
        loaded = jpt.load_backbone(backbone)
        for task in arguments.tasks:
            folder = arguments.out / Path(backbone).name / Path(task).name
            folder.parent.mkdir(parents=True, exist_ok=True)
            result = jpt.tune(loaded, task, folder, steps=arguments.steps, progress=True)
            records.append(result.record)
    (arguments.out / "table.json").write_text(json.dumps(records, indent=2))
    print(table(records))


def built_in_tasks() -> list[str]:
    """List the tasks that every installation has."""
    return [name for name in jpt.task_names() if name.startswith("builtin/")]


def table(records: list[dict]) -> str:
    """Format the results as Markdown, one row per run."""
    lines = [
        "| backbone | task | majority | prompt, test | gain | steps | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        test = record["test"]
        gain = test["accuracy"] - test["majority"]
        mark = "" if gain >= MARGIN else " (below 8 points)"
        lines.append(
            f"| {record['backbone']} | {record['task']} | {test['majority']:.3f} | "
            f"{test['accuracy']:.3f} | {100 * gain:+.1f}{mark} | {record['steps']} | "
            f"{record['elapsed_s']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
