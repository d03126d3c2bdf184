"""Load the result files of a study folder."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
    MEASURES,
    RANDOM,
    UNTOUCHED,
    match_in_task_prompts,
    performances,
    read_activations,
    read_scores,
    short_task,
)
from jpt.results.records import (
    CORRELATION_PARTS,
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
from jpt.results.statistics import above_chance
from jpt.results.value_checks import expected_instead
from jpt.tasks.catalog import task_type
from jpt.types import PromptCard, TransferMatrix

# --- Typed access to JSON objects


class Fields:
    """The fields of a JSON object, checked for their type on access."""

    def __init__(self, value: Any, path: str | Path, command: str, key: str = "") -> None:
        self.path, self.command, self.key = path, command, key
        if not isinstance(value, dict):
            raise self._error(key or "the top level", value, "an object")
        self.value: Mapping[str, Any] = value

    def text(self, name: str) -> str | None:
        """Return a string field, or None if it is missing."""
        return self._get(name, str, "a string")

    def count(self, name: str) -> int | None:
        """Return an integer field, or None if it is missing."""
        value = self._get(name, int, "an integer")
        self._check_range(name, value)
        return value

    def number(self, name: str, metric: str | None = None) -> float:
        """Return a number field, or NaN if it is missing; a score is one of the metric."""
        value = self._get(name, (int, float), "a number")
        self._check_range(name, value, metric)
        return math.nan if value is None else float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field with a list of strings, empty if it is missing."""
        values = self._get(name, list, "a list of strings") or []
        if not all(isinstance(value, str) for value in values):
            raise self._error(self._key_of(name), values, "a list of strings")
        return tuple(values)

    def pair(self, name: str) -> tuple[float, float]:
        """Return a field with a list of two numbers, NaN if it is missing."""
        values = self._get(name, list, "a list of two numbers")
        if values is None:
            return math.nan, math.nan
        known = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
        if len(values) != 2 or known != values:
            raise self._error(self._key_of(name), values, "a list of two numbers")
        return float(known[0]), float(known[1])

    def fields(self, name: str) -> Fields:
        """Return an object field, empty if it is missing."""
        value = self.value.get(name)
        return Fields({} if value is None else value, self.path, self.command, self._key_of(name))

    def numbers(self) -> dict[str, float]:
        """Return all fields as numbers."""
        return {name: self.number(name, "") for name in self.value}  # names of the user's

    def tables(self, ending: str) -> dict[str, dict[str, dict[str, float]]]:
        """Return the tables of the measures, fields with a common ending, without empty ones."""
        found = {
            measure: {name: each.numbers() for name, each in self.fields(measure + ending).each()}
            for measure in MEASURES
        }
        return {measure: table for measure, table in found.items() if table}

    def each(self) -> Iterator[tuple[str, Fields]]:
        """Yield all fields as objects, by name."""
        for name in self.value:
            yield name, self.fields(name)

    def _get(self, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.value.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if value is not None and (wrong or (isinstance(value, float) and math.isinf(value))):
            raise self._error(self._key_of(name), value, expected)
        return value

    def _check_range(self, name: str, value: Any, metric: str | None = None) -> None:
        expected = None if value is None else expected_instead(name, value, metric)
        if expected:
            raise self._error(self._key_of(name), value, expected)

    def _key_of(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def _error(self, key: str, value: Any, expected: str) -> InputError:
        got = repr(value)
        got = got if len(got) <= 60 else got[:57] + "..."
        return InputError(
            f"{self.path}: expected {expected} at {key}, got {got}; regenerate it with"
            f" {self.command}"
        )


def read_fields(path: str | Path, command: str) -> Fields | None:
    """Load a JSON object, or return None if the file is missing."""
    if not Path(path).exists():
        return None
    return Fields(read_json(path), path, command)


# --- choice.json: source selection


def read_selection_record(path: str | Path, command: str) -> SelectionRecord | None:
    """Load ``choice.json``."""
    fields = read_fields(path, command)
    if fields is None:
        return None
    return SelectionRecord(
        ranges={name: _source_range(each) for name, each in fields.fields("targets").each()},
        means={name: _selection_means(each) for name, each in fields.fields("rankings").each()},
        chosen={
            name: {target: _chosen(of) if of.value else None for target, of in each.each()}
            for name, each in fields.fields("chosen").each()
        },
        notes=fields.texts("notes"),
    )


def _source_range(fields: Fields) -> SourceRange:
    return SourceRange(
        fields.texts("best"),
        fields.number("best_score"),
        fields.number("mean_score"),
        fields.count("sources") or 0,
    )


def _selection_means(fields: Fields) -> SelectionMeans:
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


# --- mask.json: scores with masked neurons


def read_mask_record(path: str | Path, command: str) -> MaskRecord | None:
    """Load ``mask.json``."""
    fields = read_fields(path, command)
    if fields is None:
        return None
    first, last = fields.pair("layers")
    ends = {"above_chance": "_above_chance", "relative": ""}
    return MaskRecord(
        ratio=fields.number("ratio"),
        masked=fields.count("masked_neurons") or 0,
        neurons=fields.count("neurons") or 0,
        layers=(int(first), int(last)) if first == first else (0, 0),
        split=fields.text("split"),
        tasks={name: _masked_task(each) for name, each in fields.fields("targets").each()},
        by_type=fields.tables("_by_type"),
        other_types={
            measure: (
                fields.number(f"other_same_type{end}"),
                fields.number(f"other_different_type{end}"),
            )
            for measure, end in ends.items()
        },
        notes=fields.texts("notes"),
    )


def _masked_task(fields: Fields) -> MaskedTaskRecord:
    metric, masks = fields.text("metric") or "score", fields.fields("masks").each()
    scores = {kind: mask.number("value", metric) for kind, mask in masks}
    unmasked, chance = fields.number("unmasked", metric), fields.number("chance")
    levels = {"above_chance": (chance, fields.number("standard_error")), "relative": (0.0, 0.0)}
    return MaskedTaskRecord(
        type=fields.text("type"),
        metric=metric,
        chance=chance,
        unmasked=unmasked,
        scores=scores,
        performance={
            measure: {k: float(above_chance(v, level, unmasked, error)) for k, v in scores.items()}
            for measure, (level, error) in levels.items()
        },
    )


# --- Prompts and run folders

_TUNE = "jpt tune"
# Fields of a validation line other than the score (see jpt.types.Score.summary).
_NOT_SCORES = ("step", "split", "loss", "rows", "majority", "counts", "elapsed_s")
_NOT_SCORES += ("chance", "standard_error")


def read_prompts(folder: str | Path) -> dict[str, PromptRecord]:
    """Load all prompt files and run folders in a folder."""
    if not Path(folder).is_dir():
        return {}
    try:
        entries = sorted(e for e in Path(folder).iterdir() if not e.name.startswith("."))
    except OSError as error:
        raise read_error(folder, error) from None
    multi_seed, paths = seed_runs(folder), []
    for entry in entries:
        runs = multi_seed.get(entry.name)
        if runs is not None:
            paths += [(run_name(entry.name, seed), run) for seed, run in runs.items()]
        else:
            paths.append((entry.name if entry.is_dir() else entry.stem, entry))
    records = [(name, _read_prompt(name, path)) for name, path in paths]
    return {name: found for name, found in sorted(records, key=itemgetter(0)) if found is not None}


def _read_prompt(name: str, entry: Path) -> PromptRecord | None:
    """Load a run folder or a prompt file; return None for anything else."""
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
    config = read_fields(folder / "config.json", _TUNE)
    result = read_fields(folder / "result.json", _TUNE)
    assert config is not None
    stored = (folder / "prompt.safetensors").exists()
    card = load_prompt(folder / "prompt.safetensors").card if stored else None
    lines = _read_log(folder / "metrics.jsonl", cut_is_normal=result is None)
    metric = _metric(result, card, lines)
    last = result.fields("validation") if result is not None else Fields({}, folder, _TUNE)
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
        chance=last.number("chance"),
        steps=config.count("steps"),
        best_step=result.count("best_step") if result is not None else None,
        elapsed_s=result.number("elapsed_s") if result is not None else math.nan,
        curve=_curve(lines, metric),
    )


def _read_log(path: Path, cut_is_normal: bool) -> list[Fields]:
    """Load the lines of a log; the last line of a killed run may be incomplete."""
    if not path.exists():
        return []
    *whole, rest = read_bytes(path).split(b"\n")
    if rest.strip() and not cut_is_normal:
        raise InputError(f"{path}: the last line is incomplete; copy it again or re-run {_TUNE}")
    lines = []
    for number, line in enumerate(whole, 1):
        where = f"{path}, line {number}"
        fields = Fields(parse_json(line, where), where, _TUNE)
        if fields.count("step") is None:
            raise InputError(f"{where}: no step; copy the log again or re-run {_TUNE}")
        lines.append(fields)
    return lines


def _metric(result: Fields | None, card: PromptCard | None, lines: list[Fields]) -> str | None:
    recorded = (result.text("metric") if result is not None else None) or (card and card.metric)
    scored = [line for line in lines if line.text("split") == "validation"]
    names = [name for line in scored[:1] for name in line.value if name not in _NOT_SCORES]
    return recorded or (names[0] if names else None)


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


# --- transfer.json, correlation.json and types.json


def read_transfer_record(path: str | Path, command: str) -> TransferRecord | None:
    """Load ``transfer.json``."""
    fields = read_fields(path, command)
    if fields is None:
        return None
    random = fields.fields("random")
    return TransferRecord(
        backbone=fields.text("backbone"),
        split=fields.text("split"),
        targets={name: _target(name, each) for name, each in fields.fields("targets").each()},
        prompt_types={name: each.text("type") for name, each in fields.fields("prompts").each()},
        random=random.text("name"),
        random_start={k: str(v) for k, v in random.value.items() if k != "name" and v is not None},
        untouched=fields.fields("untouched").text("name"),
        notes=fields.texts("notes"),
        elapsed_s=fields.number("elapsed_s"),
        versions={name: str(value) for name, value in fields.fields("versions").value.items()},
        device=fields.text("device"),
        command=fields.text("command"),
        machine=fields.text("machine"),
    )


def read_correlations(path: str | Path, command: str) -> CorrelationRecords | None:
    """Load ``correlation.json``."""
    fields = read_fields(path, command)
    if fields is None:
        return None
    parts = {
        part: {name: _correlation(each) for name, each in fields.fields(part).each()}
        for part in CORRELATION_PARTS
    }
    if not any(parts.values()):
        # Raises the usual error for a missing object.
        Fields(None, path, command, "excluding_in_task")
    return CorrelationRecords(**parts, notes=fields.texts("notes"))


def read_task_type_record(path: str | Path, command: str) -> TaskTypeRecord | None:
    """Load ``types.json``."""
    fields = read_fields(path, command)
    if fields is None:
        return None
    return TaskTypeRecord(
        similarity={
            name: _type_means(each) for name, each in fields.fields("similarity_by_type").each()
        },
        by_type=fields.tables("_by_type"),
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
        pooled_above_chance=fields.number("pooled_above_chance"),
    )


def _type_means(fields: Fields) -> TaskTypeMeans:
    return TaskTypeMeans(
        same=fields.number("same_type_mean"),
        different=fields.number("different_type_mean"),
        n_same=fields.count("n_same"),
        n_different=fields.count("n_diff"),
        seeds=fields.number("same_task_mean"),
    )


# --- Study folders


@dataclass(frozen=True)
class Study:
    """The results of a study folder; a missing part is None or empty."""

    folder: Path
    prompts: Mapping[str, PromptRecord]  # prompts and runs by name
    transfer: TransferMatrix | None  # zero-shot scores
    record: TransferRecord | None  # settings and baselines of the matrix
    neurons: tuple[int, int, int] | None  # (K, L, F): prompts, layers, neurons per layer
    similarities: Similarities | None  # indicators for all pairs of prompts
    correlations: CorrelationRecords | None  # of indicators and transfer
    types: TaskTypeRecord | None  # means by task type
    choices: SelectionRecord | None = None  # source selection by indicator
    masks: MaskRecord | None = None  # scores with masked neurons
    performance: Mapping[str, TransferMatrix] = field(default_factory=dict)  # where defined

    @property
    def random(self) -> str:
        """Column name of the untrained prompt."""
        return (self.record and self.record.random) or RANDOM

    @property
    def measure(self) -> str | None:
        """Measure of figures and findings: above chance, or relative where that is undefined."""
        return next((measure for measure in MEASURES if measure in self.performance), None)

    @property
    def has_chance(self) -> bool:
        """Whether the chance level of a target is known."""
        return self.transfer is not None and self.transfer.chance is not None

    @property
    def files(self) -> list[str]:
        """Files of the scores and of what is computed from them."""
        return ["transfer.csv", *(["transfer.json"] if self.record else [])]

    @property
    def untouched(self) -> str:
        """Column name of the model without a prompt."""
        return (self.record and self.record.untouched) or UNTOUCHED


def read_study(folder: str | Path) -> Study:
    """Load all results in a study folder."""
    root = Path(folder)
    if not root.is_dir():
        cause = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{folder} {cause}; pass the folder that jpt transfer --out wrote")
    transfer, indicators = commands(root)["transfer"], commands(root)["indicators"]
    matrix = read_scores(path) if (path := root / "transfer.csv").exists() else None
    study = Study(
        folder=root,
        prompts=read_prompts(root / "prompts"),
        transfer=matrix,
        record=read_transfer_record(root / "transfer.json", transfer),
        neurons=_shape(root / "neurons.npz"),
        similarities=_mean_over_seeds(read_similarities(root / "indicators.csv"), matrix),
        correlations=read_correlations(root / "correlation.json", indicators),
        types=read_task_type_record(root / "types.json", indicators),
        choices=read_selection_record(root / "choice.json", indicators),
        masks=read_mask_record(root / "mask.json", commands(root)["mask"]),
    )
    parts = (value for name, value in vars(study).items() if name != "folder")
    if not any(parts):
        raise InputError(
            f"{folder} holds no study (prompts/, transfer.csv, neurons.npz or indicators.csv);"
            " create one with jpt quickstart, or with jpt tune and jpt transfer"
        )
    return study


def commands(folder: Path) -> dict[str, str]:
    """Return the commands that create the parts of a study."""
    out, prompts = shlex.quote(str(folder)), shlex.quote(str(folder / "prompts"))
    neurons = shlex.quote(str(folder / "neurons.npz"))
    transfer = shlex.quote(str(folder / "transfer.csv"))
    run = shlex.quote(str(folder / "prompts" / "NAME"))
    return {
        "tune": f"jpt tune --backbone BACKBONE --task TASK --out {run}",
        "transfer": f"jpt transfer --prompts {prompts} --tasks TASK,TASK,... --out {out}",
        "neurons": f"jpt neurons --prompts {prompts} --out {neurons}",
        "indicators": f"jpt indicators --prompts {prompts} --neurons {neurons}"
        f" --transfer {transfer} --out {out}",
        "mask": f"jpt mask --prompts {prompts} --ratio 0.2 --out {out}",
    }


def read_similarities(path: str | Path) -> Similarities | None:
    """Load ``indicators.csv``."""
    if not Path(path).exists():
        return None
    rows = read_table(path, ("prompt_a", "prompt_b"))
    if not rows:
        raise InputError(f"{path} has a header but no rows; regenerate it with jpt indicators")
    names = tuple(dict.fromkeys(row[side] for row in rows for side in ("prompt_a", "prompt_b")))
    index = {name: i for i, name in enumerate(names)}
    columns = [name for name in rows[0] if name not in ("prompt_a", "prompt_b")]
    columns = [name for name in columns if not name.startswith("type_")]  # those hold text
    values = {name: np.full((len(names), len(names)), np.nan) for name in columns}
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, 2):
        pair = (row["prompt_a"], row["prompt_b"])
        if pair in seen:
            raise InputError(
                f"{path}, line {number}: second row for {pair[0]} and {pair[1]}; regenerate it with"
                " jpt indicators"
            )
        seen.add(pair)
        for name in columns:
            values[name][index[pair[0]], index[pair[1]]] = read_number(path, number, row, name)
    return Similarities(names, values)


def _mean_over_seeds(
    found: Similarities | None, matrix: TransferMatrix | None
) -> Similarities | None:
    """Average the seeds of a prompt, as the matrix does."""
    if found is None:
        return None
    owners = prompt_names(found.names, () if matrix is None else matrix.prompts)
    return found if owners == list(found.names) else Similarities(*join_runs(owners, found.values))


def _shape(path: Path) -> tuple[int, int, int] | None:
    if not path.exists():
        return None
    n_prompts, n_layers, n_neurons = read_activations(path).values.shape
    return n_prompts, n_layers, n_neurons


# --- Order of tasks and prompts

# The order of the paper's figures; other types follow alphabetically.
PAPER_TYPES = ("sentiment", "nli", "ethics", "paraphrase", "qa", "summarization")
NO_TYPE = "no type"
BASELINE = "untrained"
NO_PROMPT = "no prompt"


@dataclass(frozen=True)
class Ordering:
    """The order of rows and columns in figures and tables: by task type, then as in the files."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]  # prompts of the matrix, without the untrained one
    prompts: tuple[str, ...]  # prompts of the indicators
    every: tuple[str, ...]  # all prompts, including the untrained one and unfinished runs
    target_types: Mapping[str, str]
    prompt_types: Mapping[str, str]
    in_task: Mapping[str, str]  # target -> its in-task prompt, where there is one


def order_study(study: Study) -> Ordering:
    """Order the tasks and prompts of a study and find the in-task prompts."""
    matrix = study.transfer
    targets = matrix.targets if matrix else ()
    columns = matrix.prompts if matrix else ()
    compared = study.similarities.names if study.similarities else ()
    every = dict.fromkeys([*columns, *compared, *study.prompts])
    names = tuple(name for name in every if name != study.untouched)
    # Runs of several seeds share the column of their prompt.
    owner = dict(zip(names, prompt_names(names, columns), strict=True))
    in_task = _in_task(
        study, targets, [n for n in names if owner[n] == n or owner[n] not in columns]
    )
    target_types = {name: _target_type(study, name) for name in targets}
    prompt_types = {name: _prompt_type(study, name) for name in names}
    ordered = _by_type(targets, target_types)
    # Prompts follow the order of their tasks, so that in-task pairs form the diagonal.
    rank = {prompt: ordered.index(target) for target, prompt in in_task.items()}
    by_task = sorted(names, key=lambda name: rank.get(owner[name], len(ordered)))
    prompts = _by_type(by_task, prompt_types)
    return Ordering(
        targets=ordered,
        sources=tuple(n for n in prompts if n in columns and n != study.random),
        prompts=tuple(n for n in prompts if n in compared),
        every=prompts,
        target_types=target_types,
        prompt_types=prompt_types,
        in_task=in_task,
    )


def with_performance(study: Study, ordering: Ordering) -> Study:
    """Compute the relative scores, from the scores: other files may be of another matrix."""
    found = performances(study.transfer, ordering.in_task) if study.transfer else {}
    known = {name: each for name, each in found.items() if np.isfinite(each.values).any()}
    return replace(study, performance=known)


def values_at(
    matrix: TransferMatrix | None, targets: Iterable[str], prompts: Iterable[str]
) -> Float64[np.ndarray, "N K"]:
    """Return the matrix values in the given order, NaN where there are none."""
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
    """A target task and the prompt of another task."""

    target: str
    source: str
    score: float  # relative to that of the in-task prompt
    same_type: bool | None  # None if a type is not known


def transfer_pairs(study: Study, ordering: Ordering, measure: str | None) -> list[TransferPair]:
    """List the measured pairs of a target and another task's prompt."""
    scores = study.performance.get(measure or "")
    values = values_at(scores, ordering.targets, ordering.sources)
    found = []
    for i, target in enumerate(ordering.targets):
        for j, source in enumerate(ordering.sources):
            if ordering.in_task.get(target) == source or np.isnan(values[i, j]):
                continue
            kinds = (ordering.target_types[target], ordering.prompt_types[source])
            same = None if NO_TYPE in kinds else kinds[0] == kinds[1]
            found.append(TransferPair(target, source, float(values[i, j]), same))
    return found


def by_target(pairs: Iterable[TransferPair]) -> dict[str, list[TransferPair]]:
    """Group pairs by target."""
    found: dict[str, list[TransferPair]] = {}
    for pair in pairs:
        found.setdefault(pair.target, []).append(pair)
    return found


def random_scores(study: Study, ordering: Ordering, measure: str | None) -> list[float]:
    """Return the known relative scores of the untrained prompt."""
    scores = study.performance.get(measure or "")
    column = values_at(scores, ordering.targets, [study.random])[:, 0]
    return column[np.isfinite(column)].tolist()


def _in_task(study: Study, targets: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return the in-task prompts from transfer.json or, without it, from the prompt cards."""
    if study.record is not None and study.record.targets:
        prompts = {t: of.in_task_prompt for t, of in study.record.targets.items()}
        return {target: name for target in targets if (name := prompts.get(target))}
    cards = {}
    for name in names:
        record = study.prompts.get(name)
        cards[name] = (record and record.card) or PromptCard("", name)
    return match_in_task_prompts(targets, cards)[0]


def _target_type(study: Study, name: str) -> str:
    recorded = study.record.targets.get(name) if study.record else None
    return (recorded and recorded.type) or task_type(name) or NO_TYPE


def _prompt_type(study: Study, name: str) -> str:
    if name == study.random:
        return BASELINE
    recorded = study.record.prompt_types.get(name) if study.record else None
    record = study.prompts.get(name)
    card = record.card if record else None
    of_card = card and (card.task_type or task_type(short_task(card.task)))
    return recorded or of_card or task_type(name) or NO_TYPE


def _by_type(names: Iterable[str], types: Mapping[str, str]) -> tuple[str, ...]:
    """Sort by type, stably."""
    last = {NO_TYPE: 1, BASELINE: 2}

    def key(name: str) -> tuple[int, int, str]:
        kind = types[name]
        known = PAPER_TYPES.index(kind) if kind in PAPER_TYPES else len(PAPER_TYPES)
        return last.get(kind, 0), known, kind

    return tuple(sorted(names, key=key))
