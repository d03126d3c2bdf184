"""A sweep in one process against a `jpt tune` for each of its runs: 6 tasks, 3 seeds, 2 rates.

Every command is a process of its own; wall time, processor time and peak memory are what the
operating system says of it. Half of the separate calls come before the sweep, half after it. Both
sides begin with an empty cache folder of their own, as a user's first day does: compiled programs
and tokenised rows are made once and then found there. With `--separate N` only N calls, evenly
chosen, are measured; what the first call of a task costs is counted once a task, the mean of the
others for the rest. What both found is compared: prompts, scores. Linux and macOS only.

Start-up, compilation and the reading of rows do not depend on the number of steps, so the ratio
falls as `--steps` grows: it is (start + run) / (start / 36 + run). `--no-compile-cache` shows it
where every separate call compiles anew.

Command:
    python experiments/benchmarks/sweep.py

Time and result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

TASKS = (
    "imdb",
    "rotten_tomatoes",
    "imdb_number",
    "imdb_negation",
    "imdb_first_person",
    "imdb_ending",
)
SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2)


class Spent(NamedTuple):
    """What a process took."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures both ways, compares what came out, prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="builtin/bert-small")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--separate", type=int, default=len(TASKS) * len(SEEDS) * len(RATES))
    parser.add_argument("--no-compile-cache", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        names = list_runs(options.separate)
        half = len(names) // 2
        calls = [tune_once(options, work, *name) for name in names[:half]]
        whole = run_sweep(options, work)
        calls += [tune_once(options, work, *name) for name in names[half:]]
        print(f"the sweep of {len(list_runs(None))} runs: {describe(whole)}")
        separate = scale_up(names, calls)
        print(f"separate calls{told_of_scale(names)}: {describe(separate)}")
        print(
            f"ratio for {options.steps} steps a run: {separate.wall_s / whole.wall_s:.2f} in wall "
            f"time, {separate.cpu_s / whole.cpu_s:.2f} in processor time"
        )
        compare(work, names)


def list_runs(count: int | None) -> list[tuple[str, float, int]]:
    """Task, rate and seed of all runs, or of so many, evenly chosen."""
    runs = [(task, rate, seed) for task in TASKS for seed in SEEDS for rate in RATES]
    if count is None or count >= len(runs):
        return runs
    return [runs[number * len(runs) // count] for number in range(count)]


def run_sweep(options: argparse.Namespace, work: Path) -> Spent:
    """Writes the file and runs it."""
    grid = work / "grid.toml"
    tasks = json.dumps([f"builtin/{task}" for task in TASKS])
    grid.write_text(
        f'[fixed]\nbackbone = "{options.backbone}"\nsteps = {options.steps}\n\n'
        f"[grid]\ntask = {tasks}\nseed = {list(SEEDS)}\nlearning_rate = {list(RATES)}\n"
    )
    arguments = ["sweep", str(grid), "--out", str(work / "swept")]
    return measure(options, arguments, work / "cache-sweep")


def tune_once(options: argparse.Namespace, work: Path, task: str, rate: float, seed: int) -> Spent:
    """Tunes one prompt in a process of its own."""
    given = {
        "backbone": options.backbone,
        "task": f"builtin/{task}",
        "steps": options.steps,
        "seed": seed,
        "learning-rate": rate,
        "out": work / "separate" / task / str(rate) / str(seed),
    }
    named = [f"--{name}={value}" for name, value in given.items()]
    spent = measure(options, ["tune", *named], work / "cache-separate")
    print(f"{task}, rate {rate}, seed {seed}: {describe(spent)}", flush=True)
    return spent


def measure(options: argparse.Namespace, arguments: list[str], cache: Path) -> Spent:
    """Runs a command of jpt and asks the operating system what it took."""
    told = cache.with_suffix(".txt")
    environment = {**os.environ, "JPT_CACHE": str(cache)}
    arguments = [*arguments, *(["--no-compile-cache"] if options.no_compile_cache else [])]
    started_s = time.perf_counter()
    with told.open("w") as file:
        command = [sys.executable, "-m", "jpt.cli", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} ended with {process.returncode}: {told.read_text()}"
        )
    unit = 1e6 if sys.platform == "darwin" else 1e3
    wall_s = time.perf_counter() - started_s
    return Spent(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


def scale_up(names: list[tuple[str, float, int]], calls: list[Spent]) -> Spent:
    """What all separate calls take; exact where all were measured."""
    tasks = [name[0] for name in names]
    first = [tasks.index(task) == number for number, task in enumerate(tasks)]
    found = np.asarray(calls)
    firsts, others = found[first], found[np.logical_not(first)]
    if not len(others):  # no task twice: all are like the first one
        total = found.mean(axis=0) * len(list_runs(None))
    else:
        once = firsts.mean(axis=0) * len(TASKS)
        total = once + others.mean(axis=0) * (len(list_runs(None)) - len(TASKS))
    return Spent(total[0], total[1], found[:, 2].max())


def told_of_scale(names: list[tuple[str, float, int]]) -> str:
    """Says whether the figure was measured or scaled up."""
    count = len(list_runs(None))
    return "" if len(names) == count else f" (scaled up to {count} from {len(names)})"


def describe(spent: Spent) -> str:
    """The three numbers in words."""
    return (
        f"{spent.wall_s:.1f} s, {spent.cpu_s:.1f} s of processor time, "
        f"{spent.peak_mb:,.0f} MB at most"
    )


def compare(work: Path, names: list[tuple[str, float, int]]) -> None:
    """Prints how far the prompts of both ways are apart; fails where their scores differ."""
    import jpt

    with (work / "swept" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = {
        (row["task"], float(row["learning_rate"]), int(row["seed"])): row["run"] for row in rows
    }
    apart, differing = {}, []
    for task, rate, seed in names:
        name = f"{task}, rate {rate}, seed {seed}"
        run = work / "swept" / "runs" / places[f"builtin/{task}", rate, seed]
        alone = work / "separate" / task / str(rate) / str(seed)
        prompts = [jpt.load_prompt(folder / "last.safetensors") for folder in (alone, run)]
        first, second = (prompt.values for prompt in prompts)
        apart[name] = float(np.abs(first - second).max() / np.abs(first).max())
        found, other = (read_scores(folder) for folder in (alone, run))
        if found != other:
            differing.append(f"{name}: {found} and {other}")
    worst = max(apart, key=lambda name: apart[name])
    near = sum(each <= 1e-5 for each in apart.values())
    print(
        f"last prompts: {near} of {len(names)} within 1e-5 of the largest value, at most "
        f"{apart[worst]:.1e} ({worst}); accuracies and best steps are the same for "
        f"{len(names) - len(differing)} of {len(names)}"
    )
    if differing:
        raise SystemExit("\n".join(["the two ways differ", *differing]))


def read_scores(folder: Path) -> list[float]:
    """Accuracies and the step of the best prompt."""
    record = json.loads((folder / "result.json").read_text())
    return [record["validation"]["accuracy"], record["test"]["accuracy"], record["best_step"]]


if __name__ == "__main__":
    main()
