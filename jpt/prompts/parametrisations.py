"""What is trained in place of prompt rows, and the rows that the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Array, Float


class Parametrisation(Protocol):
    """Trained parameters of a prompt; equal ones share compiled programs (frozen dataclasses)."""

    def init(self, rows: Float[Array, "P D"]) -> Any:
        """Return the parameters, a pytree in float32, that begin at these rows."""

    def rows(self, params: Any) -> Float[Array, "P D"]:
        """Return the rows that the model reads."""


@dataclass(frozen=True)
class PlainPrompt:
    """The rows themselves, as in the paper."""

    def init(self, rows: Float[Array, "P D"]) -> Float[Array, "P D"]:
        """Return the rows."""
        return rows

    def rows(self, params: Float[Array, "P D"]) -> Float[Array, "P D"]:
        """Return the parameters."""
        return params


PLAIN = PlainPrompt()
