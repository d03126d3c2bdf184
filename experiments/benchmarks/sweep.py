"""Compare a sweep with separate `jpt tune` calls: 6 tasks, 3 seeds, 2 learning rates.

Every command is a separate process; wall time, CPU time and peak memory are those reported by the
operating system. Half of the separate calls run before the sweep, half after it. Both sides start
with an empty cache folder of their own, as on a user's first day: programs and tokenised rows are
made once and then found there. With `--separate N` only N evenly spaced calls are measured; the
first call of a task is counted once per task, the mean of the others for the rest. Prompts and
scores of both sides are compared. Linux and macOS only.

Start-up, compilation and the reading of rows do not depend on the number of steps, so the ratio
falls as `--steps` grows: it is (start + run) / (start / 36 + run). `--no-compile-cache` measures
separate calls that compile from scratch.

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
    """Resources used by a process."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both ways, compare the results, and print the ratio."""
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
        print(f"separate calls{scale_note(names)}: {describe(separate)}")
        print(
            f"ratio for {options.steps} steps a run: {separate.wall_s / whole.wall_s:.2f} in wall "
            f"time, {separate.cpu_s / whole.cpu_s:.2f} in CPU time"
        )
        compare(work, names)


def list_runs(count: int | None) -> list[tuple[str, float, int]]:
    """List task, learning rate and seed of all runs, or of `count` evenly spaced ones."""
    runs = [(task, rate, seed) for task in TASKS for seed in SEEDS for rate in RATES]
    if count is None or count >= len(runs):
        return runs
    return [runs[number * len(runs) // count] for number in range(count)]


def run_sweep(options: argparse.Namespace, work: Path) -> Spent:
    """Write the sweep file and run it."""
    grid = work / "grid.toml"
    tasks = json.dumps([f"builtin/{task}" for task in TASKS])
    grid.write_text(
        f'[fixed]\nbackbone = "{options.backbone}"\nsteps = {options.steps}\n\n'
        f"[grid]\ntask = {tasks}\nseed = {list(SEEDS)}\nlearning_rate = {list(RATES)}\n"
    )
    arguments = ["sweep", str(grid), "--out", str(work / "swept")]
    return measure(options, arguments, work / "cache-sweep")


def tune_once(options: argparse.Namespace, work: Path, task: str, rate: float, seed: int) -> Spent:
    """Tune one prompt in a separate process."""
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
    """Run a jpt command; return the resources reported by the operating system."""
    log = cache.with_suffix(".txt")
    environment = {**os.environ, "JPT_CACHE": str(cache)}
    arguments = [*arguments, *(["--no-compile-cache"] if options.no_compile_cache else [])]
    started_s = time.perf_counter()
    with log.open("w") as file:
        command = [sys.executable, "-m", "jpt.cli", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} ended with {process.returncode}: {log.read_text()}"
        )
    unit = 1e6 if sys.platform == "darwin" else 1e3
    wall_s = time.perf_counter() - started_s
    return Spent(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


def scale_up(names: list[tuple[str, float, int]], calls: list[Spent]) -> Spent:
    """Extrapolate to all separate calls; exact if all were measured."""
    tasks = [name[0] for name in names]
    first = [tasks.index(task) == number for number, task in enumerate(tasks)]
    found = np.asarray(calls)
    firsts, others = found[first], found[np.logical_not(first)]
    if not len(others):  # every task once: each call is a first one
        total = found.mean(axis=0) * len(list_runs(None))
    else:
        once = firsts.mean(axis=0) * len(TASKS)
        total = once + others.mean(axis=0) * (len(list_runs(None)) - len(TASKS))
    return Spent(total[0], total[1], found[:, 2].max())


def scale_note(names: list[tuple[str, float, int]]) -> str:
    count = len(list_runs(None))
    return "" if len(names) == count else f" (scaled up to {count} from {len(names)})"


def describe(spent: Spent) -> str:
    return f"{spent.wall_s:.1f} s, {spent.cpu_s:.1f} s of CPU time, {spent.peak_mb:,.0f} MB peak"


def compare(work: Path, names: list[tuple[str, float, int]]) -> None:
    """Print the differences between the prompts; exit with an error if scores differ."""
    import jpt

    with (work / "swept" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs_by_key = {
        (row["task"], float(row["learning_rate"]), int(row["seed"])): row["run"] for row in rows
    }
    apart, differing = {}, []
    for task, rate, seed in names:
        name = f"{task}, rate {rate}, seed {seed}"
        run = work / "swept" / "runs" / runs_by_key[f"builtin/{task}", rate, seed]
        alone = work / "separate" / task / str(rate) / str(seed)
        prompts = [jpt.load_prompt(folder / "last.safetensors") for folder in (alone, run)]
        first, second = (prompt.values for prompt in prompts)
        apart[name] = float(np.abs(first - second).max() / np.abs(first).max())
        found, other = (read_scores(folder) for folder in (alone, run))
        if found != other:
            differing.append(f"{name}: {found} and {other}")
    worst = max(apart, key=lambda name: apart[name])
    close = sum(each <= 1e-5 for each in apart.values())
    print(
        f"last prompts: {close} of {len(names)} within 1e-5 of the largest value, at most "
        f"{apart[worst]:.1e} ({worst}); accuracies and best steps are the same for "
        f"{len(names) - len(differing)} of {len(names)}"
    )
    if differing:
        raise SystemExit("\n".join(["sweep and separate calls differ", *differing]))


def read_scores(folder: Path) -> list[float]:
    """Return the accuracies and the best step."""
    record = json.loads((folder / "result.json").read_text())
    return [record["validation"]["accuracy"], record["test"]["accuracy"], record["best_step"]]


if __name__ == "__main__":
    main()
