"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cases import GPU_CASES

BANK = "(GPU) 16 runs of batch 8 as one bank, against one by one"
VERSIONS = ("python", "jpt", "jax", "torch", "transformers", "peft")
COMMAND = "python experiments/benchmarks/against_torch/run.py --data DIR"


def describe(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line of text for each comparison."""
    return "\n".join(
        f"{line['name']}: jpt {line['jpt']} {line['unit']}, torch {line['torch']}, "
        f"{line['ratio']} times as fast ({line['spread'][0]} to {line['spread'][1]}); "
        f"expected {expected(line)}{told(line)}"
        for line in lines
    )


def expected(line: Mapping[str, Any]) -> str:
    """What was expected of a line."""
    return f"under {line['limit_s']} s" if "limit_s" in line else f"{line['expected']}"


def told(line: Mapping[str, Any]) -> str:
    """Whether both sides found the same."""
    if "loss_apart" in line:
        return f"; losses at most {line['loss_apart']:.0e} apart"
    if "same_cells" in line:
        return f"; same cells: {line['same_cells']}"
    return f"; scores apart: {line['scores_apart']}" if "scores_apart" in line else ""


def page(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The whole page."""
    lines = [line for name in sorted(cases) for line in cases[name]]
    parts = [HEAD, summary(lines), "## Inside\n", head(STEP_NAMES), *map(step_row, steps(lines))]
    whole = [line for line in lines if "turns_s" not in first(line)]
    parts += ["", head(RUN_NAMES), *(row for line in whole for row in run_rows(line))]
    parts += ["", machines(lines)]
    return "\n".join(parts) + "\n"


def head(names: Sequence[str]) -> str:
    """The head of a table."""
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """The short table."""
    rows = [
        "| case | jpt | torch | times as fast | smallest to largest | expected | same result |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = line["spread"]
        same = told(line).removeprefix("; ") or "-"
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
    """Case, side and numbers of every side of train steps, each once."""
    found = {}
    for line in lines:
        for side, numbers in line["sides"].items():
            if "turns_s" in numbers:
                found[line["case"], side] = (line["name"].split(", against")[0], side, numbers)
    return list(found.values())


def step_row(entry: tuple[str, str, Mapping[str, Any]]) -> str:
    """A row of the table of train steps."""
    name, side, numbers = entry
    text = numbers["text_tokens"]
    return (
        f"| {name} | {side} | {numbers['step_s']} ({numbers['spread_s'][0]} to "
        f"{numbers['spread_s'][1]}) | {numbers['rows_per_s']} | {numbers['tokens_per_s']:.0f} | "
        f"{numbers['gflop_per_step']:.0f} | {numbers['share_of_matrix_rate']:.0%} | "
        f"{numbers['peak_mb']:,} | {text['shortest']} / {text['mean']:.0f} / {text['longest']} |"
    )


def run_rows(line: Mapping[str, Any]) -> list[str]:
    """Rows of a case of whole processes."""
    return [
        f"| {line['name']} | {side} | {', '.join(map(str, numbers['wall_s']))} | "
        f"{', '.join(map(str, numbers['cpu_s']))} | {numbers['peak_mb']:,} |"
        for side, numbers in line["sides"].items()
    ]


def first(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The numbers of a line's first side."""
    return next(iter(line["sides"].values()))


def machines(lines: Sequence[Mapping[str, Any]]) -> str:
    """Where and when each case was measured."""
    found: dict[str, list[str]] = {}
    for line in lines:
        of = line["machine"]
        versions = ", ".join(f"{name} {of[name]}" for name in VERSIONS)
        device = of.get("gpu", "no accelerator")
        where = f"{line['measured']}: {of['cores']} cores of {of['cpu']}, {device}"
        found.setdefault(f"{where}; {versions}; load {of['load']}", []).append(line["case"])
    return "\n".join(
        f"- {', '.join(sorted(set(names)))}: {told_of}." for told_of, names in found.items()
    )


HEAD = f"""# jpt against torch

Written by `{COMMAND}`; a case alone by `--cases NAME`.
What is measured, and how, stands at the top of `run.py` and of the scripts beside it. All numbers
with their turns: `results.json`. Numbers are medians. On a GPU: the same command with `--gpu`,
where the share of the rate of products is the utilisation; written without a GPU at hand.
"""
STEP_NAMES = (
    "train steps",
    "side",
    "s a step (smallest to largest turn)",
    "rows/s",
    "tokens/s",
    "GFLOP a step",
    "share of the rate of matrix products",
    "peak MB",
    "tokens of a row: least / mean / most",
)
RUN_NAMES = (
    "whole processes",
    "side",
    "wall s, turn by turn (jpt: the first without a cache)",
    "processor s",
    "peak MB",
)
