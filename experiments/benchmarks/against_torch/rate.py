"""The rate of torch's matrix products here, in thousands of millions of operations a second."""

from __future__ import annotations

import sys
import time

import torch


def main() -> None:
    """Prints the best of eight: float32 on a processor, bfloat16 on a GPU."""
    is_gpu = "--gpu" in sys.argv
    size, place = (8192, {"device": "cuda", "dtype": torch.bfloat16}) if is_gpu else (2048, {})
    left, right = torch.randn(size, size, **place), torch.randn(size, size, **place)
    best_s = float("inf")
    for _ in range(8):
        started_s = time.perf_counter()
        float((left @ right)[0, 0])
        best_s = min(best_s, time.perf_counter() - started_s)
    print(2 * size**3 / best_s / 1e9)


if __name__ == "__main__":
    main()
