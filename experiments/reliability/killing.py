"""Start a process, watch what it writes, and kill it at a chosen moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from victims import Checkpoints, Kind, is_finished, leftovers, position

POLL_S = 0.002
PATIENCE_S = 600
SHARES = {"start": 1, "steps": 4, "save": 3, "results": 2}
"""Of ten kills: during start-up, between checkpoints, during one, while results are written."""
MARKS = ("temporary", "last.safetensors", "result.json", "end")
"""A kill during the results waits for one of these to be new."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class Kill:
    """When a process is killed, and with which signal."""

    phase: str
    signal: signal.Signals


@dataclass(frozen=True)
class Death:
    """How a process ended.

    Attributes:
        code: Exit code; negative for a signal.
        killed: Whether the signal came before the process ended by itself.
        began: Whether training had begun, judged by a new checkpoint.
        begun_s: Seconds until training began, or None.
        elapsed_s: Total seconds.
        ignored_steps: Steps logged after the signal.
        left: Temporary names left behind.
        stderr: Output on stderr.
    """

    code: int
    killed: bool
    began: bool
    begun_s: float | None
    elapsed_s: float
    ignored_steps: int
    left: list[str]
    stderr: str


def plan_kills(count: int, rng: random.Random, wanted: Sequence[str] = ()) -> list[Kill]:
    """Sample the phases, all or those wanted, by their shares; signals alternate in each phase."""
    shares = {phase: SHARES[phase] for phase in wanted or SHARES}
    phases = [phase for phase, share in shares.items() for _ in range(share)]
    chosen = phases * (count // len(phases)) + rng.sample(phases, count % len(phases))
    first = {phase: rng.randrange(2) for phase in SHARES}
    kills = []
    for phase in chosen:
        kills.append(Kill(phase, SIGNALS[first[phase] % 2]))
        first[phase] += 1
    rng.shuffle(kills)
    return kills


class Process:
    """A monitored process.

    Args:
        kind: The victim.
        command: Its command line.
        out: Its folder.
        log: File for its stderr.
        checkpoints: Its checkpoints.
    """

    def __init__(
        self, kind: Kind, command: list[str], out: Path, log: Path, checkpoints: Checkpoints
    ) -> None:
        self.kind, self.out, self.checkpoints, self._log = kind, out, checkpoints, log
        self._before = checkpoints.reached()
        ends = {run.group: run.before + run.steps for run in kind.runs}
        for run in kind.runs:
            ends[run.group] = max(ends[run.group], run.before + run.steps)
        self._only_ends = all(self._before[group] >= ends[group] for group in ends)
        self._results = result_files(kind, out)
        self._started_s = time.monotonic()
        self._begun_s: float | None = None
        environment = {**os.environ, "JPT_CACHE": str(log.parent / "cache")}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stderr=file, stdout=subprocess.DEVNULL, env=environment
            )

    def wait(self) -> Death:
        """Wait until the process ends."""
        self._until(self._has_begun)
        return self._end(None, self._process.wait(PATIENCE_S))

    def kill(self, kill: Kill, target: int, start_s: float, rng: random.Random) -> Death:
        """Kill the process in a phase, once its runs have logged `target` steps."""
        if kill.phase == "start":
            time.sleep(rng.uniform(0.1, 1) * start_s)
            self._has_begun()
        elif self._until(self._has_begun):
            mark, shortly_s = rng.choice(MARKS), rng.choice([0, 0.005, 0.02])
            there = {
                "steps": lambda: True,
                "save": lambda: self._catch(self._saves, shortly_s),
                "results": lambda: self._catch(lambda: self._writes_results(mark), shortly_s),
            }[kill.phase]
            self._until(lambda: position(self.kind, self.out) >= target)
            if self._until(there) and kill.phase == "steps":
                time.sleep(rng.uniform(0, 0.3))
        reached = position(self.kind, self.out)
        ended = self._process.poll()
        if ended is not None:
            return self._end(None, ended)
        self._process.send_signal(kill.signal)
        self._process.send_signal(signal.SIGCONT)
        return self._end(reached, self._process.wait(PATIENCE_S))

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; return False if the process ends first."""
        while self._process.poll() is None:
            if condition():
                return True
            if time.monotonic() - self._started_s > PATIENCE_S:
                self._process.kill()
                raise SystemExit(f"{self.out} made no progress within {PATIENCE_S} s")
            time.sleep(POLL_S)
        return False

    def _catch(self, condition: Callable[[], bool], after_s: float) -> bool:
        """Stop the process if a condition holds; let it continue if it no longer does."""
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
        """Return True if there is a newer checkpoint, complete or not, or a newer result."""
        if self._begun_s is None:
            steps = [(group, name.split(".")[0]) for group, name in self.checkpoints.names()]
            newer = any(
                step.isdecimal() and int(step) > self._before[group] for group, step in steps
            )
            mark = "temporary" if self._only_ends else "last.safetensors"
            if newer or self._writes_results(mark):
                self._begun_s = time.monotonic() - self._started_s
        return self._begun_s is not None

    def _saves(self) -> bool:
        return any(not name.isdecimal() for _, name in self.checkpoints.names())

    def _writes_results(self, mark: str) -> bool:
        new = {path.name for path, _ in result_files(self.kind, self.out) - self._results}
        if mark == "end":
            last = max(run.steps for run in self.kind.runs)
            final = any(name == str(last) for _, name in self.checkpoints.names())
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
            stderr=self._log.read_text(errors="replace"),
        )


def result_files(kind: Kind, out: Path) -> set[tuple[Path, int]]:
    """Return result and temporary files with their inodes, which identify new files."""
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
    """Return what is wrong with the way a killed process ended."""
    if "Traceback" in death.stderr:
        return f"a traceback: {death.stderr[-2000:]}"
    if kill.signal == signal.SIGKILL:
        return None if death.code == -signal.SIGKILL else f"exit code {death.code} after SIGKILL"
    if death.ignored_steps > 20 * kind.slots:  # a line is logged every ten steps
        return f"continued for {death.ignored_steps} steps after SIGTERM"
    if death.code == 75 or (death.code in (0, -signal.SIGTERM) and is_finished(kind, out)):
        return None  # everything was written
    if death.code == -signal.SIGTERM and not death.began:  # while python loads
        return None
    return f"exit code {death.code} after SIGTERM in phase {kill.phase}: {death.stderr[-500:]}"
