"""Files to read and to damage: rows, GGUF samples, mutations, and what a refusal says."""

import collections
import io
import json
import pickle
import random
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from gguf import GGMLQuantizationType as Type

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import Task

SENTIMENT, PAIR = CATALOG["sst2"], CATALOG["mnli"]
GENERATIVE = Task(
    name="trivia",
    type="question_answering",
    fields=("question",),
    labels=(),
    templates={"encoder_decoder": ("{question}",)},
    metric="exact_match",
    answer_field="answers",
    answer_tokens=5,
)

Rows = Sequence[dict[str, Any]]


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_list(rows: Rows) -> bytes:
    return json.dumps(list(rows), indent=1).encode()


def delimited(rows: Rows, delimiter: str = ",", line_end: str = "\n") -> bytes:
    """Not with the csv module, which reads them; cells are quoted only where needed."""

    def cell(value: Any) -> str:
        text = json.dumps(value) if isinstance(value, list) else str(value)
        plain = not set(text) & set(f'{delimiter}"\r\n')
        return text if plain else '"' + text.replace('"', '""') + '"'

    lines = [list(rows[0]), *(row.values() for row in rows)]
    return "".join(delimiter.join(map(cell, line)) + line_end for line in lines).encode()


def parquet(rows: Rows, schema: pyarrow.Schema | None = None) -> bytes:
    data = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(list(rows), schema), data, row_group_size=3
    )
    return data.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": json_lines,
    ".json": json_list,
    ".csv": delimited,
    ".tsv": lambda rows: delimited(rows, "\t", "\r\n"),
    ".parquet": parquet,
}


NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1", b"\x20\0\0\0")


@contextmanager
def refusal(message: str) -> Iterator[pytest.ExceptionInfo[InputError]]:
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


KINDS_BY_FORMULA = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Types that the package cannot write: their blocks are random (see `random_blocks`)."""

WORDS = ["<unk>", "<s>", "</s>", "▁a", "▁b", "a", "b", "▁"]
# Offsets of the float16 scales in a block; random bytes there might be infinite.
_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


@dataclass
class Sample:
    """Content of a file; None in fields and tensors removes an entry."""

    architecture: str = "llama"
    width: int = 32  # D; blocks of 256 need a multiple
    heads: int = 4
    key_heads: int = 2
    head_width: int = 8
    neurons: int = 64
    layers: int = 2
    kind: str = "F32"  # of the matrices; norms and biases are float32
    tied: bool = True
    biases: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    words: list[str] = field(default_factory=lambda: list(WORDS))

    def write(self, path: Path, endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture, endianess=endianess)
        for key, value in {**self.usual_fields(), **self.fields}.items():
            if value is not None:
                _add(writer, key, value)
        for name, values in {**self.file_tensors(), **self.tensors}.items():
            if values is None:
                continue
            if values.ndim > 1 and self.kind != "F32":
                kind = Type[self.kind]
                writer.add_tensor(name, pack(values, self.kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def usual_fields(self) -> dict[str, Any]:
        own = {
            "block_count": self.layers, "context_length": 96, "embedding_length": self.width,
            "feed_forward_length": self.neurons, "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_heads, "attention.key_length": self.head_width,
            "attention.value_length": self.head_width, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.head_width, "rope.freq_base": 500_000.0,
            "vocab_size": len(self.words),
        }  # fmt: skip
        tokenizer = {
            "model": "llama", "tokens": self.words, "bos_token_id": 1, "eos_token_id": 2,
            "scores": [-float(token) for token in range(len(self.words))],
            "token_type": [2, 3, 3, *[1] * (len(self.words) - 3)],
        }  # fmt: skip
        return {
            **{f"{self.architecture}.{key}": value for key, value in own.items()},
            **{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()},
        }

    def weights(self) -> dict[str, np.ndarray]:
        """Weights under Hugging Face's names, in its order of rows."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        table = (len(self.words), self.width)
        shapes = {"model.embed_tokens.weight": table, "model.norm.weight": (self.width,)}
        shapes |= {} if self.tied else {"lm_head.weight": table}
        for layer in range(self.layers):
            own = {
                "input_layernorm.weight": (self.width,),
                "self_attn.q_proj.weight": (queries, self.width),
                "self_attn.k_proj.weight": (keys, self.width),
                "self_attn.v_proj.weight": (keys, self.width),
                "self_attn.o_proj.weight": (self.width, queries),
                "post_attention_layernorm.weight": (self.width,),
                "mlp.gate_proj.weight": (self.neurons, self.width),
                "mlp.up_proj.weight": (self.neurons, self.width),
                "mlp.down_proj.weight": (self.width, self.neurons),
            }
            if self.biases:
                sizes = {"q": queries, "k": keys, "v": keys}
                own |= {f"self_attn.{m}_proj.bias": (size,) for m, size in sizes.items()}
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        rng = np.random.default_rng(0)
        return {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}

    def file_tensors(self) -> dict[str, np.ndarray]:
        """Weights under the file's names, in its order of rows."""
        tensors = {}
        for name, values in self.weights().items():
            for theirs, ours in NAMES.items():
                name = name.replace(theirs, ours)
            if self.architecture == "llama" and ("attn_q" in name or "attn_k" in name):
                values = pair_rows(values, self.heads if "attn_q" in name else self.key_heads)
            tensors[name] = values
        return tensors


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers": "blk", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}  # fmt: skip


def pair_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """Interleave the halves of each head, as in llama.cpp."""
    paired, width = np.empty_like(values), len(values) // heads
    for head in range(heads):
        for k in range(width // 2):
            at = head * width
            paired[at + 2 * k], paired[at + 2 * k + 1] = values[at + k], values[at + width // 2 + k]
    return paired


def pack(values: np.ndarray, kind: str) -> np.ndarray:
    """Return the bytes of a type, [rows, bytes per row]."""
    if kind in KINDS_BY_FORMULA:
        return random_blocks(kind, len(values), values.shape[1])
    return gguf.quants.quantize(values.astype(np.float32), Type[kind])


def random_blocks(kind: str, rows: int, width: int) -> np.ndarray:
    block, block_bytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    rng = np.random.default_rng(rows * 1000 + width)
    blocks = rng.integers(0, 256, (rows * width // block, block_bytes), dtype=np.uint8)
    for at in _SCALES.get(kind, (0,)):
        scales = rng.uniform(-0.1, 0.1, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list | np.ndarray):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


# Files as torch.save writes them, without torch.


class Named:  # pickled as the import of a name, or as a call of it
    def __init__(self, name: str, *arguments: object) -> None:
        self.module, _, self.name = name.rpartition(".")
        self.arguments = arguments


class Reference:
    def __init__(self, *parts: object) -> None:
        self.parts = parts


class NamePickler(pickle._Pickler):  # Python's extensible one, for names that do not exist
    def persistent_id(self, value: object) -> object:
        return value.parts if isinstance(value, Reference) else None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if not isinstance(value, Named):
            return super().save(value, save_persistent_id)
        self.write(f"c{value.module}\n{value.name}\n".encode())
        if value.arguments:
            super().save(tuple(value.arguments))
            self.write(pickle.REDUCE)


def dump(value: object) -> bytes:
    file = io.BytesIO()
    NamePickler(file, protocol=2).dump(value)
    return file.getvalue()


def storage(key: str, count: object, kind: str = "torch.FloatStorage", view: object = ()) -> object:
    return Reference("storage", Named(kind), key, "cpu", count, *view)


REBUILD = "torch._utils._rebuild_tensor_v2"


def tensor(source: object, first: object, shape: object, strides: object) -> Named:
    hooks = collections.OrderedDict()
    return Named(REBUILD, source, first, shape, strides, False, hooks)


def write_zip(path: Path, content: bytes, storages: dict[str, bytes], **options: object) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


_TORCH_KINDS = {
    **{"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double"},
    **{"int64": "Long", "int32": "Int", "int8": "Char", "uint8": "Byte", "bool": "Bool"},
}


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write a state_dict."""
    state, storages = {}, {}
    for number, (name, values) in enumerate(tensors.items()):
        values = np.ascontiguousarray(values)
        of = storage(str(number), values.size, f"torch.{_TORCH_KINDS[str(values.dtype)]}Storage")
        strides = tuple(step // values.itemsize for step in values.strides)
        state[name] = tensor(of, 0, values.shape, strides)
        storages[str(number)] = values.tobytes()
    return write_zip(path, dump(state), storages)
