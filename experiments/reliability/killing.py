"""Starts a process, watches what it writes, and kills it at a chosen moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from victims import Banks, Kind, is_finished, leftovers, position

POLL_S = 0.002
PATIENCE_S = 600
SHARES = {"start": 1, "steps": 4, "save": 3, "results": 2}
"""Of ten kills: while it starts, between two saves, during a save, while results are written."""
MARKS = ("temporary", "last.safetensors", "result.json", "end")
"""At what a kill during the results strikes: any of these that is new."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class Kill:
    """When and with which signal a process is killed."""

    phase: str
    signal: signal.Signals


@dataclass(frozen=True)
class Death:
    """How a process ended.

    Attributes:
        code: its exit code; a signal's is negative.
        killed: whether the signal came before it had ended by itself.
        began: whether training had begun, as seen by a new checkpoint.
        begun_s: seconds until then; None without.
        elapsed_s: seconds in all.
        ignored_steps: steps that were logged after the signal.
        left: temporary names that are still there.
        told: what it wrote on stderr.
    """

    code: int
    killed: bool
    began: bool
    begun_s: float | None
    elapsed_s: float
    ignored_steps: int
    left: list[str]
    told: str


def plan_kills(count: int, draw: random.Random, wanted: Sequence[str] = ()) -> list[Kill]:
    """Draws the phases, all or those wanted, in their shares; in each the signals take turns."""
    shares = {phase: SHARES[phase] for phase in wanted or SHARES}
    phases = [phase for phase, share in shares.items() for _ in range(share)]
    chosen = phases * (count // len(phases)) + draw.sample(phases, count % len(phases))
    first = {phase: draw.randrange(2) for phase in SHARES}
    kills = []
    for phase in chosen:
        kills.append(Kill(phase, SIGNALS[first[phase] % 2]))
        first[phase] += 1
    draw.shuffle(kills)
    return kills


class Process:
    """A process that is watched.

    Args:
        kind: what runs.
        command: how it is started.
        out: its folder.
        told: file for its stderr.
        banks: its checkpoints.
    """

    def __init__(self, kind: Kind, command: list[str], out: Path, told: Path, banks: Banks) -> None:
        self.kind, self.out, self.banks, self._told = kind, out, banks, told
        self._before = banks.reached()
        turns = {run.bank: run.before + run.steps for run in kind.runs}
        for run in kind.runs:
            turns[run.bank] = max(turns[run.bank], run.before + run.steps)
        self._only_ends = all(self._before[bank] >= turns[bank] for bank in turns)
        self._results = result_files(kind, out)
        self._started_s = time.monotonic()
        self._begun_s: float | None = None
        environment = {**os.environ, "JPT_CACHE": str(told.parent / "cache")}
        with told.open("w") as file:
            self._process = subprocess.Popen(
                command, stderr=file, stdout=subprocess.DEVNULL, env=environment
            )

    def wait(self) -> Death:
        """Lets it run to its end."""
        self._until(self._has_begun)
        return self._end(None, self._process.wait(PATIENCE_S))

    def kill(self, kill: Kill, target: int, start_s: float, draw: random.Random) -> Death:
        """Kills it in a phase, once its runs have so many steps behind them."""
        if kill.phase == "start":
            time.sleep(draw.uniform(0.1, 1) * start_s)
            self._has_begun()
        elif self._until(self._has_begun):
            mark, shortly_s = draw.choice(MARKS), draw.choice([0, 0.005, 0.02])
            there = {
                "steps": lambda: True,
                "save": lambda: self._catch(self._saves, shortly_s),
                "results": lambda: self._catch(lambda: self._writes_results(mark), shortly_s),
            }[kill.phase]
            self._until(lambda: position(self.kind, self.out) >= target)
            if self._until(there) and kill.phase == "steps":
                time.sleep(draw.uniform(0, 0.3))
        reached = position(self.kind, self.out)
        ended = self._process.poll()
        if ended is not None:
            return self._end(None, ended)
        self._process.send_signal(kill.signal)
        self._process.send_signal(signal.SIGCONT)
        return self._end(reached, self._process.wait(PATIENCE_S))

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Waits for something; whether it came before the process ended."""
        while self._process.poll() is None:
            if condition():
                return True
            if time.monotonic() - self._started_s > PATIENCE_S:
                self._process.kill()
                raise SystemExit(f"{self.out} did not get on within {PATIENCE_S} s")
            time.sleep(POLL_S)
        return False

    def _catch(self, condition: Callable[[], bool], after_s: float) -> bool:
        """Stops the process where something is so, and lets it go on where it is so no more."""
        if not condition():
            return False
        time.sleep(after_s)
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if condition():
            return True
        self._process.send_signal(signal.SIGCONT)
        return False

    def _has_begun(self) -> bool:
        """Whether there is a newer checkpoint, whole or not, or a newer result than before."""
        if self._begun_s is None:
            steps = [(bank, name.split(".")[0]) for bank, name in self.banks.names()]
            newer = any(step.isdecimal() and int(step) > self._before[bank] for bank, step in steps)
            mark = "temporary" if self._only_ends else "last.safetensors"
            if newer or self._writes_results(mark):
                self._begun_s = time.monotonic() - self._started_s
        return self._begun_s is not None

    def _saves(self) -> bool:
        return any(not name.isdecimal() for _, name in self.banks.names())

    def _writes_results(self, mark: str) -> bool:
        new = {path.name for path, _ in result_files(self.kind, self.out) - self._results}
        if mark == "end":
            last = max(run.steps for run in self.kind.runs)
            final = any(name == str(last) for _, name in self.banks.names())
            return final if self.kind.name == "tune" else bool(new & set(self.kind.tables))
        return any(name == mark or (mark, name[-4:]) == ("temporary", ".tmp") for name in new)

    def _end(self, reached: int | None, code: int) -> Death:
        elapsed_s = time.monotonic() - self._started_s
        return Death(
            code=code,
            killed=reached is not None,
            began=self._begun_s is not None,
            begun_s=self._begun_s,
            elapsed_s=elapsed_s,
            ignored_steps=0 if reached is None else position(self.kind, self.out) - reached,
            left=leftovers(self.out),
            told=self._told.read_text(errors="replace"),
        )


def result_files(kind: Kind, out: Path) -> set[tuple[Path, int]]:
    """Results and temporary files with what tells a new one from an old one of the same name."""
    wanted = {"last.safetensors", "result.json", *kind.tables}
    found = set()
    for folder in {out, *(out / run.folder for run in kind.runs)}:
        try:
            with os.scandir(folder) as entries:
                names = [
                    each for each in entries if each.name in wanted or each.name[-4:] == ".tmp"
                ]
            found |= {(folder / each.name, each.inode()) for each in names}
        except FileNotFoundError:
            continue
    return found


def judge(kill: Kill, death: Death, kind: Kind, out: Path) -> str | None:
    """What is wrong with the way a killed process ended."""
    if "Traceback" in death.told:
        return f"a traceback: {death.told[-2000:]}"
    if kill.signal == signal.SIGKILL:
        return None if death.code == -signal.SIGKILL else f"exit code {death.code} after SIGKILL"
    if death.ignored_steps > 20 * kind.places:  # lines come every ten steps
        return f"went on for {death.ignored_steps} steps after SIGTERM"
    if death.code == 75 or (death.code in (0, -signal.SIGTERM) and is_finished(kind, out)):
        return None  # all was written, and the process about to leave
    if death.code == -signal.SIGTERM and not death.began:  # while python loads
        return None
    return f"exit code {death.code} after SIGTERM in phase {kill.phase}: {death.told[-500:]}"
