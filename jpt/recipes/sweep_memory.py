"""How many runs a machine can train at once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jpt.errors import InputError
from jpt.tuning.bank_step import bank_train_step, stack_answers, stack_batches, stack_trees
from jpt.tuning.step import init_state, prompt_optimizer
from jpt.tuning.tune import PreparedRun

MOST_PLACES = 8
"""Where nothing else is said, on an accelerator: more runs at once make its products no faster."""
GB = 1e9


def choose_places(parts: PreparedRun, runs: int, asked: int | None, memory_gb: float | None) -> int:
    """Chooses how many runs of one kind are trained at once."""
    # On a CPU one after the other: its cores are busy with one run, and runs side by side pad their
    # texts to the longest among them. On an accelerator as many as fit, up to `MOST_PLACES`.
    limit = memory_gb * GB if memory_gb else _device_bytes()
    on_cpu = jax.devices()[0].platform == "cpu"
    wanted = min(runs, asked or (1 if on_cpu and memory_gb is None else MOST_PLACES))
    if limit is None or (asked and memory_gb is None):
        return wanted
    weights, each = run_bytes(parts)
    fit = int((limit - weights) // each)
    if fit < (wanted if asked else 1):
        raise InputError(
            f"{wanted if asked else 1} runs at once need {(weights + each * wanted) / GB:.2f} GB "
            f"({weights / GB:.2f} of weights, {each / GB:.2f} a run), but {limit / GB:.2f} are "
            "allowed; give fewer places, a smaller batch_size or max_tokens, or more memory_gb"
        )
    return min(wanted, fit)


def run_bytes(parts: PreparedRun) -> tuple[int, int]:
    """Says what the compiled step of one run takes at its longest texts."""
    options, backbone = parts.options, parts.backbone
    batch = _longest(parts)
    state = stack_trees([init_state(parts.initial, prompt_optimizer(1.0))])
    step = bank_train_step(backbone.module, options.objective, None, options.clip_norm)
    given = (batch, stack_answers([parts.prepared.answer]))
    numbers = (np.ones(1, np.float32), np.zeros(1, np.uint32))
    analysis = step.lower(backbone.params, state, *given, *numbers).compile().memory_analysis()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(backbone.params))
    rest = analysis.argument_size_in_bytes - weights + analysis.output_size_in_bytes
    return weights, max(1, rest + analysis.temp_size_in_bytes)


def _longest(parts: PreparedRun) -> Any:
    """A batch of this run, its texts as long as any can be."""
    options = parts.options
    batch = parts.feed.batch_at(0)
    room = options.max_tokens - batch.tokens.shape[1]
    tokens = np.pad(batch.tokens, ((0, 0), (0, max(0, room))))
    return stack_batches([batch._replace(tokens=tokens)], 0)


def _device_bytes() -> int | None:
    """What the device can hold, where it tells; a CPU does not."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
