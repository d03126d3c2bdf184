"""Measure time and memory of all indicators of 100 long prompts.

100 prompts of 100 x 1024 (roberta-large's width) with random values, and activations of 24 layers
of 4096 neurons: every embedding indicator, and neuron overlap in every window of layers. --text
simulates a probe on 64 rows of text, which adds rates and CKA.

Command:
    python experiments/benchmarks/indicators.py [--text]

Time and result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import jpt


def main() -> None:
    """Sample prompts and activations, and measure one call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--neurons", type=int, default=4096)
    parser.add_argument("--text", action="store_true", help="add rates and CKA, as for 64 rows")
    sizes = parser.parse_args()
    generator = np.random.default_rng(0)
    names = [f"prompt{number:03}" for number in range(sizes.prompts)]
    card = jpt.PromptCard("roberta-large", "sst2")
    prompts = {
        name: jpt.Prompt(sample(generator, sizes.length, sizes.width), card) for name in names
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "neurons.npz"
        values = np.stack([sample(generator, sizes.layers, sizes.neurons) for _ in names])
        of_text = {}
        if sizes.text:
            # Partly similar, like prompts with one initialisation.
            shares = (values + values[:1] > 0) * generator.integers(1, 65, values.shape) / 64
            of_text["rates"] = shares.astype(np.float32)
            of_text["cka"] = np.full((sizes.layers, len(names), len(names)), 0.5)
            of_text["probe"] = np.array('{"kind": "text"}')
        np.savez(file, names=np.array(names), activations=values, **of_text)
        del values, of_text
        before_mb = peak_mb()
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        found = jpt.compute_indicators(prompts, file)
        elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    print(
        f"{sizes.prompts} prompts of {sizes.length} x {sizes.width}, {sizes.layers} layers of"
        f" {sizes.neurons} neurons: {len(found.columns)} indicators in {elapsed_s:.1f} s"
        f" ({cpu_s:.1f} s of CPU time), peak memory {peak_mb():.0f} MB"
        f" ({before_mb:.0f} MB before)"
    )


def sample(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Sample normal values in float32."""
    return generator.standard_normal((rows, width), np.float32)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
