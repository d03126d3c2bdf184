"""Run train steps of both sides in alternation: cases (a), (b) and (c)."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, GPU_CASES, StepCase
from models import write_model

WORKER = Path(__file__).with_name("worker.py")
RATE = 1e-3
LENGTH = 100
MAX_TOKENS = 128
SAME_LOSS = 1e-3


def measure(key: str, options: Any, rate_gflops: float) -> list[dict[str, Any]]:
    """Measure a case; return a line of the table for each torch side.

    Args:
        key: Name of the case.
        options: Options of the command.
        rate_gflops: Matrix-product rate of the machine.
    """
    case = {**CASES, **GPU_CASES}[key]
    folder = options.work / key
    folder.mkdir(parents=True, exist_ok=True)
    sides = ["jpt", *case.expected]
    asked = describe(case, folder, options)
    workers = {side: Worker(side, asked) for side in sides}
    try:
        found = in_turns(case, workers)
    finally:
        for worker in workers.values():
            worker.end()
    rows = count_rows(folder, case)
    numbers = {side: summary(case, *found[side], rows, rate_gflops) for side in sides}
    return [compare(key, case, side, numbers) for side in sides[1:]]


def describe(case: StepCase, folder: Path, options: Any) -> dict[str, Any]:
    """Return the case as sent to the workers."""
    return {
        "model": str(write_model(case.model, options.work, options.tokenizers)),
        "task": case.task,
        "data": str(options.data / case.task) if options.data else None,
        "folder": str(folder),
        "device": case.device,
        "options": {
            "steps": case.turns * case.steps,
            "batch_size": case.batch_size,
            "learning_rate": RATE,
            "length": LENGTH,
            "max_tokens": MAX_TOKENS,
            **case.options,
        },
    }


class Worker:
    """The process of one side, loaded and warm."""

    def __init__(self, side: str, case: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if side != "jpt" else None,
            text=True,
        )
        self.ready = self.ask({**case, "side": side})

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a line and waits for the answer."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            _, stderr = self.process.communicate()
            raise SystemExit(f"a worker process ended: {stderr}")
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def in_turns(case: StepCase, workers: dict[str, Worker]) -> dict[str, tuple[list[dict], Worker]]:
    """Run the same steps on the sides in alternation."""
    turns: dict[str, list[dict]] = {side: [] for side in workers}
    for turn in range(case.turns):
        steps = list(range(turn * case.steps, (turn + 1) * case.steps))
        for side, worker in workers.items():
            turns[side].append(worker.ask({"steps": steps}))
    for side, worker in workers.items():
        counted = worker.ask({"steps": list(range(case.steps)), "flops": True})
        turns[side][0]["flops"] = counted["flops"]
    return {side: (turns[side], workers[side]) for side in workers}


def count_rows(folder: Path, case: StepCase) -> dict[str, float]:
    """Return mean rows and tokens per step; the prompt counts once per row."""
    found = np.load(folder / "rows.npz")
    lengths = np.concatenate([found[f"{n}.lengths"] for n in range(case.turns * case.steps)])
    tokens = float(lengths.mean() + LENGTH) * case.batch_size
    return {"rows": case.batch_size, "tokens": tokens, "shortest": int(lengths.min()),
            "longest": int(lengths.max()), "mean": float(lengths.mean())}  # fmt: skip


def summary(
    case: StepCase,
    turns: list[dict],
    worker: Worker,
    rows: dict[str, float],
    rate_gflops: float,
) -> dict[str, Any]:
    seconds = [turn["wall_s"] / case.steps for turn in turns]
    step_s = statistics.median(seconds)
    flops = turns[0]["flops"] / case.steps
    return {
        "step_s": round(step_s, 4),
        "spread_s": [round(min(seconds), 4), round(max(seconds), 4)],
        "turns_s": [round(each, 4) for each in seconds],
        "cpu_s": round(statistics.median(turn["cpu_s"] / case.steps for turn in turns), 4),
        "rows_per_s": round(rows["rows"] / step_s, 2),
        "tokens_per_s": round(rows["tokens"] / step_s, 1),
        "gflop_per_step": round(flops / 1e9, 1),
        "share_of_matrix_rate": round(
            turns[0]["flops"] / turns[0]["wall_s"] / 1e9 / rate_gflops, 3
        ),
        "peak_mb": round(turns[-1]["peak_mb"]),
        "load_s": round(worker.ready["load_s"], 2),
        "first_s": [round(each, 2) for each in worker.ready["first_s"]],
        "losses": [round(loss, 7) for turn in turns for loss in turn["losses"]],
        "text_tokens": {name: rows[name] for name in ("shortest", "mean", "longest")},
    }


def compare(key: str, case: StepCase, side: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the table: jpt against one torch side."""
    ours, theirs = numbers["jpt"], numbers[side]
    pairs = zip(theirs["turns_s"], ours["turns_s"], strict=True)
    ratios = sorted(their / our for their, our in pairs)
    apart = np.abs(np.subtract(ours["losses"], theirs["losses"])).max()
    return {
        "case": key,
        "name": f"{case.name}, against {side}",
        "unit": "s a step",
        "jpt": ours["step_s"],
        "torch": theirs["step_s"],
        "ratio": round(statistics.median(ratios), 2),
        "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "expected": case.expected[side],
        "loss_apart": float(f"{apart:.1e}"),
        "same_loss": bool(apart <= SAME_LOSS),
        "sides": {"jpt": ours, side: theirs},
    }
