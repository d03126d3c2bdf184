"""Tensors of GGUF files: plain ones, and quantised ones that are turned into float32 when read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jpt.errors import InputError
from jpt.files.reading import read_error
from jpt.files.stored import StoredTensor

_PIECE_VALUES = 2**18  # turned into numbers at a time, so that no tensor is in memory twice


class Kind(NamedTuple):
    """How a GGUF file stores values."""

    number: int  # of the type in the file
    block: int  # values that are stored together
    block_bytes: int  # what a block takes
    dtype: np.dtype = np.dtype(np.float32)  # of the values when read

    @property
    def is_quantised(self) -> bool:
        """Whether values are stored in blocks with scales of their own."""
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
"""The types that are read, by the names that llama.cpp gives them."""


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """Where in a GGUF file a tensor lies, and how."""

    kind: str = "F32"  # one of `KINDS`
    # heads whose rows the file holds in pairs (see `unpaired`); None for rows as they are
    pairs: int | None = None

    @property
    def extent_bytes(self) -> int:
        """The size of the piece of the file that holds it."""
        kind = KINDS[self.kind]
        return math.prod(self.shape) // kind.block * kind.block_bytes

    def unpaired(self, heads: int) -> GgufTensor:
        """Gives the tensor with its rows in the order of Hugging Face."""
        # llama.cpp rotates neighbouring rows of a head, Hugging Face a row of the first half with
        # one of the second; so the converter to GGUF interleaves the halves of every head.
        return replace(self, pairs=heads)

    def read(self) -> np.ndarray:
        """Reads the values into a new array: quantised ones as float32, others in their type."""
        kind = KINDS[self.kind]
        rows, width = math.prod(self.shape[:-1]), self.shape[-1]
        row_bytes = width // kind.block * kind.block_bytes
        values = np.empty((rows, width), kind.dtype)
        step = max(1, _PIECE_VALUES // width)
        try:
            # Plain reads, no memory map: a map of a file that is later cut short kills the process.
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
                    piece = _decode(raw.reshape(last - first, row_bytes), self.kind)
                    values[first:last] = piece
        except OSError as error:
            raise read_error(self.path, error) from None
        return self._ordered(values.reshape(self.shape))

    def _ordered(self, values: np.ndarray) -> np.ndarray:
        """Rows of neighbours -> rows of halves, head by head."""
        if self.pairs is None:
            return values
        neighbours = values.reshape(self.pairs, -1, 2, *self.shape[1:])
        return neighbours.swapaxes(1, 2).reshape(self.shape)


def require_gguf(path: object) -> None:
    """Checks that the package that knows the quantised types is there."""
    try:
        import gguf.quants  # noqa: F401
    except ImportError:
        raise InputError(
            f"{path} holds quantised weights, which need the gguf package; run"
            " `pip install 'jpt[gguf]'`"
        ) from None


def _decode(raw: np.ndarray, kind: str) -> np.ndarray:
    """Bytes of whole rows -> values."""
    if not KINDS[kind].is_quantised:
        return raw.view(KINDS[kind].dtype)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # Scales of a damaged file may be infinite; it is the numbers' business, not a warning's.
    with np.errstate(all="ignore"):
        return dequantize(raw, GGMLQuantizationType[kind])
