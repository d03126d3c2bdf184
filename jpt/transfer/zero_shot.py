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

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from tqdm import tqdm

from jpt.backbones.registry import Backbone, weights_fingerprint
from jpt.config import SPLITS, TransferOptions
from jpt.data.encode import encode_cached
from jpt.data.rows import Row, has_split, read_rows, rows_checksum
from jpt.errors import InputError, unknown_name
from jpt.io.files import make_folder, write_json
from jpt.parallel import batch_sharding, describe_devices, make_mesh
from jpt.prompts.initialisers import initial_generator, random_values
from jpt.prompts.store import Prompts, check_prompt, load_seed_prompts, run_name
from jpt.results.prompt_table import (
    RANDOM,
    UNTOUCHED,
    describe_matrix,
    describe_types,
    match_in_task_prompts,
    refuse_twice,
    relative_performance,
    summarize_transfer,
    write_transfer,
)
from jpt.results.provenance import environment_info
from jpt.results.score_table import CELLS, Cell, CellFile, make_cell
from jpt.tasks.catalog import load_task, task_type
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    BoundTask,
    bind_task,
    prompts_at_once,
    resolve_backbone,
    resolve_max_tokens,
)
from jpt.types import Prompt, PromptCard, Score, TransferMatrix
from jpt.version import __version__

# --- What a transfer matrix is made of, before a model is loaded: runs, tasks, and their rows

# Of a task, these say where rows come from; what the rows are is told by their checksum.
_PLACES = ("name", "type", "hub", "folder", "files", "rows", "label_field")


class MatrixRun(NamedTuple):
    """One prompt that is scored: a column of the matrix, or one of the seeds behind a column."""

    column: str  # name of the column
    seed: int | None  # of this run, where the column is the mean of several
    # what is scored; None for the baselines, which are made once the model is loaded
    prompt: Prompt | None

    @property
    def name(self) -> str:
        """Its name in records, for instance ``imdb/seed-0``."""
        return run_name(self.column, self.seed)


@dataclass(frozen=True)
class MatrixPlan:
    """Runs and targets of a matrix; nothing in it needs a model."""

    # the prompts, baselines last; the seeds of a column follow each other
    runs: tuple[MatrixRun, ...]
    tasks: dict[str, Task]  # the targets by short name
    splits: dict[str, str]  # which split of each target is scored
    rows: dict[str, list[Row]]  # the rows of that split
    seed: int  # of the random start

    @property
    def first(self) -> Prompt:
        """A prompt that stands for all: they have one backbone, layout, length and width."""
        return next(run.prompt for run in self.runs if run.prompt is not None)

    @property
    def columns(self) -> dict[str, list[MatrixRun]]:
        """The runs behind each column."""
        found: dict[str, list[MatrixRun]] = {}
        for run in self.runs:
            found.setdefault(run.column, []).append(run)
        return found

    @property
    def cards(self) -> dict[str, PromptCard]:
        """The card of each column that is no baseline."""
        named = ((name, runs[0].prompt) for name, runs in self.columns.items())
        return {name: prompt.card for name, prompt in named if prompt and name != RANDOM}

    def contents(self) -> dict[str, dict[str, Any]]:
        """Gives what a target's scores depend on: the question and the rows."""
        return {
            name: {
                "task": _task_checksum(task),
                "split": self.splits[name],
                "rows": rows_checksum(self.rows[name]),
            }
            for name, task in self.tasks.items()
        }

    def identity(self, run: MatrixRun) -> dict[str, Any]:
        """Gives what a run's scores depend on."""
        card, shape = self.first.card, list(self.first.values.shape)
        told = {"shape": shape, "first_position": card.first_position or 0}
        if run.prompt is not None:
            values = np.ascontiguousarray(run.prompt.values, np.float32)
            return {"prompt": hashlib.sha256(values.tobytes()).hexdigest()[:16], **told}
        seed = {"seed": self.seed} if run.column == RANDOM else {}
        return {"prompt": run.column, **seed, **told}


def plan_matrix(
    prompts: Prompts,
    tasks: Iterable[Task | str | Path] | None,
    split: str,
    data: str | Path | None,
    random: bool,
    untouched: bool,
    seed: int,
) -> MatrixPlan:
    """Loads and checks prompts, tasks and rows."""
    loaded = load_seed_prompts(prompts)
    if UNTOUCHED in loaded:
        raise InputError(
            f"a prompt is called {UNTOUCHED}, which stands for the model without a prompt in every"
            " table; rename it"
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
    # All rows are read before anything is loaded or compiled: broken data shows at once.
    rows = {name: read_rows(task, splits[name]) for name, task in named.items()}
    return MatrixPlan(tuple(runs), named, splits, rows, seed)


def _tasks(
    tasks: Iterable[Task | str | Path] | None,
    prompts: Iterable[Prompt],
    data: str | Path | None,
) -> dict[str, Task]:
    """The targets by short name."""
    if tasks is None:
        asked = sorted({prompt.card.task for prompt in prompts})
    else:
        asked = list(tasks)
    if not asked:
        raise InputError("no tasks were given; name at least one, for instance builtin/imdb")
    loaded = [task if isinstance(task, Task) else _load(task, data) for task in asked]
    refuse_twice([task.short_name for task in loaded], "tasks")
    return {task.short_name: task for task in loaded}


def _load(task: str | Path, data: str | Path | None) -> Task:
    if data is None or str(task).startswith("builtin/") or not (Path(data) / str(task)).is_dir():
        return load_task(task)
    return load_task(task, Path(data) / str(task))


def _task_checksum(task: Task) -> str:
    told: Mapping[str, Any] = {
        each.name: getattr(task, each.name)
        for each in dataclasses.fields(task)
        if each.name not in _PLACES
    }
    text = json.dumps(told, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


# --- From the cells of a transfer matrix to what is written and told of it

Cells = Mapping[tuple[str, str], Cell]
"""Cells by target and run."""


def make_matrix(plan: MatrixPlan, cells: Cells) -> TransferMatrix:
    """Puts cells into a matrix; a column of several seeds has their mean."""
    values = [
        [np.mean(_record_values(cells, task, runs)) for runs in plan.columns.values()]
        for task in plan.tasks
    ]
    metrics = tuple(task.metric for task in plan.tasks.values())
    return TransferMatrix(tuple(plan.tasks), tuple(plan.columns), np.array(values), metrics)


def make_record(
    plan: MatrixPlan, cells: Cells, matrix: TransferMatrix, split: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Says what a matrix is made of and what it shows."""
    in_task, notes = match_in_task_prompts(matrix.targets, plan.cards)
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
        "backbone": facts["backbone"],
        "targets": _targets(plan, cells, in_task),
        "prompts": prompts,
        **_seeds(plan, cells),
        **summarize_transfer(matrix, in_task, target_types, kinds),
        **environment_info(),
        "device": facts["device"],
        "split": split,
        "random": _random(plan),
        "untouched": {"name": UNTOUCHED} if UNTOUCHED in plan.columns else None,
        "command": facts["command"],
        "elapsed_s": round(sum(cell.elapsed_s for cell in cells.values()), 2),
        "notes": notes,
    }


def _record_values(cells: Cells, task: str, runs: list[Any]) -> list[float]:
    return [cells[task, run.name].value for run in runs]


def _targets(plan: MatrixPlan, cells: Cells, in_task: Mapping[str, str]) -> dict[str, Any]:
    first = plan.runs[0].name
    return {
        name: {
            "task": task.name,
            "type": task.type,
            "metric": task.metric,
            "majority": cells[name, first].majority,
            "rows": cells[name, first].rows,
            "split": plan.splits[name],
            "in_task_prompt": in_task.get(name),
        }
        for name, task in plan.tasks.items()
    }


def _seeds(plan: MatrixPlan, cells: Cells) -> dict[str, Any]:
    """Of columns with seeds: every value, mean and sample standard deviation, by target."""
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
    """How the untrained prompt was made: drawn here, or one of the prompts that were given."""
    runs = plan.columns.get(RANDOM)
    if runs is None:
        return None
    if runs[0].prompt is not None:
        return {"name": RANDOM, "init": runs[0].prompt.card.init}
    return {"name": RANDOM, "seed": plan.seed, "init": RANDOM}


# --- Zero-shot transfer: what every prompt does on every task, its own and the others
# Paper: section 3; there the prompts of a table are used as they are, without any training.

TRANSFER, RELATIVE, RECORD = "transfer.csv", "relative.csv", "transfer.json"


@dataclass(frozen=True)
class TransferResult:
    """What `transfer_matrix` measured.

    Attributes:
        matrix: the scores, of several seeds their mean; the column ``random``, where there is one,
            is the untrained start, and ``none`` the model without a prompt.
        relative: each score over that of the target's own prompt; NaN where there is none.
        own: the own prompt of each target that has one.
        record: types, means by type, majority shares, seeds, versions, as in ``transfer.json``.
        cells: value, loss and rows by target and run; a seed's run is called ``NAME/seed-S``.
        scores: the scores with their predictions, likewise; only those that this call measured
            and did not find in ``cells.jsonl``.
    """

    matrix: TransferMatrix
    relative: TransferMatrix
    in_task: dict[str, str]
    record: dict[str, Any]
    cells: dict[tuple[str, str], Cell]
    scores: dict[tuple[str, str], Score]

    def describe(self) -> str:
        """Lays the matrix out for reading: targets down, prompts across, own prompts marked."""
        deviations = {
            (target, prompt): each["std"]
            for prompt, of in self.record.get("seeds", {}).items()
            for target, each in of["targets"].items()
            if each["std"] is not None
        }
        text = describe_matrix(self.matrix, self.in_task, self.record["notes"], deviations)
        means = describe_types(self.record["relative_by_type"])
        return f"{text}\n{means}" if means else text


class _Model(NamedTuple):
    """The model that is to be measured, loaded or not."""

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
    """Scores every prompt on every task, as it is.

    A prompt may have several seeds: a folder ``NAME/`` of run folders ``seed-S/``, or
    ``{"NAME": {0: prompt, 1: prompt}}``. Its column ``NAME`` is the mean over the seeds, also in
    ``transfer.csv``; each value and the standard deviation stand in the record.

    Args:
        prompts: a folder, or prompts by name; all of one backbone and length.
        tasks: the targets; by default the tasks that the prompts' cards name.
        out: folder for ``transfer.csv``, ``relative.csv``, ``transfer.json`` and ``cells.jsonl``,
            which gets a line as soon as a prompt is scored on a task. The same call goes on from
            there; a finished matrix comes back without loading the model.
        backbone: instead of the one that the cards name; the width is checked.
        data: a folder that holds a folder of rows for each catalog task.
        progress: whether to show a bar on stderr.
        **options: fields of :class:`TransferOptions`.

    Returns:
        Absolute and relative performance.

    Raises:
        InputError: prompts that do not belong together, seeds of two tasks, two targets of one
            name, broken data, a broken line of ``cells.jsonl``.

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
    folder = None if out is None else Path(out)
    cells, scores = _measure(plan, model, settings, folder, progress)
    result = _result(plan, model, settings, cells, scores, _command(prompts, plan, out))
    if folder is not None:
        _write(folder, result)
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
    facts = {
        "backbone": model.name,
        "device": describe_devices(model.mesh),
        "command": command,
    }
    record = make_record(plan, cells, matrix, settings.split, facts)
    told = record["targets"].items()
    in_task = {target: each["in_task_prompt"] for target, each in told if each["in_task_prompt"]}
    return TransferResult(
        matrix, relative_performance(matrix, in_task), in_task, record, cells, scores
    )


def _measure(
    plan: MatrixPlan,
    model: _Model,
    settings: TransferOptions,
    folder: Path | None,
    progress: bool,
) -> tuple[dict[tuple[str, str], Cell], dict[tuple[str, str], Score]]:
    """Takes what is there and scores the rest, as many prompts at once as suits the devices."""
    file = CellFile(None if folder is None else folder / CELLS)
    of = _dependencies(plan, model, settings)
    missing = {pair: depends for pair, depends in of.items() if file.find(depends) is None}
    scores: dict[tuple[str, str], Score] = {}
    if missing:
        scorer = _Scorer(plan, model, settings)
        if folder is not None:
            make_folder(folder)
        with tqdm(total=len(of), disable=not progress, unit="pair", dynamic_ncols=True) as bar:
            bar.update(len(of) - len(missing))
            for target, names in _together(missing, prompts_at_once(model.mesh)):
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


def _together(pairs: Iterable[tuple[str, str]], count: int) -> Iterator[tuple[str, list[str]]]:
    """Runs of one target, so many at a time."""
    for target, of in groupby(pairs, key=lambda pair: pair[0]):
        names = [name for _, name in of]
        for start in range(0, len(names), count):
            yield target, names[start : start + count]


def _dependencies(
    plan: MatrixPlan, model: _Model, settings: TransferOptions
) -> dict[tuple[str, str], dict[str, Any]]:
    """All that each score depends on, by target and run; known before weights are read."""
    backbone, dtype = model.backbone, settings.dtype
    if isinstance(backbone, Backbone):
        fingerprint, dtype = backbone.fingerprint, str(jax.tree.leaves(backbone.params)[0].dtype)
    else:
        fingerprint = weights_fingerprint(backbone)
    common = {
        "jpt": __version__,
        "backbone": fingerprint,
        "dtype": dtype,
        "max_tokens": settings.max_tokens,
        "label_scoring": settings.label_scoring,
    }
    if any(run.column == RANDOM for run in plan.runs):
        common["random"] = model.name
    identities = {run.name: plan.identity(run) for run in plan.runs}
    return {
        (target, name): {**identity, **content, **common}
        for target, content in plan.contents().items()
        for name, identity in identities.items()
    }


class _Scorer:
    """A loaded model and the tasks as it reads them."""

    def __init__(self, plan: MatrixPlan, chosen: _Model, settings: TransferOptions) -> None:
        self._mesh = chosen.mesh
        model = resolve_backbone(chosen.backbone, settings.dtype, mesh=chosen.mesh)
        check_prompt(plan.first, model.name, model.config.width, model.layout, chosen.is_named)
        self._values = {run.name: _values(plan, run, model) for run in plan.runs}
        rows, first = len(plan.first.values), plan.first.card.first_position or 0
        self._bound: dict[str, BoundTask] = {}
        for name, task in plan.tasks.items():
            tokens = resolve_max_tokens(settings.max_tokens, model, task, rows, first)
            self._bound[name] = bind_task(
                task, model, tokens, settings.eval_batch_size, first, settings.label_scoring
            )
        self._splits = {
            name: encode_cached(
                plan.rows[name],
                bound.task,
                model.tokenizer,
                bound.batching.max_tokens,
                model.layout,
                bound.answer_tokens,
            )
            for name, bound in self._bound.items()
        }

    def score(self, target: str, runs: list[str]) -> list[Score]:
        """Scores runs on one target."""
        values = [self._values[run] for run in runs]
        return self._bound[target].score(values, self._splits[target], self._mesh)


def _values(plan: MatrixPlan, run: MatrixRun, model: Backbone) -> Float[Array, "P D"] | None:
    """The rows in front of the text; None for the untouched model."""
    if run.prompt is not None:
        return run.prompt.values
    if run.column == UNTOUCHED:
        return None
    generator = initial_generator(plan.seed, model.name, RANDOM)
    return random_values(generator, *plan.first.values.shape, model.init_std())


def _command(prompts: Prompts, plan: MatrixPlan, out: str | Path | None) -> str | None:
    """The command that gives this matrix again, where the prompts lie in a folder."""
    if not isinstance(prompts, (str, Path)) or out is None:
        return None
    names = ",".join(str(task.folder or task.name) for task in plan.tasks.values())
    words = ["jpt", "transfer", "--prompts", str(prompts), "--tasks", names, "--out", str(out)]
    return shlex.join(words)


def _write(folder: Path, result: TransferResult) -> None:
    make_folder(folder)
    write_transfer(folder / TRANSFER, result.matrix)
    write_transfer(folder / RELATIVE, result.relative)
    write_json(folder / RECORD, result.record)
