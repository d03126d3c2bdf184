"""Folders and files of weights, whatever their container: shapes first, then tensor by tensor.

A folder of Hugging Face's kind holds ``model.safetensors``, or shards of it with an index, or the
older ``pytorch_model.bin``, whole or in shards. Where there are several, safetensors is taken.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jpt.errors import InputError
from jpt.files.reading import file_size_bytes, read_bytes, read_error, read_json
from jpt.files.safetensors_file import read_header
from jpt.files.stored import StoredTensor
from jpt.files.torch_pickle import PICKLE_START, ZIP_START, read_torch_tensors

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The names looked for in a folder, the first that is there is read."""


@dataclass(frozen=True)
class TensorSource:
    """The tensors of a file or of all shards of a folder."""

    path: Path  # what was opened: the file, or the index of the shards
    tensors: Mapping[str, StoredTensor]  # where each tensor lies
    metadata: Mapping[str, str]  # the texts of a single safetensors file; empty for the others

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, known without reading its values."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The stored type of each tensor."""
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into a new array of its stored type."""
        if name not in self.tensors:
            nearest = difflib.get_close_matches(name, self.tensors, n=3) or list(self.tensors)[:3]
            raise InputError(
                f"{self.path} has {len(self.tensors)} tensors and none named {name!r}; the"
                f" nearest are {', '.join(nearest) or 'none'}"
            )
        return self.tensors[name].read()

    def origin(self, name: str) -> str:
        """Where a tensor comes from, for messages."""
        tensor = self.tensors.get(name)
        return f"{tensor.path if tensor else self.path}: {name}"


def open_tensors(path: str | Path) -> TensorSource:
    """Opens weights without reading their values."""
    place = Path(path)
    try:
        place = _weight_file(place) if place.is_dir() else place
    except OSError as error:
        raise read_error(path, error) from None
    if place.name.endswith(".index.json"):
        return _open_shards(place)
    tensors, metadata = _open_file(place)
    return TensorSource(place, tensors, metadata)


def _weight_file(folder: Path) -> Path:
    """The first of the known names in a folder."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    found = sorted(entry.name for entry in folder.iterdir())
    shown = f"{', '.join(found[:8])}{', ...' if len(found) > 8 else ''}" if found else "nothing"
    raise InputError(
        f"{folder} holds no weights: looked for {', '.join(WEIGHT_FILES)}, found {shown};"
        " download the safetensors files of the model"
    )


def _open_file(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    size_bytes = file_size_bytes(file)
    start = read_bytes(file, size_bytes=16)
    if start.startswith(b"version https://"):
        raise InputError(
            f"{file} is a Git LFS pointer of {size_bytes} bytes, not the weights themselves;"
            " run `git lfs pull`"
        )
    if start.startswith((ZIP_START, PICKLE_START)) and start[8:9] != b"{":
        return read_torch_tensors(file), {}
    if start[8:9] == b"{" or file.suffix == ".safetensors":
        return read_header(file)
    raise InputError(
        f"{file} begins with {start[:8]!r}: neither safetensors nor a file of torch.save; give one"
    )


def _open_shards(index: Path) -> TensorSource:
    """Opens the shards that an index names, each tensor from the shard it is said to be in."""
    files = _weight_map(index)
    shards = sorted(set(files.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(shards)} shards of {index} are missing, the first is"
            f" {missing[0]}; download them"
        )
    held = {name: _open_file(index.parent / name)[0] for name in shards}
    for tensor, file in files.items():
        if tensor not in held[file]:
            raise InputError(
                f"{index} says that {tensor!r} is in {file}, which holds {len(held[file])} other"
                " tensors; index and shards are of different downloads: download them again"
            )
    return TensorSource(index, {name: held[file][name] for name, file in files.items()}, {})


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, checked to lie beside the index."""
    content: Any = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise InputError(f"{index} has no 'weight_map' of tensors to files; download it again")
    for file in files.values():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise InputError(f"{index} names the shard {file!r}; a file beside it was expected")
    return files
