"""Measure redundant neurons against model size: always active, never active, and overlap by type.

Prompts for the same tasks are tuned on each backbone (or read from DIR/BACKBONE/, if present), and
the paper's probe records the neurons that each of them activates. Always on: activated by every
prompt. Never on: by none. At random: the share expected if each prompt activated as many neurons of
a layer, chosen at random. ON: overlap of activated neurons over all layers, between prompts for
tasks of one type and of two types.

Command:
    python experiments/paper/redundancy.py --out runs/redundancy --steps 60

Result, 24 prompts of 60 steps (226 s of CPU time, 24 minutes on two busy cores):

| backbone | size | neurons | on | always on | at random | never on | at random | one type | two |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| builtin/bert-medium | 3.9 M | 5 x 768 | 9.1 % | 0.9 % | 0.0 % | 73.6 % | 58.1 % | 0.459 | 0.387 |
| builtin/bert-small | 1.9 M | 4 x 512 | 11.3 % | 2.7 % | 0.0 % | 75.0 % | 53.4 % | 0.745 | 0.512 |
| builtin/gpt2-mini | 1.9 M | 4 x 512 | 31.1 % | 17.0 % | 0.2 % | 53.1 % | 12.2 % | 0.890 | 0.739 |
| builtin/t5-mini | 2.9 M | 4 x 512 | 38.2 % | 19.7 % | 0.3 % | 39.1 % | 5.7 % | 0.916 | 0.692 |

Far more neurons are always or never on than expected at random, and prompts for tasks of one type
share more of them in every model. The larger of the two encoders has fewer that are always on and a
lower ON, also across types; but two sizes show no trend, 3 pairs of prompts (12 of two types) are
few, and the distance of the prompts from their common initialisation was not measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

import jpt
from jpt.results.records import Redundancy
from jpt.types import Activations

TASKS = (
    "builtin/rotten_tomatoes",
    "builtin/imdb_ending",
    "builtin/imdb_opening",
    "builtin/imdb_closing",
    "builtin/imdb_first_person",
    "builtin/imdb_number",
)
OVERLAP = "neuron_overlap_all"
COLUMNS = (
    "backbone",
    "weights",
    "neurons",
    "on",
    "always on",
    "at random",
    "never on",
    "at random",
    "ON one type",
    "ON two types",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per backbone as soon as it is available, then the values by layer."""
    options = read_options(arguments)
    print(table_line(COLUMNS))
    print(table_line(["---", *["---:"] * (len(COLUMNS) - 1)]))
    by_layer = []
    for name in options.backbones:
        started_s = time.monotonic()
        folder = options.out / name.replace("/", "-")
        tune_missing(name, options.tasks, folder, options.steps, options.seed)
        activations = jpt.activated_neurons(folder)
        found = jpt.redundancy(activations)
        print(table_line(measure(name, folder, activations, found)), flush=True)
        elapsed_s = time.monotonic() - started_s
        by_layer.append(f"{name} ({elapsed_s:.0f} s)\n{found.describe()}")
    print("", *by_layer, sep="\n")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=jpt.backbone_names())
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--steps", type=int, default=60, help="tuning steps per prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/redundancy"))
    return parser.parse_args(arguments)


def tune_missing(backbone: str, tasks: Sequence[str], folder: Path, steps: int, seed: int) -> None:
    """Tune a prompt for each task that has no finished run."""
    if folder.is_dir() and not any(folder.glob("*/config.json")):
        return  # the folder holds given prompts
    for task in map(jpt.load_task, tasks):
        out = folder / task.short_name
        if not (out / "result.json").is_file():
            jpt.tune(backbone, task, out, steps=steps, eval_every=steps, seed=seed)


def measure(name: str, folder: Path, activations: Activations, found: Redundancy) -> list[str]:
    """Return one row of the table."""
    overlap = jpt.compute_indicators(folder, activations)
    tasks = {each: jpt.load_task(card.task) for each, card in overlap.cards.items()}
    backbone = jpt.load_backbone(name)
    same, different = [], []
    for first, second in combinations(activations.names, 2):
        (same if tasks[first].type == tasks[second].type else different).append(
            overlap.value(OVERLAP, first, second)
        )
    shares = (found.activated, found.always, found.always_at_random)
    shares += (found.never, found.never_at_random)
    return [
        name,
        f"{backbone.frozen_count / 1e6:.1f} M",
        " x ".join(map(str, activations.values.shape[1:])),
        *(f"{100 * values.mean():.1f} %" for values in shares),
        *(f"{np.mean(values):.3f}" if values else "-" for values in (same, different)),
    ]


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
