"""Measure how fast rows become batches: tokenised once, cached on disk, cut into padded arrays.

Writes 20,000 short rows, tokenises them with the vocabulary of a built-in backbone, reads them
again from the cache, and makes batches of them, by rows and by tokens.

Command:
    python experiments/benchmarks/batching.py

Time and result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROWS = 20_000
WORDS = (
    "the a film story actor is was not very good bad slow bright funny dull long and but".split()
)


def main() -> None:
    """Measure and prints rows a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="builtin/bert-small")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JPT_CACHE"] = folder
        import jpt

        backbone = jpt.load_backbone(arguments.backbone)
        data = {"train": make_rows(ROWS), "validation": make_rows(4)}
        for name in ("read and tokenised", "read from the cache"):
            started_s = time.perf_counter()
            next(batches(backbone, data, batch_size=16))
            print(f"{name}: {ROWS / (time.perf_counter() - started_s):,.0f} rows/s")
        for options in (
            {"batch_size": 16},
            {"batch_size": 32},
            {"batch_size": 32, "group_by_length": True},
            {"tokens_per_batch": 2048},
        ):
            print(f"batches by {options}: {rate(batches(backbone, data, **options)):,.0f} rows/s")


def batches(backbone: Any, data: Any, **options: Any) -> Iterator[Any]:
    """Return the endless stream of batches of a run."""
    import jpt

    settings = {"steps": 10**9, "length": 20, "max_tokens": 64, **options}
    return jpt.training_batches(backbone, "sst2", data=data, **settings)


def make_rows(count: int) -> list[dict[str, str]]:
    """Sample short rows of 3 to 40 words."""
    rng = random.Random(0)
    labels = ("negative", "positive")
    return [
        {"text": " ".join(rng.choices(WORDS, k=rng.randint(3, 40))), "label": labels[n % 2]}
        for n in range(count)
    ]


def rate(stream: Iterator[Any]) -> float:
    """Return rows per second, without the first epoch's shuffling and reading."""
    next(stream)
    rows, started_s = 0.0, time.perf_counter()
    for batch in itertools.islice(stream, 1500):
        rows += float(batch.weights.sum())
    return rows / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main()
