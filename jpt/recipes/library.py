"""Show, list, verify, push and pull prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from jpt.backbones.registry import (
    PREFIX,
    Backbone,
    find_family,
    find_folder,
    load_backbone,
    read_config,
)
from jpt.config import check_counts
from jpt.errors import InputError, unknown_name
from jpt.io.files import make_folder, parse_json, read_bytes, read_json, write_bytes, write_json
from jpt.io.hub import BRANCH, HubFile, HubRepository, HubState
from jpt.io.tokenizer import TextTokenizer
from jpt.prompts.initialisers import sampled_ids
from jpt.prompts.store import PROMPT_FILE, check_prompt, list_runs, load_prompt, read_card
from jpt.results.prompt_table import short_task
from jpt.tasks.catalog import load_task
from jpt.tasks.task import BUILTIN_PREFIX
from jpt.tasks.verbalizers import label_words
from jpt.tuning.tune import initial_rows
from jpt.types import Prompt, PromptCard

# --- Reading a prompt: the vocabulary nearest to each of its rows, their norms, how far they moved

TOP = 3
"""Pieces shown for a row, where nothing else is said."""

_TABLE_ROWS = 16384  # of the vocabulary at once: 256 MB at width 4096


@dataclass(frozen=True)
class NearestTokens:
    """Pieces of a vocabulary near to the rows of a prompt, the nearest first."""

    pieces: tuple[tuple[str, ...], ...]  # of each row
    values: Float64[np.ndarray, "P N"]  # by what they were chosen


@dataclass(frozen=True)
class PromptReading:
    """What can be read off a prompt.

    Attributes:
        card: where it comes from.
        first: number of the first row: 0 where the first is the row that no model reads.
        norms: of the rows.
        by_cosine: pieces by cosine with the row.
        by_product: pieces by product with the row, as a tied head would choose them.
        vocabulary: norm of the word table's rows: mean, smallest, largest.
        pieces: how many pieces were looked at.
        drift: distance of each row from where it started; NaN for a row that no start has.
        start_cosines: cosine of each row with where it started.
        notes: what is not known, and why.
    """

    card: PromptCard
    first: int
    norms: Float64[np.ndarray, "P"]
    by_cosine: NearestTokens
    by_product: NearestTokens
    vocabulary: tuple[float, float, float]
    pieces: int
    drift: Float64[np.ndarray, "P"] | None
    start_cosines: Float64[np.ndarray, "P"] | None
    notes: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """The reading as JSON."""
        rows = [
            {
                "row": self.first + place,
                "norm": float(norm),
                "drift": _known(self.drift, place),
                "cosine_with_start": _known(self.start_cosines, place),
                "nearest_by_cosine": _prompts_listed(self.by_cosine, place),
                "nearest_by_product": _prompts_listed(self.by_product, place),
            }
            for place, norm in enumerate(self.norms)
        ]
        mean, smallest, largest = self.vocabulary
        return {
            "card": {k: v for k, v in dataclasses.asdict(self.card).items() if v is not None},
            "vocabulary_norm": {"mean": mean, "min": smallest, "max": largest},
            "pieces": self.pieces,
            "rows": rows,
            "notes": list(self.notes),
        }


def show_prompt(
    prompt: Prompt | str | Path,
    *,
    backbone: Backbone | str | Path | None = None,
    top: int = TOP,
) -> PromptReading:
    """Reads a prompt in the words of its backbone.

    Args:
        prompt: a prompt, its file, or the folder of its run.
        backbone: instead of the one that the card names; the width is checked.
        top: how many pieces a row. Special pieces, and those that stand for no text
            (``[unused7]``), are left out.

    Returns:
        The reading.

    Raises:
        InputError: for a prompt that does not fit the backbone.

    Example:
        >>> prompt = Prompt(np.eye(2, 128, dtype=np.float32), PromptCard("builtin/bert-small", "t"))
        >>> show_prompt(prompt).norms.tolist()
        [1.0, 1.0]
    """
    check_counts(top=top)
    loaded = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    card = loaded.card
    name = backbone if backbone is not None else card.backbone
    model = name if isinstance(name, Backbone) else load_backbone(name)
    check_prompt(loaded, model.name, model.config.width, model.layout, backbone is not None)
    has_unused = loaded.unused_row is not None
    rows = np.concatenate([loaded.unused_row, loaded.values]) if has_unused else loaded.values
    ids = _text_ids(model)
    table = model.params["embeddings"]["word"]
    norms, by_cosine, by_product = _nearest(rows, table, ids, min(top, len(ids)), model.tokenizer)
    start, notes = _start(loaded, model)
    if has_unused:
        notes.insert(0, "row 0 is read by no model: it came with the authors' file")
        start = (
            None if start is None else np.concatenate([np.full((1, rows.shape[1]), np.nan), start])
        )
    wide = rows.astype(np.float64)
    return PromptReading(
        card=card,
        first=0 if has_unused else 1,
        norms=np.linalg.norm(wide, axis=1),
        by_cosine=by_cosine,
        by_product=by_product,
        vocabulary=(float(norms.mean()), float(norms.min()), float(norms.max())),
        pieces=len(ids),
        drift=None if start is None else np.linalg.norm(wide - start, axis=1),
        start_cosines=None if start is None else _row_cosines(wide, start.astype(np.float64)),
        notes=tuple(notes),
    )


def _text_ids(model: Backbone) -> Int[np.ndarray, "N"]:
    tokenizer = model.tokenizer
    count = min(model.config.vocabulary, tokenizer.vocabulary_size)
    special = {token for token in tokenizer.ids if token is not None}
    ids = sampled_ids([tokenizer.token_text(token) for token in range(count)], special)
    if not len(ids):
        raise InputError(f"the vocabulary of {model.name} has no piece that stands for text")
    return ids


def _nearest(
    rows: Float32[np.ndarray, "P D"],
    table: Any,
    ids: Int[np.ndarray, "N"],
    top: int,
    tokenizer: TextTokenizer,
) -> tuple[Float64[np.ndarray, "N"], NearestTokens, NearestTokens]:
    """Norms of the pieces, and the nearest ones by cosine and by product; the table in parts."""
    products = np.empty((len(rows), len(ids)), np.float32)
    norms = np.empty(len(ids))
    for start in range(0, len(ids), _TABLE_ROWS):
        some = slice(start, start + _TABLE_ROWS)
        words = np.asarray(table[ids[some].astype(np.int32)]).astype(np.float32)
        products[:, some] = rows @ words.T
        norms[some] = np.linalg.norm(words, axis=1)
    lengths = np.linalg.norm(rows, axis=1).astype(np.float64)

    def best(scores: Float64[np.ndarray, "P N"]) -> NearestTokens:
        # By score, equal ones by id.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        pieces = tuple(tuple(tokenizer.token_text(int(ids[n])) for n in line) for line in order)
        return NearestTokens(pieces, np.take_along_axis(scores, order, axis=1).astype(np.float64))

    scale = np.maximum(lengths[:, None] * norms[None], np.finfo(np.float32).tiny)
    return norms, best(products / scale), best(products.astype(np.float64))


def _start(prompt: Prompt, model: Backbone) -> tuple[Float32[np.ndarray, "P D"] | None, list[str]]:
    """The rows that the prompt started from, or why they are not known."""
    card = prompt.card
    if card.source is not None:
        return None, [f"no drift: it was not tuned from a start known here ({card.source})"]
    if card.seed is None:
        return None, ["no drift: the card says no seed, so its start cannot be made again"]
    try:
        # The numbers follow from the name in the card, wherever the weights lie now.
        named = dataclasses.replace(model, name=card.backbone)
        labels = _label_ids(card, model) if card.init == "labels" else ()
        return initial_rows(named, card.init, card.seed, len(prompt.values), labels), []
    except InputError as error:
        return None, [f"no drift: the start {card.init} cannot be made again ({error})"]


def _label_ids(card: PromptCard, model: Backbone) -> Sequence[int]:
    task = load_task(card.task)
    return label_words(task, model.tokenizer, model.model_type, model.layout, "phrase").all_ids


def _row_cosines(
    rows: Float64[np.ndarray, "P D"], start: Float64[np.ndarray, "P D"]
) -> Float64[np.ndarray, "P"]:
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(start, axis=1)
    return (rows * start).sum(1) / np.where(norms > 0, norms, np.nan)


def _known(values: Float64[np.ndarray, "P"] | None, place: int) -> float | None:
    """JSON has no NaN."""
    return None if values is None or not np.isfinite(values[place]) else float(values[place])


def _prompts_listed(near: NearestTokens, place: int) -> list[dict[str, Any]]:
    pairs = zip(near.pieces[place], near.values[place].tolist(), strict=True)
    return [{"piece": piece, "value": value} for piece, value in pairs]


# --- A prompt that was read, and folders of prompts, as text of at most 80 columns

COLUMNS = 80
_NEAR = 29  # of the pieces by cosine, and of those by product


def describe_reading(found: PromptReading) -> str:
    """Lays a reading out for a terminal."""
    read = np.arange(len(found.norms)) + found.first > 0
    mean, smallest, largest = found.vocabulary
    lines = wrap(describe_card(found.card, len(found.norms[read])))
    lines.append(f"norm of a row: mean {spread(found.norms[read])}")
    lines.append(
        f"norm of a vocabulary row: mean {short(mean)} ({short(smallest)} to {short(largest)}) over"
        f" {found.pieces} pieces"
    )
    if found.drift is not None:
        assert found.start_cosines is not None
        lines.append(f"drift of a row from its start: mean {spread(found.drift[read])}")
        lines.append(f"cosine of a row with its start: mean {spread(found.start_cosines[read])}")
    for note in found.notes:
        lines += wrap(f"note: {note}")
    lines.append(f" row   norm  drift  {'nearest by cosine':<{_NEAR}}  nearest by product")
    for place, norm in enumerate(found.norms):
        drift = "-" if found.drift is None else short(found.drift[place])
        lines.append(
            f"{found.first + place:4} {short(norm):>6} {drift:>6}"
            f"  {_pieces(found.by_cosine, place):<{_NEAR}}  {_pieces(found.by_product, place)}"
        )
    return "\n".join(line.rstrip() for line in lines)


def describe_card(card: PromptCard, rows: int) -> str:
    """Says where a prompt comes from."""
    parts = [f"{card.task} on {card.backbone}: {rows} rows"]
    seed = "" if card.seed is None else f", seed {card.seed}"
    parts.append(f"init {card.init}{seed}")
    if card.steps is not None:
        parts.append(f"{card.steps} steps")
    if card.score is not None:
        parts.append(f"{card.metric or 'score'} {card.score:.3f} on validation")
    if card.source is not None:
        parts.append(f"from {card.source}")
    return "; ".join(parts)


def wrap(text: str) -> list[str]:
    """Breaks a text into lines of at most 80 columns."""
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ")


def short(value: float) -> str:
    """Writes a number in at most six letters."""
    if not np.isfinite(value):
        return "-"
    text = f"{value:.3g}"
    return text if len(text) <= 6 else f"{value:.0e}"


def spread(values: Float64[np.ndarray, "N"]) -> str:
    """Writes mean, smallest and largest of some numbers."""
    return f"{short(values.mean())} ({short(values.min())} to {short(values.max())})"


def visible(text: str, width: int) -> str:
    """Makes a text safe for one place of a table: no control letters, cut to a width."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return clean if len(clean) <= width else clean[: width - 1] + "."


def _pieces(near: NearestTokens, place: int) -> str:
    """As many pieces as have room, each with its number."""
    told = ""
    for piece, value in zip(near.pieces[place], near.values[place].tolist(), strict=True):
        one = f"{visible(piece, 12)} {short(value)}"
        longer = f"{told}, {one}" if told else one
        if len(longer) > _NEAR:
            break
        told = longer
    return told


# --- A folder of prompts: what is in it, and whether each of them can be used

_OF_A_RUN = ("seed", "steps", "score", "metric", "jpt_version")


@dataclass(frozen=True)
class PromptEntry:
    """One prompt of a folder."""

    name: str  # of the prompt
    path: Path  # its file
    prompt: Prompt | None  # the prompt; None where it cannot be read
    faults: tuple[str, ...] = ()  # what is wrong with it
    notes: tuple[str, ...] = ()  # what could not be looked at

    @property
    def record(self) -> dict[str, Any]:
        """The entry as JSON."""
        found: dict[str, Any] = {"name": self.name, "path": str(self.path)}
        if self.prompt is not None:
            norms = np.linalg.norm(self.prompt.values.astype(np.float64), axis=1)
            card = dataclasses.asdict(self.prompt.card)
            found |= {
                "card": {key: value for key, value in card.items() if value is not None},
                "rows": len(norms),
                "width": self.prompt.values.shape[1],
                "norm": {f: float(getattr(norms, f)()) for f in ("mean", "min", "max")},
            }
        return {**found, "faults": list(self.faults), "notes": list(self.notes)}


def read_entries(folder: str | Path) -> list[PromptEntry]:
    """Reads every prompt of a folder; one that cannot be read says why."""
    entries = []
    for name, path in list_runs(folder).items():
        try:
            entries.append(PromptEntry(name, path, load_prompt(path)))
        except InputError as error:
            entries.append(PromptEntry(name, path, None, (str(error),)))
    return entries


def verify_entries(entries: list[PromptEntry], backbone: str | None = None) -> list[PromptEntry]:
    """Looks whether prompts are whole: cards, and sizes against the config of their backbone."""
    if backbone is not None:
        _shape(backbone)  # told at once
    return [each if each.prompt is None else _verify(each, backbone) for each in entries]


def _verify(entry: PromptEntry, backbone: str | None) -> PromptEntry:
    prompt = entry.prompt
    assert prompt is not None
    card, faults, notes = prompt.card, [], []
    lacking = [name for name in _OF_A_RUN if getattr(card, name) is None]
    if lacking and card.source is None:
        faults.append(f"its card lacks {', '.join(lacking)}")
    name = backbone or card.backbone
    if backbone is None and not name.startswith(PREFIX) and not Path(name).is_dir():
        notes.append(f"sizes not held against {name}, which is no folder here")
    else:
        try:
            faults += _size_faults(prompt, name)
        except InputError as error:
            faults.append(str(error))
    return dataclasses.replace(entry, faults=tuple(faults), notes=tuple(notes))


def _size_faults(prompt: Prompt, name: str) -> list[str]:
    (rows, width), (layout, expected, positions) = prompt.values.shape, _shape(name)
    faults = []
    if width != expected:
        faults.append(f"{width} wide, but {name} is {expected} wide")
    if prompt.card.layout != layout:
        faults.append(f"of the layout {prompt.card.layout}, but {name} has {layout}")
    if rows > positions:
        faults.append(f"{rows} rows, but {name} has {positions} positions")
    return faults


@cache
def _shape(name: str) -> tuple[str, int, int]:
    """Layout, width and positions of a backbone, from its config alone."""
    folder = find_folder(name)
    fields = read_config(folder)
    family = find_family(fields, f"{folder}/config.json")
    config = family.config(fields)
    return family.layout, config.width, config.positions


def describe_entries(entries: list[PromptEntry], verified: bool = False) -> str:
    """Lays a folder out for a terminal."""
    lines = [f"{'name':<17} {'task':<16} {'backbone':<19} {'size':>10} {'score':>6} {'norm':>6}"]
    for entry in entries:
        lines.append(_line(entry))
        for fault in entry.faults:
            lines += wrap(f"  broken: {fault}")
        for note in entry.notes:
            lines += wrap(f"  note: {note}")
    if verified:
        broken = sum(bool(entry.faults) for entry in entries)
        count = f"{len(entries)} prompt{'' if len(entries) == 1 else 's'}"
        lines.append(f"{count}, {broken} broken" if broken else f"{count}, all whole")
    return "\n".join(lines)


def _line(entry: PromptEntry) -> str:
    prompt = entry.prompt
    if prompt is None:
        return visible(entry.name, COLUMNS)
    rows, width = prompt.values.shape
    score = "-" if prompt.card.score is None else f"{prompt.card.score:.3f}"
    norm = short(float(np.linalg.norm(prompt.values.astype(np.float64), axis=1).mean()))
    # Of a path, the end tells more.
    backbone = prompt.card.backbone
    backbone = visible(backbone if len(backbone) <= 19 else f".{backbone[-18:]}", 19)
    task, size = visible(prompt.card.task, 16), f"{rows} x {width}"
    return (
        f"{visible(entry.name, 17):<17} {task:<16} {backbone:<19} {size:>10} {score:>6} {norm:>6}"
    )


# --- A library of prompts in a repository: which file is which prompt, and the index of them all
# A prompt NAME is the file ``NAME.safetensors``, one run of several seeds ``NAME/seed-S`` the file
# ``NAME/seed-S/prompt.safetensors``, so that a copy of the files is a folder of prompts.

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


# --- Prompts out of a repository on a Hugging Face hub into a folder

ORIGINS = "hub.json"
"""Says in a folder of prompts where those that were pulled came from."""


@dataclass(frozen=True)
class PulledPrompts(HubResult):
    """What `pull_prompts` has done.

    Attributes:
        repository: its name.
        url: its page.
        commit: which the files are of.
        out: the folder.
        new: names of prompts that were not there.
        replaced: names of prompts that were there with other content.
        unchanged: names of prompts that were there as they are.
        notes: what was passed over.
    """

    repository: str
    url: str
    commit: str
    out: str
    new: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Says it in one line, and a line for each note.

        Returns:
            The text.

        Example:
            >>> print(PulledPrompts("a/b", "", "0" * 40, "out", ("c",), (), ()).describe())
            1 prompt of a/b at 0000000 in out: 1 new
        """
        kinds = {"new": self.new, "replaced": self.replaced, "unchanged": self.unchanged}
        count = sum(map(len, kinds.values()))
        told = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
        line = (
            f"{count} prompt{'' if count == 1 else 's'} of {self.repository} at {self.commit[:7]}"
            f" in {self.out}: {told}"
        )
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


def pull_prompts(
    repo: str,
    out: str | Path,
    *,
    revision: str | None = None,
    only: Sequence[str] | None = None,
    overwrite: bool = False,
) -> PulledPrompts:
    """Downloads the prompts of a repository on a Hugging Face hub; no other file of it.

    Each file is held against the digest that the hub lists and read as strictly as any prompt
    before the first one is written. The files are those of the repository, byte for byte;
    ``hub.json`` beside them says which commit they came from.

    Args:
        repo: ``OWNER/NAME``, on the hub that ``HF_ENDPOINT`` names, huggingface.co otherwise.
        out: folder for ``NAME.safetensors`` and, of several seeds,
            ``NAME/seed-S/prompt.safetensors``.
        revision: branch, tag or commit; ``main`` by default.
        only: names of prompts; of several seeds ``NAME`` for all, ``NAME/seed-S`` for one. All
            prompts by default.
        overwrite: replace files that differ.

    Returns:
        What came.

    Raises:
        InputError: no such repository, revision or prompt; a file is no prompt; one here differs;
            or the hub cannot be reached.

    Example:
        >>> pull_prompts("prompts", "out")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: 'prompts' names no owner; give OWNER/NAME, for instance me/prompts
    """
    hub, place = HubRepository(repo), Path(out).expanduser()
    state = hub.state(revision)
    names, notes = _chosen(hub, state, only)
    here = {name: _here(place, name) for name in names}
    missing = [name for name, data in here.items() if data is None]
    differing = [n for n, d in here.items() if d is not None and not state.holds(file_of(n), d)]
    if differing and not overwrite:
        raise InputError(
            f"{place} has {_pull_listed(differing)} with other content than {hub.url}; give "
            "--overwrite to replace, --only to leave out, or another folder"
        )
    came = sorted([*missing, *differing])
    _write(place, hub, state, _fetched(hub, state, came))
    return PulledPrompts(
        repository=repo,
        url=hub.url,
        commit=state.commit or "",
        out=str(place),
        new=tuple(missing),
        replaced=tuple(differing),
        unchanged=tuple(name for name in names if name not in came),
        notes=tuple(notes),
    )


def _fetched(hub: HubRepository, state: HubState, names: Sequence[str]) -> dict[str, bytes]:
    """Files of prompts by name, all of them read once."""
    paths = [file_of(name) for name in names]
    files = hub.read(state, paths) if paths else {}
    _, refused = read_prompts(files)
    if refused:
        raise InputError(
            f"of {hub.url} {refused[0]}; nothing was written: give --only NAME,NAME with the others"
        )
    return {name: files[path] for name, path in zip(names, paths, strict=True)}


def _chosen(
    hub: HubRepository, state: HubState, only: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Names of the prompts to fetch, and what is passed over."""
    found, large = split_files(state.files.values())
    notes = [f"{path} is too large for a prompt: passed over" for path in large]
    if not found:
        raise InputError(
            f"{hub.url} holds no prompts: looked for NAME.safetensors and"
            f" NAME/seed-S/{PROMPT_FILE} among {len(state.files)} files"
        )
    names = list(found)
    if only is not None:
        asked = [only] if isinstance(only, str) else only
        names = sorted({name for wanted in asked for name in _matching(hub.name, wanted, found)})
        if not names:
            raise InputError("only names no prompt; give NAME,NAME or leave it out")
    check_names(names, hub.url)
    return names, notes


def _matching(repo: str, wanted: str, known: Iterable[str]) -> list[str]:
    """A name, or all seeds of it."""
    names = [name for name in known if wanted in (name, name.split("/")[0])]
    if not names:
        raise unknown_name(f"prompt in {repo}:", wanted, known)
    return names


def _here(place: Path, name: str) -> bytes | None:
    """What the folder has under that name; in another form it would be a second prompt of it."""
    file, base = place / file_of(name), place / name.split("/")[0]
    others = [base / PROMPT_FILE]
    others += [place / file_of(base.name)] if "/" in name else base.glob(f"seed-*/{PROMPT_FILE}")
    for other in others:
        if other.is_file():
            raise InputError(
                f"{other} is a prompt named {base.name} too, in another form than the"
                f" {file_of(name)} that would come; choose another folder"
            )
    return read_bytes(file) if file.exists() else None


def _write(place: Path, hub: HubRepository, state: HubState, files: Mapping[str, bytes]) -> None:
    """Each file in one step, then where they came from."""
    if not files:
        return
    make_folder(place)
    origins = read_json(place / ORIGINS) if (place / ORIGINS).exists() else {}
    if not isinstance(origins, dict):
        raise InputError(f"{place / ORIGINS} is no table; remove it")
    for name, data in files.items():
        file = place / file_of(name)
        make_folder(file.parent)
        write_bytes(file, data)
        origins[name] = {
            "hub": hub.endpoint,
            "repository": hub.name,
            "commit": state.commit,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    write_json(place / ORIGINS, dict(sorted(origins.items())))


def _pull_listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


# --- The model card of a library of prompts: what it holds and how to use it, in a few lines

README = "README.md"

MARK = "<!-- Written by `jpt prompts push`. Without this line it leaves the page to you. -->"
"""Stands in a page that was written here and may be written anew."""

_TAGS = ("jpt", "soft-prompt", "prompt-tuning")


def write_readme(repository: str, entries: Sequence[LibraryPrompt]) -> bytes:
    """Writes the page; equal prompts give equal bytes."""
    first = min(entries, key=lambda entry: entry.name)
    count = f"{len(entries)} soft prompt{'' if len(entries) == 1 else 's'}"
    lines = [
        *_front_matter(entries),
        MARK,
        "",
        f"# {repository.split('/')[-1]}",
        "",
        f"{count} for frozen language models, tuned with jpt. Each file holds the rows of one"
        " prompt and a card that says how it was made; `prompts.json` lists them all.",
        "",
        "```",
        f"jpt prompts pull {repository} --out prompts",
        f"jpt prompts show {_quoted(f'prompts/{file_of(first.name)}')}",
        f"jpt evaluate --prompt {_quoted(f'prompts/{file_of(first.name)}')}"
        f" --task {_quoted(_task(first))}",
        "```",
        "",
        "| prompt | backbone | task | score on validation | size |",
        "|---|---|---|---|---|",
        *(_row(entry) for entry in sorted(entries, key=lambda entry: entry.name)),
    ]
    return ("\n".join(lines) + "\n").encode()


def may_rewrite(page: bytes) -> bool:
    """Tells whether a page was written here and not by hand."""
    return MARK.encode() in page


def _front_matter(entries: Sequence[LibraryPrompt]) -> list[str]:
    """What a hub reads; a text of JSON is one of YAML too."""
    models = sorted({entry.card.backbone for entry in entries if _is_hub_id(entry.card.backbone)})
    lines = ["---", "library_name: jpt", "tags:", *(f"- {tag}" for tag in _TAGS)]
    if models:
        lines += ["base_model:", *(f"- {json.dumps(model)}" for model in models)]
        lines.append("base_model_relation: adapter")
    return [*lines, "---", ""]


def _is_hub_id(backbone: str) -> bool:
    """Built-in models and folders are no models of a hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(backbone)
    except HFValidationError:
        return False
    return "/" in backbone and not backbone.startswith(PREFIX)


def _task(entry: LibraryPrompt) -> str:
    """A folder of its maker's is nothing to others; its name is."""
    task = entry.card.task
    return task if task.startswith(BUILTIN_PREFIX) else short_task(task)


def _row(entry: LibraryPrompt) -> str:
    card = entry.card
    score = "" if card.score is None else f"{card.score:.3f} {card.metric or ''}".strip()
    backbone = card.backbone if card.backbone.count("/") < 2 else short_task(card.backbone)
    cells = (entry.name, backbone, _task(entry), score, f"{entry.rows} x {entry.width}")
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """No letter of a name ends a cell, a line or opens a tag."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter, told in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        clean = clean.replace(letter, told)
    return clean


def _quoted(text: str) -> str:
    return shlex.quote(" ".join(text.split()).replace("`", ""))


# --- A folder of prompts into a repository on a Hugging Face hub, in one commit


@dataclass(frozen=True)
class PushedPrompts(HubResult):
    """What `push_prompts` has done.

    Attributes:
        repository: its name.
        url: its page.
        commit: the state of the branch now.
        committed: whether this push made that commit; not where nothing had changed.
        new: names of prompts that were not there.
        replaced: names of prompts that were there with other content.
        unchanged: names of prompts that were there as they are.
        kept: names of prompts in the repository that the folder does not have.
        notes: what to know.
    """

    repository: str
    url: str
    commit: str
    committed: bool
    new: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Says it in one line, and a line for each note.

        Returns:
            The text.

        Example:
            >>> print(PushedPrompts("a/b", "", "0" * 40, False, (), (), ("c",), ("d",)).describe())
            nothing changed: a/b has this 1 prompt at 0000000 (and 1 other); no commit
        """
        count = len(self.new) + len(self.replaced) + len(self.unchanged)
        prompts = f"{count} prompt{'' if count == 1 else 's'}"
        others = f"{len(self.kept)} other{'' if len(self.kept) == 1 else 's'}"
        if self.committed:
            kinds = {"new": self.new, "replaced": self.replaced, "unchanged": self.unchanged}
            told = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
            kept = f"; {others} there stay{'s' if len(self.kept) == 1 else ''}" if self.kept else ""
            line = f"{prompts} in {self.url} at {self.commit[:7]}: {told}{kept}"
        else:
            kept = f" (and {others})" if self.kept else ""
            this = "this" if count == 1 else "these"
            line = (
                f"nothing changed: {self.repository} has {this} {prompts} at"
                f" {self.commit[:7]}{kept}; no commit"
            )
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


def push_prompts(
    prompts: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
) -> PushedPrompts:
    """Uploads a folder of prompts to a Hugging Face hub, with an index and a model card.

    Every prompt is verified first. Prompts there that the folder does not have stay; index and
    card are of all. Where nothing changed there is no commit. A card written by hand stays.

    Args:
        prompts: folder of ``NAME.safetensors`` files, run folders ``NAME/``, or folders ``NAME/``
            of several run folders ``seed-S/``. A run folder becomes ``NAME.safetensors``, a
            seed's run ``NAME/seed-S/prompt.safetensors``; nothing else of a run is sent.
        repo: ``OWNER/NAME``, on the hub that ``HF_ENDPOINT`` names, huggingface.co otherwise. It
            is created where it is missing.
        private: create it private, and refuse one that is public. Otherwise a new one is public,
            unless the owner is an organization whose default is private.
        message: of the commit.
        revision: branch to write to, ``main`` by default; a missing one is created.

    Returns:
        What was sent.

    Raises:
        InputError: a prompt is broken, names clash, the token may not write there, or the hub
            cannot be reached.

    Example:
        >>> push_prompts("study/prompts", "prompts")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: 'prompts' names no owner; give OWNER/NAME, for instance me/prompts
    """
    if message is not None and not message.strip():
        raise InputError("the message is empty; give a text, or leave it out")
    hub, branch = HubRepository(repo), revision or BRANCH
    files, index = _verified(prompts)
    state = hub.open_branch(branch, private)
    kept, notes = _others(hub, state, set(index))
    check_names([*kept, *index], hub.url)
    pages = _pages(hub, state, [*kept.values(), *index.values()], notes)
    sent = {path: data for path, data in {**files, **pages}.items() if not state.holds(path, data)}
    after = hub.commit(state, branch, sent, message or _message(index)) if sent else state
    there = {name for name in index if file_of(name) in state.files}
    changed = {name for name in index if file_of(name) in sent}
    return PushedPrompts(
        repository=repo,
        url=hub.url,
        commit=after.commit or "",
        committed=bool(sent),
        new=tuple(sorted(changed - there)),
        replaced=tuple(sorted(changed & there)),
        unchanged=tuple(sorted(set(index) - changed)),
        kept=tuple(kept),
        notes=tuple(notes),
    )


def _pages(
    hub: HubRepository, state: HubState, entries: list[LibraryPrompt], notes: list[str]
) -> dict[str, bytes]:
    """Index and model card; a card written by hand is not touched."""
    pages = {INDEX: write_index(entries), README: write_readme(hub.name, entries)}
    if README in state.files and not may_rewrite(hub.read(state, [README])[README]):
        del pages[README]
        notes.append("README.md there was written by hand and stays as it is")
    return pages


def _verified(folder: str | Path) -> tuple[dict[str, bytes], dict[str, LibraryPrompt]]:
    """The files by path and the entries by name, all of them whole."""
    entries = verify_entries(read_entries(folder))
    broken = [entry for entry in entries if entry.faults]
    if broken:
        first = broken[0]
        raise InputError(
            f"{len(broken)} of {len(entries)} prompts in {folder} are broken, nothing was sent:"
            f" {first.name}: {first.faults[0]}; see jpt prompts verify {folder}"
        )
    check_names([entry.name for entry in entries], str(folder))
    data = {entry.name: _bytes(entry) for entry in entries}
    index = {e.name: index_entry(e.name, data[e.name], e.prompt) for e in entries if e.prompt}
    return {file_of(name): content for name, content in data.items()}, index


def _bytes(entry: PromptEntry) -> bytes:
    return read_bytes(entry.path / PROMPT_FILE if entry.path.is_dir() else entry.path)


def _others(
    hub: HubRepository, state: HubState, own: set[str]
) -> tuple[dict[str, LibraryPrompt], list[str]]:
    """What the repository has besides: out of its index where that is right, else read anew."""
    found, large = split_files(state.files.values())
    others = {name: file for name, file in found.items() if name not in own}
    notes = [f"{path} there is too large for a prompt: not in the index" for path in large]
    if not others:
        return {}, notes
    known = read_index(hub.read(state, [INDEX])[INDEX]) if INDEX in state.files else {}
    kept = {
        name: known[name]
        for name, file in others.items()
        if name in known and file.sha256 == known[name].sha256
    }
    unknown = [file.path for name, file in others.items() if name not in kept]
    read, refused = read_prompts(hub.read(state, unknown)) if unknown else ({}, [])
    kept |= read
    notes += [f"{reason}: not in the index" for reason in refused]
    return dict(sorted(kept.items())), notes


def _message(index: Mapping[str, LibraryPrompt]) -> str:
    names = list(index)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"Push {', '.join(names[:3])}{more} with jpt"
