"""Read GGUF checkpoints: header, tensors, splits, configuration, rotary scaling and tokenizer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jpt.errors import InputError
from jpt.io.files import LazyTensor, file_size_bytes, read_error
from jpt.io.tensors import TensorSource
from jpt.io.tokenizer import SpecialIds, TextTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer


# --- Header values

# A Llama 3 header has 8 MB and 410,000 texts, the longest a chat template of some kB.
_LARGEST_HEADER_BYTES = 2**28
_LARGEST_TEXT_BYTES = 2**20
_GGUF_LARGEST_COUNT = 2**20


class HeaderReader:
    """Read the values of a header one after the other; no count in the file is trusted."""

    def __init__(self, file: Path, stream: BinaryIO, size_bytes: int) -> None:
        self.file = file
        self.size_bytes = size_bytes
        self._stream = stream
        self._limit_bytes = min(size_bytes, _LARGEST_HEADER_BYTES)
        self._left_bytes = self._limit_bytes

    @property
    def position_bytes(self) -> int:
        """Number of bytes read so far."""
        return self._limit_bytes - self._left_bytes

    def take(self, length_bytes: int) -> bytes:
        """Read the next bytes."""
        if length_bytes > self._left_bytes:
            raise self.broken(f"it ends within its header, after {self._limit_bytes} bytes")
        self._left_bytes -= length_bytes
        data = self._stream.read(length_bytes)
        if len(data) < length_bytes:
            raise self.broken("it was truncated while being read")
        return data

    def whole(self, code: str) -> int:
        """Read the next whole number."""
        return int.from_bytes(self.take(4 if code == "I" else 8), "little")

    def text(self, what: str) -> str:
        """Read the next text: its length, then UTF-8."""
        length_bytes = self.whole("Q")
        if length_bytes > _LARGEST_TEXT_BYTES:
            raise self.broken(f"{what} has a length of {length_bytes} bytes")
        try:
            return self.take(length_bytes).decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"{what} is not UTF-8") from None

    def count(self, what: str, least_bytes: int) -> int:
        """Read the next count; its items must fit in the rest of the file."""
        count = self.whole("Q")
        if count > min(_GGUF_LARGEST_COUNT, self._left_bytes // least_bytes):
            raise self.broken(f"{count} {what} do not fit in {self.size_bytes} bytes")
        return count

    def broken(self, reason: str) -> InputError:
        """Return the InputError for a broken file."""
        return InputError(
            f"{self.file} is not a complete GGUF file: {reason[:200]}; download or copy it again"
        )


# --- Tensors: plain ones, and quantised ones that become float32 when read

_CHUNK_VALUES = 2**18  # decoded at a time, so that no tensor is in memory twice


class Kind(NamedTuple):
    """Storage type of a GGUF tensor."""

    number: int  # of the type in the file
    block: int  # values per block
    block_bytes: int
    dtype: np.dtype = np.dtype(np.float32)  # of the values when read

    @property
    def is_quantised(self) -> bool:
        """Whether values are stored in scaled blocks."""
        return self.block > 1


KINDS = {
    "F32": Kind(0, 1, 4),
    "F16": Kind(1, 1, 2, np.dtype(np.float16)),
    "BF16": Kind(30, 1, 2, np.dtype(ml_dtypes.bfloat16)),
    "Q4_0": Kind(2, 32, 18),
    "Q4_1": Kind(3, 32, 20),
    "Q5_0": Kind(6, 32, 22),
    "Q5_1": Kind(7, 32, 24),
    "Q8_0": Kind(8, 32, 34),
    "Q2_K": Kind(10, 256, 84),
    "Q3_K": Kind(11, 256, 110),
    "Q4_K": Kind(12, 256, 144),
    "Q5_K": Kind(13, 256, 176),
    "Q6_K": Kind(14, 256, 210),
    "IQ4_NL": Kind(20, 32, 18),
    "IQ4_XS": Kind(23, 256, 136),
}
"""Supported types by llama.cpp's names."""


@dataclass(frozen=True)
class GgufTensor(LazyTensor):
    """Location and storage type of a tensor in a GGUF file."""

    kind: str = "F32"  # one of `KINDS`
    name: str = ""  # in the file
    pairs: int | None = None  # number of heads whose rows are interleaved (see `unpaired`)

    @property
    def extent_bytes(self) -> int:
        """Size of the file region that holds it."""
        kind = KINDS[self.kind]
        return math.prod(self.shape) // kind.block * kind.block_bytes

    def unpaired(self, heads: int) -> GgufTensor:
        """Return the tensor with its rows in Hugging Face's order."""
        # llama.cpp rotates neighbouring rows of a head, Hugging Face rotates a row of the first
        # half with one of the second, so the converter interleaves the halves of every head.
        return replace(self, pairs=heads)

    def read(self) -> np.ndarray:
        """Read the values into a new array, quantised ones as float32."""
        kind = KINDS[self.kind]
        rows, width = math.prod(self.shape[:-1]), self.shape[-1]
        row_bytes = width // kind.block * kind.block_bytes
        values = np.empty((rows, width), kind.dtype)
        step = max(1, _CHUNK_VALUES // width)
        try:
            # No memory map: the process would crash if the file were truncated later.
            with open(self.path, "rb") as file:
                file.seek(self.offset_bytes)
                for first in range(0, rows, step):
                    last = min(first + step, rows)
                    raw = np.fromfile(file, np.uint8, (last - first) * row_bytes)
                    if raw.size < (last - first) * row_bytes:
                        raise InputError(
                            f"{self.path} ends within a tensor of {self.extent_bytes} bytes; the"
                            " file has changed since it was opened: copy it again"
                        )
                    values[first:last] = _decode(raw.reshape(-1, row_bytes), self.kind)
        except OSError as error:
            raise read_error(self.path, error) from None
        return self._ordered(values.reshape(self.shape))

    def _ordered(self, values: np.ndarray) -> np.ndarray:
        """Undo the interleaving of each head's halves."""
        if self.pairs is None:
            return values
        neighbours = values.reshape(self.pairs, -1, 2, *self.shape[1:])
        return neighbours.swapaxes(1, 2).reshape(self.shape)


def require_gguf(path: object) -> None:
    """Raise InputError if the package that decodes quantised types is missing."""
    try:
        import gguf.quants  # noqa: F401
    except ImportError:
        raise InputError(
            f"{path} has quantised weights, which need the gguf package; run"
            " `pip install 'jpt[gguf]'`"
        ) from None


def _decode(raw: np.ndarray, kind: str) -> np.ndarray:
    """Decode the bytes of whole rows."""
    if not KINDS[kind].is_quantised:
        return raw.view(KINDS[kind].dtype)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # Scales of a damaged file may be infinite: no warning, the values show it.
    with np.errstate(all="ignore"):
        return dequantize(raw, GGMLQuantizationType[kind])


# --- Container: magic, counts, typed metadata, tensor table, values
# Not read with the gguf package, whose reader trusts every count: a damaged file makes it loop for
# hours, raise NumPy errors, or return overlapping tensors. Checked here: all counts within the
# file; tensors as long as their shape, aligned, contiguous, and ending with the file.

MAGIC = b"GGUF"

_USUAL_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 2**16
_LARGEST_AXES = 4  # of the format's own library
_LEAST_FIELD_BYTES = 13  # a key's length, the type, the smallest value
_LEAST_TENSOR_BYTES = 32  # a name's length, the number of axes, one axis, type, offset
_TEXT, _LIST, _FLAG = 8, 9, 7
_NUMBERS = {
    number: np.dtype(code)
    for number, code in {
        0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
        _FLAG: "?", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip
_OTHER_FILES = {
    b"PK\x03\x04": "it is a zip archive or a torch.save file",
    b"\x80": "it is a pickle or a torch.save file",
    b"version ": "it is a Git LFS pointer; run `git lfs pull`",
    b"ggml": "it is GGML, the predecessor of GGUF; convert it with llama.cpp",
    b"ggjt": "it is GGJT, a predecessor of GGUF; convert it with llama.cpp",
    b"lmgg": "it is GGML, the predecessor of GGUF; convert it with llama.cpp",
    b"tjgg": "it is GGJT, a predecessor of GGUF; convert it with llama.cpp",
}


@dataclass(frozen=True)
class GgufHeader:
    """Content of a GGUF file, without its tensors' values."""

    path: Path
    metadata: Mapping[str, Any]  # numbers, flags, texts, lists of texts, arrays of numbers
    tensors: Mapping[str, GgufTensor]  # by llama.cpp's names


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Read metadata and tensor table of a GGUF file of version 2 or 3."""
    file = Path(path)
    size_bytes = file_size_bytes(file)
    try:
        with open(file, "rb", buffering=2**17) as stream:
            return _read(HeaderReader(file, stream, size_bytes))
    except OSError as error:
        raise read_error(file, error) from None


def _read(reader: HeaderReader) -> GgufHeader:
    _check_version(reader)
    tensor_count = reader.count("tensors", _LEAST_TENSOR_BYTES)
    metadata: dict[str, Any] = {}
    for _ in range(reader.count("fields", _LEAST_FIELD_BYTES)):
        key = reader.text("the name of a field")
        if not key or key in metadata:
            raise reader.broken(f"field {key!r} occurs twice" if key else "a field has no name")
        metadata[key] = _value(reader, key)
    lines = [_tensor_line(reader) for _ in range(tensor_count)]
    alignment = _alignment(reader, metadata)
    start = -(-reader.position_bytes // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in lines:
        if name in tensors:
            raise reader.broken(f"tensor {name!r} occurs twice")
        tensors[name] = GgufTensor(
            path=reader.file,
            offset_bytes=start + offset,
            shape=shape,
            dtype=KINDS[kind].dtype,
            kind=kind,
            name=name,
        )
    _check_extents(reader, tensors, start, alignment)
    return GgufHeader(reader.file, metadata, tensors)


def _check_version(reader: HeaderReader) -> None:
    """Raise InputError for another magic, byte order or version."""
    if reader.size_bytes < 24:
        raise reader.broken(f"it has only {reader.size_bytes} bytes")
    start = reader.take(8)
    if not start.startswith(MAGIC):
        for other, kind in _OTHER_FILES.items():
            if start.startswith(other):
                raise InputError(f"{reader.file} is not a GGUF file: {kind}")
        raise InputError(
            f"{reader.file}: expected {MAGIC!r} at the start, got {start[:4]!r}; give a GGUF file"
        )
    version = int.from_bytes(start[4:], "little")
    if version in (2, 3):
        return
    if version == 1:
        raise InputError(
            f"{reader.file}: expected GGUF version 2 or 3, got 1; convert the model again"
        )
    if int.from_bytes(start[4:], "big") in (1, 2, 3):
        raise InputError(
            f"{reader.file} is big-endian; convert it with"
            f" `gguf-convert-endian {reader.file.name} little`"
        )
    raise InputError(
        f"{reader.file}: expected GGUF version 2 or 3, got {version}; convert the model again"
    )


def _value(reader: HeaderReader, key: str) -> Any:
    kind = reader.whole("I")
    if kind == _TEXT:
        return reader.text(f"field {key!r}")
    if kind in _NUMBERS:
        return _numbers(reader, kind, 1).item()
    if kind != _LIST:
        raise reader.broken(f"field {key!r} has the unknown type {kind}")
    kind = reader.whole("I")
    if kind == _TEXT:
        what = f"an entry of {key!r}"
        return [reader.text(what) for _ in range(reader.count(f"entries of {key!r}", 8))]
    if kind in _NUMBERS:
        count = reader.count(f"entries of {key!r}", _NUMBERS[kind].itemsize)
        return _numbers(reader, kind, count)
    raise reader.broken(f"field {key!r} is a list of the unknown type {kind}")


def _numbers(reader: HeaderReader, kind: int, count: int) -> np.ndarray:
    data = np.frombuffer(reader.take(count * _NUMBERS[kind].itemsize), np.uint8)
    # A byte other than 0 and 1 would become a bool that equals neither False nor True.
    return data != 0 if kind == _FLAG else data.view(_NUMBERS[kind])


def _tensor_line(reader: HeaderReader) -> tuple[str, tuple[int, ...], str, int]:
    """Read one entry of the tensor table: name, shape (slowest axis first), type, offset."""
    name = reader.text("the name of a tensor")
    axes = reader.whole("I")
    if not name or not 1 <= axes <= _LARGEST_AXES:
        raise reader.broken(f"tensor {name!r} has {axes} axes")
    shape = tuple(reader.whole("Q") for _ in range(axes))[::-1]
    number, offset = reader.whole("I"), reader.whole("Q")
    kind = next((name for name, kind in KINDS.items() if kind.number == number), None)
    if kind is None:
        raise InputError(
            f"{reader.file}: tensor {name[:80]!r} has the unsupported type number {number};"
            f" quantise the model to one of {', '.join(KINDS)}"
        )
    block = KINDS[kind].block
    if not all(0 < length < 2**40 for length in shape) or shape[-1] % block:
        raise reader.broken(f"tensor {name!r} {list(shape)} does not consist of blocks of {block}")
    return name, shape, kind, offset


def _alignment(reader: HeaderReader, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _USUAL_ALIGNMENT)
    whole = type(alignment) is int and 0 < alignment <= _LARGEST_ALIGNMENT
    if not whole or alignment & (alignment - 1):
        raise reader.broken(f"general.alignment is {alignment!r}; expected a power of two")
    return alignment


def _check_extents(
    reader: HeaderReader, tensors: Mapping[str, GgufTensor], start: int, alignment: int
) -> None:
    """Raise InputError unless the tensors are contiguous, aligned, and end with the file."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset_bytes):
        if tensor.offset_bytes != -(-end // alignment) * alignment:
            raise reader.broken(f"tensor {name!r} leaves a gap or overlaps another one")
        end = tensor.offset_bytes + tensor.extent_bytes
    if end > reader.size_bytes:
        raise reader.broken(f"it ends after {reader.size_bytes} of {end} bytes")
    if tensors and reader.size_bytes > -(-end // alignment) * alignment:
        raise reader.broken(f"expected {end} bytes, got {reader.size_bytes}")


# --- Rotary scaling of Llama 3
# The converter turns the config's four numbers into one factor per frequency. Only three of them
# can be recovered: the factor of the slowest frequencies and the two wavelengths between which it
# sets in. The fourth, the first context length, is taken as 8,192, that of Llama 3.

FIRST_CONTEXT = 8192
_LARGEST_ERROR = 2e-6  # relative; the factors are float32, computed in a few steps of float32


def rope_factors(
    theta: float, count: int, factor: float, low_factor: float, high_factor: float
) -> np.ndarray:
    """Return the divisor of each frequency of a head under Llama 3's scaling."""
    rotations = _rotations(theta, count)
    between = np.clip((rotations - low_factor) / (high_factor - low_factor), 0, 1)
    return 1 / ((1 - between) / factor + between)


def recover_rope_scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """Return the rope_scaling that yields a file's factors, or None if there is none."""
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        return None
    if (factors == 1).all():
        return {}
    factor = float(str(np.float32(factors[-1])))
    if (factors == factors[0]).all():
        return {"rope_type": "linear", "factor": factor}
    if factor <= 1:
        return None
    for low, high in [(1.0, 4.0), *_fits(factors, theta, factor)]:
        found = rope_factors(theta, factors.size, factor, low, high)
        if (np.abs(found - factors) <= _LARGEST_ERROR * factors).all():
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": FIRST_CONTEXT,
            }
    return None


def _rotations(theta: float, count: int) -> np.ndarray:
    """Return the number of rotations of each frequency within the first context."""
    return FIRST_CONTEXT / (2 * np.pi) * theta ** -(np.arange(count) / count)


def _fits(factors: np.ndarray, theta: float, factor: float) -> list[tuple[float, float]]:
    """Return bounds fitted to the factors between 1 and the largest: rounded, then exact."""
    between = (1 / factors - 1 / factor) / (1 - 1 / factor)
    inner = (between > 1e-4) & (between < 1 - 1e-4)
    if inner.sum() < 2:
        return []
    slope, start = np.polyfit(_rotations(theta, factors.size)[inner], between[inner], 1)
    if slope <= 0:
        return []
    low, high = -start / slope, (1 - start) / slope
    if low <= 0:
        return []
    return [(round(low, 3), round(high, 3)), (float(low), float(high))]


# --- Config: from metadata to Hugging Face's fields
# A field that changes what llama.cpp computes is translated or refused; others are ignored.

ARCHITECTURES = ("llama", "qwen2")
"""Supported values of general.architecture; Hugging Face's model_type has the same names."""

WORD_TABLE = "token_embd.weight"
HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
_GGUF_CONFIG_LARGEST_COUNT = 2**31 - 1


def read_gguf_config(header: GgufHeader) -> dict[str, Any]:
    """Return the fields of a Hugging Face config."""
    fields = _Fields(header)
    _refuse_variants(fields)
    width, heads = fields.whole("embedding_length"), fields.whole("attention.head_count")
    if width % heads and fields.key("attention.key_length") not in header.metadata:
        raise fields.error("attention.head_count", heads, f"a divisor of the width {width}")
    head_width = fields.whole("attention.key_length", max(1, width // heads))
    _check_head_width(fields, head_width)
    config = {
        "model_type": fields.architecture,
        "vocab_size": _vocabulary(fields),
        "hidden_size": width,
        "intermediate_size": fields.whole("feed_forward_length"),
        "num_hidden_layers": fields.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole("attention.head_count_kv", heads),
        "head_dim": head_width,
        "max_position_embeddings": fields.whole("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(fields, head_width),
        "tie_word_embeddings": HEAD not in header.tensors,
    }
    if fields.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        config[f"{name}_token_id"] = token if type(token) is int else None
    return config


class _Fields:
    """Metadata fields of the file's architecture, checked on access."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.architecture = header.metadata.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"{header.path}: expected the architecture {' or '.join(ARCHITECTURES)}, got"
                f" {_shown(self.architecture)}; use the model's safetensors folder"
            )

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def error(self, name: str, value: Any, expected: str) -> InputError:
        return InputError(
            f"{self.header.path}: {self.key(name)} is {_shown(value)}; expected {expected}:"
            " download the file again or use the model's safetensors folder"
        )

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field; a list of equal values per layer becomes one value."""
        value = self.header.metadata.get(self.key(name), default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            return value[0].item()
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if type(value) is not int or not 1 <= value <= _GGUF_CONFIG_LARGEST_COUNT:
            raise self.error(name, value, "a whole number of at least 1, one for all layers")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive field, rounded to the shortest decimals of its float32."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise self.error(name, value, "a number above 0")
        return float(str(np.float32(value)))


def _shown(value: Any) -> str:
    return repr(" ".join(str(value).split())[:60]) if not isinstance(value, int) else str(value)


def _refuse_variants(fields: _Fields) -> None:
    """Raise InputError for model variants that are not implemented."""
    metadata, path = fields.header.metadata, fields.header.path
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise InputError(f"{path} is of type {_shown(kind)}, not a model; give the model's file")
    parts = metadata.get("split.count", 0)
    if parts not in (0, 1):
        raise InputError(
            f"{path} is one of {_shown(parts)} parts of a model; join them with"
            " `llama-gguf-split --merge FIRST_PART WHOLE` and give the merged file"
        )
    for name, usual in {"expert_count": 0, "attention.causal": True}.items():
        if (value := fields.get(name, usual)) != usual:
            raise fields.error(name, value, f"{usual}, other values are not supported")


def _check_head_width(fields: _Fields, head_width: int) -> None:
    """Raise InputError unless whole heads are rotated and values are as wide as keys."""
    for name in ("attention.value_length", "rope.dimension_count"):
        value = fields.whole(name, head_width)
        if value != head_width or value % 2:
            raise fields.error(name, value, f"an even head width, here {head_width}")


def _vocabulary(fields: _Fields) -> int:
    """Return the number of token embeddings, which must match the list of tokens."""
    header = fields.header
    table = header.tensors.get(WORD_TABLE)
    if table is None or len(table.shape) != 2:
        raise InputError(f"{header.path} has no token embeddings {WORD_TABLE}; download it again")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != table.shape[0]:
        raise InputError(
            f"{header.path} lists {len(tokens)} tokens but has {table.shape[0]} embeddings;"
            " parts of two models are mixed: convert the model again"
        )
    return table.shape[0]


def _rope_scaling(fields: _Fields, head_width: int) -> dict[str, Any] | None:
    """Return the rope_scaling, from the metadata or a tensor of factors (Llama 3.1)."""
    kind = fields.get("rope.scaling.type", "linear")
    factor = fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 0.0))
    if type(factor) not in (int, float) or not 0 <= factor < 1e6:
        raise fields.error("rope.scaling.factor", factor, "a number above 0")
    # llama.cpp writes 0 for no scaling.
    factor = 1.0 if kind == "none" or factor == 0 else float(str(np.float32(factor)))
    if kind not in ("none", "linear"):
        raise fields.error("rope.scaling.type", kind, "none, linear or Llama 3's factors")
    if (spread := fields.get("rope.scaling.attn_factor", 1.0)) != 1.0:
        raise fields.error("rope.scaling.attn_factor", spread, "1")
    tensor = fields.header.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    theta = fields.number("rope.freq_base", 10_000.0)
    factors = tensor.read().astype(np.float64).reshape(-1)
    found = None
    if factor == 1.0 and factors.size == head_width // 2:
        found = recover_rope_scaling(factors, theta)
    if found is None:
        raise InputError(
            f"{fields.header.path}: the factors of {ROPE_FACTORS} are not those of Llama 3's"
            " scaling, the only one supported; use the model's safetensors folder"
        )
    return found or None


# --- Models: weights under Hugging Face's names

_NAMES = {
    WORD_TABLE: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(
    rf"blk\.(0|[1-9][0-9]{{0,5}})\.({'|'.join(_LAYER_NAMES)})\.(weight|bias)"
)
# Architectures whose files interleave the rows of queries and keys (see `GgufTensor.unpaired`).
_PAIRED = ("llama",)


@dataclass(frozen=True)
class GgufFile:
    """Model in a GGUF file."""

    path: Path
    config: dict[str, Any]  # the fields of Hugging Face's ``config.json``
    source: TensorSource  # the weights under Hugging Face's names
    metadata: Mapping[str, Any]  # everything else, such as the tokenizer


def open_gguf(path: str | Path) -> GgufFile:
    """Open a GGUF file without reading its weights."""
    header = read_gguf_header(path)
    config = read_gguf_config(header)
    if any(KINDS[tensor.kind].is_quantised for tensor in header.tensors.values()):
        require_gguf(header.path)
    tensors = _rename(header, config)
    return GgufFile(header.path, config, TensorSource(header.path, tensors, {}), header.metadata)


def _rename(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """Return the weights under Hugging Face's names, their rows in its order."""
    tensors: dict[str, GgufTensor] = {}
    layers: set[str] = set()
    for name, tensor in header.tensors.items():
        if name == ROPE_FACTORS and config["model_type"] == "llama":
            continue  # translated to the config
        found = _LAYER_TENSOR.fullmatch(name)
        if found is None and name not in _NAMES:
            raise InputError(
                f"{header.path}: unexpected tensor {name[:80]!r} in a {config['model_type']} model;"
                " use the model's safetensors folder"
            )
        if found is None:
            tensors[_NAMES[name]] = tensor
            continue
        layer, part, end = found.groups()
        layers.add(layer)
        tensors[f"model.layers.{layer}.{_LAYER_NAMES[part]}.{end}"] = (
            _unpair(header, name, tensor, part, config) if part in ("attn_q", "attn_k") else tensor
        )
    if len(layers) != config["num_hidden_layers"]:
        raise InputError(
            f"{header.path}: expected weights of {config['num_hidden_layers']} layers, got"
            f" {len(layers)}; download or copy it again"
        )
    return tensors


def _unpair(
    header: GgufHeader, name: str, tensor: GgufTensor, part: str, config: Mapping[str, Any]
) -> GgufTensor:
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
    rows = heads * config["head_dim"]
    if tensor.shape[0] != rows:
        raise InputError(
            f"{header.path}: {name} has {tensor.shape[0]} rows; expected {rows} ({heads} heads of"
            f" {config['head_dim']}): download or copy it again"
        )
    return tensor.unpaired(heads) if config["model_type"] in _PAIRED else tensor


# --- Pre-tokenizers of byte-level vocabularies
# A file names its pre-tokenizer (``tokenizer.ggml.pre``) but does not describe it. Below are those
# of the Llama family, with the expressions of the models' own tokenizers; llama.cpp's are
# equivalent.

_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_THREE_DIGITS = (rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}",)
_ONE_DIGIT = (rf"{_WORD}|\p{{N}}|{_REST}",)

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_ALONE = (r"\p{N}", _GPT2)
# llama.cpp's fallback, not that of any model.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


class Split(NamedTuple):
    """Pre-tokenizer, with the defaults of its vocabularies."""

    patterns: tuple[str, ...]  # each splits the matches and the rest of those before it
    whole_words: bool = False  # whether a word that is a token is taken without merging
    add_bos: bool = False  # default of add_bos_token
    normalizes: bool = False  # whether text is normalised to NFC first

    def build(self) -> PreTokenizer:
        """Build the pre-tokenizer; its words are spelled in the byte alphabet."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Sequence
        from tokenizers.pre_tokenizers import Split as SplitBy

        steps = [SplitBy(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA3 = Split(_THREE_DIGITS, whole_words=True, add_bos=True)

SPLITS = {
    "default": Split(_DEFAULT),
    "gpt-2": Split((_GPT2,)),
    "mellum": Split((_GPT2,)),
    "smollm": Split(_DIGITS_ALONE),
    "starcoder": Split(_DIGITS_ALONE),
    "refact": Split(_DIGITS_ALONE),
    "minerva-7b": Split(_DIGITS_ALONE),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": Split(_THREE_DIGITS),
    "tekken": Split(_TEKKEN, whole_words=True, add_bos=True),
    # Qwen's tokenizers normalise; llama.cpp and the other models below do not.
    "qwen2": Split(_ONE_DIGIT, normalizes=True),
    "deepseek-r1-qwen": Split(_ONE_DIGIT),
    "megrez": Split(_ONE_DIGIT),
}
"""Supported values of tokenizer.ggml.pre."""


# --- Tokenizers: byte-level BPE (GPT-2), or SentencePiece
# A SentencePiece file lists no merges: two tokens merge if their concatenation is a token, best
# score first. The merges of a BPE model are derived from that.

MODELS = ("gpt2", "llama")
"""Supported values of tokenizer.ggml.model: byte-level BPE, and SentencePiece."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # of tokenizer.ggml.token_type
_LONGEST_TOKEN = 1024  # characters; real ones have up to 256
_SPACE = "▁"  # SentencePiece's spelling of a space
# llama.cpp's defaults for SentencePiece files: Llama's ids.
_LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0, "pad": None}
_ID_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def read_gguf_tokenizer(file: GgufFile, required: tuple[str, ...] = ("eos",)) -> TextTokenizer:
    """Build the tokenizer of a GGUF file."""
    tokens = _Tokens(file.path, file.metadata)
    backend, add_bos = _byte_level(tokens) if tokens.model == "gpt2" else _sentencepiece(tokens)
    ids = tokens.special_ids()
    _add_special(backend, tokens, ids)
    add_bos = tokens.flag("add_bos_token", add_bos)
    if add_bos and ids["bos"] is None:
        raise tokens.error("bos_token_id", "missing, but every text must start with it")
    for name in required:
        if ids.get(name) is None:
            key = _ID_KEYS.get(name, name)
            raise tokens.error(f"{key}_token_id", "missing, but this model family needs it")
    return TextTokenizer(backend, SpecialIds(cls=None, sep=None, mask=None, **ids), add_bos)


class _Tokens:
    """Tokenizer fields, checked on access."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path, self._metadata = path, metadata
        self.model = self.get("model")
        if self.model not in MODELS:
            expected = ", ".join(MODELS)
            raise self.error("model", f"{str(self.model)[:40]!r}; expected one of {expected}")
        listed = self.texts("tokens")
        # llama.cpp's name of an empty token.
        self.texts_by_id = [text or f"[EMPTY_{token}]" for token, text in enumerate(listed)]
        self.ids = {text: token for token, text in enumerate(self.texts_by_id)}
        if not listed or len(self.ids) != len(listed):
            raise self.error("tokens", f"{len(listed)} tokens, {len(self.ids)} of them distinct")
        if max(map(len, listed)) > _LONGEST_TOKEN:
            raise self.error("tokens", f"a list with a token of {max(map(len, listed))} characters")
        self.types = self.numbers("token_type", _NORMAL).tolist()
        self.typed = self.get("token_type") is not None

    def get(self, name: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}")

    def error(self, name: str, reason: str) -> InputError:
        return InputError(
            f"{self._path}: tokenizer.ggml.{name} is {reason}; use a file that a newer llama.cpp"
            " made, or the model's safetensors folder"
        )

    def texts(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list):
            raise self.error(name, "not a list of texts" if value is not None else "missing")
        return value

    def numbers(self, name: str, default: float) -> np.ndarray:
        """Return one number per token."""
        value = self.get(name)
        if value is None:
            return np.full(len(self.texts_by_id), default)
        if not isinstance(value, np.ndarray) or len(value) != len(self.texts_by_id):
            raise self.error(name, f"not a list of {len(self.texts_by_id)} numbers, one per token")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if not isinstance(value, bool | None):
            raise self.error(name, f"{str(value)[:40]!r}; expected true or false")
        return default if value is None else value

    def special_ids(self) -> dict[str, int | None]:
        """Return the ids of the special tokens."""
        usual = _LLAMA_IDS if self.model == "llama" else dict.fromkeys(_ID_KEYS)
        ids: dict[str, int | None] = {}
        for name, key in _ID_KEYS.items():
            token, size = self.get(f"{key}_token_id"), len(self.texts_by_id)
            ids[name] = usual[name] if token is None else token
            if token is None and ids[name] is not None and ids[name] >= size:
                ids[name] = None
            if token is not None and not (type(token) is int and 0 <= token < size):
                reason = f"{str(token)[:40]}, but there are {size} tokens"
                raise self.error(f"{key}_token_id", reason)
        return ids


def _byte_level(tokens: _Tokens) -> tuple[Tokenizer, bool]:
    """Build a byte-level BPE tokenizer; return its add_bos_token default, too."""
    from tokenizers import decoders, normalizers

    kind = tokens.get("pre")
    if kind is None:
        raise tokens.error("pre", f"missing; expected one of {', '.join(SPLITS)}")
    if kind not in SPLITS:
        raise tokens.error("pre", f"{str(kind)[:40]!r}; expected one of {', '.join(SPLITS)}")
    split = SPLITS[kind]
    merges = [_pair(tokens, merge) for merge in tokens.texts("merges")]
    backend = _build(tokens, merges, ignore_merges=split.whole_words)
    if split.normalizes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split.build()
    backend.decoder = decoders.ByteLevel()
    return backend, split.add_bos


def _pair(tokens: _Tokens, merge: str) -> tuple[str, str]:
    """Split a merge into its two tokens; the first may itself begin with a space."""
    at = merge.find(" ", 1)
    left, right = merge[:at], merge[at + 1 :]
    if at < 0 or left not in tokens.ids or right not in tokens.ids:
        raise tokens.error("merges", f"a list with {merge[:40]!r}, which is not a pair of tokens")
    if left + right not in tokens.ids:
        raise tokens.error("merges", f"a list with {merge[:40]!r}, which does not form a token")
    return left, right


def _sentencepiece(tokens: _Tokens) -> tuple[Tokenizer, bool]:
    """Build a SentencePiece tokenizer; unknown characters become bytes."""
    from tokenizers import decoders, normalizers

    if tokens.flag("remove_extra_whitespaces", False):
        raise tokens.error("remove_extra_whitespaces", "true, which is not supported")
    unknown = tokens.special_ids()["unk"]
    backend = _build(
        tokens,
        _scored_merges(tokens),
        unk_token=None if unknown is None else tokens.texts_by_id[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    steps = [normalizers.Replace(" ", _SPACE)]
    ends = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if tokens.flag("add_space_prefix", True):
        # A further space even before a space, as in SentencePiece; Metaspace would not add it.
        steps.insert(0, normalizers.Prepend(_SPACE))
        ends.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(ends)
    return backend, True


def _scored_merges(tokens: _Tokens) -> list[tuple[str, str]]:
    """Return all pairs of tokens that form a token, by the score of that token."""
    scores = tokens.numbers("scores", math.nan).astype(np.float64).tolist()
    if not all(map(math.isfinite, scores)):
        raise tokens.error("scores", "missing or not finite")
    mergeable = {
        text: token for text, token in tokens.ids.items() if tokens.types[token] == _NORMAL
    }
    pairs = [
        (-scores[token], token, mergeable[whole[:at]], mergeable[whole[at:]], at, whole)
        for whole, token in mergeable.items()
        for at in range(1, len(whole))
        if whole[:at] in mergeable and whole[at:] in mergeable
    ]
    # Ties by ids, as in the published tokenizer.json files.
    return [(whole[:at], whole[at:]) for *_, at, whole in sorted(pairs)]


def _build(tokens: _Tokens, merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    from tokenizers import Tokenizer, models

    try:
        return Tokenizer(models.BPE(vocab=tokens.ids, merges=merges, **options))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise tokens.error("tokens", f"not a vocabulary ({reason})") from None


def _add_special(backend: Tokenizer, tokens: _Tokens, ids: Mapping[str, int | None]) -> None:
    """Register control and user-defined tokens, which are matched before anything else."""
    from tokenizers import AddedToken

    # If the file has types, a normal token stays one, even if it serves as padding.
    named = set() if tokens.typed else set(ids.values())
    typed = list(enumerate(zip(tokens.texts_by_id, tokens.types, strict=True)))
    special = [
        AddedToken(text, normalized=False, special=True)
        for token, (text, kind) in typed
        if token in named or kind in (_UNKNOWN, _CONTROL)
    ]
    user_defined = [
        AddedToken(text, normalized=False, special=False)
        for _, (text, kind) in typed
        if kind == _USER_DEFINED
    ]
    backend.add_special_tokens(special)
    backend.add_tokens(user_defined)
