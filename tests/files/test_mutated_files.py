"""Hundreds of damaged files: each reads, or is refused in one line; nothing else happens."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io.tensors import open_tensors, write_safetensors
from jpt.io.torch_pickle import read_torch_object

FIXTURES = Path(__file__).parent / "fixtures"
FILES = [
    "state_zip.bin",
    "state_stream.bin",
    "checkpoint_zip.bin",
    "checkpoint_stream.bin",
    "protocol4_stream.bin",
    "expected.safetensors",
]
MUTATIONS = 300
# A mutated length may ask for exabytes; what is really taken must stay near the files' few kB.
LARGEST_MEMORY_BYTES = 4 * 2**20
LONGEST_S = 5.0


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Changes, inserts, removes, repeats or cuts a few bytes, most often near the beginning."""
    mutated = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        reach = len(mutated) if generator.random() < 0.5 else min(400, len(mutated))
        place = generator.randrange(max(reach, 1))
        kind = generator.randrange(6)
        if kind == 0:
            mutated[place : place + 1] = bytes([generator.randrange(256)])
        elif kind == 1:
            mutated[place : place + 4] = generator.choice(
                [b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"]
            )
        elif kind == 2:
            del mutated[place : place + generator.randint(1, 20)]
        elif kind == 3:
            mutated[place:place] = generator.randbytes(generator.randint(1, 20))
        elif kind == 4:
            other = generator.randrange(len(mutated) or 1)
            mutated[place : place + 30] = mutated[other : other + 30]
        else:
            del mutated[generator.randrange(len(mutated) or 1) :]
    return bytes(mutated)


@pytest.mark.parametrize("file", FILES)
def test_mutated_file(tmp_path: Path, file: str) -> None:
    data = (FIXTURES / file).read_bytes()
    generator = random.Random(file)
    path = tmp_path / file
    refused, started = 0, time.monotonic()
    tracemalloc.start()
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(data, generator))
        try:
            source = open_tensors(path)
            for name in source.shapes:
                source.read(name)
            if path.suffix == ".bin":
                read_torch_object(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 600
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > MUTATIONS / 4
    assert peak_bytes < LARGEST_MEMORY_BYTES
    assert time.monotonic() - started < LONGEST_S


def test_mutated_index_of_shards(tmp_path: Path) -> None:
    """The shards stay whole; what names them is damaged."""
    for number in (1, 2):
        tensors = {f"t{number}.{part}": np.full((3, 2), part, np.float32) for part in range(4)}
        write_safetensors(tmp_path / f"model-{number}-of-2.safetensors", tensors)
    names = {f"t{n}.{part}": f"model-{n}-of-2.safetensors" for n in (1, 2) for part in range(4)}
    data = json.dumps({"metadata": {"total_size": 192}, "weight_map": names}).encode()
    generator, index = random.Random("index"), tmp_path / "model.safetensors.index.json"
    refused, started = 0, time.monotonic()
    for _ in range(MUTATIONS):
        index.write_bytes(mutate(data, generator))
        try:
            source = open_tensors(tmp_path)
            for name in source.shapes:
                assert source.read(name).shape == (3, 2)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600
    assert refused > MUTATIONS / 4
    assert time.monotonic() - started < LONGEST_S
