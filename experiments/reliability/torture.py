"""Kill a tuning run and a sweep at random moments; both must end as if uninterrupted.

An uninterrupted run comes first. Then the same command runs in another folder, is killed by SIGKILL
or SIGTERM, and is restarted until it ends: during start-up, between two checkpoints, during a
checkpoint (a temporary name appears among the checkpoints; the process is stopped, and killed if
the name still exists), and while results are written. If it ends before all kills are used, the
next victim begins, with another seed and its own uninterrupted run. After every kill:

- SIGTERM ends with exit code 75 within the step, without a traceback; other codes are allowed only
  while python loads, or when everything was written already;
- the newest complete checkpoint is never older than before;
- every line logged up to the newest complete checkpoint is still there, including clock fields, so
  these steps were not repeated;

and at the end: both prompts of every run are byte-identical; logs, results and tables are equal
except times and memory; the files are the same, so no temporary name and no lock is left.

Command:
    python experiments/reliability/torture.py --out DIR

Time and result: see experiments/reliability/RESULTS.md. The last folder of victims and all that
differed are kept in DIR. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killing import SHARES, SIGNALS, Death, Kill, Process, judge, plan_kills
from victims import (
    Checkpoints,
    Kind,
    command,
    find_differences,
    is_finished,
    kept_lines,
    position,
    sweep,
    tuning,
)

KILLS_EACH = 17


@dataclass
class Tally:
    """Kills of one kind of victim, and the failures found."""

    kills: list[tuple[Kill, Death]] = field(default_factory=list)
    starts: int = 0
    victims: int = 0
    wrong: list[str] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both kinds, print a table, and exit with 1 on any failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50, help="kills per kind")
    parser.add_argument("--steps", type=int, default=240, help="tuning steps, a multiple of 60")
    parser.add_argument("--kinds", default="tune,sweep")
    parser.add_argument("--phases", default=",".join(SHARES), help="phases in which to kill")
    options = parser.parse_args(arguments)
    known = {"tune": tuning(options.steps), "sweep": sweep(options.steps)}
    tallies = {}
    for name in options.kinds.split(","):
        rng = random.Random(f"{options.seed} {name}")
        work = (options.out / name).absolute()
        kills = plan_kills(options.kills, rng, options.phases.split(","))
        tallies[name] = torture(known[name], work, kills, rng)
    record = {name: summary(tally) for name, tally in tallies.items()}
    text = "\n".join(describe(name, tally) for name, tally in tallies.items())
    (options.out / "torture.json").write_text(json.dumps(record, indent=2) + "\n")
    (options.out / "torture.md").write_text(text)
    print(text)
    if any(tally.wrong for tally in tallies.values()):
        raise SystemExit(1)


def torture(kind: Kind, work: Path, waiting: list[Kill], rng: random.Random) -> Tally:
    """Apply all kills to as many victims as needed."""
    work.mkdir(parents=True)
    tally, count, started_s = Tally(), len(waiting), time.monotonic()
    while waiting:
        number = tally.victims
        if number > 2 * count:
            raise SystemExit(f"{kind.name}: {len(waiting)} kills could not be applied")
        tally.victims += 1
        whole, killed = work / f"whole-{number}", work / f"killed-{number}"
        start_s = run_whole(kind, work, whole, number, tally)
        batch, waiting = waiting[:KILLS_EACH], waiting[KILLS_EACH:]
        if kind.name == "tune":  # results are written once, at the end
            batch.sort(key=lambda kill: kill.phase == "results")
        waiting += kill_repeatedly(kind, work, killed, number, batch, start_s, tally, rng)
        found = [f"killed-{number}: {each}" for each in find_differences(kind, whole, killed)]
        tally.wrong += found
        print(
            f"{kind.name} {number}: {len(tally.kills)} of {count} kills, wrong: {found}", flush=True
        )
        if not found and waiting:
            shutil.rmtree(whole)
            shutil.rmtree(killed)
    tally.elapsed_s = time.monotonic() - started_s
    return tally


def run_whole(kind: Kind, work: Path, out: Path, number: int, tally: Tally) -> float:
    """Run uninterrupted; return the seconds until training began."""
    started = command(kind, work, out, number)
    death = Process(kind, started, out, work / "whole.txt", Checkpoints(kind, out)).wait()
    if death.code or not is_finished(kind, out):
        raise SystemExit(f"the uninterrupted {kind.name} ended with {death.code}: {death.stderr}")
    tally.whole_s.append(death.elapsed_s)
    if kind.name == "sweep":
        check_packing(kind, death.stderr)
    return death.begun_s or death.elapsed_s


def check_packing(kind: Kind, stderr: str) -> None:
    """Stop if a sweep groups its runs differently from victims.sweep."""
    listed = [line.split(", ") for line in re.findall(r"running in \d+ slots?: (.*)", stderr)]
    for group, names in enumerate(listed):
        runs = [run.folder.removeprefix("runs/") for run in kind.runs if run.group == group]
        if sorted(names) != sorted(runs):
            raise SystemExit(f"group {group}: expected {runs}, got {names}; fix victims.sweep")


def kill_repeatedly(
    kind: Kind,
    work: Path,
    out: Path,
    number: int,
    batch: list[Kill],
    start_s: float,
    tally: Tally,
    rng: random.Random,
) -> list[Kill]:
    """Kill one victim until its kills are used or it ends; return the unused ones."""
    checkpoints, started = Checkpoints(kind, out), command(kind, work, out, number)
    log = work / f"killed-{number}.txt"
    while True:
        kill = batch[0] if batch else None
        before = checkpoints.reached()
        kept = kept_lines(kind, out, before)
        process = Process(kind, started, out, log, checkpoints)
        tally.starts += 1
        if kill is None:
            death = process.wait()
        else:
            at = position(kind, out)
            target = at + rng.uniform(0, 2 * (kind.steps - at) / (len(batch) + 1))
            death = process.kill(kill, round(target), start_s, rng)
        wrong = [] if not death.killed else [judge(kill, death, kind, out)]
        wrong += find_losses(kind, out, checkpoints, before, kept)
        where = f"killed-{number}, start {tally.starts} ({kill}, {death.code})"
        tally.wrong += [f"{where}: {each}" for each in wrong if each]
        if death.killed:
            tally.kills.append((batch.pop(0), death))
            print(f"{where}, {death.elapsed_s:.0f} s, left {death.left}", flush=True)
        elif death.code == 0:
            return batch
        else:
            tally.wrong.append(f"{where} did not resume: {death.stderr[-2000:]}")
            return batch


def find_losses(
    kind: Kind,
    out: Path,
    checkpoints: Checkpoints,
    before: dict[int, float],
    kept: dict[str, list[dict[str, Any]]],
) -> list[str]:
    """Return what a restart lost of the state at the newest complete checkpoint."""
    now = checkpoints.reached()
    losses = [
        f"checkpoint of group {group} went from {before[group]} back to {now[group]}"
        for group in before
        if now[group] < before[group]
    ]
    current = kept_lines(kind, out, dict.fromkeys(before, float("inf")))
    for folder, wanted in kept.items():
        if current[folder][: len(wanted)] != wanted:
            losses.append(f"{folder}/metrics.jsonl lost lines up to its newest checkpoint")
    return losses


def summary(tally: Tally) -> dict[str, Any]:
    """Count for the record."""
    hit = Counter((kill.phase, kill.signal.name) for kill, _ in tally.kills)
    torn = Counter(kill.phase for kill, death in tally.kills if death.left)
    codes = Counter(death.code for kill, death in tally.kills if kill.signal.name == "SIGTERM")
    return {
        "kills": {f"{phase} {name}": count for (phase, name), count in sorted(hit.items())},
        "left_temporary_names": dict(torn),
        "exit_codes_of_sigterm": dict(codes),
        "starts": tally.starts,
        "victims": tally.victims,
        "whole_s": [round(each, 1) for each in tally.whole_s],
        "elapsed_s": round(tally.elapsed_s, 1),
        "wrong": tally.wrong,
    }


def describe(name: str, tally: Tally) -> str:
    """Format a table of kills and a summary."""
    record = summary(tally)
    head = f"| {name}: killed during | " + " | ".join(each.name for each in SIGNALS)
    rows = [f"{head} | temporary names left |", "|---|---|---|---|"]
    for phase in SHARES:
        counts = [record["kills"].get(f"{phase} {each.name}", 0) for each in SIGNALS]
        cells = [phase, *counts, record["left_temporary_names"].get(phase, 0)]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    codes = ", ".join(f"{n} x {code}" for code, n in record["exit_codes_of_sigterm"].items())
    whole_s = sum(tally.whole_s) / len(tally.whole_s)
    rows.append(
        f"\n{len(tally.kills)} kills of {tally.victims} victims in {tally.starts} starts and "
        f"{tally.elapsed_s:.0f} s (uninterrupted: {whole_s:.0f} s); exit codes after "
        f"SIGTERM: {codes}; wrong: {len(tally.wrong)}.\n"
    )
    return "\n".join([*rows, *(f"- {each}" for each in tally.wrong)]) + "\n"


if __name__ == "__main__":
    main()
