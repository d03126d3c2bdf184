"""Measure the cost of a generated token, and that it does not depend on how many came before.

Writes a mid-sized GPT-2 with random weights as a Hugging Face folder, and lets it continue the same
texts by more and more tokens, greedily and by beam search. No text ends early, so every row gets
all its tokens. The time for one token, which is the time to read the texts, is subtracted, and the
rest is divided by the number of other tokens. Every token runs the same program over a cache of
max_tokens positions; its cost can grow only with that size.

Command:
    python experiments/benchmarks/generation.py

Result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jpt
from jpt.testing import write_tiny_backbone

COUNTS = (16, 64, 256)
FILLED = (1, 64, 128, 192, 240)
CALLS = 12
TEXT = "the film is not a good film : it is a dull film , a lovely poor boring film"


def main() -> None:
    """Write the model and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=2, help="the fastest call is reported")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        width, positions = options.width, max(COUNTS) + 64
        sizes = {"n_embd": width, "n_inner": 4 * width, "n_layer": options.layers}
        sizes |= {"n_head": width // 64, "n_positions": positions, "vocab_size": options.vocabulary}
        backbone = jpt.load_backbone(write_tiny_backbone(folder, "gpt2", **sizes))
    tokenizer = backbone.tokenizer
    tokenizer.ids = tokenizer.ids._replace(eos=None)
    print(f"GPT-2, {backbone.frozen_count:,} weights, {options.rows} rows of {len(TEXT.split())}")
    print(f"{'beams':>5} {'tokens':>7} {'ms':>9} {'ms/token':>11} {'relative':>13}")
    for beams in options.beams:
        reading_s = fastest_s(backbone, 1, beams, options.rows, options.repeats)
        first_ms = None
        for count in COUNTS:
            elapsed_s = fastest_s(backbone, count, beams, options.rows, options.repeats)
            token_ms = 1e3 * (elapsed_s - reading_s) / (count - 1)
            first_ms = first_ms or token_ms
            ratio = token_ms / first_ms
            print(
                f"{beams:5} {count:7} {1e3 * elapsed_s:9.0f} {token_ms:11.2f} {ratio:13.2f}",
                flush=True,
            )
    print(f"{'already generated':>17} {'ms/token':>11} {'relative':>13}")
    first_ms = None
    for filled, token_ms in advance_ms(backbone, options.rows, options.repeats).items():
        first_ms = first_ms or token_ms
        print(f"{filled:17} {token_ms:11.2f} {token_ms / first_ms:13.2f}", flush=True)


def advance_ms(backbone: jpt.Backbone, rows: int, repeats: int) -> dict[int, float]:
    """Return milliseconds per token after each number of tokens, with a cache for the largest."""
    variables, module = {"params": backbone.params}, backbone.module
    tokens = jnp.array(backbone.tokenizer.encode([TEXT] * rows))
    lengths, last = jnp.full((rows,), tokens.shape[1]), jnp.zeros((rows,), jnp.int32)
    _, cache = module.apply(variables, tokens, lengths, None, max(COUNTS), method="start")

    @partial(jax.jit, donate_argnums=1)
    def advance(variables: dict, cache: Any) -> Any:
        return module.apply(variables, last, cache, method="advance")[1]

    found: dict[int, list[float]] = {filled: [] for filled in FILLED}
    for _ in range(repeats + 1):
        for filled, elapsed_ms in found.items():
            cache = advance(variables, cache.replace(steps=jnp.array(filled, jnp.int32)))
            jax.block_until_ready(cache)
            started_s = time.perf_counter()
            for _ in range(CALLS):
                cache = advance(variables, cache)
            jax.block_until_ready(cache)
            elapsed_ms.append(1e3 * (time.perf_counter() - started_s) / CALLS)
    return {filled: min(elapsed_ms[1:]) for filled, elapsed_ms in found.items()}


def fastest_s(
    backbone: jpt.Backbone, max_tokens: int, beams: int, rows: int, repeats: int
) -> float:
    """Return seconds of the fastest of several calls, not counting the first, which compiles."""
    elapsed_s = []
    for _ in range(repeats + 1):
        started_s = time.perf_counter()
        jpt.generate(
            None,
            [TEXT] * rows,
            backbone=backbone,
            max_tokens=max_tokens,
            beams=beams,
            eval_batch_size=rows,
        )
        elapsed_s.append(time.perf_counter() - started_s)
    return min(elapsed_s[1:])


if __name__ == "__main__":
    main()
