"""Hundreds of damaged GGUF files: each loads as it says, or is refused in one line."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from jpt.errors import InputError
from jpt.io.gguf import open_gguf, read_gguf_tokenizer
from tests.files.gguf_samples import Sample

BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.merges": ["Ġ t", "h e", "Ġt he"],
    "tokenizer.ggml.scores": None,
    "tokenizer.ggml.add_bos_token": True,
}
SAMPLES = {
    "plain": Sample(),
    "blocks": Sample(kind="Q4_1", tied=False, layers=1),
    "bytes": Sample(
        architecture="qwen2",
        kind="Q8_0",
        biases=True,
        layers=1,
        words=["<unk>", "<s>", "</s>", *BYTES, "Ġt", "he", "Ġthe"],
        fields=BYTE_LEVEL,
    ),
}
MUTATIONS = 200
# The header is where damage shows: the values are mere numbers.
VALUES_BYTES = 2000
LARGEST_MEMORY_BYTES = 4 * 2**20
LONGEST_S = 6.0
NUMBERS = [b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1", b"\x20\0\0\0"]


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Changes bits, bytes or numbers, inserts, removes, repeats or cuts, in one or two places."""
    mutated, reach = bytearray(data), len(data)
    for _ in range(generator.randint(1, 2)):
        place = generator.randrange(min(reach, len(mutated)) or 1)
        kind = generator.randrange(7)
        if kind == 0:
            mutated[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            mutated[place : place + 1] = bytes([generator.randrange(256)])
        elif kind == 2:
            mutated[place : place + 4] = generator.choice(NUMBERS)
        elif kind == 3:
            del mutated[place : place + generator.randint(1, 20)]
        elif kind == 4:
            mutated[place:place] = generator.randbytes(generator.randint(1, 20))
        elif kind == 5:
            other = generator.randrange(min(reach, len(mutated)) or 1)
            mutated[place : place + 30] = mutated[other : other + 30]
        else:
            del mutated[place:]
    return bytes(mutated)


@pytest.mark.parametrize("name", SAMPLES)
def test_mutated_file(tmp_path: Path, name: str) -> None:
    path = SAMPLES[name].write(tmp_path / "a.gguf")
    source = open_gguf(path).source
    read_gguf_tokenizer(open_gguf(path)).encode([" the"])  # imports what it needs
    source.read("model.embed_tokens.weight")
    whole = path.read_bytes()
    stored = sum(tensor.extent_bytes for tensor in source.tensors.values())
    header = len(whole) - stored + VALUES_BYTES
    generator = random.Random(name)
    refused, started = 0, time.monotonic()
    tracemalloc.start()
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(whole[:header], generator) + whole[header:])
        try:
            file = open_gguf(path)
            for tensor, shape in file.source.shapes.items():
                assert file.source.read(tensor).shape == shape
            tokenizer = read_gguf_tokenizer(file)
            assert tokenizer.vocabulary_size <= file.config["vocab_size"]
            tokenizer.decode(tokenizer.encode(["the <s> 12\n", ""])[0])
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 700
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > MUTATIONS / 4
    assert peak_bytes < LARGEST_MEMORY_BYTES
    assert time.monotonic() - started < LONGEST_S


def test_file_cut_at_every_place_of_its_header(tmp_path: Path) -> None:
    path = SAMPLES["blocks"].write(tmp_path / "a.gguf")
    whole = path.read_bytes()
    places = [*range(0, 2200, 7), *range(2200, len(whole), 1500), len(whole) - 32]
    for place in places:
        path.write_bytes(whole[:place])
        with pytest.raises(InputError, match="not a whole GGUF file|begins with"):
            open_gguf(path)
