"""Damaged files: readers must refuse them in one line, with little memory and time."""

import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from jpt.errors import InputError

NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1", b"\x20\0\0\0")


@contextmanager
def refusal(message: str) -> Iterator[pytest.ExceptionInfo[InputError]]:
    """Expect an InputError of one line."""
    with pytest.raises(InputError, match=message) as caught:
        yield caught
    assert "\n" not in str(caught.value)


def mutate(data: bytes, rng: random.Random, tokens: Sequence[bytes] = NUMBERS) -> bytes:
    """Change, insert, remove, repeat or cut a few bytes, most often near the beginning."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        reach = len(mutated) if rng.random() < 0.5 else min(400, len(mutated))
        at, kind = rng.randrange(max(reach, 1)), rng.randrange(7)
        if kind == 0:
            mutated[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and at < len(mutated):
            mutated[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            mutated[at : at + 4] = rng.choice(tokens)
        elif kind == 3:
            del mutated[at : at + rng.randint(1, 20)]
        elif kind == 4:
            mutated[at:at] = rng.randbytes(rng.randint(1, 20))
        elif kind == 5:
            other = rng.randrange(len(mutated) or 1)
            mutated[at : at + 30] = mutated[other : other + 30]
        else:
            del mutated[rng.randrange(len(mutated) or 1) :]
    return bytes(mutated)


def check_mutations(
    path: Path,
    read: Callable[[], None],
    n_bytes: int | None = None,
    longest_s: float = 5.0,
    longest_message: int = 600,
) -> None:
    """Read 300 mutations of a file, or of its first bytes; they must be read or refused."""
    whole = path.read_bytes()
    rng, refused, started = random.Random(path.name), 0, time.monotonic()
    tracemalloc.start()
    for _ in range(300):
        path.write_bytes(mutate(whole[:n_bytes], rng) + (whole[n_bytes:] if n_bytes else b""))
        try:
            read()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < longest_message
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 75
    # A mutated length may ask for exabytes; what is taken must stay near the files' few kB.
    assert peak_bytes < 4 * 2**20
    assert time.monotonic() - started < longest_s
