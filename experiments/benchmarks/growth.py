"""Measure how the cost of a train step grows, compared with its arithmetic.

One size at a time: prompt tokens, text tokens, rows per batch, layers, width; and for the neuron
probe, the number of prompts. The models have random weights, one like BERT and one like Llama. For
each size: seconds of a step (median), floating-point operations and bytes of the compiled program,
the memory that it needs in addition to weights and batch, and the page faults of the process while
it runs: memory that the operating system reclaims after a step and returns empty. XLA counts a loop
over layers once, so the counts are extrapolated from programs of one and two layers. The exponent
is that of the seconds less that of the operations, between the smallest and the largest size: above
0, time grows faster than the arithmetic.

Command (about 5 minutes on two cores):
    python experiments/benchmarks/growth.py

``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` as a prefix uses pages 512 times as large.
Writes growth.json and growth.svg to this folder. Result: see docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

import jpt
from jpt.testing import tiny_batch, write_tiny_backbone

HERE = Path(__file__).parent
BASE = {"prompt": 50, "text": 64, "batch": 8, "layers": 4, "width": 256}
SIZES = {
    "prompt": (25, 50, 100, 200, 400),
    "text": (32, 64, 128, 256, 512),
    "batch": (4, 8, 16, 32, 64),
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 1024),
}
PROMPTS = (4, 8, 16, 32, 64)
HEAD_WIDTH = 64
KINDS = ("bert", "llama")
TOY = jpt.Task(
    name="toy",
    type="toy",
    fields=("text",),
    labels=("bad", "good"),
    templates={"encoder": ("{text}",), "decoder": ("{text}",)},
    label_words={"default": {"bad": "bad", "good": "good"}},
)
ROWS = [{"text": word, "label": word} for word in ("bad", "good")]


def main() -> None:
    """Measure every size, and write numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--steps", type=int, default=5, help="steps per size, after one to warm up")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds.split(","):
            for axis, sizes in SIZES.items():
                points = [
                    measure(kind, {**BASE, axis: size}, Path(folder), options.steps)
                    for size in sizes
                ]
                found[f"{kind}, {axis}"] = print_table(kind, axis, sizes, points)
        found["bert, prompts probed"] = print_table(
            "bert", "prompts probed", PROMPTS, read(Path(folder))
        )
    (options.out / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, options.out / "growth.svg")


def write_model(kind: str, sizes: dict[str, int], folder: Path) -> Path:
    """Write a model of these sizes, once."""
    layers, width = sizes["layers"], sizes["width"]
    path = folder / f"{kind}-{layers}-{width}"
    if not path.exists():
        write_tiny_backbone(
            path,
            kind,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD_WIDTH,
            num_key_value_heads=width // HEAD_WIDTH,
            intermediate_size=4 * width,
            max_position_embeddings=1024,
        )
    return path


def measure(kind: str, sizes: dict[str, int], folder: Path, steps: int) -> dict[str, float]:
    """Measure seconds, operations, bytes and memory of a step."""
    shallow = [build(kind, {**sizes, "layers": layers}, folder) for layers in (1, 2)]
    one, two = (costs(*built) for built in shallow)
    step, state, batch = build(kind, sizes, folder)
    seconds, faults = [], []
    for _ in range(steps + 1):
        before, started_s = page_faults(), time.perf_counter()
        state, metrics = step(state, batch)
        metrics.loss.block_until_ready()
        seconds.append(time.perf_counter() - started_s)
        faults.append(page_faults() - before)
    more = sizes["layers"] - 1
    memory = step.compile(state, batch).memory_analysis()
    return {
        "seconds": statistics.median(seconds[1:]),
        "gflop": one["flops"] + more * (two["flops"] - one["flops"]),
        "gbyte": one["bytes"] + more * (two["bytes"] - one["bytes"]),
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "page_faults": statistics.median(faults[1:]),
    }


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def build(kind: str, sizes: dict[str, int], folder: Path) -> tuple[Any, Any, Any]:
    """Return a step, its initial state and a batch of these sizes with rows of full length."""
    length, rows = sizes["text"], sizes["batch"]
    options = {"length": sizes["prompt"], "max_tokens": length, "batch_size": rows, "steps": 1}
    data = {"train": ROWS, "validation": ROWS}
    model = write_model(kind, sizes, folder)
    step, state = jpt.train_step(model, TOY, data=data, objective="labels", **options)
    tokens = np.random.default_rng(0).integers(6, 20, (rows, length)).astype(np.int32)
    batch = tiny_batch()._replace(
        tokens=tokens,
        lengths=np.full(rows, length, np.int32),
        labels=np.arange(rows, dtype=np.int32) % 2,
        weights=np.ones(rows, np.float32),
    )
    return step, state, batch


def costs(step: Any, state: Any, batch: Any) -> dict[str, float]:
    """Return XLA's counts for a program, in units of 1e9."""
    counted = step.compile(state, batch).cost_analysis()
    return {"flops": counted["flops"] / 1e9, "bytes": counted["bytes accessed"] / 1e9}


def read(folder: Path) -> list[dict[str, float]]:
    """Measure seconds of probing increasing numbers of prompts, without compilation."""
    backbone = jpt.load_backbone(write_model("bert", BASE, folder))
    random, found = np.random.default_rng(0), []
    for count in PROMPTS:
        values = random.normal(0, 0.1, (count, BASE["prompt"], BASE["width"])).astype(np.float32)
        card = jpt.PromptCard(backbone.name, "random")
        prompts = {f"p{number:03}": jpt.Prompt(rows, card) for number, rows in enumerate(values)}
        seconds = []
        for _ in range(4):
            started_s = time.perf_counter()
            jpt.activated_neurons(prompts, backbone=backbone)
            seconds.append(time.perf_counter() - started_s)
        # The arithmetic of each prompt is the same.
        found.append({"seconds": statistics.median(seconds[1:]), "gflop": float(count)})
    return found


def print_table(
    kind: str, axis: str, sizes: tuple[int, ...], points: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """Print a table and return its rows."""
    print(f"\n{kind}, {axis}: | size | s | GFLOP | GB | temporary MB | page faults | GFLOP/s |")
    for size, point in zip(sizes, points, strict=True):
        names = ("gbyte", "temporary_mb", "page_faults")
        rest = [f"{point[name]:.2f}" if name in point else "-" for name in names]
        cells = [str(size), f"{point['seconds']:.4f}", f"{point['gflop']:.2f}", *rest]
        cells.append(f"{point['gflop'] / point['seconds']:.0f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    seconds, flops = (exponent(sizes, points, name) for name in ("seconds", "gflop"))
    print(f"exponent of seconds {seconds:.2f}, of operations {flops:.2f}: {seconds - flops:+.2f}")
    return [{"size": size, **point} for size, point in zip(sizes, points, strict=True)]


def exponent(sizes: tuple[int, ...], points: list[dict[str, float]], name: str) -> float:
    """Return the growth exponent between the smallest and the largest size."""
    return math.log(points[-1][name] / points[0][name]) / math.log(sizes[-1] / sizes[0])


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plot seconds by size, and the seconds expected if they grew as the operations do."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a smaller file
    from matplotlib import pyplot

    columns = 4
    lines = math.ceil(len(found) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(3 * columns, 2.6 * lines))
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (name, rows) in zip(axes.flat, found.items(), strict=False):
        sizes = [row["size"] for row in rows]
        scale = rows[0]["seconds"] / rows[0]["gflop"]
        axis.loglog(
            sizes, [row["seconds"] for row in rows], "o-", color="#0072B2", label="measured"
        )
        expected = [row["gflop"] * scale for row in rows]
        axis.loglog(sizes, expected, "s--", color="#D55E00", label="expected from operations")
        axis.minorticks_off()
        axis.set_xticks(sizes, [f"{size}" for size in sizes])
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(name.split(", ")[1])
        axis.set_ylabel("s per step")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
