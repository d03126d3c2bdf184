"""Measure the memory that loading a checkpoint takes beyond the loaded parameters.

Writes a BERT of roberta-large's size with random weights as a Hugging Face folder, loads it in a
separate process, and compares the peak of resident memory with the parameters and with the largest
of them, which is a stack of all layers but one. Linux only.

Command:
    python experiments/benchmarks/loading.py

Result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jpt
from jpt.testing import write_tiny_backbone


def main() -> None:
    """Write the checkpoint, and load it in another process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        return load(options.load, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        width = options.width
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": 30522}
        heads = {"num_attention_heads": width // 64, "num_hidden_layers": options.layers}
        write_tiny_backbone(folder, "bert", **sizes, **heads)
        command = [sys.executable, __file__, "--load", folder, "--dtype", options.dtype]
        subprocess.run(command, check=True)


def load(folder: str, dtype: str) -> None:
    """Load a folder and print time and memory."""
    import jax

    jpt.load_backbone("builtin/bert-small")  # loads the packages first
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before_mb, started_s = resident_mb("VmRSS"), time.perf_counter()
    backbone = jpt.load_backbone(folder, dtype=dtype)
    leaves = jax.block_until_ready(jax.tree.leaves(backbone.params))
    elapsed_s = time.perf_counter() - started_s
    loaded_mb = sum(leaf.nbytes for leaf in leaves) / 1e6
    largest_mb = max(leaf.nbytes for leaf in leaves) / 1e6
    extra_mb = resident_mb("VmHWM") - before_mb - loaded_mb
    print(
        f"{backbone.frozen_count:,} weights in {dtype}: {loaded_mb:,.0f} MB loaded in "
        f"{elapsed_s:.1f} s; {extra_mb:,.0f} MB beyond them at the peak = "
        f"{extra_mb / largest_mb:.2f} of the largest stack ({largest_mb:,.0f} MB)"
    )


def resident_mb(kind: str) -> float:
    """Return this process's memory now (VmRSS) or at its peak (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3


if __name__ == "__main__":
    main()
