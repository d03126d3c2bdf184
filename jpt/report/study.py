"""Read the result files of a study folder for the report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from jpt.errors import InputError
from jpt.indicators.pairs import join_runs, prompt_names
from jpt.io.files import parse_json, read_bytes, read_error, read_json, read_number, read_table
from jpt.prompts.store import load_prompt, run_name, seed_runs
from jpt.results.prompt_table import (
    RANDOM,
    UNTOUCHED,
    match_in_task_prompts,
    read_activations,
    read_transfer,
    short_task,
)
from jpt.results.records import (
    ChosenSource,
    CorrelationRecord,
    CorrelationRecords,
    LossCurve,
    MaskedTaskRecord,
    MaskRecord,
    PromptRecord,
    SelectionMeans,
    SelectionRecord,
    Similarities,
    SourceRange,
    TargetRecord,
    TaskTypeMeans,
    TaskTypeRecord,
    TransferRecord,
)
from jpt.tasks.catalog import task_type
from jpt.types import PromptCard, TransferMatrix

# --- Reading values out of JSON that others wrote: what does not fit is told by file and place


class Fields:
    """The fields of one JSON object, each taken with the kind that it has to have."""

    def __init__(self, value: Any, path: str | Path, cure: str, place: str = "") -> None:
        self.path, self.cure, self.place = path, cure, place
        if not isinstance(value, dict):
            raise self._error(place or "the whole file", value, "an object")
        self.value: Mapping[str, Any] = value

    def text(self, name: str) -> str | None:
        """Takes a text."""
        return self._take(name, str, "a text")

    def count(self, name: str) -> int | None:
        """Takes a whole number."""
        return self._take(name, int, "a whole number")

    def number(self, name: str) -> float:
        """Takes a number."""
        value = self._take(name, (int, float), "a number")
        return math.nan if value is None else float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Takes a list of texts."""
        values = self._take(name, list, "a list of texts") or []
        if not all(isinstance(value, str) for value in values):
            raise self._error(self._at(name), values, "a list of texts")
        return tuple(values)

    def pair(self, name: str) -> tuple[float, float]:
        """Takes a list of two numbers."""
        values = self._take(name, list, "a list of two numbers")
        if values is None:
            return math.nan, math.nan
        known = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
        if len(values) != 2 or known != values:
            raise self._error(self._at(name), values, "a list of two numbers")
        return float(known[0]), float(known[1])

    def fields(self, name: str) -> Fields:
        """Takes an object."""
        value = self.value.get(name)
        return Fields({} if value is None else value, self.path, self.cure, self._at(name))

    def numbers(self) -> dict[str, float]:
        """Takes every field as a number."""
        return {name: self.number(name) for name in self.value}

    def each(self) -> Iterator[tuple[str, Fields]]:
        """Takes every field as an object."""
        for name in self.value:
            yield name, self.fields(name)

    def _take(self, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.value.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if value is not None and (wrong or (isinstance(value, float) and math.isinf(value))):
            raise self._error(self._at(name), value, expected)
        return value

    def _at(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def _error(self, place: str, value: Any, expected: str) -> InputError:
        came = repr(value)
        came = came if len(came) <= 60 else came[:57] + "..."
        return InputError(
            f"{self.path}: {place} is {came}; {expected} expected: make it again with {self.cure}"
        )


def read_fields(path: str | Path, cure: str) -> Fields | None:
    """Reads a JSON file that may be missing."""
    if not Path(path).exists():
        return None
    return Fields(read_json(path), path, cure)


# --- What ``choice.json`` says: which source each indicator would have chosen, and at what cost


def read_selection_record(path: str | Path, cure: str) -> SelectionRecord | None:
    """Reads ``choice.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    return SelectionRecord(
        ranges={name: _range(each) for name, each in fields.fields("targets").each()},
        means={name: _choice_means(each) for name, each in fields.fields("rankings").each()},
        chosen={
            name: {target: _chosen(of) if of.value else None for target, of in each.each()}
            for name, each in fields.fields("chosen").each()
        },
        notes=fields.texts("notes"),
    )


def _range(fields: Fields) -> SourceRange:
    return SourceRange(
        fields.texts("best"),
        fields.number("best_score"),
        fields.number("mean_score"),
        fields.count("sources") or 0,
    )


def _choice_means(fields: Fields) -> SelectionMeans:
    return SelectionMeans(
        targets=fields.count("targets") or 0,
        hits=fields.number("hits"),
        regret=fields.number("regret"),
        regret_interval=fields.pair("regret_interval"),
        chance_hits=fields.number("chance_hits"),
        chance_regret=fields.number("chance_regret"),
        gain=fields.number("gain"),
        gain_interval=fields.pair("gain_interval"),
    )


def _chosen(fields: Fields) -> ChosenSource:
    return ChosenSource(fields.texts("sources"), fields.number("score"), fields.number("regret"))


# --- What ``mask.json`` says: how prompts score while chosen neurons are silent


def read_mask_record(path: str | Path, cure: str) -> MaskRecord | None:
    """Reads ``mask.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    first, last = fields.pair("layers")
    return MaskRecord(
        ratio=fields.number("ratio"),
        silent=fields.count("masked_neurons") or 0,
        neurons=fields.count("neurons") or 0,
        layers=(int(first), int(last)) if first == first else (0, 0),
        split=fields.text("split"),
        tasks={name: _task(each) for name, each in fields.fields("targets").each()},
        by_type={name: each.numbers() for name, each in fields.fields("relative_by_type").each()},
        other_same_type=fields.number("other_same_type"),
        other_different_type=fields.number("other_different_type"),
        notes=fields.texts("notes"),
    )


def _task(fields: Fields) -> MaskedTaskRecord:
    masks = dict(fields.fields("masks").each())
    return MaskedTaskRecord(
        type=fields.text("type"),
        metric=fields.text("metric") or "score",
        majority=fields.number("majority"),
        unmasked=fields.number("unmasked"),
        scores={kind: mask.number("value") for kind, mask in masks.items()},
        relative={kind: mask.number("relative") for kind, mask in masks.items()},
    )


# --- The prompts of a study with what their run folders tell: settings, scores, curves

_CURE = "jpt tune"
# What a scored line holds besides the score itself (see jpt.types.Score.summary).
_NOT_SCORES = ("step", "split", "loss", "rows", "majority", "counts", "elapsed_s")


def read_prompts(folder: str | Path) -> dict[str, PromptRecord]:
    """Reads every prompt and every run of a folder."""
    place = Path(folder)
    if not place.is_dir():
        return {}
    try:
        entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise read_error(folder, error) from None
    several, places = seed_runs(folder), []
    for entry in entries:
        runs = several.get(entry.name)
        if runs is not None:
            places += [(run_name(entry.name, seed), run) for seed, run in runs.items()]
        else:
            places.append((entry.name if entry.is_dir() else entry.stem, entry))
    found = [(name, _read(name, entry)) for name, entry in places]
    return {name: record for name, record in sorted(found, key=itemgetter(0)) if record is not None}


def _read(name: str, entry: Path) -> PromptRecord | None:
    """What a run folder or a prompt file tells; None for what is neither."""
    if entry.is_dir() and (entry / "config.json").exists():
        return _read_run(entry, name)
    if entry.suffix == ".safetensors" or (entry / "prompt.safetensors").exists():
        return _from_card(name, load_prompt(entry).card)
    return None


def _from_card(name: str, card: PromptCard) -> PromptRecord:
    score = math.nan if card.score is None else card.score
    return PromptRecord(
        name, card, True, {}, card.metric, score, math.nan, None, card.steps, math.nan, None
    )


def _read_run(folder: Path, name: str) -> PromptRecord:
    config = read_fields(folder / "config.json", _CURE)
    result = read_fields(folder / "result.json", _CURE)
    assert config is not None
    stored = (folder / "prompt.safetensors").exists()
    card = load_prompt(folder / "prompt.safetensors").card if stored else None
    lines = _read_log(folder / "metrics.jsonl", cut_is_normal=result is None)
    metric = _metric(result, card, lines)
    last = result.fields("validation") if result is not None else Fields({}, folder, _CURE)
    task = config.text("task")
    if card is None:
        card = PromptCard(config.text("backbone") or "", task) if task else None
    return PromptRecord(
        name=name,
        card=card,
        finished=result is not None and stored,
        settings=config.value,
        metric=metric,
        score=last.number(metric) if metric else math.nan,
        majority=last.number("majority"),
        steps=config.count("steps"),
        best_step=result.count("best_step") if result is not None else None,
        elapsed_s=result.number("elapsed_s") if result is not None else math.nan,
        curve=_curve(lines, metric),
    )


def _read_log(path: Path, cut_is_normal: bool) -> list[Fields]:
    """The lines of a log; the last one of a run that was killed may be cut short."""
    if not path.exists():
        return []
    *whole, rest = read_bytes(path).split(b"\n")
    if rest.strip() and not cut_is_normal:
        raise InputError(f"{path}: the last line is cut short; copy it again, or run {_CURE} again")
    lines = []
    for number, line in enumerate(whole, 1):
        place = f"{path}, line {number}"
        fields = Fields(parse_json(line, place), place, _CURE)
        if fields.count("step") is None:
            raise InputError(f"{place} names no step; copy the log again, or run {_CURE} again")
        lines.append(fields)
    return lines


def _metric(result: Fields | None, card: PromptCard | None, lines: list[Fields]) -> str | None:
    told = (result.text("metric") if result is not None else None) or (card and card.metric)
    scored = [line for line in lines if line.text("split") == "validation"]
    names = [name for line in scored[:1] for name in line.value if name not in _NOT_SCORES]
    return told or (names[0] if names else None)


def _curve(lines: list[Fields], metric: str | None) -> LossCurve | None:
    train = [line for line in lines if line.text("split") == "train"]
    scored = [line for line in lines if line.text("split") == "validation"]
    if not train and not scored:
        return None
    return LossCurve(
        train_steps=_column(train, "step"),
        train_loss=_column(train, "loss"),
        steps=_column(scored, "step"),
        loss=_column(scored, "loss"),
        score=_column(scored, metric or "score"),
    )


def _column(lines: list[Fields], name: str) -> Float64[np.ndarray, "N"]:
    return np.array([line.number(name) for line in lines], np.float64)


# --- What the JSON files of a study say: how it was made, its correlations, its means by type


def read_transfer_record(path: str | Path, cure: str) -> TransferRecord | None:
    """Reads ``transfer.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    start = fields.fields("random")
    return TransferRecord(
        backbone=fields.text("backbone"),
        split=fields.text("split"),
        targets={name: _target(name, each) for name, each in fields.fields("targets").each()},
        prompt_types={name: each.text("type") for name, each in fields.fields("prompts").each()},
        random=start.text("name"),
        random_start={k: str(v) for k, v in start.value.items() if k != "name" and v is not None},
        untouched=fields.fields("untouched").text("name"),
        notes=fields.texts("notes"),
        elapsed_s=fields.number("elapsed_s"),
        versions={name: str(value) for name, value in fields.fields("versions").value.items()},
        device=fields.text("device"),
        command=fields.text("command"),
        machine=fields.text("machine"),
    )


def read_correlations(path: str | Path, cure: str) -> CorrelationRecords | None:
    """Reads ``correlation.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    parts = {
        part: {name: _correlation(each) for name, each in fields.fields(part).each()}
        for part in ("including_in_task", "excluding_in_task")
    }
    if not any(parts.values()):
        # The error of a missing field, so that it reads like the others.
        Fields(None, path, cure, "excluding_in_task")
    return CorrelationRecords(
        parts["excluding_in_task"], parts["including_in_task"], fields.texts("notes")
    )


def read_task_type_record(path: str | Path, cure: str) -> TaskTypeRecord | None:
    """Reads ``types.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    moved = fields.fields("relative_transfer")
    best = moved.fields("best_other_source")
    return TaskTypeRecord(
        similarity={
            name: _study_means(each) for name, each in fields.fields("similarity_by_type").each()
        },
        transfer=_study_means(moved) if moved.value else None,
        random=moved.number("random_mean"),
        best_other={name: str(best.text(name)) for name in best.value if best.text(name)},
        best_same_fraction=moved.number(
            "fraction_of_targets_whose_best_other_source_has_same_type"
        ),
        by_type={name: each.numbers() for name, each in fields.fields("relative_by_type").each()},
        notes=fields.texts("notes"),
    )


def _target(name: str, fields: Fields) -> TargetRecord:
    return TargetRecord(
        task=fields.text("task") or name,
        type=fields.text("type"),
        majority=fields.number("majority"),
        rows=fields.count("rows"),
        split=fields.text("split"),
        in_task_prompt=fields.text("in_task_prompt"),
    )


def _correlation(fields: Fields) -> CorrelationRecord:
    return CorrelationRecord(
        mean_over_targets=fields.number("mean_over_targets"),
        pooled_relative=fields.number("pooled_relative"),
        pooled_raw=fields.number("pooled_raw"),
        n_targets=fields.count("n_targets") or 0,
        per_target=fields.fields("per_target").numbers(),
    )


def _study_means(fields: Fields) -> TaskTypeMeans:
    return TaskTypeMeans(
        same=fields.number("same_type_mean"),
        different=fields.number("different_type_mean"),
        n_same=fields.count("n_same"),
        n_different=fields.count("n_diff"),
        seeds=fields.number("same_task_mean"),
    )


# --- A study folder read into one record: every part is optional, a broken one is refused


@dataclass(frozen=True)
class Study:
    """What a study folder holds; None, or nothing, for a part that is missing."""

    folder: Path  # where it lies
    prompts: Mapping[str, PromptRecord]  # prompts and runs by name
    transfer: TransferMatrix | None  # scores of all prompts on all targets
    relative: TransferMatrix | None  # the same over the score of the target's own prompt
    facts: TransferRecord | None  # how the matrix was made
    neurons: tuple[int, int, int] | None  # K prompts, L layers, F neurons of ``neurons.npz``
    similarities: Similarities | None  # the indicators of all pairs of prompts
    correlations: CorrelationRecords | None  # of the indicators with the matrix
    types: TaskTypeRecord | None  # means by type of task
    choices: SelectionRecord | None = None  # which source each indicator would have chosen
    masks: MaskRecord | None = None  # performance without chosen neurons
    computed_relative: bool = False  # whether ``relative`` was computed here, for want of its file

    @property
    def random(self) -> str:
        """Name of the column of the untrained prompt, whether or not there is one."""
        return (self.facts and self.facts.random) or RANDOM

    @property
    def relative_file(self) -> str | None:
        """Where the relative scores stand, or what they were computed from."""
        if self.relative is None:
            return None
        return "transfer.csv" if self.computed_relative else "relative.csv"

    @property
    def untouched(self) -> str:
        """Name of the column of the model without a prompt, whether or not there is one."""
        return (self.facts and self.facts.untouched) or UNTOUCHED


def read_study(folder: str | Path) -> Study:
    """Reads a study."""
    place = Path(folder)
    if not place.is_dir():
        cause = "is a file" if place.exists() else "is not there"
        raise InputError(f"{folder} {cause}; give the folder that jpt transfer --out wrote")
    transfer, indicators = commands(place)["transfer"], commands(place)["indicators"]
    matrix = _matrix(place / "transfer.csv")
    study = Study(
        folder=place,
        prompts=read_prompts(place / "prompts"),
        transfer=matrix,
        relative=_matrix(place / "relative.csv"),
        facts=read_transfer_record(place / "transfer.json", transfer),
        neurons=_shape(place / "neurons.npz"),
        similarities=_over_seeds(read_similarities(place / "indicators.csv"), matrix),
        correlations=read_correlations(place / "correlation.json", indicators),
        types=read_task_type_record(place / "types.json", indicators),
        choices=read_selection_record(place / "choice.json", indicators),
        masks=read_mask_record(place / "mask.json", commands(place)["mask"]),
    )
    parts = (value for name, value in vars(study).items() if name != "folder")
    if not any(parts):
        raise InputError(
            f"{folder} holds no study: no prompts/, transfer.csv, neurons.npz or indicators.csv;"
            " give a folder of jpt quickstart, or begin with jpt tune and jpt transfer"
        )
    return study


def commands(folder: Path) -> dict[str, str]:
    """The commands that make the parts of a study."""
    place, prompts = shlex.quote(str(folder)), shlex.quote(str(folder / "prompts"))
    neurons = shlex.quote(str(folder / "neurons.npz"))
    transfer = shlex.quote(str(folder / "transfer.csv"))
    run = shlex.quote(str(folder / "prompts" / "NAME"))
    return {
        "tune": f"jpt tune --backbone BACKBONE --task TASK --out {run}",
        "transfer": f"jpt transfer --prompts {prompts} --tasks TASK,TASK,... --out {place}",
        "neurons": f"jpt neurons --prompts {prompts} --out {neurons}",
        "indicators": f"jpt indicators --prompts {prompts} --neurons {neurons}"
        f" --transfer {transfer} --out {place}",
        "mask": f"jpt mask --prompts {prompts} --ratio 0.2 --out {place}",
    }


def read_similarities(path: str | Path) -> Similarities | None:
    """Reads ``indicators.csv``."""
    if not Path(path).exists():
        return None
    rows = read_table(path, ("prompt_a", "prompt_b"))
    if not rows:
        raise InputError(f"{path} has a header and no line; make it again with jpt indicators")
    names = tuple(dict.fromkeys(row[side] for row in rows for side in ("prompt_a", "prompt_b")))
    place = {name: index for index, name in enumerate(names)}
    columns = [name for name in rows[0] if name not in ("prompt_a", "prompt_b")]
    # Columns that say something else than a number, for instance the types of both tasks.
    columns = [name for name in columns if not name.startswith("type_")]
    values = {name: np.full((len(names), len(names)), np.nan) for name in columns}
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, 2):
        pair = (row["prompt_a"], row["prompt_b"])
        if pair in seen:
            raise InputError(
                f"{path}, line {number}: {pair[0]} and {pair[1]} stand there twice; make it again"
                " with jpt indicators"
            )
        seen.add(pair)
        for name in columns:
            values[name][place[pair[0]], place[pair[1]]] = read_number(path, number, row, name)
    return Similarities(names, values)


def _over_seeds(found: Similarities | None, matrix: TransferMatrix | None) -> Similarities | None:
    """Seeds of a prompt count as one prompt, as in the matrix."""
    if found is None:
        return None
    owners = prompt_names(found.names, () if matrix is None else matrix.prompts)
    return found if owners == list(found.names) else Similarities(*join_runs(owners, found.values))


def _matrix(path: Path) -> TransferMatrix | None:
    return read_transfer(path) if path.exists() else None


def _shape(path: Path) -> tuple[int, int, int] | None:
    if not path.exists():
        return None
    n_prompts, n_layers, n_neurons = read_activations(path).values.shape
    return n_prompts, n_layers, n_neurons


# --- The order of the tasks and prompts of a study, their types, and whose own prompt is whose

# The order of the paper's figures; other types follow in the order of the alphabet.
PAPER_TYPES = ("sentiment", "nli", "ethics", "paraphrase", "qa", "summarization")
NO_TYPE = "no type"
BASELINE = "untrained"
NO_PROMPT = "no prompt"


@dataclass(frozen=True)
class Ordering:
    """The order of everything in figures and tables: by type, then as the files have it."""

    targets: tuple[str, ...]  # the target tasks
    sources: tuple[str, ...]  # the prompts that were moved, without the untrained one
    prompts: tuple[str, ...]  # the prompts of the indicators
    # all prompts of the study, the untrained one and unfinished runs included
    every: tuple[str, ...]
    target_types: Mapping[str, str]
    prompt_types: Mapping[str, str]
    in_task: Mapping[str, str]  # the own prompt of each target that has one


def order_study(study: Study) -> Ordering:
    """Finds order, types and own prompts of a study."""
    matrix = study.transfer or study.relative
    targets = matrix.targets if matrix else ()
    columns = matrix.prompts if matrix else ()
    compared = study.similarities.names if study.similarities else ()
    every = dict.fromkeys([*columns, *compared, *study.prompts])
    names = tuple(name for name in every if name != study.untouched)  # no prompt at all
    # Runs of several seeds are columns under the name of their prompt.
    whose = dict(zip(names, prompt_names(names, columns), strict=True))
    in_task = _in_task(
        study, targets, [n for n in names if whose[n] == n or whose[n] not in columns]
    )
    target_types = {name: _target_type(study, name) for name in targets}
    prompt_types = {name: _prompt_type(study, name) for name in names}
    ordered = _by_type(targets, target_types)
    # A prompt stands where its task stands, so that own pairs form the diagonal.
    owners = {prompt: target for target, prompt in in_task.items()}
    place = {prompt: ordered.index(target) for prompt, target in owners.items()}
    following = sorted(names, key=lambda name: place.get(whose[name], len(ordered)))
    prompts = _by_type(following, prompt_types)
    return Ordering(
        targets=ordered,
        sources=tuple(n for n in prompts if n in columns and n != study.random),
        prompts=tuple(n for n in prompts if n in compared),
        every=prompts,
        target_types=target_types,
        prompt_types=prompt_types,
        in_task=in_task,
    )


def with_relative(study: Study, layout: Ordering) -> Study:
    """Computes relative performance where ``relative.csv`` is missing."""
    matrix = study.transfer
    if study.relative is not None or matrix is None:
        return study
    in_task = np.array([in_task_score(study, layout, target) for target in matrix.targets])
    known = np.flatnonzero(in_task > 0)
    if not known.size:
        return study
    relative = TransferMatrix(
        targets=tuple(matrix.targets[i] for i in known),
        prompts=matrix.prompts,
        values=matrix.values[known] / in_task[known, None],
        metrics=tuple(matrix.metrics[i] for i in known),
    )
    return replace(study, relative=relative, computed_relative=True)


def values_at(
    matrix: TransferMatrix | None, targets: Iterable[str], prompts: Iterable[str]
) -> Float64[np.ndarray, "N K"]:
    """Takes a matrix in another order."""
    rows, columns = list(targets), list(prompts)
    values = np.full((len(rows), len(columns)), np.nan)
    if matrix is None:
        return values
    row_of = {name: index for index, name in enumerate(matrix.targets)}
    column_of = {name: index for index, name in enumerate(matrix.prompts)}
    for i, target in enumerate(rows):
        for j, prompt in enumerate(columns):
            if target in row_of and prompt in column_of:
                values[i, j] = matrix.values[row_of[target], column_of[prompt]]
    return values


@dataclass(frozen=True)
class TransferPair:
    """A prompt on the task of another prompt."""

    target: str  # the task
    source: str  # the prompt
    relative: float  # its performance over that of the target's own prompt
    same_type: bool | None  # whether both tasks have one type; None where a type is not known


def transfer_pairs(study: Study, layout: Ordering) -> list[TransferPair]:
    """Lists the measured pairs of a target and another task's prompt."""
    values = values_at(study.relative, layout.targets, layout.sources)
    found = []
    for i, target in enumerate(layout.targets):
        for j, source in enumerate(layout.sources):
            if layout.in_task.get(target) == source or np.isnan(values[i, j]):
                continue
            kinds = (layout.target_types[target], layout.prompt_types[source])
            same = None if NO_TYPE in kinds else kinds[0] == kinds[1]
            found.append(TransferPair(target, source, float(values[i, j]), same))
    return found


def by_target(moved: Iterable[TransferPair]) -> dict[str, list[TransferPair]]:
    """Puts the moves to one target together."""
    found: dict[str, list[TransferPair]] = {}
    for move in moved:
        found.setdefault(move.target, []).append(move)
    return found


def random_values(study: Study, layout: Ordering) -> dict[str, float]:
    """Takes the relative performance of the untrained prompt."""
    column = values_at(study.relative, layout.targets, [study.random])[:, 0]
    known = zip(layout.targets, column.tolist(), strict=True)
    return {target: value for target, value in known if np.isfinite(value)}


def in_task_score(study: Study, layout: Ordering, target: str) -> float:
    """Takes the score of a target's own prompt."""
    in_task = layout.in_task.get(target, "")
    return float(values_at(study.transfer, [target], [in_task])[0, 0])


def _in_task(study: Study, targets: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """As transfer.json has it; without that file as the cards have it."""
    if study.facts is not None and study.facts.targets:
        told = study.facts.targets
        return {
            t: told[t].in_task_prompt or "" for t in targets if t in told and told[t].in_task_prompt
        }
    cards = {}
    for name in names:
        record = study.prompts.get(name)
        cards[name] = (record and record.card) or PromptCard("", name)
    return match_in_task_prompts(targets, cards)[0]


def _target_type(study: Study, name: str) -> str:
    told = study.facts.targets.get(name) if study.facts else None
    return (told and told.type) or task_type(name) or NO_TYPE


def _prompt_type(study: Study, name: str) -> str:
    if name == study.random:
        return BASELINE
    told = study.facts.prompt_types.get(name) if study.facts else None
    record = study.prompts.get(name)
    card = record.card if record else None
    of_card = card and (card.task_type or task_type(short_task(card.task)))
    return told or of_card or task_type(name) or NO_TYPE


def _by_type(names: Iterable[str], types: Mapping[str, str]) -> tuple[str, ...]:
    """Sorts by type; within a type the order stays."""
    last = {NO_TYPE: 1, BASELINE: 2}

    def key(name: str) -> tuple[int, int, str]:
        kind = types[name]
        known = PAPER_TYPES.index(kind) if kind in PAPER_TYPES else len(PAPER_TYPES)
        return last.get(kind, 0), known, kind

    return tuple(sorted(names, key=key))
