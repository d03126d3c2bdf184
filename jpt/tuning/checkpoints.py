"""Checkpoints of a run: the one place that knows orbax.

A checkpoint holds what a run needs to go on (prompt, optimizer state, best prompt so far) and
nothing of the backbone. It is written beside its final name and becomes one by a rename, in the
background, while training goes on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jpt.errors import InputError

KEPT = 2


class Checkpoints:
    """The last checkpoints of one run.

    Args:
        folder: where they lie; made when the first one is saved.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with Checkpoints(Path(tempfile.mkdtemp())) as checkpoints:
        ...     checkpoints.save(5, {"prompt": jnp.ones(3)})
        ...     checkpoints.wait()
        ...     checkpoints.latest_step
        5
    """

    def __init__(self, folder: Path) -> None:
        # orbax speaks of every file at level INFO and of CPU placement at WARNING.
        logging.getLogger("absl").setLevel(logging.ERROR)
        from orbax.checkpoint import v1 as orbax

        policies = orbax.training.preservation_policies
        decisions = orbax.training.save_decision_policies
        self.folder = folder.absolute()
        self._checkpointer = orbax.training.Checkpointer(
            self.folder,
            save_decision_policy=decisions.FixedIntervalPolicy(1),
            preservation_policy=policies.LatestN(KEPT),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        """Gives itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for what is still being written."""
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any) -> None:
        """Begins to save a state; returns as soon as it is copied off the device.

        Args:
            step: that the state belongs to.
            state: a pytree of arrays.
        """
        self.wait()
        if self.latest_step == step:
            return
        self._checkpointer.save_checkpointables_async(step, {"state": state})

    def wait(self) -> None:
        """Waits until the last save is whole on disk."""
        self._checkpointer.wait()

    def load(self, like: Any, cure: str = "remove the folder to start anew") -> Any:
        """Loads the newest checkpoint onto this run's devices.

        Args:
            like: a pytree with the shapes, dtypes and shardings wanted.
            cure: what to do where it does not fit, for the message.

        Returns:
            The state.

        Raises:
            InputError: where the checkpoint does not fit, for instance after a change by hand.
        """
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        try:
            return self._checkpointer.load_checkpointables(None, {"state": abstract})["state"]
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(
                f"the checkpoint of step {self.latest_step} in {self.folder} does not fit this run "
                f"({reason}); {cure}"
            ) from None
