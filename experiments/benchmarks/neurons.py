"""Measure the time to record the neurons of 100 prompts, compared with forward hooks in torch.

100 random prompts of 100 tokens on an encoder of RoBERTa-base's shape with random weights, the
paper's probe (mask, prompt and start token), all 12 layers of 3,072 neurons at the mask. Each side
runs in its own process, one after the other: jpt's is one call of `jpt.activated_neurons`,
including compilation; torch's runs batches of prompts without gradients, with a hook on every layer
that keeps the mask's neurons only. Loading the model is reported separately. The results of both
are compared.

Command (extra ``parity``):
    python experiments/benchmarks/neurons.py

Time and result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROBERTA_BASE = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
MASK, START = 2, 3  # ids of jpt.testing's vocabulary


def main() -> None:
    """Write model and prompts, measure both sides, and compare the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--chunk-mb", type=float, default=256)
    parser.add_argument("--batch", type=int, default=100, help="prompts per batch in torch")
    parser.add_argument(
        "--json", action="store_true", help="print the numbers as JSON on the last line"
    )
    parser.add_argument("--side", choices=("jpt", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"jpt": probe_jpt, "torch": probe_torch}[options.side](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_model(place, options)
        found = {side: run_side(side, place) for side in ("jpt", "torch")}
        values = {side: np.load(place / f"{side}.npy") for side in found}
    for side, each in found.items():
        print(
            f"{side}: {each['read_s']:.1f} s to probe, {each['cpu_s']:.1f} s of CPU time"
            f" (loading {each['load_s']:.1f} s), peak memory {each['peak_mb']:.0f} MB"
            f" ({each['loaded_mb']:.0f} MB once loaded)"
        )
    ours, theirs = found["jpt"], found["torch"]
    apart = np.abs(values["jpt"] - values["torch"]).max() / np.abs(values["torch"]).max()
    print(
        f"jpt / torch: time {ours['read_s'] / theirs['read_s']:.2f}, CPU time"
        f" {ours['cpu_s'] / theirs['cpu_s']:.2f}, peak memory"
        f" {ours['peak_mb'] / theirs['peak_mb']:.2f}; neurons"
        f" {' x '.join(map(str, values['jpt'].shape))}, largest difference {apart:.1e} of the"
        " largest"
    )
    if options.json:
        print(json.dumps({**found, "apart": float(apart)}))


def write_model(place: Path, options: argparse.Namespace) -> None:
    """Write a model with random weights and the prompts, in a process that then ends."""
    code = f"""
import numpy as np, jpt
from jpt.testing import write_tiny_backbone
changes = {ROBERTA_BASE | {"num_hidden_layers": options.layers}}
write_tiny_backbone({str(place / "model")!r}, "roberta", **changes)
values = np.random.default_rng(0).standard_normal(({options.prompts}, {options.length}, 768))
np.save({str(place / "prompts.npy")!r}, (0.1 * values).astype(np.float32))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def run_side(side: str, place: Path) -> dict[str, float]:
    """Run one side in a separate process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(place)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(load: Callable[[], Any], read: Callable[[Any], np.ndarray], out: Path) -> dict:
    """Time loading and probing, and save the activations."""
    start_s = time.perf_counter()
    loaded = load()
    load_s, loaded_mb = time.perf_counter() - start_s, peak_mb()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    values = read(loaded)
    read_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    numbers = {"load_s": load_s, "loaded_mb": loaded_mb, "peak_mb": peak_mb()}
    np.save(out, values)
    return {**numbers, "read_s": read_s, "cpu_s": cpu_s}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def probe_jpt(options: argparse.Namespace) -> dict[str, float]:
    """Probe all prompts in one call."""
    import jpt

    name = str(options.folder / "model")
    card = jpt.PromptCard(name, "random")
    bank = np.load(options.folder / "prompts.npy")
    prompts = {f"p{number:04}": jpt.Prompt(rows, card) for number, rows in enumerate(bank)}

    def read(backbone: Any) -> np.ndarray:
        found = jpt.activated_neurons(prompts, backbone=backbone, chunk_mb=options.chunk_mb)
        return found.values

    return measure(lambda: jpt.load_backbone(name), read, options.folder / "jpt.npy")


def probe_torch(options: argparse.Namespace) -> dict[str, float]:
    """Probe batches of prompts with a hook on every layer."""
    import torch
    from transformers import RobertaForMaskedLM

    bank = torch.from_numpy(np.load(options.folder / "prompts.npy"))
    kept: list[torch.Tensor] = []

    def load() -> Any:
        model = RobertaForMaskedLM.from_pretrained(options.folder / "model").eval()
        for layer in model.roberta.encoder.layer:
            layer.intermediate.register_forward_hook(
                lambda module, inputs, output: kept.append(output[:, 0].clone())
            )
        return model

    @torch.inference_mode()
    def read(model: Any) -> np.ndarray:
        found = []
        for prompts in bank.split(options.batch):
            kept.clear()
            model.roberta.encoder(embed(model, prompts))
            found.append(torch.stack(kept, dim=1))
        return torch.cat(found).numpy()

    return measure(load, read, options.folder / "torch.npy")


def embed(model: Any, prompts: Any) -> Any:
    """Embed ``[MASK] p1 .. pP [CLS]``: mask and prompt get no position, the start token its own."""
    import torch

    tables = model.roberta.embeddings
    words = tables.word_embeddings.weight
    mask = words[MASK].expand(len(prompts), 1, -1)
    start = words[START] + tables.position_embeddings.weight[model.config.pad_token_id + 1]
    rows = torch.cat([mask, prompts, start.expand(len(prompts), 1, -1)], dim=1)
    return tables.LayerNorm(rows + tables.token_type_embeddings.weight[0])


if __name__ == "__main__":
    main()
