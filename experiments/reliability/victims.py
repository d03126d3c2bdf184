"""The commands to kill, a tuning run and a sweep of small runs, and the checks afterwards."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINT_EVERY = 5
CLOCK = {"elapsed_s", "rows_per_s", "peak_memory_mb"}
WORDS = {"good": ("fine", "great", "lovely"), "bad": ("poor", "awful", "boring")}


@dataclass(frozen=True)
class Run:
    """One run: its folder, steps, and in a sweep its group and the steps before it in its slot."""

    folder: str
    steps: int
    group: int = 0
    before: int = 0


@dataclass(frozen=True)
class Kind:
    """A command to kill repeatedly; the seed distinguishes one victim from the next."""

    name: str
    runs: tuple[Run, ...]
    slots: int
    tables: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Total number of steps of all runs."""
        return sum(run.steps for run in self.runs)


def tuning(steps: int) -> Kind:
    return Kind("tune", (Run(".", steps),), 1)


def sweep(steps: int) -> Kind:
    """Return six runs in two groups of two slots; in the second group a slot is reused."""
    # Long runs come first; each goes into the first slot that has room for it.
    thirds = (3, 0, 0), (3, 0, 0), (2, 1, 0), (1.5, 1, 0), (1.5, 1, 1.5), (1, 1, 2)
    runs = []
    for seed, (length, group, before) in enumerate(thirds):
        third = steps // 3
        folder = f"runs/mood+steps={round(length * third)}/seed-{seed}"
        runs.append(Run(folder, round(length * third), group, round(before * third)))
    return Kind("sweep", tuple(runs), 2, ("runs.csv", "settings.csv", "sweep.json"))


def command(kind: Kind, work: Path, out: Path, seed: int) -> list[str]:
    """Return the command that is started, and restarted after every kill."""
    fixed = {"backbone": "builtin/bert-small", "task": str(write_task(work / "mood"))}
    sizes = {"batch_size": 4, "length": 5, "eval_every": 20, "checkpoint_every": CHECKPOINT_EVERY}
    start = [sys.executable, "-m", "jpt.cli", kind.name]
    if kind.name == "tune":
        options = fixed | sizes | {"steps": kind.steps, "seed": seed}
        named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return [*start, "--out", str(out), *named]
    grid = work / f"grid-{seed}.toml"
    varied = {"seed": range(len(kind.runs)), "steps": [run.steps for run in kind.runs]}
    # The victim's seed changes the learning rate, so that the runs keep their names.
    fixed |= sizes | {"learning_rate": round(1e-2 * 0.9**seed, 6)}
    tables = {"fixed": fixed, "[zip]": varied, "run": {"slots": kind.slots}}
    grid.write_text("\n".join(toml_table(name, values) for name, values in tables.items()))
    return [*start, str(grid), "--out", str(out)]


def toml_table(name: str, values: dict[str, Any]) -> str:
    listed = {key: list(each) if isinstance(each, range) else each for key, each in values.items()}
    lines = [f"{key} = {json.dumps(value)}" for key, value in listed.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def write_task(folder: Path) -> Path:
    """Write a task of 42 short rows, so that steps and evaluations are quick."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": f"a {word} film, number {number}", "label": label}
        for number in range(7)
        for label, words in WORDS.items()
        for word in words
    ]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "".join(f'{label} = "{label}"\n' for label in WORDS)
    (folder / "task.toml").write_text(
        'name = "mood"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
        f'template = "{{text}}"\n[label_words]\n{words}'
    )
    return folder


def lines(out: Path, run: Run) -> list[dict[str, Any]]:
    """Return the complete lines of a log."""
    path = out / run.folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(out: Path, run: Run) -> int:
    """Return the last logged step, reading only the end of the file."""
    try:
        with (out / run.folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 2000))
            found = re.findall(rb'\n?\{"step": (\d+),', file.read())
    except FileNotFoundError:
        return 0
    return int(found[-1]) if found else 0


def position(kind: Kind, out: Path) -> int:
    """Return the total number of logged steps of all runs."""
    return sum(last_step(out, run) for run in kind.runs)


def is_finished(kind: Kind, out: Path) -> bool:
    """Return True if every run has its result, and the sweep its tables."""
    files = [f"{run.folder}/result.json" for run in kind.runs] + list(kind.tables)
    return all((out / name).exists() for name in files)


class Checkpoints:
    """Progress of a victim's checkpoints; a sweep's groups are numbered as they appear."""

    def __init__(self, kind: Kind, out: Path) -> None:
        self.kind, self.out, self._seen = kind, out, []

    def folders(self) -> list[Path]:
        """Return the checkpoint folders; a finished group has none."""
        if self.kind.name == "tune":
            return [self.out / "checkpoints"]
        root = self.out / "groups"
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        self._seen += [name for name in names if name not in self._seen]
        return [root / name / "checkpoints" for name in self._seen]

    def names(self) -> list[tuple[int, str]]:
        """Return group number and name of everything in the checkpoint folders."""
        found = []
        for group, folder in enumerate(self.folders()):
            try:
                found += [(group, path.name) for path in folder.iterdir()]
            except FileNotFoundError:
                continue
        return found

    def reached(self) -> dict[int, float]:
        """Return the newest complete checkpoint of each group; infinity if it is finished."""
        newest: dict[int, float] = {run.group: 0.0 for run in self.kind.runs}
        for group, name in self.names():
            if name.isdecimal():
                newest[group] = max(newest[group], float(name))
        for group in newest:
            runs = [run for run in self.kind.runs if run.group == group]
            if all((self.out / run.folder / "result.json").exists() for run in runs):
                newest[group] = math.inf
        return newest


def kept_lines(kind: Kind, out: Path, reached: dict[int, float]) -> dict[str, list[dict[str, Any]]]:
    """Return the logged lines of each run up to its newest complete checkpoint."""
    return {
        run.folder: [
            line for line in lines(out, run) if run.before + line["step"] <= reached[run.group]
        ]
        for run in kind.runs
    }


def find_differences(kind: Kind, whole: Path, killed: Path) -> Iterator[str]:
    """Yield the differences between a victim and the uninterrupted run."""
    names, others = file_names(whole), file_names(killed)
    for name in sorted(set(names) ^ set(others)):
        yield f"{name}: {'is missing' if name in names else 'should not be there'}"
    for run in kind.runs:
        for name in ("prompt.safetensors", "last.safetensors"):
            first, second = (out / run.folder / name for out in (whole, killed))
            if not second.exists() or first.read_bytes() != second.read_bytes():
                yield f"{run.folder}/{name} differs"
        logs = [[without_clock(line) for line in lines(out, run)] for out in (whole, killed)]
        if logs[0] != logs[1]:
            yield f"{run.folder}/metrics.jsonl differs"
    records = [
        f"{run.folder}/{name}" for run in kind.runs for name in ("result.json", "config.json")
    ]
    for name in [*records, *kind.tables]:
        paths = [out / name for out in (whole, killed)]
        if not paths[1].exists() or read(paths[0]) != read(paths[1]):
            yield f"{name} differs"


def read(path: Path) -> Any:
    """Read a record or table without times."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [without_clock(row) for row in csv.DictReader(file)]
    return without_clock(json.loads(path.read_text()))


def without_clock(value: Any) -> Any:
    """Drop times and memory at any depth."""
    if isinstance(value, dict):
        return {name: without_clock(each) for name, each in value.items() if name not in CLOCK}
    return [without_clock(each) for each in value] if isinstance(value, list) else value


def file_names(out: Path) -> list[str]:
    """List the files of a folder; without random names of orbax, checkpoints by age."""
    paths = [(path, "/" * path.is_dir()) for path in out.rglob("*")]
    found = [path.relative_to(out).as_posix() + ending for path, ending in paths]
    steps = {re.match(r"checkpoints/(\d+)/", name) for name in found}
    newest = sorted({int(match[1]) for match in steps if match}, reverse=True)
    ages = {f"checkpoints/{step}/": f"checkpoints/newest-{age}/" for age, step in enumerate(newest)}
    renamed = []
    for name in found:
        head = next((head for head in ages if name.startswith(head)), "")
        renamed.append(
            re.sub(r"/d/[0-9a-f]{32}$", "/d/RANDOM", ages.get(head, "") + name[len(head) :])
        )
    return sorted(renamed)


def leftovers(out: Path) -> list[str]:
    """Return temporary names that a killed process left, of jpt and of orbax."""
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    return sorted(name for name in names if "tmp" in name.rpartition("/")[2])
