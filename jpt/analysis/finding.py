"""One thing that was found, and whether it is for or against the paper."""

from __future__ import annotations

from dataclasses import dataclass

AGREES, CONTRADICTS, UNCLEAR = "agrees", "contradicts", "unclear"


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    # ``"training"``, ``"types"``, ``"best_source"``, ``"overlap"``, ``"correlation"``,
    # ``"choice"``, ``"masks"`` or ``"caution"``
    topic: str
    text: str  # one sentence
    # whether it ``"agrees"`` with the paper, ``"contradicts"`` it, is ``"unclear"``, or None where
    # the paper says nothing of it
    verdict: str | None = None
