"""Prints how far we are from torch transformers: `python -m tests.backbones.parity_figures`.

For each stored fixture (small models of odd sizes, answers of torch in float64) the largest
difference over the largest magnitude, of label scores, prompt gradient and neurons in float32; the
worst fixture of a family counts. The tests hold the same numbers to 1e-4.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jpt.backbones.families import find_family
from jpt.files.tensor_files import open_tensors
from jpt.files.tokenizer import SpecialIds
from jpt.tuning.losses import label_loss
from tests.backbones.golden import FIXTURES, difference

KINDS = ("logits", "prompt_gradient", "neurons")


def measure(name: str) -> tuple[str, dict[str, float]]:
    """Gives the family of a fixture and its three differences."""
    folder = FIXTURES / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family, stored = find_family(config, name), load_file(folder / "golden.safetensors")
    source, dtype = open_tensors(folder / "model.safetensors"), jnp.dtype("float32")
    shape, params = family.weights.load(source, family.config(config), dtype, name)
    mask = int(stored["mask_id"][0]) if "mask_id" in stored else None
    ids = SpecialIds(cls=None, sep=None, mask=mask, pad=None, unk=None)
    module = family.module(shape, ids, dtype, 0.0, "dots")
    given = {key: jnp.asarray(stored[key]) for key in ("tokens", "lengths", "label_ids", "labels")}

    @jax.jit
    def answers(params: dict, prompt: jax.Array) -> dict[str, jax.Array]:
        def loss(prompt: jax.Array):
            output = module.apply(
                {"params": params},
                given["tokens"],
                given["lengths"],
                prompt,
                label_ids=given["label_ids"],
                capture_neurons=True,
            )
            weights = jnp.ones(len(stored["labels"]))
            return label_loss(output.logits, given["labels"], weights)[0], output

        (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(prompt)
        return dict(zip(KINDS, (output.logits, gradient, output.neurons), strict=True))

    found = answers(params, jnp.asarray(stored["prompt"]))
    # Stored neurons stand at all positions; the answer is at the first, in decoders at the last.
    places = stored["lengths"] - 1 if family.layout == "decoder" else 0 * stored["lengths"]
    stored["neurons"] = stored["neurons"][:, np.arange(len(places)), places]
    return family.name, {kind: difference(found[kind], stored[kind]) for kind in KINDS}


def main() -> None:
    """Prints one line a family."""
    worst: dict[str, dict[str, float]] = {}
    for folder in sorted(FIXTURES.iterdir()):
        family, found = measure(folder.name)
        known = worst.setdefault(family, dict.fromkeys(KINDS, 0.0) | {"fixtures": 0})
        known |= {kind: max(known[kind], found[kind]) for kind in KINDS}
        known["fixtures"] += 1
    for family, found in worst.items():
        figures = ", ".join(f"{kind} {found[kind]:.1e}" for kind in KINDS)
        print(f"{family} ({found['fixtures']} fixtures): {figures}")


if __name__ == "__main__":
    main()
