"""Compare jpt with torch: the same work on the same machine in the same run.

(a) SmolLM2-135M with its real weights, 100 prompt tokens, SST-2; (b) encoders of the shapes of
RoBERTa-base and MiniLM, rows of QNLI unsorted; (c) T5-base's shape; (d) a 13 x 13 transfer matrix;
(e) the neurons of 100 prompts; (f) a sweep of 12 runs; (g) import and first step. In (a), (c) and
(f) the other side is Hugging Face PEFT. Encoders, for which it has no masked-LM task, are compared
with hand-written torch: ``plain`` with the model's own head, ``tuned`` with logits of the label
words at the answer only. The top of each script in this folder describes what is measured. Sides
alternate; the table has medians of rounds and of their ratios, with the smallest and the largest.
Floating-point operations are those of all matrix products in each side's own program; the machine's
rate is the better of torch's and XLA's products.

Command (extra ``parity``, and accelerate and gguf for SmolLM2's file; about 40 minutes):
    python experiments/benchmarks/against_torch/run.py --data DIR

On a GPU ``--gpu`` runs larger models in bfloat16, and multi-run training against single runs.

DIR has a folder of rows for each catalog task; --tokenizers DIR reads tokenizers from there instead
of the hub. Writes results.json and RESULTS.md to this folder; --cases measures only those again.
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
    """Return the available cases by name."""

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
    """Measure the cases; write the results as they arrive, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with a folder of rows per task"
    )
    parser.add_argument("--tokenizers", type=Path, help="folder of tokenizers, instead of the hub")
    parser.add_argument(
        "--work", type=Path, default=Path("against-torch"), help="folder of models and logs"
    )
    parser.add_argument("--cases", help="comma-separated names; default: all")
    parser.add_argument("--gpu", action="store_true", help="run the GPU cases, in bfloat16")
    parser.add_argument("--turns", type=int, default=3, help="number of rounds of (d) to (g)")
    parser.add_argument("--out", type=Path, default=HERE, help="output folder")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    known = cases(options)
    chosen = options.cases.split(",") if options.cases else list(known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"unknown case {', '.join(unknown)}; expected one of {', '.join(known)}")
    for name in chosen:
        lines = known[name]()
        keep(options.out, name, lines)
        print(table.describe(lines), flush=True)


def keep(out: Path, name: str, lines: list[dict[str, Any]]) -> None:
    """Replace the lines of a case in results.json, and rewrite the table."""
    path = out / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    stamp = {"measured": time.strftime("%Y-%m-%d"), "machine": machine(name)}
    found["cases"][name] = [{**line, **stamp} for line in lines]
    path.write_text(json.dumps(found, indent=1) + "\n")
    (out / "RESULTS.md").write_text(table.page(found["cases"]))


def machine(case: str) -> dict[str, Any]:
    """Return the kind of machine, versions and current load."""
    gpu = {}
    if case in (*GPU_CASES, "bank"):
        import torch

        gpu = {"gpu": torch.cuda.get_device_name()}
    cpu_info = Path("/proc/cpuinfo")
    name = platform.processor()
    if cpu_info.exists():
        names = [row for row in cpu_info.read_text().splitlines() if row.startswith("model name")]
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
    """Return the matrix-product rate in GFLOP/s, measured in a separate process."""
    command = [sys.executable, str(HERE / "rate.py"), *(["--gpu"] if gpu else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
