"""Choices by chance that come out the same on every machine and with every version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """A stream of choices that follows from a name."""

    # Only ``random.Random.random`` is used: it is the one method whose numbers Python promises to
    # keep, and fixed splits of data must stay what they are.

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def pick(self, items: Sequence[Item]) -> Item:
        """Chooses one of some items."""
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Puts items into an order by chance."""
        keys = [self._random.random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]
