"""Print every indicator of released prompts, and its rank correlation with measured transfer.

For each folder of DIR/prompts: similarity within and across task types; with DIR/transfer/NAME.csv
also Spearman's rank correlation with zero-shot performance (mean over targets, including and
excluding the in-task prompt, with intervals) and the regret of the source that an indicator ranks
first. `--weights WEIGHTS` (Hugging Face folders `WEIGHTS/roberta-base` and so on) adds the overlap
of activated neurons (ON). For DIR/neurons/*-steps.npz: ON of two prompts during training.

Command:
    python experiments/paper/indicators.py --reference DIR [--weights WEIGHTS]

Time and result: 4 s without weights. Spearman's rho with the authors' scores, mean over targets,
excluding the in-task prompt, with its 95% interval; mean regret of the first source in points; the
regret of a random source and of a source of the same type in the last two lines:

               roberta-base, 14            roberta-large, 13           t5-base, 17
    E_concat   -0.06 (-0.22 .. 0.11) 21.0  -0.06 (-0.31 .. 0.18) 24.4  0.11 (-0.08 .. 0.31) 10.4
    E_average  -0.06 (-0.23 .. 0.11) 20.7  -0.08 (-0.32 .. 0.15) 24.4  0.08 (-0.10 .. 0.27) 10.4
    C_concat    0.34 ( 0.18 .. 0.51) 10.1  -0.04 (-0.30 .. 0.19) 24.4  0.14 (-0.07 .. 0.33)  7.8
    C_average   0.39 ( 0.22 .. 0.57)  4.8   0.26 ( 0.05 .. 0.48) 13.8  0.43 ( 0.29 .. 0.56)  1.8
    random                           21.4                        25.2                       15.8
    same type                         8.5                         9.3                        4.5

Of the paper's four indicators only C_average has an interval above 0 on all backbones (also
t5-small: 0.43, 0.31 .. 0.54). The real weights were not available here: ON is tested on a model of
roberta-base's shape with random weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jpt
from jpt.indicators.correlation import CorrelationResult
from jpt.indicators.indicators import Indicators
from jpt.types import Activations

BACKBONES = ("bert-base", "roberta-base", "roberta-large", "t5-base", "t5-small")
HEAD = (
    *("indicator", "including in-task", "95%", "excluding in-task", "95%"),
    *("pooled, including", "pooled, excluding"),
    *("same type", "other types", "is the best", "regret", "gain over random", "95%"),
)
WINDOW = "_layers_"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a section for each backbone in the folder."""
    options = read_options(arguments)
    folder = options.reference / "prompts"
    names = [name for name in options.backbones if (folder / name).is_dir()]
    if not names:
        raise SystemExit(f"{folder} contains none of the folders {', '.join(options.backbones)}")
    for name in names:
        prompts = jpt.import_reference(folder / name)
        neurons = read_neurons(prompts, options.weights, name)
        found = jpt.compute_indicators(prompts, neurons)
        matrix = options.reference / "transfer" / f"{name}.csv"
        print(f"## {name}\n")
        print(describe(found, matrix if matrix.is_file() else None), flush=True)
    for file in sorted((options.reference / "neurons").glob("*-steps.npz")):
        print(f"## {file.stem}\n\n{describe_steps(file)}")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument(
        "--weights", type=Path, help="folder with one weights folder per backbone, for ON"
    )
    parser.add_argument("--backbones", nargs="*", default=BACKBONES)
    return parser.parse_args(arguments)


def read_neurons(
    prompts: Mapping[str, jpt.Prompt], weights: Path | None, name: str
) -> Activations | None:
    """Return the activated neurons of prompts, or None without weights."""
    if weights is None:
        return None
    if not (weights / name).is_dir():
        print(f"{name}: no folder {weights / name}, ON skipped")
        return None
    return jpt.activated_neurons(prompts, backbone=weights / name)


def describe(found: Indicators, matrix: Path | None) -> str:
    """Format the results of one backbone as Markdown, one row per indicator."""
    types = jpt.summarize_types(found, matrix)["similarity_by_type"]
    means = {
        name: [number(types[name][f"{key}_type_mean"], 4) for key in ("same", "different")]
        for name in found.columns
    }
    if matrix is None:
        rows = [[name, *means[name]] for name in found.columns]
        return table(["indicator", "same type", "other types"], rows)
    correlation, choices = jpt.correlate(found, matrix), jpt.judge_indicators(found, matrix)
    judged = choices["rankings"]
    rows = [
        [name, *correlations(correlation, name), *means[name], *costs(judged.get(name))]
        for name in shown(found, correlation)
    ]
    same = judged.get("same_type")
    if same:
        rows.append(["same type", *["-"] * 8, *costs(same)])
    rows.append(["random", *["-"] * 8, *chance(judged)])
    n_targets = max(each.n_targets for each in correlation.excluding_in_task.values())
    text = f"{len(found.names)} prompts, {n_targets} targets; regret in points (100 x score)."
    return f"{text}\n\n{table(HEAD, rows)}{lead(correlation)}"


def shown(found: Indicators, correlation: CorrelationResult) -> list[str]:
    """Return all indicators; of the windows of layers only the best."""
    windows = {
        n: correlation.excluding_in_task[n].mean_over_targets for n in found.columns if WINDOW in n
    }
    known = {name: mean for name, mean in windows.items() if mean is not None}
    best = max(known, key=known.__getitem__, default=None)
    return [name for name in found.columns if name not in windows or name == best]


def correlations(correlation: CorrelationResult, name: str) -> list[str]:
    """Return means over targets with their intervals, then pooled over all pairs."""
    inside, outside = correlation.including_in_task[name], correlation.excluding_in_task[name]
    cells = []
    for of in (inside, outside):
        cells += [number(of.mean_over_targets, 3), bounds(of.interval)]
    return [*cells, *(number(of.pooled_relative, 3) for of in (inside, outside))]


def costs(of: Mapping[str, Any] | None) -> list[str]:
    """Return hits, regret and gain of a ranking's first source."""
    if of is None:
        return ["-"] * 4
    gain = bounds(of["gain_interval"], 100, 1)
    points = [f"{100 * of[key]:.1f}" for key in ("regret", "gain")]
    return [f"{100 * of['hits']:.0f} %", *points, gain]


def chance(judged: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return hits and regret of a random source, over the largest set of targets."""
    if not judged:
        return ["-"] * 4
    whole = max(judged.values(), key=lambda of: of["targets"])
    return [f"{100 * whole['chance_hits']:.0f} %", f"{100 * whole['chance_regret']:.1f}", "-", "-"]


def lead(correlation: CorrelationResult) -> str:
    """Return the lead of ON over the best embedding indicator, if ON was measured."""
    lines = []
    for part, found in correlation.leads.items():
        if found.best is not None:
            over = found.over[found.best]
            lines.append(
                f"neuron_overlap minus {found.best} ({part}): {number(over.mean, 3)}"
                f" ({bounds(over.interval)})"
            )
    return "\n".join([*lines, ""]) if lines else ""


def describe_steps(file: Path) -> str:
    """Return ON of two prompts at each training step, over all layers and the top three."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored}
    shape = (-1, int(arrays["layers"]), int(arrays["neurons_per_layer"]))
    tasks = [name.removesuffix("_steps") for name in arrays if name.endswith("_steps")]
    active = {
        task: np.unpackbits(arrays[f"{task}_wi0_positive_packed"], axis=1).reshape(shape)
        for task in tasks
    }
    first, second = tasks
    steps = [step for step in arrays[f"{first}_steps"] if step in arrays[f"{second}_steps"]]
    rows = []
    for step in steps:
        pair = [active[task][list(arrays[f"{task}_steps"]).index(step)] for task in tasks]
        rows.append(
            [str(step), number(overlap(*pair), 3), number(overlap(*(a[-3:] for a in pair)), 3)]
        )
    head = ["step", f"ON of {first} and {second}, all layers", "top three layers"]
    return table(head, rows)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the cosine of two patterns of activated neurons."""
    shared = np.logical_and(one, other).sum()
    return float(shared / np.sqrt(float(one.sum()) * float(other.sum())))


def number(value: float | None, digits: int) -> str:
    """Format a number; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def bounds(interval: Sequence[float] | None, scale: float = 1, digits: int = 2) -> str:
    """Format an interval; a dash for None."""
    if interval is None:
        return "-"
    return " to ".join(f"{scale * bound:.{digits}f}" for bound in interval)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
