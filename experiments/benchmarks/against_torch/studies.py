"""Compare whole jpt commands with a torch user's script: cases (d), (e), (f) and (g).

Every measurement is a separate process, timed from outside, including start-up, loading and
compilation. The sides alternate. jpt starts with an empty cache folder: its first round compiles,
the later ones find programs and tokens there, as on a user's second day; the table has the later
rounds, and the first one separately. The torch scripts get rows that are tokenised already.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
TASKS = (
    "sst2",
    "imdb",
    "movie_rationales",
    "tweeteval_sentiment",
    "laptop",
    "restaurant",
    "mnli",
    "qnli",
    "snli",
    "deontology",
    "justice",
    "qqp",
    "mrpc",
)
"""The paper's 13 tasks with labels."""
MATRIX = {"rows": 64, "length": 50, "max_tokens": 64}
SWEEP = {
    "steps": 60,
    "batch_size": 16,
    "length": 20,
    "max_tokens": 64,
    "eval_every": 60,
    "objective": "vocabulary",
    "label_scoring": "first_token",
}
SWEEP_TASKS = ("imdb_number", "imdb_negation", "rotten_tomatoes")
SEEDS, RATES = (0, 1), (3e-3, 1e-2)
START = ("--steps", "1", "--batch-size", "16", "--length", "20", "--max-tokens", "64")


class Spent(NamedTuple):
    """Resources used by a process."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def run(command: list[str], work: Path, **more: str) -> Spent:
    """Run a process; return the resources reported by the operating system."""
    log = work / "log.txt"
    environment = {**os.environ, **more}
    started_s = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started_s
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {log.read_text()}")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return Spent(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


def jpt_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jpt.cli", *arguments]


def script(name: str, *arguments: Any) -> list[str]:
    """Return the command that runs another script of this folder."""
    return [sys.executable, str(HERE / name), *map(str, arguments)]


Sides = Mapping[str, Callable[[int], Spent]]


def in_turns(sides: Sides, turns: int) -> dict[str, list[Spent]]:
    """Run the sides one after the other, several times."""
    found: dict[str, list[Spent]] = {side: [] for side in sides}
    for turn in range(turns):
        for side, once in sides.items():
            found[side].append(once(turn))
    return found


def line(
    case: str, name: str, found: dict[str, list[Spent]], side: str, expected: float, **more: Any
) -> dict[str, Any]:
    """Return a line of the table: jpt's later rounds against one torch side."""
    ours, theirs = found["jpt"][1:] or found["jpt"], found[side][1:] or found[side]
    pairs = zip(theirs, ours, strict=True)
    ratios = sorted(their.wall_s / our.wall_s for their, our in pairs)
    numbers = {"jpt": ours, side: theirs}
    medians = {
        who: statistics.median(one.wall_s for one in turns) for who, turns in numbers.items()
    }
    return {
        "case": case,
        "name": f"{name}, against {side}" if len(found) > 1 else name,
        "unit": "s",
        "jpt": round(medians["jpt"], 2),
        "torch": round(medians[side], 2),
        "ratio": round(statistics.median(ratios), 2),
        "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "expected": expected,
        "jpt_first_s": round(found["jpt"][0].wall_s, 2),
        "sides": {
            who: {
                "wall_s": [round(one.wall_s, 2) for one in found[who]],
                "cpu_s": [round(one.cpu_s, 2) for one in found[who]],
                "peak_mb": round(max(one.peak_mb for one in found[who])),
            }
            for who in numbers
        },
        **more,
    }


def matrix(options: Any, model: str, torch_sides: Mapping[str, float]) -> list[dict[str, Any]]:
    """Measure case (d): 13 prompts on 13 tasks.

    Args:
        options: Options of the command.
        model: A built-in backbone.
        torch_sides: The torch sides and the target speed-up against each.
    """
    work = fresh(options.work / f"d-{model}")
    subprocess.run(script("matrix.py", "prepare", work, model, options.data), check=True)
    arguments = ["--data", str(work / "data"), "--tasks", ",".join(TASKS)]
    arguments += ["--label-scoring", "first_token", "--max-tokens", str(MATRIX["max_tokens"])]
    arguments += ["--no-random", "--no-untouched", "--prompts", str(work / "prompts")]

    def ours(turn: int) -> Spent:
        command = jpt_command("transfer", *arguments, "--out", str(work / f"jpt-{turn}"))
        return run(command, work, JPT_CACHE=str(work / "cache"))

    def theirs(side: str) -> Callable[[int], Spent]:
        return lambda turn: run(script("matrix.py", side, work, model), work)

    sides = {"jpt": ours} | {side: theirs(side) for side in torch_sides}
    found = in_turns(sides, options.turns)
    lines = []
    for side, expected in torch_sides.items():
        same = count_same(work / "jpt-0" / "transfer.csv", work / f"{side}.csv")
        name = f"(d) 13 x 13 matrix, {MATRIX['rows']} rows a task, {model}"
        lines.append(line("d", name, found, side, expected, same_cells=same))
    return lines


def count_same(ours: Path, theirs: Path) -> str:
    """Report how many cells of two tables are equal."""
    tables = []
    for path in (ours, theirs):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        tables.append(
            {(row["target_task"], row["source_prompt"]): float(row["value"]) for row in rows}
        )
    same = sum(abs(tables[0][key] - value) < 1e-6 for key, value in tables[1].items())
    return f"{same} of {len(tables[1])}"


def sweep(options: Any) -> list[dict[str, Any]]:
    """Measure case (f): 12 runs (3 tasks x 2 seeds x 2 learning rates), scored at their end."""
    work = fresh(options.work / "f")
    subprocess.run(script("sweeps.py", "prepare", work), check=True)

    def ours(turn: int) -> Spent:
        command = jpt_command("sweep", str(work / "grid.toml"), "--out", str(work / f"jpt-{turn}"))
        return run(command, work, JPT_CACHE=str(work / "cache"))

    found = in_turns(
        {"jpt": ours, "peft": lambda turn: run(script("sweeps.py", "peft", work), work)},
        options.turns,
    )
    apart = subprocess.run(
        script("sweeps.py", "compare", work), check=True, capture_output=True, text=True
    ).stdout.strip()
    return [line("f", "(f) sweep of 12 runs, gpt2-mini", found, "peft", 3, scores_apart=apart)]


def bank(options: Any) -> list[dict[str, Any]]:
    """Measure 16 runs of batch 8 on a GPU, trained together and one after the other."""
    work = fresh(options.work / "bank")
    fixed = {**SWEEP, "backbone": "builtin/bert-medium", "batch_size": 8, "steps": 400}
    grid = {"task": ["builtin/imdb_number"], "seed": list(range(16))}

    def once(slots: int) -> Callable[[int], Spent]:
        text = toml({"fixed": {**fixed, "eval_every": 400}, "grid": grid, "run": {"slots": slots}})
        (work / f"{slots}.toml").write_text(text)

        def timed(turn: int) -> Spent:
            command = jpt_command("sweep", str(work / f"{slots}.toml"))
            command += ["--out", str(work / f"{slots}-{turn}")]
            return run(command, work, JPT_CACHE=str(work / f"cache-{slots}"))

        return timed

    found = in_turns({"jpt": once(16), "one by one": once(1)}, options.turns)
    return [line("bank", "(GPU) 16 runs of batch 8, bert-medium", found, "one by one", 4)]


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Format tables of numbers, texts and lists as TOML."""
    lines = []
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join([*lines, ""])


def start(options: Any) -> list[dict[str, Any]]:
    """Measure case (g): import, and a one-step run from the shell with 50 rows scored twice."""
    work = fresh(options.work / "g")
    lines = [_imports(options, work)]
    subprocess.run(script("sweeps.py", "start", work), check=True)

    def ours(turn: int) -> Spent:
        arguments = ["--backbone", "builtin/gpt2-mini", "--task", str(work / "first"), *START]
        command = jpt_command("tune", *arguments, "--out", str(work / f"jpt-{turn}"))
        return run(command, work, JPT_CACHE=str(work / "cache"))

    sides = {"jpt": ours, "peft": lambda turn: run(script("sweeps.py", "first", work), work)}
    found = in_turns(sides, max(3, options.turns))
    name = "(g) one step from the shell, gpt2-mini"
    return [*lines, line("g-step", name, found, "peft", 0, limit_s=6)]


def _imports(options: Any, work: Path) -> dict[str, Any]:
    """Measure import times beyond that of python itself."""
    code = {"python": "pass", "jpt": "import jpt", "peft": "import torch, transformers, peft"}

    def once(text: str) -> Callable[[int], Spent]:
        return lambda turn: run([sys.executable, "-c", text], work)

    found = in_turns({side: once(text) for side, text in code.items()}, 5)
    empty = statistics.median(one.wall_s for one in found.pop("python"))
    less = {
        side: [one._replace(wall_s=one.wall_s - empty) for one in turns]
        for side, turns in found.items()
    }
    return line("g-import", "(g) import", less, "peft", 0, limit_s=0.3)


def neurons(options: Any) -> list[dict[str, Any]]:
    """Measure case (e): run benchmarks/neurons.py several times."""
    command = [sys.executable, str(HERE.parent / "neurons.py"), "--json"]
    found = []
    for _ in range(options.turns):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    turns = {
        side: [Spent(each[side]["read_s"], each[side]["cpu_s"], each[side]["peak_mb"])
               for each in found]
        for side in ("jpt", "torch")
    }  # fmt: skip
    name = "(e) neurons of 100 prompts, RoBERTa-base shape"
    return [line("e", name, turns, "torch", 5)]


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
