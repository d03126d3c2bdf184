"""Format the results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cases import GPU_CASES

BANK = "(GPU) 16 runs of batch 8 trained together, against one by one"
VERSIONS = ("python", "jpt", "jax", "torch", "transformers", "peft")
COMMAND = "python experiments/benchmarks/against_torch/run.py --data DIR"


def describe(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a line of text for each comparison."""
    return "\n".join(
        f"{line['name']}: jpt {line['jpt']} {line['unit']}, torch {line['torch']}, "
        f"{line['ratio']} x speed-up ({line['spread'][0]} to {line['spread'][1]}); "
        f"target {expected(line)}{difference(line)}"
        for line in lines
    )


def expected(line: Mapping[str, Any]) -> str:
    return f"under {line['limit_s']} s" if "limit_s" in line else f"{line['expected']}"


def difference(line: Mapping[str, Any]) -> str:
    """Report how far the results of both sides differ."""
    if "loss_apart" in line:
        return f"; losses differ by at most {line['loss_apart']:.0e}"
    if "same_cells" in line:
        return f"; equal cells: {line['same_cells']}"
    return f"; scores differ by {line['scores_apart']}" if "scores_apart" in line else ""


def page(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [line for name in sorted(cases) for line in cases[name]]
    parts = [HEAD, summary(lines), "## Details\n", head(STEP_NAMES), *map(step_row, steps(lines))]
    whole = [line for line in lines if "turns_s" not in first(line)]
    parts += ["", head(RUN_NAMES), *(row for line in whole for row in run_rows(line))]
    parts += ["", machines(lines)]
    return "\n".join(parts) + "\n"


def head(names: Sequence[str]) -> str:
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| case | jpt | torch | speed-up | smallest to largest | target | difference in results |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = line["spread"]
        same = difference(line).removeprefix("; ") or "-"
        rows.append(
            f"| {line['name']} | {line['jpt']} {line['unit']} | {line['torch']} {line['unit']} | "
            f"**{line['ratio']}** | {low} to {high} | {expected(line)} | {same} |"
        )
    known = {line["case"] for line in lines}
    open_cases = {name: case.name for name, case in GPU_CASES.items()} | {"bank": BANK}
    rows += [
        f"| {name} | not measured | not measured | | | | |"
        for case, name in open_cases.items()
        if case not in known
    ]
    return "\n".join([*rows, ""])


def steps(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return case, side and numbers of every train-step side, each once."""
    found = {}
    for line in lines:
        for side, numbers in line["sides"].items():
            if "turns_s" in numbers:
                found[line["case"], side] = (line["name"].split(", against")[0], side, numbers)
    return list(found.values())


def step_row(entry: tuple[str, str, Mapping[str, Any]]) -> str:
    name, side, numbers = entry
    text = numbers["text_tokens"]
    return (
        f"| {name} | {side} | {numbers['step_s']} ({numbers['spread_s'][0]} to "
        f"{numbers['spread_s'][1]}) | {numbers['rows_per_s']} | {numbers['tokens_per_s']:.0f} | "
        f"{numbers['gflop_per_step']:.0f} | {numbers['share_of_matrix_rate']:.0%} | "
        f"{numbers['peak_mb']:,} | {text['shortest']} / {text['mean']:.0f} / {text['longest']} |"
    )


def run_rows(line: Mapping[str, Any]) -> list[str]:
    return [
        f"| {line['name']} | {side} | {', '.join(map(str, numbers['wall_s']))} | "
        f"{', '.join(map(str, numbers['cpu_s']))} | {numbers['peak_mb']:,} |"
        for side, numbers in line["sides"].items()
    ]


def first(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the numbers of a line's first side."""
    return next(iter(line["sides"].values()))


def machines(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return where and when each case was measured."""
    found: dict[str, list[str]] = {}
    for line in lines:
        of = line["machine"]
        versions = ", ".join(f"{name} {of[name]}" for name in VERSIONS)
        device = of.get("gpu", "no accelerator")
        where = f"{line['measured']}: {of['cores']} cores of {of['cpu']}, {device}"
        found.setdefault(f"{where}; {versions}; load {of['load']}", []).append(line["case"])
    return "\n".join(
        f"- {', '.join(sorted(set(names)))}: {machine}." for machine, names in found.items()
    )


HEAD = f"""# jpt against torch

Written by `{COMMAND}`; `--cases NAME` measures a single case.
The top of `run.py` and of the other scripts in this folder describes what is measured. Numbers are
medians; `results.json` has every round. On a GPU: the same command with `--gpu`, where the share of
the matrix-product rate is the utilisation. No GPU was available.
"""
STEP_NAMES = (
    "train steps",
    "side",
    "s per step (smallest to largest round)",
    "rows/s",
    "tokens/s",
    "GFLOP per step",
    "share of the matrix-product rate",
    "peak MB",
    "tokens per row: min / mean / max",
)
RUN_NAMES = (
    "whole processes",
    "side",
    "wall s, by round (jpt: the first without a cache)",
    "CPU s",
    "peak MB",
)
