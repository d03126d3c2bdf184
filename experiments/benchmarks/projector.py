"""Measure the memory of a train step of a large projector beyond what it has to hold.

A projector from 100 x 768 to 100 x 1024 with a bottleneck of 768 (138 million weights) in front of
a frozen BERT of roberta-large's width with random weights. Required: the backbone once; the
projector, its two moments, its best copy and its gradient. Measured in a separate process, without
the memory of the packages. Linux only.

Command:
    python experiments/benchmarks/projector.py

Time and result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import jpt
from jpt.testing import write_tiny_backbone

ROWS, SOURCE, LABELS = 100, 768, ("bad", "good")


def main() -> None:
    """Write the target model, and train in another process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--bottleneck", type=int, default=768)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        return train(options)
    with tempfile.TemporaryDirectory() as folder:
        width = options.width
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": 30522}
        heads = {"num_attention_heads": width // 64, "num_hidden_layers": options.layers}
        write_tiny_backbone(folder, "bert", max_position_embeddings=512, **sizes, **heads)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--train", folder], check=True)


def train(options: argparse.Namespace) -> None:
    """Train a few steps and print the memory."""
    import jax

    before_mb = resident_mb("VmRSS")
    backbone = jpt.load_backbone(options.train)
    jax.block_until_ready(backbone.params)
    backbone_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(backbone.params)) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    values = np.random.default_rng(0).standard_normal((ROWS, SOURCE), np.float32)
    source = jpt.Prompt(values, jpt.PromptCard("some/roberta-base", "mood"))
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        result = jpt.train_projector(
            source,
            backbone,
            tasks=[write_task(Path(folder) / "mood")],
            steps=options.steps,
            batch_size=options.batch_size,
            bottleneck=options.bottleneck,
            max_tokens=32,
        )
        elapsed_s = time.perf_counter() - started_s
    projector_mb = 4 * result.record["weights"] / 1e6
    peak_mb = resident_mb("VmHWM") - before_mb
    rest_mb = peak_mb - backbone_mb
    weights = result.record["weights"]
    print(
        f"backbone {backbone.frozen_count:,} weights, {backbone_mb:,.0f} MB; projector "
        f"{weights:,} weights, {projector_mb:,.0f} MB, with two moments, best copy and "
        f"gradient {5 * projector_mb:,.0f} MB; {options.steps} steps of {options.batch_size} rows "
        f"with two evaluations in {elapsed_s:.0f} s; peak {peak_mb:,.0f} MB above the packages: "
        f"the backbone and {rest_mb / projector_mb:.2f} projectors"
    )


def write_task(folder: Path) -> Path:
    """Write a small task whose words the toy tokenizer knows."""
    folder.mkdir(parents=True)
    rows = [f'{{"text": "the film is {word}", "label": "{word}"}}\n' for word in LABELS]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
    words = "".join(f'{word} = "{word}"\n' for word in LABELS)
    (folder / "task.toml").write_text(
        'type = "sentiment"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
        f'template = "{{text}}"\n[label_words]\n{words}',
        encoding="utf-8",
    )
    return folder


def resident_mb(kind: str) -> float:
    """Return this process's memory now (VmRSS) or at its peak (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024 / 1e6


if __name__ == "__main__":
    main()
