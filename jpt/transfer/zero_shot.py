"""Zero-shot transfer: what every prompt does on every task, its own and the others.

Paper: section 3; there the prompts of a table are used as they are, without any training.
"""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from jpt.backbones.registry import Backbone
from jpt.data.sources import has_split
from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_json
from jpt.files.study_files import refuse_twice, write_transfer
from jpt.mesh import batch_sharding, make_mesh
from jpt.prompts.collection import load_prompts
from jpt.prompts.initialisers import initial_generator, random_values
from jpt.prompts.own import own_prompts
from jpt.prompts.store import check_prompt
from jpt.tasks.reference_names import task_type
from jpt.tasks.registry import load_task
from jpt.tasks.task import Task
from jpt.transfer.relative import describe_matrix, relative_performance
from jpt.tuning.prepare import PreparedTask, as_backbone, prepare_task
from jpt.tuning.scoring import Score
from jpt.tuning.settle import settle_length
from jpt.types import Prompt, TransferMatrix
from jpt.version import __version__

RANDOM = "random"
TRANSFER, RELATIVE, RECORD = "transfer.csv", "relative.csv", "transfer.json"


@dataclass(frozen=True)
class TransferResult:
    """What `transfer_matrix` measured.

    Attributes:
        matrix: the scores; the column ``random``, where there is one, is the untrained start.
        relative: each score over that of the target's own prompt; NaN where there is none.
        own: the own prompt of each target that has one.
        record: types, majority shares, rows, versions, as in ``transfer.json``.
        scores: every score by (target, prompt).
    """

    matrix: TransferMatrix
    relative: TransferMatrix
    own: dict[str, str]
    record: dict[str, Any]
    scores: dict[tuple[str, str], Score]

    def describe(self) -> str:
        """Lays the matrix out for reading: targets down, prompts across, own prompts marked."""
        return describe_matrix(self.matrix, self.own, self.record["notes"])


@dataclass(frozen=True)
class _Study:
    """Everything a matrix is made of, before anything is compiled."""

    backbone: Backbone
    mesh: Mesh
    prompts: dict[str, Prompt]
    tasks: dict[str, Task]
    prepared: dict[str, PreparedTask]
    splits: dict[str, str]


def transfer_matrix(
    prompts: Mapping[str, Prompt] | str | Path,
    tasks: Iterable[Task | str | Path] | None = None,
    out: str | Path | None = None,
    *,
    split: str = "test",
    backbone: Backbone | str | Path | None = None,
    random: bool = True,
    seed: int = 0,
    max_tokens: int | None = None,
    eval_batch_size: int = 64,
    dtype: str = "float32",
    mesh: str | None = None,
    data: str | Path | None = None,
    progress: bool = False,
) -> TransferResult:
    """Scores every prompt on every task, as it is.

    Args:
        prompts: a folder, or prompts by name; all of one backbone and length.
        tasks: the targets; by default the tasks that the prompts' cards name.
        out: folder for ``transfer.csv``, ``relative.csv`` and ``transfer.json``.
        split: that is scored; a target without it is scored on validation, and that is said.
        backbone: instead of the one that the cards name; the width is checked.
        random: whether an untrained start is scored too (the paper's code: uniform from 0 to 1).
        seed: of that start.
        max_tokens: longest text in tokens; by default the backbone's own choice.
        eval_batch_size: rows at once; changes speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis.
        data: a folder that holds a folder of rows for each catalog task.
        progress: whether to show a bar on stderr.

    Returns:
        Absolute and relative performance.

    Raises:
        InputError: prompts that do not belong together, two targets of one name, broken data.

    Example:
        >>> from jpt.tuning.tune import tune
        >>> tuned = tune("builtin/bert-small", "builtin/imdb_number", steps=1)
        >>> result = transfer_matrix({"number": tuned.prompt}, ["builtin/imdb_number"])
        >>> result.matrix.values.shape, float(result.relative.values[0, 0])
        ((1, 2), 1.0)
    """
    started_s = time.monotonic()
    loaded = load_prompts(prompts)
    named = _tasks(tasks, loaded, data)
    study = _prepare(loaded, named, split, backbone, max_tokens, eval_batch_size, dtype, mesh)
    if random and RANDOM not in study.prompts:
        study.prompts[RANDOM] = _random_prompt(study, seed)
    scores = _score_all(study, progress)
    drawn = {"name": RANDOM, "seed": seed, "init": RANDOM} if random else None
    facts = {"split": split, "random": drawn, "command": _command(prompts, study, out)}
    facts["elapsed_s"] = round(time.monotonic() - started_s, 2)
    result = _result(study, scores, facts)
    if out is not None:
        _write(Path(out), result)
    return result


def _tasks(
    tasks: Iterable[Task | str | Path] | None,
    prompts: Mapping[str, Prompt],
    data: str | Path | None,
) -> dict[str, Task]:
    """The targets by short name."""
    asked = list(tasks) if tasks is not None else [p.card.task for p in prompts.values()]
    if tasks is None:
        asked = sorted(set(asked))
    if not asked:
        raise InputError("no tasks were given; name at least one, for instance builtin/imdb")
    loaded = [task if isinstance(task, Task) else _load(task, data) for task in asked]
    refuse_twice([task.short_name for task in loaded], "tasks")
    return {task.short_name: task for task in loaded}


def _load(task: str | Path, data: str | Path | None) -> Task:
    if data is None or str(task).startswith("builtin/") or not (Path(data) / str(task)).is_dir():
        return load_task(task)
    return load_task(task, Path(data) / str(task))


def _prepare(
    prompts: dict[str, Prompt],
    tasks: dict[str, Task],
    split: str,
    backbone: Backbone | str | Path | None,
    max_tokens: int | None,
    eval_batch_size: int,
    dtype: str,
    mesh: str | None,
) -> _Study:
    """Loads and checks everything, cheap things first, before anything is compiled."""
    devices = make_mesh(mesh)
    batch_sharding(devices, eval_batch_size)
    prompt = next(iter(prompts.values()))
    name = backbone if backbone is not None else prompt.card.backbone
    model = as_backbone(name, dtype, mesh=devices)
    check_prompt(prompt, model.name, model.config.width, model.layout, backbone is not None)
    rows, first = len(prompt.values), prompt.card.first_position or 0
    prepared = {}
    for short_name, task in tasks.items():
        tokens = settle_length(max_tokens, model, task, rows, first)
        prepared[short_name] = prepare_task(task, model, tokens, eval_batch_size, first)
    splits = {
        name: split if has_split(task, split) else "validation" for name, task in tasks.items()
    }
    return _Study(model, devices, dict(prompts), tasks, prepared, splits)


def _random_prompt(study: _Study, seed: int) -> Prompt:
    first = next(iter(study.prompts.values()))
    name = study.backbone.name
    generator = initial_generator(seed, name, RANDOM)
    values = random_values(generator, *first.values.shape, study.backbone.init_std())
    return Prompt(values, first.card)


def _score_all(study: _Study, progress: bool) -> dict[tuple[str, str], Score]:
    values = [prompt.values for prompt in study.prompts.values()]
    # All rows are read before anything is compiled: broken data shows at once.
    rows = {name: of.split(study.splits[name]) for name, of in study.prepared.items()}
    scores = {}
    cells = len(rows) * len(values)
    with tqdm(total=cells, disable=not progress, unit="pair", dynamic_ncols=True) as bar:
        for name, prepared in study.prepared.items():
            bar.set_postfix_str(name, refresh=False)
            found = prepared.score(values, rows[name], study.mesh)
            scores |= {
                (name, prompt): score for prompt, score in zip(study.prompts, found, strict=True)
            }
            bar.update(len(values))
    return scores


def _result(
    study: _Study, scores: dict[tuple[str, str], Score], facts: dict[str, Any]
) -> TransferResult:
    """Puts the scores into a matrix, and says what it is made of."""
    values: Float[np.ndarray, "N K"] = np.array(
        [[scores[task, prompt].value for prompt in study.prompts] for task in study.tasks]
    )
    metrics = tuple(task.metric for task in study.tasks.values())
    matrix = TransferMatrix(tuple(study.tasks), tuple(study.prompts), values, metrics)
    cards = {name: prompt.card for name, prompt in study.prompts.items() if name != RANDOM}
    own, notes = own_prompts(matrix.targets, cards)
    notes += [
        f"{name} has no {facts['split']} split: scored on {used}"
        for name, used in study.splits.items()
        if used != facts["split"]
    ]
    record = {
        "backbone": study.backbone.name,
        "targets": _targets_record(study, scores, own),
        "prompts": {
            name: {"task": card.task, "type": card.task_type or task_type(card.task)}
            for name, card in cards.items()
        },
        "versions": {
            "jpt": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "device": f"{study.mesh.devices.size} x {study.mesh.devices.flat[0].device_kind}",
        **facts,
        "notes": notes,
    }
    return TransferResult(matrix, relative_performance(matrix, own), own, record, scores)


def _targets_record(
    study: _Study, scores: Mapping[tuple[str, str], Score], own: Mapping[str, str]
) -> dict[str, Any]:
    first = next(iter(study.prompts))
    return {
        name: {
            "task": task.name,
            "type": task.type,
            "metric": task.metric,
            "majority": scores[name, first].majority,
            "rows": scores[name, first].rows,
            "split": study.splits[name],
            "own_prompt": own.get(name),
        }
        for name, task in study.tasks.items()
    }


def _command(
    prompts: Mapping[str, Prompt] | str | Path, study: _Study, out: str | Path | None
) -> str | None:
    """The command that gives this matrix again, where the prompts lie in a folder."""
    if not isinstance(prompts, (str, Path)) or out is None:
        return None
    names = ",".join(str(task.folder or task.name) for task in study.tasks.values())
    words = ["jpt", "transfer", "--prompts", str(prompts), "--tasks", names, "--out", str(out)]
    return shlex.join(words)


def _write(folder: Path, result: TransferResult) -> None:
    make_folder(folder)
    write_transfer(folder / TRANSFER, result.matrix)
    write_transfer(folder / RELATIVE, result.relative)
    write_json(folder / RECORD, result.record)
