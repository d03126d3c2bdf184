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

# --- Nearest vocabulary, norms and drift of a prompt

TOP = 3  # tokens shown per prompt token
_TABLE_ROWS = 16384  # vocabulary rows at once: 256 MB at width 4096


@dataclass(frozen=True)
class NearestTokens:
    """Vocabulary tokens nearest to each prompt token, the nearest first."""

    tokens: tuple[tuple[str, ...], ...]  # per prompt token
    values: Float64[np.ndarray, "P N"]  # cosines or products


@dataclass(frozen=True)
class PromptReading:
    """Statistics of a prompt.

    Attributes:
        card: Prompt card.
        first: Number of the first row: 0 if it is the unused row, else 1.
        norms: Norm of each row.
        by_cosine: Nearest tokens by cosine.
        by_product: Nearest tokens by product, as a tied head would choose them.
        vocabulary: Norms of the word embeddings: mean, smallest, largest.
        compared: Number of vocabulary tokens compared.
        drift: Distance of each row from its initial value; NaN for the unused row.
        start_cosines: Cosine of each row with its initial value.
        notes: What is unknown, and why.
    """

    card: PromptCard
    first: int
    norms: Float64[np.ndarray, "P"]
    by_cosine: NearestTokens
    by_product: NearestTokens
    vocabulary: tuple[float, float, float]
    compared: int
    drift: Float64[np.ndarray, "P"] | None
    start_cosines: Float64[np.ndarray, "P"] | None
    notes: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """The reading as JSON."""
        rows = [
            {
                "row": self.first + row,
                "norm": float(norm),
                "drift": _finite(self.drift, row),
                "cosine_with_start": _finite(self.start_cosines, row),
                "nearest_by_cosine": _nearest_record(self.by_cosine, row),
                "nearest_by_product": _nearest_record(self.by_product, row),
            }
            for row, norm in enumerate(self.norms)
        ]
        mean, smallest, largest = self.vocabulary
        return {
            "card": self.card.to_json(),
            "vocabulary_norm": {"mean": mean, "min": smallest, "max": largest},
            "pieces": self.compared,
            "rows": rows,
            "notes": list(self.notes),
        }


def show_prompt(
    prompt: Prompt | str | Path,
    *,
    backbone: Backbone | str | Path | None = None,
    top: int = TOP,
) -> PromptReading:
    """Compare a prompt with the vocabulary of its backbone and with its initial values."""
    # Special tokens and placeholders (``[unused7]``) are no neighbours.
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
        notes.insert(0, "row 0 is unused: part of the authors' file, but never read by a model")
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
        compared=len(ids),
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
        raise InputError(f"the vocabulary of {model.name} has no text tokens; check its tokenizer")
    return ids


def _nearest(
    rows: Float32[np.ndarray, "P D"],
    table: Any,
    ids: Int[np.ndarray, "N"],
    top: int,
    tokenizer: TextTokenizer,
) -> tuple[Float64[np.ndarray, "N"], NearestTokens, NearestTokens]:
    """Return token norms and the nearest tokens by cosine and product, in chunks of the table."""
    products = np.empty((len(rows), len(ids)), np.float32)
    norms = np.empty(len(ids))
    for start in range(0, len(ids), _TABLE_ROWS):
        some = slice(start, start + _TABLE_ROWS)
        words = np.asarray(table[ids[some].astype(np.int32)]).astype(np.float32)
        products[:, some] = rows @ words.T
        norms[some] = np.linalg.norm(words, axis=1)
    lengths = np.linalg.norm(rows, axis=1).astype(np.float64)

    def best(scores: Float64[np.ndarray, "P N"]) -> NearestTokens:
        # by score, ties by id
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        tokens = tuple(tuple(tokenizer.token_text(int(ids[n])) for n in line) for line in order)
        return NearestTokens(tokens, np.take_along_axis(scores, order, axis=1).astype(np.float64))

    scale = np.maximum(lengths[:, None] * norms[None], np.finfo(np.float32).tiny)
    return norms, best(products / scale), best(products.astype(np.float64))


def _start(prompt: Prompt, model: Backbone) -> tuple[Float32[np.ndarray, "P D"] | None, list[str]]:
    """Return the initial values of a prompt, or a note on why they are unknown."""
    card = prompt.card
    if card.source is not None:
        return None, [f"no drift: unknown initialisation ({card.source})"]
    if card.seed is None:
        return None, ["no drift: the card has no seed to repeat the initialisation with"]
    try:
        # Random values depend on the backbone's name in the card, not on its current path.
        named = dataclasses.replace(model, name=card.backbone)
        labels = _label_ids(card, model) if card.init == "labels" else ()
        return initial_rows(named, card.init, card.seed, len(prompt.values), labels), []
    except InputError as error:
        return None, [f"no drift: cannot repeat the initialisation {card.init} ({error})"]


def _label_ids(card: PromptCard, model: Backbone) -> Sequence[int]:
    task = load_task(card.task)
    return label_words(task, model.tokenizer, model.model_type, model.layout, "phrase").all_ids


def _row_cosines(
    rows: Float64[np.ndarray, "P D"], start: Float64[np.ndarray, "P D"]
) -> Float64[np.ndarray, "P"]:
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(start, axis=1)
    return (rows * start).sum(1) / np.where(norms > 0, norms, np.nan)


def _finite(values: Float64[np.ndarray, "P"] | None, row: int) -> float | None:
    """Return a value for JSON, which has no NaN."""
    return None if values is None or not np.isfinite(values[row]) else float(values[row])


def _nearest_record(near: NearestTokens, row: int) -> list[dict[str, Any]]:
    pairs = zip(near.tokens[row], near.values[row].tolist(), strict=True)
    return [{"piece": token, "value": value} for token, value in pairs]


# --- Text, at most 80 columns wide

COLUMNS = 80
_NEAR = 29  # width of a column of nearest tokens


def describe_reading(found: PromptReading) -> str:
    """Return the statistics of a prompt as text."""
    read = np.arange(len(found.norms)) + found.first > 0
    mean, smallest, largest = found.vocabulary
    lines = wrap(describe_card(found.card, len(found.norms[read])))
    lines.append(f"prompt token norm: mean {spread(found.norms[read])}")
    lines.append(
        f"vocabulary norm: mean {short(mean)} ({short(smallest)} to {short(largest)}) over"
        f" {found.compared} tokens"
    )
    if found.drift is not None:
        assert found.start_cosines is not None
        lines.append(f"drift from the initial values: mean {spread(found.drift[read])}")
        lines.append(f"cosine with the initial values: mean {spread(found.start_cosines[read])}")
    for note in found.notes:
        lines += wrap(f"note: {note}")
    lines.append(f" row   norm  drift  {'nearest by cosine':<{_NEAR}}  nearest by product")
    for row, norm in enumerate(found.norms):
        drift = "-" if found.drift is None else short(found.drift[row])
        lines.append(
            f"{found.first + row:4} {short(norm):>6} {drift:>6}"
            f"  {_near_text(found.by_cosine, row):<{_NEAR}}  {_near_text(found.by_product, row)}"
        )
    return "\n".join(line.rstrip() for line in lines)


def describe_card(card: PromptCard, rows: int) -> str:
    """Return a prompt card as one line."""
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
    """Wrap a text at 80 columns."""
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ")


def short(value: float) -> str:
    """Format a number with at most six characters."""
    if not np.isfinite(value):
        return "-"
    text = f"{value:.3g}"
    return text if len(text) <= 6 else f"{value:.0e}"


def spread(values: Float64[np.ndarray, "N"]) -> str:
    """Format mean, minimum and maximum."""
    return f"{short(values.mean())} ({short(values.min())} to {short(values.max())})"


def visible(text: str, width: int) -> str:
    """Return a text for a table cell: control characters escaped, cut to a width."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return clean if len(clean) <= width else clean[: width - 1] + "."


def _near_text(near: NearestTokens, row: int) -> str:
    """Return as many tokens with their values as fit the column."""
    text = ""
    for token, value in zip(near.tokens[row], near.values[row].tolist(), strict=True):
        entry = f"{visible(token, 12)} {short(value)}"
        longer = f"{text}, {entry}" if text else entry
        if len(longer) > _NEAR:
            break
        text = longer
    return text


# --- Folders of prompts

_OF_A_RUN = ("seed", "steps", "score", "metric", "jpt_version")


@dataclass(frozen=True)
class PromptEntry:
    """One prompt of a folder."""

    name: str
    path: Path
    prompt: Prompt | None  # None if it cannot be read
    faults: tuple[str, ...] = ()  # errors
    notes: tuple[str, ...] = ()  # what could not be checked

    @property
    def record(self) -> dict[str, Any]:
        """The entry as JSON."""
        found: dict[str, Any] = {"name": self.name, "path": str(self.path)}
        if self.prompt is not None:
            norms = np.linalg.norm(self.prompt.values.astype(np.float64), axis=1)
            found |= {
                "card": self.prompt.card.to_json(),
                "rows": len(norms),
                "width": self.prompt.values.shape[1],
                "norm": {f: float(getattr(norms, f)()) for f in ("mean", "min", "max")},
            }
        return {**found, "faults": list(self.faults), "notes": list(self.notes)}


def read_entries(folder: str | Path) -> list[PromptEntry]:
    """Read every prompt of a folder; one that cannot be read has a fault."""
    entries = []
    for name, path in list_runs(folder).items():
        try:
            entries.append(PromptEntry(name, path, load_prompt(path)))
        except InputError as error:
            entries.append(PromptEntry(name, path, None, (str(error),)))
    return entries


def verify_entries(entries: list[PromptEntry], backbone: str | None = None) -> list[PromptEntry]:
    """Check cards, and sizes against the config of the backbone."""
    if backbone is not None:
        _shape(backbone)  # raises for an unknown backbone
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
        notes.append(f"sizes not checked: {name} is not a local folder")
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
        faults.append(f"width {width}, but {name} has width {expected}")
    if prompt.card.layout != layout:
        faults.append(f"layout {prompt.card.layout}, but {name} has {layout}")
    if rows > positions:
        faults.append(f"{rows} rows, but {name} has {positions} positions")
    return faults


@cache
def _shape(name: str) -> tuple[str, int, int]:
    """Return layout, width and positions of a backbone from its config."""
    folder = find_folder(name)
    fields = read_config(folder)
    family = find_family(fields, f"{folder}/config.json")
    config = family.config(fields)
    return family.layout, config.width, config.positions


def describe_entries(entries: list[PromptEntry], verified: bool = False) -> str:
    """Return the prompts of a folder as a table."""
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
        lines.append(f"{count}, {broken} broken" if broken else f"{count}, all valid")
    return "\n".join(lines)


def _line(entry: PromptEntry) -> str:
    prompt = entry.prompt
    if prompt is None:
        return visible(entry.name, COLUMNS)
    rows, width = prompt.values.shape
    score = "-" if prompt.card.score is None else f"{prompt.card.score:.3f}"
    norm = short(float(np.linalg.norm(prompt.values.astype(np.float64), axis=1).mean()))
    # the end of a path is more specific
    backbone = prompt.card.backbone
    backbone = visible(backbone if len(backbone) <= 19 else f".{backbone[-18:]}", 19)
    task, size = visible(prompt.card.task, 16), f"{rows} x {width}"
    return (
        f"{visible(entry.name, 17):<17} {task:<16} {backbone:<19} {size:>10} {score:>6} {norm:>6}"
    )


# --- Libraries: repositories of prompts with an index
# A prompt NAME is the file ``NAME.safetensors``, one run of several seeds ``NAME/seed-S`` the file
# ``NAME/seed-S/prompt.safetensors``, so that a copy of the files is a folder of prompts.

INDEX = "prompts.json"
LARGEST_BYTES = 256 * 1024**2  # twice a prompt of 2,048 rows at width 16,384

_SUFFIX = ".safetensors"
# No hidden files, no path separators of any operating system.
_PATH = re.compile(r"([^./\\:][^/\\:]*)\.safetensors|([^./\\:][^/\\:]*/seed-\d+)/" + PROMPT_FILE)


@dataclass(frozen=True)
class LibraryPrompt:
    """Entry of an index."""

    name: str
    sha256: str  # of the file
    card: PromptCard
    rows: int  # P
    width: int  # D
    norm: tuple[float, float, float]  # of the rows: mean, smallest, largest

    @property
    def record(self) -> dict[str, Any]:
        """The entry as JSON."""
        return {
            "name": self.name,
            "file": file_of(self.name),
            "sha256": self.sha256,
            "card": self.card.to_json(),
            "rows": self.rows,
            "width": self.width,
            "norm": dict(zip(("mean", "min", "max"), self.norm, strict=True)),
        }


def file_of(name: str) -> str:
    """Return the file of a prompt in a repository."""
    return f"{name}/{PROMPT_FILE}" if "/" in name else f"{name}{_SUFFIX}"


def name_of(path: str) -> str | None:
    """Return the prompt name of a file in a repository; None for other files."""
    match = _PATH.fullmatch(path)
    return (match[1] or match[2]) if match and path.isprintable() else None


def index_entry(name: str, data: bytes, prompt: Prompt) -> LibraryPrompt:
    """Return the index entry of a prompt."""
    norms = np.linalg.norm(prompt.values.astype(np.float64), axis=1)
    return LibraryPrompt(
        name,
        hashlib.sha256(data).hexdigest(),
        prompt.card,
        *prompt.values.shape,
        norm=(float(norms.mean()), float(norms.min()), float(norms.max())),
    )


def write_index(entries: Iterable[LibraryPrompt]) -> bytes:
    """Return an index; equal prompts give equal bytes."""
    records = [entry.record for entry in sorted(entries, key=lambda entry: entry.name)]
    return (json.dumps({"prompts": records}, indent=2, ensure_ascii=False) + "\n").encode()


def read_index(data: bytes) -> dict[str, LibraryPrompt]:
    """Parse an index that others may have written, skipping invalid entries."""
    try:
        table = parse_json(data, INDEX)
    except InputError:
        return {}
    listed = table.get("prompts") if isinstance(table, dict) else None
    found = [_entry(record) for record in listed] if isinstance(listed, list) else []
    return {entry.name: entry for entry in found if entry is not None}


def check_names(names: Sequence[str], where: str) -> None:
    """Raise InputError for names that cannot be files in one library on every system."""
    seen: dict[str, str] = {}  # first name per file or folder
    for name in names:
        if name_of(file_of(name)) != name:
            raise InputError(
                f"the prompt name {name!r} is not a valid file name on every system; use letters,"
                " digits, '-', '_', '.'"
            )
        other = seen.setdefault(name.split("/")[0].casefold(), name)
        if other == name or "/" in other and other.split("/")[0] == name.split("/")[0] != name:
            continue
        raise InputError(
            f"{where} would have two prompts of one name, {other} and {name} (names are compared"
            " without case); rename one"
        )


def split_files(files: Iterable[HubFile]) -> tuple[dict[str, HubFile], list[str]]:
    """Return the prompts of a repository by name, and the files that are too large for one."""
    named = {name: file for file in files if (name := name_of(file.path)) is not None}
    large = [file.path for file in named.values() if file.size_bytes > LARGEST_BYTES]
    return {n: f for n, f in sorted(named.items()) if f.size_bytes <= LARGEST_BYTES}, large


def read_prompts(files: Mapping[str, bytes]) -> tuple[dict[str, LibraryPrompt], list[str]]:
    """Read downloaded prompts as strictly as local files; return the valid ones and errors."""
    found, refused = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for path, data in files.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            name = name_of(path)
            assert name is not None, "not a prompt file"
            try:
                found[name] = index_entry(name, data, load_prompt(file))
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
    """Base of the results of push and pull, which are frozen dataclasses."""

    @property
    def record(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self).items()
        }


# --- Pull

ORIGINS = "hub.json"  # in a folder of prompts: the commits that they were pulled from


@dataclass(frozen=True)
class PulledPrompts(HubResult):
    """Result of `pull_prompts`.

    Attributes:
        repository: Name of the repository.
        url: Its page.
        commit: Commit of the files.
        out: Output folder.
        new: Names of new prompts.
        replaced: Names of prompts that replaced others.
        unchanged: Names of prompts that existed already.
        notes: Files that were skipped.
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
        """Return the result as one line, and one line per note.

        Example:
            >>> print(PulledPrompts("a/b", "", "0" * 40, "out", ("c",), (), ()).describe())
            1 prompt of a/b at 0000000 in out: 1 new
        """
        kinds = {"new": self.new, "replaced": self.replaced, "unchanged": self.unchanged}
        count = sum(map(len, kinds.values()))
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
        line = (
            f"{count} prompt{'' if count == 1 else 's'} of {self.repository} at {self.commit[:7]}"
            f" in {self.out}: {counts}"
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
    """Download the prompts of a repository on a Hugging Face hub, and no other files.

    Each file is checked against the digest that the hub lists and read as strictly as any prompt
    before the first one is written. Files are copied byte for byte; ``hub.json`` records their
    commit.

    Args:
        repo: ``OWNER/NAME`` on the hub in ``HF_ENDPOINT``, or huggingface.co.
        out: Folder for ``NAME.safetensors`` and, for prompts with several seeds,
            ``NAME/seed-S/prompt.safetensors``.
        revision: Branch, tag or commit; ``main`` by default.
        only: Names of prompts; with several seeds ``NAME`` for all, ``NAME/seed-S`` for one. All
            prompts by default.
        overwrite: Replace local files that differ.

    Returns:
        A `PulledPrompts`.

    Raises:
        InputError: There is no such repository, revision or prompt, a file is not a prompt, a
            local one differs, or the hub cannot be reached.

    Example:
        >>> pull_prompts("prompts", "out")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: 'prompts' has no owner; give OWNER/NAME, for instance me/prompts
    """
    hub, folder = HubRepository(repo), Path(out).expanduser()
    state = hub.state(revision)
    names, notes = _chosen(hub, state, only)
    local = {name: _local(folder, name) for name in names}
    missing = [name for name, data in local.items() if data is None]
    differing = [n for n, d in local.items() if d is not None and not state.holds(file_of(n), d)]
    if differing and not overwrite:
        raise InputError(
            f"{folder} has {_pull_listed(differing)} with other content than {hub.url}; give "
            "--overwrite to replace, --only to exclude, or another folder"
        )
    needed = sorted([*missing, *differing])
    _write(folder, hub, state, _fetched(hub, state, needed))
    return PulledPrompts(
        repository=repo,
        url=hub.url,
        commit=state.commit or "",
        out=str(folder),
        new=tuple(missing),
        replaced=tuple(differing),
        unchanged=tuple(name for name in names if name not in needed),
        notes=tuple(notes),
    )


def _fetched(hub: HubRepository, state: HubState, names: Sequence[str]) -> dict[str, bytes]:
    """Download and validate prompts; return their files by name."""
    paths = [file_of(name) for name in names]
    files = hub.read(state, paths) if paths else {}
    _, refused = read_prompts(files)
    if refused:
        raise InputError(
            f"{hub.url}: {refused[0]}; nothing was written; give --only NAME,NAME without it"
        )
    return {name: files[path] for name, path in zip(names, paths, strict=True)}


def _chosen(
    hub: HubRepository, state: HubState, only: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the names of the prompts to fetch, and notes on skipped files."""
    found, large = split_files(state.files.values())
    notes = [f"{path} is too large for a prompt: skipped" for path in large]
    if not found:
        raise InputError(
            f"{hub.url} has no prompts: expected NAME.safetensors or"
            f" NAME/seed-S/{PROMPT_FILE} among its {len(state.files)} files"
        )
    names = list(found)
    if only is not None:
        asked = [only] if isinstance(only, str) else only
        names = sorted({name for wanted in asked for name in _matching(hub.name, wanted, found)})
        if not names:
            raise InputError("only is empty; give NAME,NAME or leave it out")
    check_names(names, hub.url)
    return names, notes


def _matching(repo: str, wanted: str, known: Iterable[str]) -> list[str]:
    """Return the prompts of a name: one, or all its seeds."""
    names = [name for name in known if wanted in (name, name.split("/")[0])]
    if not names:
        raise unknown_name(f"prompt in {repo}:", wanted, known)
    return names


def _local(folder: Path, name: str) -> bytes | None:
    """Return the local file of a prompt; raise InputError if it exists in another form."""
    file, base = folder / file_of(name), folder / name.split("/")[0]
    others = [base / PROMPT_FILE]
    others += [folder / file_of(base.name)] if "/" in name else base.glob(f"seed-*/{PROMPT_FILE}")
    for other in others:
        if other.is_file():
            raise InputError(
                f"{other} is a prompt of the same name as {file_of(name)} in {folder}, in another"
                " form; choose another folder"
            )
    return read_bytes(file) if file.exists() else None


def _write(folder: Path, hub: HubRepository, state: HubState, files: Mapping[str, bytes]) -> None:
    """Write each file atomically, then their origins."""
    if not files:
        return
    make_folder(folder)
    path = folder / ORIGINS
    origins = read_json(path) if path.exists() else {}
    if not isinstance(origins, dict):
        raise InputError(f"{path}: expected a JSON object; remove the file")
    for name, data in files.items():
        file = folder / file_of(name)
        make_folder(file.parent)
        write_bytes(file, data)
        origins[name] = {
            "hub": hub.endpoint,
            "repository": hub.name,
            "commit": state.commit,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    write_json(path, dict(sorted(origins.items())))


def _pull_listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


# --- Model card of a library

README = "README.md"
# Marks a page written here, which may be rewritten.
MARK = "<!-- Written by `jpt prompts push`. Without this line it leaves the page to you. -->"

_TAGS = ("jpt", "soft-prompt", "prompt-tuning")


def write_readme(repository: str, entries: Sequence[LibraryPrompt]) -> bytes:
    """Return the page; equal prompts give equal bytes."""
    first = min(entries, key=lambda entry: entry.name)
    count = f"{len(entries)} soft prompt{'' if len(entries) == 1 else 's'}"
    lines = [
        *_front_matter(entries),
        MARK,
        "",
        f"# {repository.split('/')[-1]}",
        "",
        f"{count} for frozen language models, tuned with jpt. Each file contains a prompt"
        " and a card that records how it was made; `prompts.json` lists them all.",
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
    """Return whether a page was written by `jpt prompts push`."""
    return MARK.encode() in page


def _front_matter(entries: Sequence[LibraryPrompt]) -> list[str]:
    """Return the YAML front matter; JSON strings are valid YAML."""
    models = sorted({entry.card.backbone for entry in entries if _is_hub_id(entry.card.backbone)})
    lines = ["---", "library_name: jpt", "tags:", *(f"- {tag}" for tag in _TAGS)]
    if models:
        lines += ["base_model:", *(f"- {json.dumps(model)}" for model in models)]
        lines.append("base_model_relation: adapter")
    return [*lines, "---", ""]


def _is_hub_id(backbone: str) -> bool:
    """Return whether a backbone is a hub model."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(backbone)
    except HFValidationError:
        return False
    return "/" in backbone and not backbone.startswith(PREFIX)


def _task(entry: LibraryPrompt) -> str:
    """Return the task without its folder, which means nothing to others."""
    task = entry.card.task
    return task if task.startswith(BUILTIN_PREFIX) else short_task(task)


def _row(entry: LibraryPrompt) -> str:
    card = entry.card
    score = "" if card.score is None else f"{card.score:.3f} {card.metric or ''}".strip()
    backbone = card.backbone if card.backbone.count("/") < 2 else short_task(card.backbone)
    cells = (entry.name, backbone, _task(entry), score, f"{entry.rows} x {entry.width}")
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        clean = clean.replace(character, escaped)
    return clean


def _quoted(text: str) -> str:
    return shlex.quote(" ".join(text.split()).replace("`", ""))


# --- Push


@dataclass(frozen=True)
class PushedPrompts(HubResult):
    """Result of `push_prompts`.

    Attributes:
        repository: Name of the repository.
        url: Its page.
        commit: Head of the branch.
        committed: Whether this push made that commit; False if nothing changed.
        new: Names of new prompts.
        replaced: Names of prompts that replaced others.
        unchanged: Names of prompts that existed already.
        kept: Names of prompts in the repository that the folder lacks.
        notes: Notes for the user.
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
        """Return the result as one line, and one line per note.

        Example:
            >>> print(PushedPrompts("a/b", "", "0" * 40, False, (), (), ("c",), ("d",)).describe())
            nothing changed: a/b has this 1 prompt at 0000000 (and 1 other); no commit
        """
        count = len(self.new) + len(self.replaced) + len(self.unchanged)
        prompts = f"{count} prompt{'' if count == 1 else 's'}"
        others = f"{len(self.kept)} other{'' if len(self.kept) == 1 else 's'}"
        if self.committed:
            kinds = {"new": self.new, "replaced": self.replaced, "unchanged": self.unchanged}
            counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
            kept = f"; {others} kept" if self.kept else ""
            line = f"{prompts} in {self.url} at {self.commit[:7]}: {counts}{kept}"
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
    """Upload a folder of prompts to a Hugging Face hub, with an index and a model card.

    All prompts are verified first. Prompts in the repository that the folder lacks are kept and
    listed in index and card. Without changes there is no commit. A card written by hand is kept.

    Args:
        prompts: Folder of ``NAME.safetensors`` files, run folders ``NAME/``, or folders ``NAME/``
            of run folders ``seed-S/``. A run folder becomes ``NAME.safetensors``, the run of a
            seed ``NAME/seed-S/prompt.safetensors``; nothing else of a run is sent.
        repo: ``OWNER/NAME`` on the hub in ``HF_ENDPOINT``, or huggingface.co. Created if missing.
        private: Create a private repository, and refuse a public one. Otherwise a new one is
            public, unless the owner is an organization whose default is private.
        message: Commit message.
        revision: Branch, ``main`` by default; created if missing.

    Returns:
        A `PushedPrompts`.

    Raises:
        InputError: A prompt is broken, names clash, the token lacks write access, or the hub
            cannot be reached.

    Example:
        >>> push_prompts("study/prompts", "prompts")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: 'prompts' has no owner; give OWNER/NAME, for instance me/prompts
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
    """Return index and model card; a card written by hand is left out."""
    pages = {INDEX: write_index(entries), README: write_readme(hub.name, entries)}
    if README in state.files and not may_rewrite(hub.read(state, [README])[README]):
        del pages[README]
        notes.append("README.md in the repository was written by hand: kept")
    return pages


def _verified(folder: str | Path) -> tuple[dict[str, bytes], dict[str, LibraryPrompt]]:
    """Return files by path and index entries by name; raise InputError if a prompt is broken."""
    entries = verify_entries(read_entries(folder))
    broken = [entry for entry in entries if entry.faults]
    if broken:
        first = broken[0]
        raise InputError(
            f"{len(broken)} of {len(entries)} prompts in {folder} are broken, nothing was sent:"
            f" {first.name}: {first.faults[0]}; run jpt prompts verify {folder}"
        )
    check_names([entry.name for entry in entries], str(folder))
    data = {entry.name: _bytes(entry) for entry in entries}
    index = {e.name: index_entry(e.name, data[e.name], e.prompt) for e in entries if e.prompt}
    return {file_of(name): content for name, content in data.items()}, index


def _bytes(entry: PromptEntry) -> bytes:
    return read_bytes(entry.path / PROMPT_FILE if entry.path.is_dir() else entry.path)


def _others(
    hub: HubRepository, state: HubState, local: set[str]
) -> tuple[dict[str, LibraryPrompt], list[str]]:
    """Return the repository's other prompts, from its index if the digest agrees, and notes."""
    found, large = split_files(state.files.values())
    others = {name: file for name, file in found.items() if name not in local}
    notes = [
        f"{path} in the repository is too large for a prompt: not in the index" for path in large
    ]
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
