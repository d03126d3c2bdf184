"""Profile case (d) on an encoder: where the time of one prompt's thirteen cells goes.

The total time, how much of it is spent in the compiled programs, and in which kinds of operations
(as timed by jax's profiler). A product includes what XLA fuses into it.

Command, after ``run.py --cases d`` has made prompts and rows:
    python experiments/benchmarks/against_torch/profile_cells.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
from profile_step import PRODUCTS, read_trace
from studies import MATRIX, TASKS

import jpt

FUSED = "ynn_fusion"
"""XLA's name for products and what is fused into them, on a CPU."""


def main() -> None:
    """Score the cells twice, the second time under the profiler."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin/bert-small")
    parser.add_argument("--work", type=Path, default=Path("against-torch"))
    options = parser.parse_args()
    work = options.work / f"d-{options.model}"
    backbone = jpt.load_backbone(options.model)
    prompt = jpt.load_prompt(work / "prompts" / f"{TASKS[0]}.safetensors")

    def score() -> float:
        started_s = time.perf_counter()
        for task in TASKS:
            given = {"data": work / "data" / task, "label_scoring": "first_token"}
            jpt.evaluate(prompt, task, backbone=backbone, max_tokens=MATRIX["max_tokens"], **given)
        return time.perf_counter() - started_s

    score()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            whole_s = score()
        seconds = read_trace(folder, {})
    kinds: Counter[str] = Counter()
    for kind, spent in seconds.items():
        kinds[PRODUCTS if kind == FUSED else kind] += spent
    print(f"{whole_s:.2f} s for {len(TASKS)} cells with reading; operations {kinds.total():.2f} s")
    for kind, spent in kinds.most_common(6):
        print(f"{spent / kinds.total():6.1%} {kind}")


if __name__ == "__main__":
    main()
