"""Score every prompt on every task without training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from tqdm import tqdm

from jpt.backbones.registry import Backbone
from jpt.config import SPLITS, TransferOptions
from jpt.data.rows import Row, has_split, read_rows, rows_checksum
from jpt.errors import InputError, unknown_name
from jpt.io.files import write_json
from jpt.parallel import batch_sharding, describe_devices, make_mesh
from jpt.prompts.initialisers import initial_generator, random_values
from jpt.prompts.store import Prompts, check_prompt, load_seed_prompts, run_name
from jpt.results.prompt_table import (
    ABOVE_CHANCE,
    ERRORS,
    RANDOM,
    RELATIVE,
    UNTOUCHED,
    chance_notes,
    chance_record,
    check_unique,
    describe_matrix,
    describe_relative,
    match_in_task_prompts,
    performances,
    summarize_transfer,
    write_errors,
    write_transfer,
)
from jpt.results.provenance import environment_info
from jpt.results.score_table import CELLS, Cell, CellFile, make_cell
from jpt.results.statistics import error_over_seeds
from jpt.tasks.catalog import load_task, task_type
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    BoundTask,
    Weights,
    bind,
    prompts_at_once,
    resolve_backbone,
    scoring_notes,
    weights_of,
)
from jpt.types import Prompt, PromptCard, Score, TransferMatrix
from jpt.version import __version__

# --- Plan of a transfer matrix

# Task fields about where rows come from; the rows themselves have a checksum.
_INHERITED = ("template", "label_words", "max_tokens", "label_scoring", "answer_tokens")
_SOURCE_FIELDS = ("name", "type", "hub", "folder", "files", "rows", "label_field")


class MatrixRun(NamedTuple):
    """A scored prompt: a column of the matrix, or one seed of a column."""

    column: str
    seed: int | None  # None if the column has one run
    prompt: Prompt | None  # None for the baselines, which need the model

    @property
    def name(self) -> str:
        """Name in records, for instance ``imdb/seed-0``."""
        return run_name(self.column, self.seed)


@dataclass(frozen=True)
class MatrixPlan:
    """Runs and targets of a matrix, known before a model is loaded."""

    runs: tuple[MatrixRun, ...]  # baselines last; seeds of a column are adjacent
    tasks: dict[str, Task]  # targets by short name
    splits: dict[str, str]  # scored split of each target
    rows: dict[str, list[Row]]  # rows of that split
    seed: int  # of the random prompt

    @property
    def first(self) -> Prompt:
        """First prompt; all have its backbone, layout, length and width."""
        return next(run.prompt for run in self.runs if run.prompt is not None)

    @property
    def columns(self) -> dict[str, list[MatrixRun]]:
        """Runs of each column."""
        found: dict[str, list[MatrixRun]] = {}
        for run in self.runs:
            found.setdefault(run.column, []).append(run)
        return found

    @property
    def cards(self) -> dict[str, PromptCard]:
        """Card of each column except baselines."""
        named = ((name, runs[0].prompt) for name, runs in self.columns.items())
        return {name: prompt.card for name, prompt in named if prompt and name != RANDOM}

    @property
    def in_task(self) -> dict[str, PromptCard]:
        """Card of the in-task prompt of each target that has one."""
        found = match_in_task_prompts(self.tasks, self.cards)[0]
        return {target: self.cards[name] for target, name in found.items()}

    def bind(self, target: str, model: Backbone, options: Any) -> BoundTask:
        """Bind a target; its whole row is scored as its in-task prompt was tuned."""
        return bind(self.tasks[target], model, options, self.first, self.in_task.get(target))

    def notes(self, options: Any, backbone: Weights) -> list[str]:
        """Return where prompts are scored otherwise than they were tuned."""
        cards = {run.name: run.prompt.card for run in self.runs if run.prompt is not None}
        found = (
            scoring_notes(cards, task, options, backbone, self.in_task.get(name))
            for name, task in self.tasks.items()
        )
        return list(dict.fromkeys(note for notes in found for note in notes))

    def contents(self) -> dict[str, dict[str, Any]]:
        """Return what the scores of each target depend on: task, rows and settings."""
        return {
            name: {
                "task": _task_checksum(task),
                "split": self.splits[name],
                "rows": rows_checksum(self.rows[name]),
                **self._settings(name),
            }
            for name, task in self.tasks.items()
        }

    def _settings(self, target: str) -> dict[str, Any]:
        card = self.in_task.get(target)
        if card is None or card.scoring is None:
            return {}
        scoring = card.scoring.to_json()
        return {"scoring": {name: scoring[name] for name in _INHERITED if name in scoring}}

    def identity(self, run: MatrixRun) -> dict[str, Any]:
        """Return what the scores of a run depend on."""
        card, shape = self.first.card, list(self.first.values.shape)
        common = {"shape": shape, "first_position": card.first_position or 0}
        if run.prompt is not None:
            values = np.ascontiguousarray(run.prompt.values, np.float32)
            return {"prompt": hashlib.sha256(values.tobytes()).hexdigest()[:16], **common}
        seed = {"seed": self.seed} if run.column == RANDOM else {}
        return {"prompt": run.column, **seed, **common}


def plan_matrix(
    prompts: Prompts,
    tasks: Iterable[Task | str | Path] | None,
    split: str,
    data: str | Path | None,
    random: bool,
    untouched: bool,
    seed: int,
) -> MatrixPlan:
    """Load and check prompts, tasks and rows."""
    loaded = load_seed_prompts(prompts)
    if UNTOUCHED in loaded:
        raise InputError(
            f"prompt {UNTOUCHED}: this name is reserved for the model without a prompt; rename it"
        )
    named = _tasks(tasks, [prompt for of in loaded.values() for prompt in of.values()], data)
    runs = [MatrixRun(name, s, prompt) for name, of in loaded.items() for s, prompt in of.items()]
    if random and RANDOM not in loaded:
        runs.append(MatrixRun(RANDOM, None, None))
    if untouched:
        runs.append(MatrixRun(UNTOUCHED, None, None))
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    splits = {
        name: split if has_split(task, split) else "validation" for name, task in named.items()
    }
    # Read all rows before a model is loaded, so that broken data is reported at once.
    rows = {name: read_rows(task, splits[name]) for name, task in named.items()}
    return MatrixPlan(tuple(runs), named, splits, rows, seed)


def _tasks(
    tasks: Iterable[Task | str | Path] | None,
    prompts: Iterable[Prompt],
    data: str | Path | None,
) -> dict[str, Task]:
    """Return the targets by short name."""
    if tasks is None:
        asked = sorted({prompt.card.task for prompt in prompts})
    else:
        asked = list(tasks)
    if not asked:
        raise InputError("tasks: expected at least one, got none; give for instance builtin/imdb")
    loaded = [task if isinstance(task, Task) else _load(task, data) for task in asked]
    check_unique([task.short_name for task in loaded], "tasks")
    return {task.short_name: task for task in loaded}


def _load(task: str | Path, data: str | Path | None) -> Task:
    if data is None or str(task).startswith("builtin/") or not (Path(data) / str(task)).is_dir():
        return load_task(task)
    return load_task(task, Path(data) / str(task))


def _task_checksum(task: Task) -> str:
    values: Mapping[str, Any] = {
        each.name: getattr(task, each.name)
        for each in dataclasses.fields(task)
        if each.name not in _SOURCE_FIELDS
    }
    text = json.dumps(values, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


# --- Matrix and record from scored cells

Cells = Mapping[tuple[str, str], Cell]
"""Cells by target and run."""


def make_matrix(plan: MatrixPlan, cells: Cells) -> TransferMatrix:
    """Return the matrix of the cells, averaged over seeds."""
    values, errors = np.empty((2, len(plan.tasks), len(plan.columns)))
    for row, task in enumerate(plan.tasks):
        for column, runs in enumerate(plan.columns.values()):
            found = _record_values(cells, task, runs)
            values[row, column] = np.mean(found)
            of_seeds = [cells[task, run.name].standard_error for run in runs]
            errors[row, column] = error_over_seeds(found, of_seeds)
    chance = [cells[task, plan.runs[0].name].chance for task in plan.tasks]
    metrics = tuple(task.metric for task in plan.tasks.values())
    measured = (values, metrics, np.array(chance, np.float64), errors)
    return TransferMatrix(tuple(plan.tasks), tuple(plan.columns), *measured)


def make_record(
    plan: MatrixPlan, cells: Cells, matrix: TransferMatrix, split: str, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``transfer.json``."""
    in_task, notes = match_in_task_prompts(matrix.targets, plan.cards)
    notes += chance_notes(matrix, in_task)
    notes += [
        f"{name} has no {split} split: scored on {used}"
        for name, used in plan.splits.items()
        if used != split
    ]
    prompts = {
        name: {"task": card.task, "type": card.task_type or task_type(card.task)}
        for name, card in plan.cards.items()
    }
    kinds = {name: each["type"] for name, each in prompts.items()}
    target_types = {name: task.type for name, task in plan.tasks.items()}
    return {
        "backbone": run["backbone"],
        "targets": _targets(plan, cells, in_task, matrix),
        "prompts": prompts,
        **_seeds(plan, cells),
        **summarize_transfer(matrix, in_task, target_types, kinds),
        **environment_info(),
        "device": run["device"],
        "split": split,
        "random": _random(plan),
        "untouched": {"name": UNTOUCHED} if UNTOUCHED in plan.columns else None,
        "command": run["command"],
        "elapsed_s": round(sum(cell.elapsed_s for cell in cells.values()), 2),
        "notes": notes,
    }


def _record_values(cells: Cells, task: str, runs: list[Any]) -> list[float]:
    return [cells[task, run.name].value for run in runs]


def _targets(
    plan: MatrixPlan, cells: Cells, in_task: Mapping[str, str], matrix: TransferMatrix
) -> dict[str, Any]:
    first, levels = plan.runs[0].name, chance_record(matrix)
    return {
        name: {
            "task": task.name,
            "type": task.type,
            "metric": task.metric,
            "majority": cells[name, first].majority,
            "rows": cells[name, first].rows,
            "split": plan.splits[name],
            "in_task_prompt": in_task.get(name),
            **levels[name],
        }
        for name, task in plan.tasks.items()
    }


def _seeds(plan: MatrixPlan, cells: Cells) -> dict[str, Any]:
    """Return values, mean and sample standard deviation by target of columns with seeds."""
    several = {name: runs for name, runs in plan.columns.items() if runs[0].seed is not None}
    found = {}
    for name, runs in several.items():
        by_target = {}
        for task in plan.tasks:
            values = _record_values(cells, task, runs)
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            by_target[task] = {"mean": float(np.mean(values)), "std": std, "values": values}
        found[name] = {"seeds": [run.seed for run in runs], "targets": by_target}
    return {"seeds": found} if found else {}


def _random(plan: MatrixPlan) -> dict[str, Any] | None:
    """Return the origin of the random prompt: sampled here, or one of the given prompts."""
    runs = plan.columns.get(RANDOM)
    if runs is None:
        return None
    if runs[0].prompt is not None:
        return {"name": RANDOM, "init": runs[0].prompt.card.init}
    return {"name": RANDOM, "seed": plan.seed, "init": RANDOM}


# --- Zero-shot transfer (paper, section 3)

TRANSFER, RECORD = "transfer.csv", "transfer.json"


@dataclass(frozen=True)
class TransferResult:
    """Result of `transfer_matrix`.

    Attributes:
        matrix: Scores, averaged over seeds; column ``random`` is an untrained prompt, ``none`` the
            model without a prompt.
        relative: Scores divided by that of the target's in-task prompt; NaN without one.
        above_chance: The same with the chance level subtracted from both scores; also NaN where the
            in-task score is not more than two standard errors above chance.
        in_task: In-task prompt of each target that has one.
        record: Task types, means by type, chance levels, standard errors, seeds and versions, as
            in ``transfer.json``.
        cells: Value, loss and number of rows by target and run; runs of seeds are ``NAME/seed-S``.
        scores: Scores with predictions, likewise; only those measured by this call, not those
            found in ``cells.jsonl``.
    """

    matrix: TransferMatrix
    relative: TransferMatrix
    above_chance: TransferMatrix
    in_task: dict[str, str]
    record: dict[str, Any]
    cells: dict[tuple[str, str], Cell]
    scores: dict[tuple[str, str], Score]

    def describe(self) -> str:
        """Return the matrix as text: targets down, prompts across, in-task prompts marked."""
        deviations = {
            (target, prompt): each["std"]
            for prompt, of in self.record.get("seeds", {}).items()
            for target, each in of["targets"].items()
            if each["std"] is not None
        }
        text = describe_matrix(self.matrix, self.in_task, self.record["notes"], deviations)
        return "\n".join([text, *describe_relative(self.record)])


class _Model(NamedTuple):
    """The model to score, loaded or not."""

    backbone: Backbone | str | Path
    is_named: bool
    mesh: Mesh

    @property
    def name(self) -> str:
        return self.backbone.name if isinstance(self.backbone, Backbone) else str(self.backbone)


def transfer_matrix(
    prompts: Prompts,
    tasks: Iterable[Task | str | Path] | None = None,
    out: str | Path | None = None,
    *,
    backbone: Backbone | str | Path | None = None,
    data: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> TransferResult:
    """Score every prompt on every task, without training (paper, section 3).

    A prompt may have several seeds: a folder ``NAME/`` of run folders ``seed-S/``, or
    ``{"NAME": {0: prompt, 1: prompt}}``. Its column is the mean over the seeds; the values and
    their standard deviation are in the record.

    Args:
        prompts: Folder of prompts, or prompts by name; all of one backbone and length.
        tasks: Target tasks; defaults to those named by the prompts' cards.
        out: Folder for ``transfer.csv``, ``relative.csv``, ``above_chance.csv``,
            ``standard_errors.csv``, ``transfer.json`` and ``cells.jsonl``, which gets a line for
            each score as soon as it is measured. Repeat the call to resume; a finished matrix is
            returned without loading the model.
        backbone: Backbone to use instead of the one in the cards; the width is checked.
        data: Folder with a subfolder of rows for each catalog task.
        progress: Show a progress bar on stderr.
        **options: Fields of :class:`jpt.config.TransferOptions`.

    Returns:
        The :class:`TransferResult`, with absolute and relative performance.

    Raises:
        InputError: If prompts are incompatible, seeds of a prompt are of two tasks, two targets
            have one name, or rows or ``cells.jsonl`` are broken.

    Example:
        >>> import numpy as np
        >>> from jpt.types import Prompt, PromptCard
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb_number")
        >>> prompt = Prompt(np.ones((4, 128), np.float32), card)
        >>> result = transfer_matrix({"number": prompt}, random=False, max_tokens=8)
        >>> result.matrix.prompts, float(result.relative.values[0, 0])
        (('number', 'none'), 1.0)
    """
    settings = TransferOptions(**options)
    mesh = make_mesh(settings.mesh)
    batch_sharding(mesh, settings.eval_batch_size)
    baselines = {"random": settings.random, "untouched": settings.untouched}
    plan = plan_matrix(prompts, tasks, settings.split, data, seed=settings.seed, **baselines)
    chosen = backbone if backbone is not None else plan.first.card.backbone
    model = _Model(chosen, backbone is not None, mesh)
    file = CellFile(None if out is None else Path(out) / CELLS)
    weights = weights_of(chosen, settings.dtype)
    cells, scores = _measure(plan, model, settings, weights, file, progress)
    result = _result(plan, model, settings, cells, scores, _command(prompts, plan, out))
    result.record["notes"] += plan.notes(settings, weights)
    if out is not None:
        _write(file, result)
    return result


def _result(
    plan: MatrixPlan,
    model: _Model,
    settings: TransferOptions,
    cells: dict[tuple[str, str], Cell],
    scores: dict[tuple[str, str], Score],
    command: str | None,
) -> TransferResult:
    matrix = make_matrix(plan, cells)
    run = {"backbone": model.name, "device": describe_devices(model.mesh), "command": command}
    record = make_record(plan, cells, matrix, settings.split, run)
    prompts = {target: each["in_task_prompt"] for target, each in record["targets"].items()}
    in_task = {target: prompt for target, prompt in prompts.items() if prompt}
    found = performances(matrix, in_task)
    return TransferResult(
        matrix, **found, in_task=in_task, record=record, cells=cells, scores=scores
    )


def _measure(
    plan: MatrixPlan,
    model: _Model,
    settings: TransferOptions,
    weights: Weights,
    file: CellFile,
    progress: bool,
) -> tuple[dict[tuple[str, str], Cell], dict[tuple[str, str], Score]]:
    """Return cached cells and score the missing ones, several prompts at once."""
    of = _dependencies(plan, weights, settings)
    missing = {pair: depends for pair, depends in of.items() if file.find(depends) is None}
    scores: dict[tuple[str, str], Score] = {}
    if missing:
        scorer = _Scorer(plan, model, settings)
        file.open()
        with tqdm(total=len(of), disable=not progress, unit="pair", dynamic_ncols=True) as bar:
            bar.update(len(of) - len(missing))
            for target, names in _groups(missing, prompts_at_once(model.mesh)):
                started_s = time.monotonic()
                bar.set_postfix_str(target, refresh=False)
                found = scorer.score(target, names)
                elapsed_s = (time.monotonic() - started_s) / len(names)
                for name, score in zip(names, found, strict=True):
                    scores[target, name] = score
                    depends = missing[target, name]
                    file.add(make_cell(target, name, score, elapsed_s, depends))
                    bar.update()
    cells = {pair: file.find(depends) for pair, depends in of.items()}
    return {pair: cell for pair, cell in cells.items() if cell is not None}, scores


def _groups(pairs: Iterable[tuple[str, str]], count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the runs of each target in groups of `count`."""
    for target, of in groupby(pairs, key=lambda pair: pair[0]):
        names = [name for _, name in of]
        for start in range(0, len(names), count):
            yield target, names[start : start + count]


def _dependencies(
    plan: MatrixPlan, weights: Weights, settings: TransferOptions
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return all that each score depends on, without reading weights."""
    common = {
        "jpt": __version__,
        "backbone": weights.fingerprint,
        "dtype": weights.dtype,
        "max_tokens": settings.max_tokens,
        "label_scoring": settings.label_scoring,
        "settings": settings.settings,
    }
    if any(run.column == RANDOM for run in plan.runs):
        common["random"] = weights.name
    identities = {run.name: plan.identity(run) for run in plan.runs}
    return {
        (target, name): {**identity, **content, **common}
        for target, content in plan.contents().items()
        for name, identity in identities.items()
    }


class _Scorer:
    """A loaded model with the tasks bound to it."""

    def __init__(self, plan: MatrixPlan, chosen: _Model, settings: TransferOptions) -> None:
        self._mesh = chosen.mesh
        model = resolve_backbone(chosen.backbone, settings.dtype, mesh=chosen.mesh)
        check_prompt(plan.first, model.name, model.config.width, model.layout, chosen.is_named)
        self._values = {run.name: _values(plan, run, model) for run in plan.runs}
        self._bound = {name: plan.bind(name, model, settings) for name in plan.tasks}
        self._splits = {name: bound.encode(plan.rows[name]) for name, bound in self._bound.items()}

    def score(self, target: str, runs: list[str]) -> list[Score]:
        values = [self._values[run] for run in runs]
        return self._bound[target].score(values, self._splits[target], self._mesh, names=runs)


def _values(plan: MatrixPlan, run: MatrixRun, model: Backbone) -> Float[Array, "P D"] | None:
    """Return the prompt values of a run; None for the model without a prompt."""
    if run.prompt is not None:
        return run.prompt.values
    if run.column == UNTOUCHED:
        return None
    generator = initial_generator(plan.seed, model.name, RANDOM)
    return random_values(generator, *plan.first.values.shape, model.init_std())


def _command(prompts: Prompts, plan: MatrixPlan, out: str | Path | None) -> str | None:
    """Return the command that reproduces this matrix, if the prompts are in a folder."""
    if not isinstance(prompts, (str, Path)) or out is None:
        return None
    names = ",".join(str(task.folder or task.name) for task in plan.tasks.values())
    words = ["jpt", "transfer", "--prompts", str(prompts), "--tasks", names, "--out", str(out)]
    return shlex.join(words)


def _write(file: CellFile, result: TransferResult) -> None:
    write_transfer(file.file(TRANSFER), result.matrix)
    write_transfer(file.file(RELATIVE), result.relative)
    write_transfer(file.file(ABOVE_CHANCE), result.above_chance, blank=True)
    write_errors(file.file(ERRORS), result.matrix)
    write_json(file.file(RECORD), result.record)
