"""A library of prompts in a repository: which file is which prompt, and the index of them all.

A prompt NAME is the file ``NAME.safetensors``, one run of several seeds ``NAME/seed-S`` the file
``NAME/seed-S/prompt.safetensors``, so that a copy of the files is a folder of prompts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jpt.errors import InputError
from jpt.files.hub_repository import HubFile
from jpt.files.reading import parse_json
from jpt.prompts.store import PROMPT_FILE, load_prompt, read_card
from jpt.types import Prompt, PromptCard

INDEX = "prompts.json"
"""The index of a library, for machines."""

LARGEST_BYTES = 256 * 1024**2
"""A prompt of 2,048 rows at width 16,384 has half of it; what is larger is another thing."""

_SUFFIX = ".safetensors"
# No hidden names, no parts of paths, nothing that another system could read as one.
_PATH = re.compile(r"([^./\\:][^/\\:]*)\.safetensors|([^./\\:][^/\\:]*/seed-\d+)/" + PROMPT_FILE)


@dataclass(frozen=True)
class LibraryPrompt:
    """What an index says of a prompt."""

    name: str  # of the prompt
    sha256: str  # of its file
    card: PromptCard  # where it comes from
    rows: int  # how many it has
    width: int  # D of its model
    norm: tuple[float, float, float]  # of its rows: mean, smallest, largest

    @property
    def record(self) -> dict[str, Any]:
        """The entry as JSON."""
        card = dataclasses.asdict(self.card)
        return {
            "name": self.name,
            "file": file_of(self.name),
            "sha256": self.sha256,
            "card": {key: value for key, value in card.items() if value is not None},
            "rows": self.rows,
            "width": self.width,
            "norm": dict(zip(("mean", "min", "max"), self.norm, strict=True)),
        }


def file_of(name: str) -> str:
    """Gives the file of a prompt in a repository."""
    return f"{name}/{PROMPT_FILE}" if "/" in name else f"{name}{_SUFFIX}"


def name_of(path: str) -> str | None:
    """Tells which prompt a file of a repository is."""
    match = _PATH.fullmatch(path)
    return (match[1] or match[2]) if match and path.isprintable() else None


def index_entry(name: str, data: bytes, prompt: Prompt) -> LibraryPrompt:
    """Makes the entry of a prompt."""
    norms = np.linalg.norm(prompt.values.astype(np.float64), axis=1)
    return LibraryPrompt(
        name,
        hashlib.sha256(data).hexdigest(),
        prompt.card,
        *prompt.values.shape,
        norm=(float(norms.mean()), float(norms.min()), float(norms.max())),
    )


def write_index(entries: Iterable[LibraryPrompt]) -> bytes:
    """Writes an index; equal prompts give equal bytes."""
    told = [entry.record for entry in sorted(entries, key=lambda entry: entry.name)]
    return (json.dumps({"prompts": told}, indent=2, ensure_ascii=False) + "\n").encode()


def read_index(data: bytes) -> dict[str, LibraryPrompt]:
    """Reads an index that others may have written; what is not in order is left out."""
    try:
        table = parse_json(data, INDEX)
    except InputError:
        return {}
    listed = table.get("prompts") if isinstance(table, dict) else None
    found = [_entry(record) for record in listed] if isinstance(listed, list) else []
    return {entry.name: entry for entry in found if entry is not None}


def check_names(names: Sequence[str], where: str) -> None:
    """Refuses names that cannot lie beside each other in one library."""
    seen: dict[str, str] = {}  # the first name for each file or folder
    for name in names:
        if name_of(file_of(name)) != name:
            raise InputError(
                f"the prompt name {name!r} cannot be a file everywhere; rename it with letters,"
                " digits, '-', '_', '.'"
            )
        other = seen.setdefault(name.split("/")[0].casefold(), name)
        if other == name or "/" in other and other.split("/")[0] == name.split("/")[0] != name:
            continue
        raise InputError(
            f"{where} would have two prompts of one name, {other} and {name} (capitals do not count"
            " on every disk); rename one"
        )


def split_files(files: Iterable[HubFile]) -> tuple[dict[str, HubFile], list[str]]:
    """Tells the prompts of a repository from its other files."""
    named = {name: file for file in files if (name := name_of(file.path)) is not None}
    large = [file.path for file in named.values() if file.size_bytes > LARGEST_BYTES]
    return {n: f for n, f in sorted(named.items()) if f.size_bytes <= LARGEST_BYTES}, large


def read_prompts(files: Mapping[str, bytes]) -> tuple[dict[str, LibraryPrompt], list[str]]:
    """Reads prompts that came from a repository, as strictly as files here."""
    found, refused = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for path, data in files.items():
            place = Path(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            name = name_of(path)
            assert name is not None, "only files of prompts come here"
            try:
                found[name] = index_entry(name, data, load_prompt(place))
            except InputError as error:
                refused.append(str(error).replace(f"{folder}/", ""))
    return found, refused


def _entry(record: Any) -> LibraryPrompt | None:
    try:
        numbers = tuple(float(record["norm"][key]) for key in ("mean", "min", "max"))
        entry = LibraryPrompt(
            str(record["name"]),
            str(record["sha256"]),
            read_card(INDEX, json.dumps(record["card"])),
            int(record["rows"]),
            int(record["width"]),
            norm=(numbers[0], numbers[1], numbers[2]),
        )
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return entry if all(map(math.isfinite, numbers)) else None


class HubResult:
    """What a push or a pull has done, as a frozen dataclass of texts, numbers and tuples."""

    @property
    def record(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self).items()
        }
