"""Runs the authors' released prompts on the real weights: their published figure beside ours.

The released prompts and matrices lie in DIR (`prompts/BACKBONE/TASK.npy`, `transfer/BACKBONE.csv`),
the weights in WEIGHTS (`roberta-base/`, `roberta-large/`, `t5-base/`, `t5-small/` as Hugging Face
folders), the rows in DATA (a folder for each task, named like it). Every score is kept as soon as
it is there (`OUT/BACKBONE/cells.jsonl`): a run that was stopped goes on, a second one prints the
tables.

Command:
    python experiments/paper/transfer.py --reference DIR --weights WEIGHTS --data DATA --out OUT

What the authors did and this script does too: texts of 128 pieces; RoBERTa's ethics prompts read
with " la" (id 897) in place of "un" (`--ethics-word un` reads what was meant); a T5 label told by
its first piece; the random prompt uniform from 0 to 1 (released for roberta-base; elsewhere drawn
here, so its column is another draw). What differs: they left out each set's last rows beyond a
multiple of 64, and scored written answers by a BLEU of their own on pieces; here the task's
measure stands in the table. Rows decide too: give the sets that they scored (the validation files,
for the ethics tasks and SemEval the test files).

Time and result: the real weights were not to be had where this was written. Tested on a model of
roberta-base's shape with random weights (tests/test_experiments.py).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import jpt
from jpt.types import TransferMatrix

BACKBONES = ("roberta-base", "roberta-large", "t5-base", "t5-small")
ETHICS = ("deontology", "justice")
TEXT_PIECES = 128
"""Theirs; of an encoder's single text, its two special pieces come on top."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each backbone that is there."""
    options = read_options(arguments)
    for backbone in options.backbones:
        weights, prompts = options.weights / backbone, options.reference / "prompts" / backbone
        if not weights.is_dir() and options.backbones == BACKBONES:
            print(f"{backbone}: no folder {weights}, left out")
            continue
        published = jpt.read_transfer(options.reference / "transfer" / f"{backbone}.csv")
        given = with_random(jpt.import_reference(prompts), published)
        targets = find_targets(given, published, options.data, options.tasks)
        is_encoder = backbone.startswith("roberta")
        found = jpt.transfer_matrix(
            {name: prompt for name, prompt in given.items() if name in published.prompts},
            [
                task_as_released(task, options.data, options.ethics_word)
                for task in targets.values()
            ],
            options.out / backbone,
            split=options.split,
            backbone=weights,
            random=False,
            untouched=False,
            max_tokens=TEXT_PIECES + 2 if is_encoder else None,
            label_scoring="phrase" if is_encoder else "first_token",
            eval_batch_size=options.eval_batch_size,
            progress=True,
        )
        print(f"## {backbone}\n\n{table(published, found.matrix, targets)}", flush=True)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/released"))
    parser.add_argument("--backbones", nargs="*", default=BACKBONES)
    parser.add_argument("--tasks", nargs="*", help="targets, as the catalog calls them")
    parser.add_argument("--split", default="test")
    parser.add_argument("--ethics-word", default=" la", help="of class 0 in RoBERTa")
    parser.add_argument("--eval-batch-size", type=int, default=64)
    return parser.parse_args(arguments)


def with_random(
    prompts: Mapping[str, jpt.Prompt], published: TransferMatrix
) -> dict[str, jpt.Prompt]:
    """Adds a random prompt where one was scored but not released."""
    if "random" in prompts or "random" not in published.prompts:
        return dict(prompts)
    first = next(iter(prompts.values()))
    values = np.random.default_rng(0).uniform(0, 1, first.values.shape).astype(np.float32)
    card = dataclasses.replace(first.card, task="random", task_type=None, init="uniform")
    return {**prompts, "random": jpt.Prompt(values, card)}


def find_targets(
    prompts: Mapping[str, jpt.Prompt],
    published: TransferMatrix,
    data: Path,
    asked: Sequence[str] | None,
) -> dict[str, str]:
    """The catalog's task for each published target that has rows here."""
    tasks = {name: prompts[name].card.task for name in published.targets if name in prompts}
    known = {name: task for name, task in tasks.items() if task in jpt.task_names()}
    found = {
        name: task
        for name, task in known.items()
        if (task in asked if asked else (data / task).is_dir())
    }
    if not found:
        raise SystemExit(f"{data} has no folder of {', '.join(known.values())}")
    return found


def task_as_released(name: str, data: Path, ethics_word: str) -> jpt.Task:
    """A task with its rows, its labels read by the words that the prompts were trained with."""
    task = jpt.load_task(name, data / name)
    if name not in ETHICS:
        return task
    words = {**task.label_words, "roberta": {"unreasonable": ethics_word}}
    return dataclasses.replace(task, label_words=words)


def table(published: TransferMatrix, ours: TransferMatrix, targets: Mapping[str, str]) -> str:
    """Lays their figures and ours out as Markdown, a line a target and source."""
    lines = [
        "| target | source | their measure | published | our measure | ours | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    differences = []
    for target, task in targets.items():
        row, our_row = published.targets.index(target), ours.targets.index(task)
        for source in published.prompts:
            if source not in ours.prompts:
                continue
            theirs = published.values[row, published.prompts.index(source)]
            value = ours.values[our_row, ours.prompts.index(source)]
            metrics = published.metrics[row], ours.metrics[our_row]
            if metrics[0] == metrics[1]:
                differences.append(abs(value - theirs))
            lines.append(
                f"| {target} | {source} | {metrics[0]} | {theirs:.4f} | {metrics[1]} | "
                f"{value:.4f} | {value - theirs:+.4f} |"
            )
    mean = f"{np.mean(differences):.4f}" if differences else "-"
    told = f"mean absolute difference over {len(differences)} pairs of one measure: {mean}"
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    main()
