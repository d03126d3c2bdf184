"""Takes the values of a GGUF header from a file, one after the other, and believes no count."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from jpt.errors import InputError

# A Llama 3 header has 8 MB and 410,000 texts, the longest a chat template of some kB.
_LARGEST_HEADER_BYTES = 2**28
_LARGEST_TEXT_BYTES = 2**20
_LARGEST_COUNT = 2**20


class HeaderReader:
    """Takes values from the front of a file, never more than the file has."""

    def __init__(self, file: Path, stream: BinaryIO, size_bytes: int) -> None:
        self.file = file
        self.size_bytes = size_bytes
        self._stream = stream
        self._limit_bytes = min(size_bytes, _LARGEST_HEADER_BYTES)
        self._left_bytes = self._limit_bytes

    @property
    def place_bytes(self) -> int:
        """How much was taken."""
        return self._limit_bytes - self._left_bytes

    def take(self, length_bytes: int) -> bytes:
        """Takes the next bytes."""
        if length_bytes > self._left_bytes:
            raise self.broken(f"it ends within its header, after {self._limit_bytes} bytes")
        self._left_bytes -= length_bytes
        data = self._stream.read(length_bytes)
        if len(data) < length_bytes:
            raise self.broken("it has become shorter while it was read")
        return data

    def whole(self, code: str) -> int:
        """Takes the next whole number."""
        return int.from_bytes(self.take(4 if code == "I" else 8), "little")

    def text(self, what: str) -> str:
        """Takes the next text: its length, then UTF-8."""
        length_bytes = self.whole("Q")
        if length_bytes > _LARGEST_TEXT_BYTES:
            raise self.broken(f"{what} should have {length_bytes} bytes")
        try:
            return self.take(length_bytes).decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"{what} is not UTF-8") from None

    def count(self, what: str, least_bytes: int) -> int:
        """Takes the next count."""
        count = self.whole("Q")
        if count > min(_LARGEST_COUNT, self._left_bytes // least_bytes):
            raise self.broken(f"{count} {what} do not fit in {self.size_bytes} bytes")
        return count

    def broken(self, reason: str) -> InputError:
        """Says what is wrong with the file, and the cure."""
        return InputError(
            f"{self.file} is not a whole GGUF file: {reason[:200]}; download or copy it again"
        )
