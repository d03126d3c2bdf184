"""jpt against torch: the same work on the same machine in the same run.

(a) SmolLM2-135M with its real weights, 100 prompt rows, SST-2; (b) encoders of the shapes of
RoBERTa-base and MiniLM, rows of QNLI as they come; (c) T5-base's shape; (d) a 13 x 13 transfer
matrix; (e) the neurons of 100 prompts; (f) a sweep of 12 runs; (g) import and first step. In (a),
(c) and (f) the other side is Hugging Face PEFT; encoders, for which it has no masked-LM task, are
measured against prompts put in front by hand: ``plain`` with the model's own head, ``tuned`` with
the answer's position and the label words alone. See the top of each script beside this one for what
is measured and how. Sides take turns; the table has medians of turns and of their ratios, with the
smallest and the largest. The number of floating-point operations is that of all matrix products in
each side's own program; the machine's rate is the better of torch's and XLA's products.

Command (extra ``parity``, and accelerate and gguf for SmolLM2's file; about 40 minutes):
    python experiments/benchmarks/against_torch/run.py --data DIR

On a GPU ``--gpu`` takes larger models in bfloat16, and a sweep by bank against single runs.

DIR has a folder of rows for each catalog task; --tokenizers DIR takes tokenizers from there and not
from the hub. Writes results.json and RESULTS.md beside this script; with --cases only those are
measured anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import steps
import studies
import table
from cases import CASES, GPU_CASES

HERE = Path(__file__).parent
PACKAGES = ("jpt", "jax", "flax", "torch", "transformers", "peft", "numpy")


def cases(options: argparse.Namespace) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What can be measured, by name."""

    def step(key: str) -> Callable[[], list[dict[str, Any]]]:
        return lambda: steps.measure(key, options, matrix_rate(options.gpu))

    if options.gpu:
        return {key: step(key) for key in GPU_CASES} | {"bank": lambda: studies.bank(options)}
    return {key: step(key) for key in CASES} | {
        "d": lambda: [
            *studies.matrix(options, "builtin/gpt2-mini", {"peft": 5}),
            *studies.matrix(options, "builtin/bert-small", {"plain": 5, "tuned": 1}),
        ],
        "e": lambda: studies.neurons(options),
        "f": lambda: studies.sweep(options),
        "g": lambda: studies.start(options),
    }


def main() -> None:
    """Measures, writes the numbers as they come, and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of rows a task")
    parser.add_argument("--tokenizers", type=Path, help="a folder a tokenizer, in place of the hub")
    parser.add_argument("--work", type=Path, default=Path("against-torch"), help="models and logs")
    parser.add_argument("--cases", help="names with commas between; all by default")
    parser.add_argument("--gpu", action="store_true", help="the cases for a GPU, in bfloat16")
    parser.add_argument("--turns", type=int, default=3, help="of (d) to (g)")
    parser.add_argument("--out", type=Path, default=HERE, help="where results go")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    known = cases(options)
    chosen = options.cases.split(",") if options.cases else list(known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(known)}")
    for name in chosen:
        lines = known[name]()
        keep(options.out, name, lines)
        print(table.describe(lines), flush=True)


def keep(out: Path, name: str, lines: list[dict[str, Any]]) -> None:
    """Puts the lines of a case in the place of its older ones, and writes the table."""
    path = out / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    stamp = {"measured": time.strftime("%Y-%m-%d"), "machine": machine(name)}
    found["cases"][name] = [{**line, **stamp} for line in lines]
    path.write_text(json.dumps(found, indent=1) + "\n")
    (out / "RESULTS.md").write_text(table.page(found["cases"]))


def machine(case: str) -> dict[str, Any]:
    """What kind of machine this is, with versions and how busy it was."""
    gpu = {}
    if case in (*GPU_CASES, "bank"):
        import torch

        gpu = {"gpu": torch.cuda.get_device_name()}
    told = Path("/proc/cpuinfo")
    name = platform.processor()
    if told.exists():
        names = [row for row in told.read_text().splitlines() if row.startswith("model name")]
        name = names[0].split(": ")[1] if names else name
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        **gpu,
        **{package: version(package) for package in PACKAGES},
    }


def matrix_rate(gpu: bool) -> float:
    """Billions of floating-point operations a second, in a process of its own."""
    command = [sys.executable, str(HERE / "rate.py"), *(["--gpu"] if gpu else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
