"""A run that starts from a prompt that is there already, with or without Adam's memory of it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float32

from jpt.errors import InputError
from jpt.prompts.initialisers import copied_values
from jpt.prompts.store import load_prompt
from jpt.tuning.checkpoints import Checkpoints
from jpt.tuning.loop import start_state
from jpt.tuning.run_folder import BEST, CHECKPOINTS, RESULT
from jpt.tuning.step import TuneState, init_state, prompt_optimizer
from jpt.types import Prompt


@dataclass(frozen=True)
class Moments:
    """What Adam remembers of the gradients of a prompt."""

    mean: Float32[np.ndarray, "P D"]  # running mean of the gradient
    square: Float32[np.ndarray, "P D"]  # running mean of its square


@dataclass(frozen=True)
class Start:
    """Where a run starts in place of an initialiser."""

    name: str  # what it is called in cards and records
    prompt: Prompt  # the values
    moments: Moments | None = None  # copied into the optimizer; None lets it start afresh

    def values(self, length: int, width: int) -> Float32[np.ndarray, "P D"]:
        """Gives the initial rows."""
        return copied_values(self.prompt, length, width, f"prompt {self.name}")

    def put_moments(self, state: TuneState) -> TuneState:
        """Puts the moments, if there are any, into the state before the first step."""
        if self.moments is None:
            return state
        mean, square = jnp.asarray(self.moments.mean), jnp.asarray(self.moments.square)
        return state._replace(optimizer=optax.tree.set(state.optimizer, mu=mean, nu=square))

    def record(self) -> dict[str, Any]:
        """Tells this start from every other, wherever its files lie."""
        arrays = [self.prompt.values]
        if self.moments is not None:
            arrays += [self.moments.mean, self.moments.square]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        checksum = digest.hexdigest()[:16]
        return {"name": self.name, "sha256": checksum, "moments": self.moments is not None}


def read_start(name: str, run: str | Path) -> Start:
    """Reads the newest checkpoint of a finished run: its last prompt with Adam's moments."""
    # The last prompt and not the best one, because the moments belong to it.
    folder = Path(run)
    need = "to copy moments, give the folder of a finished run of jpt tune with its checkpoints"
    if not folder.is_dir():
        raise InputError(f"source {name}: {run} is no run folder; {need}")
    for part in (RESULT, BEST, CHECKPOINTS):
        if not (folder / part).exists():
            raise InputError(f"source {name}: {run} holds no {part}; {need}")
    best = load_prompt(folder)
    like = start_state(init_state(np.zeros_like(best.values), prompt_optimizer(1.0)))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        if checkpoints.latest_step is None:
            raise InputError(f"source {name}: {run}/{CHECKPOINTS} holds no checkpoint; {need}")
        state = checkpoints.load(like, "give a source of this version's optimizer").tune
    moments = Moments(
        *(np.asarray(optax.tree.get(state.optimizer, part), np.float32) for part in ("mu", "nu"))
    )
    card = dataclasses.replace(best.card, steps=int(state.step), score=None)
    return Start(name, Prompt(np.asarray(state.prompt, np.float32), card), moments)
