"""Profile a train step of jpt: where the time of a case of ``cases.py`` goes.

Shares by kind of operation as timed by jax's profiler (which slows a step by a few per cent), the
rate of the matrix products, and which share of the text positions holds text, padded and packed.

Command, after ``run.py`` has made the case's model:
    python experiments/benchmarks/against_torch/profile_step.py --case a8 --data DIR
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from cases import CASES
from steps import describe
from worker import count_flops, shape_of

import jpt

STEPS = 4


def main() -> None:
    """Profile some steps of the most frequent length, and print shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=sorted(CASES), default="a8")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path)
    parser.add_argument("--work", type=Path, default=Path("against-torch"))
    options = parser.parse_args()
    asked = describe(CASES[options.case], options.work, options)
    given = {"backbone": jpt.load_backbone(asked["model"]), "task": asked["task"]}
    given["data"] = asked["data"]
    step, state = jpt.train_step(**given, **asked["options"])
    batches = list(jpt.training_batches(**given, **asked["options"]))
    shape = Counter(map(shape_of, batches)).most_common(1)[0][0]
    chosen = [batch for batch in batches if shape_of(batch) == shape][:STEPS]
    program = step.compile(state, chosen[0]).as_text()
    flops = count_flops(jax.make_jaxpr(step)(state, chosen[0]).jaxpr) * len(chosen)
    state, metrics = step(state, chosen[0])
    metrics.loss.block_until_ready()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for batch in chosen:
                state, metrics = step(state, batch)
            metrics.loss.block_until_ready()
        seconds = read_trace(folder, kinds(program))
    whole = sum(seconds.values())
    print(f"{options.case}: {whole / len(chosen):.3f} s a step of {shape[1]} tokens")
    for kind, spent in seconds.most_common(8):
        print(f"{spent / whole:6.1%} {kind}")
    print(f"products: {flops / seconds[PRODUCTS] / 1e9:.0f} GFLOP/s")
    filled = np.concatenate([batch.lengths for batch in batches]).sum()
    padded = sum(batch.tokens.size for batch in batches)
    computed = sum(
        batch.tokens.size if batch.packed_index is None else batch.packed_index.size
        for batch in batches
    )
    print(f"{filled / padded:.0%} of the positions of padded rows are text, over all batches;")
    print(f"{filled / computed:.0%} of those that the layers compute")


PRODUCTS = "matrix products"


def kinds(program: str) -> dict[str, str]:
    """Map each operation of a program to its kind: a product, or XLA's name for it."""
    inside: dict[str, bool] = {}
    name = ""
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line):
            name = header[1]
        inside[name] = inside.get(name, False) or " dot(" in line
    found = {}
    for match in re.finditer(r"%?([\w.\-]+) = [^\n]*?calls=%?([\w.\-]+)", program):
        kind = re.sub(r"[.\d]+$", "", match[1])
        found[match[1]] = PRODUCTS if inside.get(match[2]) else kind
    return found


def read_trace(folder: str, kind_of: dict[str, str]) -> Counter[str]:
    """Return seconds by kind of operation."""
    path = sorted(glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True))[-1]
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    seconds: Counter[str] = Counter()
    for event in events:
        name = (event.get("args") or {}).get("hlo_op")
        if event.get("ph") == "X" and name:
            kind = kind_of.get(name, re.sub(r"[.\d]+$", "", name))
            seconds[PRODUCTS if kind.startswith("dot") else kind] += event["dur"] / 1e6
    return seconds


if __name__ == "__main__":
    main()
