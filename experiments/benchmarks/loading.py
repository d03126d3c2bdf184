"""How much memory loading a checkpoint takes beyond the loaded parameters.

Writes a BERT of roberta-large's size with drawn weights as a Hugging Face folder (its tokenizer is
that of a built-in backbone), loads it in a process of its own, and compares the peak of resident
memory with the parameters and with the largest of them, which is a stack of all layers but one.

Linux only.

Command:
    python experiments/benchmarks/loading.py

Result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

import jpt


def main() -> None:
    """Writes the checkpoint and loads it in another process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        return load(options.load, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), options.layers, options.width)
        command = [sys.executable, __file__, "--load", folder, "--dtype", options.dtype]
        subprocess.run(command, check=True)


def load(folder: str, dtype: str) -> None:
    """Loads a folder and says what that took."""
    import jax

    jpt.load_backbone("builtin/bert-small")  # what the packages themselves take comes first
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
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


def write_checkpoint(folder: Path, layers: int, width: int) -> None:
    """Writes a BERT with drawn weights in bfloat16."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from jpt.backbones.registry import find_folder

    small = find_folder("builtin/bert-small")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small / name, folder / name)
    config = json.loads((small / "config.json").read_text(encoding="utf-8"))
    sizes = {config["hidden_size"]: width, config["intermediate_size"]: 4 * width}
    config |= {"num_hidden_layers": layers, "num_attention_heads": width // 64}
    config |= {"hidden_size": width, "intermediate_size": 4 * width}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    block, tensors = (
        np.random.default_rng(0).standard_normal(1 << 16).astype(ml_dtypes.bfloat16),
        {},
    )
    with safe_open(small / "model.safetensors", "np") as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}
    for name, shape in shapes.items():
        shape = [sizes.get(size, size) for size in shape]
        number = name.split(".")[3] if ".layer." in name else None
        for layer in range(layers) if number == "0" else [number] if number is None else []:
            key = name if number is None else name.replace(".layer.0.", f".layer.{layer}.")
            tensors[key] = np.resize(block, shape)
    save_file(tensors, folder / "model.safetensors")


def resident_mb(kind: str) -> float:
    """Memory of this process now (VmRSS) or at its peak (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3


if __name__ == "__main__":
    main()
