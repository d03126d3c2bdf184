"""Shared parts of both pretraining scripts: options, schedule, loop, checkpoints, log, folder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

WARM_UP = 100
LOG_EVERY = 25


def add_options(parser: argparse.ArgumentParser, teacher_weight: float, every_s: float) -> None:
    """Add the options that every run has."""
    parser.add_argument("--teacher", type=Path, required=True, help="folder of MiniLM-L6")
    parser.add_argument("--cache", type=Path, required=True, help="cache folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--teacher-weight", type=float, default=teacher_weight)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every-s", type=float, default=every_s)


def rise_and_fall(rate: float, steps: int) -> optax.Schedule:
    """Return a schedule with linear warm-up and linear decay to 2% of the rate."""
    rise = optax.linear_schedule(0.0, rate, WARM_UP)
    fall = optax.linear_schedule(rate, rate * 0.02, steps - WARM_UP)
    return optax.join_schedules([rise, fall], [WARM_UP])


def make_step(loss: Callable[..., Any], optimizer: optax.GradientTransformation):
    """Compile one update; `loss(params, *batch)` returns loss and metrics."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, memory: Any, *batch: Any):
        (_, metrics), slopes = jax.value_and_grad(loss, has_aux=True)(params, *batch)
        updates, memory = optimizer.update(slopes, memory, params)
        return optax.apply_updates(params, updates), memory, metrics

    return step


@dataclass(frozen=True)
class Run:
    """A training run of one model.

    Attributes:
        options: Options of `add_options`.
        checkpoint: Checkpoint file.
        step: `step(params, memory, *batch)`.
        batch_at: Returns the batch of a step.
        finish: Called with (step, seconds, params) after each checkpoint.
    """

    options: argparse.Namespace
    checkpoint: Path
    step: Callable[..., Any]
    batch_at: Callable[[int], tuple[Any, ...]]
    finish: Callable[[int, float, Any], None]

    def __call__(self, params: Any, memory: Any) -> None:
        """Train; each batch is built while the previous step runs."""
        options = self.options
        done, spent_s, params, memory = load_checkpoint(self.checkpoint, params, memory)
        started_s = saved_s = time.time() - spent_s
        recent: list[dict[str, jax.Array]] = []
        with ThreadPoolExecutor(1) as worker:
            coming = worker.submit(self.batch_at, done)
            for number in range(done, options.steps):
                batch, coming = coming.result(), worker.submit(self.batch_at, number + 1)
                params, memory, metrics = self.step(params, memory, *batch)
                recent.append(metrics)
                if (number + 1) % LOG_EVERY == 0:
                    means = {
                        name: np.mean([float(one[name]) for one in recent]) for name in metrics
                    }
                    write_log(options.log, number + 1, time.time() - started_s, "train", means)
                    recent = []
                late = time.time() - max(saved_s, started_s + spent_s) > options.checkpoint_every_s
                if late or number + 1 == options.steps:
                    elapsed_s = time.time() - started_s
                    save_checkpoint(self.checkpoint, number + 1, elapsed_s, params, memory)
                    self.finish(number + 1, elapsed_s, params)
                    saved_s = time.time()


def write_log(path: Path, step: int, elapsed_s: float, kind: str, values: dict) -> None:
    """Add one line to the log and print it."""
    figures = " ".join(f"{name} {value:.3f}" for name, value in values.items())
    line = f"{step:6d} {elapsed_s:6.0f} s  {kind:10s} {figures}"
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")


def save_checkpoint(path: Path, step: int, elapsed_s: float, params: Any, memory: Any) -> None:
    """Write parameters and optimizer state under a temporary name, then rename."""
    leaves = {f"m{place}": leaf for place, leaf in enumerate(jax.tree.leaves((params, memory)))}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, step=step, elapsed_s=elapsed_s, **leaves)
    temporary.replace(path)


def load_checkpoint(path: Path, params: Any, memory: Any):
    """Return step, seconds, parameters and optimizer state; the initial ones if none is saved."""
    if not path.exists():
        return 0, 0.0, params, memory
    shape = jax.tree.structure((params, memory))
    with np.load(path) as saved:
        leaves = [jnp.asarray(saved[f"m{place}"]) for place in range(shape.num_leaves)]
        params, memory = jax.tree.unflatten(shape, leaves)
        return int(saved["step"]), float(saved["elapsed_s"]), params, memory


def save_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write config and weights of an ordinary Hugging Face folder; weights are renamed last."""
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    temporary = folder / "model.tmp"
    kept = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(kept, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(folder / "model.safetensors")
