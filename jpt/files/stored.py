"""A tensor that lies in a file: its shape is known, its values are read when they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jpt.errors import InputError
from jpt.files.reading import read_error


@dataclass(frozen=True)
class StoredTensor:
    """Where in a file a tensor lies; little-endian, as all writers of such files are."""

    path: Path  # the file
    offset_bytes: int  # where its first element begins
    shape: tuple[int, ...]  # its axes
    dtype: np.dtype  # the stored type
    # the steps along the axes, in elements; None for rows one after the other
    strides: tuple[int, ...] | None = None

    @property
    def size_bytes(self) -> int:
        """The size of its values in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent_bytes(self) -> int:
        """The size of the piece of the file that holds it, gaps of its strides included."""
        if 0 in self.shape:
            return 0
        if self.strides is None:
            return self.size_bytes
        steps = zip(self.shape, self.strides, strict=True)
        return (1 + sum((length - 1) * stride for length, stride in steps)) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Reads the values into a new array of the stored type."""
        # A plain read, no memory map: a map of a file that is later cut short kills the process.
        try:
            raw = np.fromfile(self.path, np.uint8, self.extent_bytes, offset=self.offset_bytes)
        except OSError as error:
            raise read_error(self.path, error) from None
        if raw.size < self.extent_bytes:
            raise InputError(
                f"{self.path} ends after {raw.size} of the {self.extent_bytes} bytes of a tensor;"
                " the file has changed since it was opened: copy it again"
            )
        if raw.size == 0:
            return np.zeros(self.shape, self.dtype)
        flat = raw.view(self.dtype)
        if self.strides is None:
            return flat.reshape(self.shape)
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False).copy()
