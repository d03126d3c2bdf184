"""A real decoder from its GGUF file goes on with texts as torch transformers does from the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.generation import greedy
from jpt.backbones.registry import Backbone, load_backbone
from tests.smollm2 import smollm2_file

pytestmark = [pytest.mark.parity, pytest.mark.slow]

TEXTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The year 1984 was",
    "She opened the door and",
    "My favourite film is",
    "In 2023, the",
    "Dear Sir or Madam,",
    "The sun rises in the east and",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
]
NEW = 20
# Sums in another order move a logit by some 5e-5 here; a choice this far apart cannot turn.
LEAST_MARGIN = 1e-3


def pad(backbone: Backbone, rows: list[list[int]]) -> tuple[jax.Array, jax.Array]:
    """All rows in one batch, and their lengths."""
    lengths = [len(row) for row in rows]
    filled = [row + [backbone.pad_id] * (max(lengths) - len(row)) for row in rows]
    return jnp.array(filled, jnp.int32), jnp.array(lengths, jnp.int32)


def test_greedy_continuations_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    from transformers import AutoModelForCausalLM

    path = smollm2_file()
    with jax.default_matmul_precision("highest"):
        backbone = load_backbone(path)
        rows = backbone.tokenizer.encode(TEXTS)
        batch = (*pad(backbone, rows), None)
        chosen = np.asarray(greedy(backbone.module, backbone.params, *batch, NEW).tokens)
        plain = jax.jit(backbone.module.apply)({"params": backbone.params}, *batch)
        first = np.asarray(plain.logits)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    largest_error, least_margin = 0.0, np.inf
    for row, ids in enumerate(rows):
        whole = torch.tensor([[*ids, *chosen[row].tolist()]])
        with torch.no_grad():
            logits = model(whole).logits[0, len(ids) - 1 : -1].numpy()  # [NEW, V]
        # Where each choice agrees, given those before it, the whole greedy sequence does.
        np.testing.assert_array_equal(logits.argmax(axis=-1), chosen[row], err_msg=TEXTS[row])
        best = np.sort(logits, axis=-1)[:, -2:]
        least_margin = min(least_margin, (best[:, 1] - best[:, 0]).min())
        scale = max(1.0, np.abs(logits[0]).max())
        largest_error = max(largest_error, np.abs(first[row] - logits[0]).max() / scale)
    print(f"SmolLM2: error of logits {largest_error:.1e}, least margin {least_margin:.1e}")
    assert largest_error < 1e-4
    assert least_margin > LEAST_MARGIN, "a choice that rounding may turn: take other texts"
