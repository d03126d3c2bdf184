"""A new task with its source prompts, loaded and checked before a recommendation is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from jpt.analysis.choice import leave_one_out
from jpt.analysis.indicators import Indicators
from jpt.analysis.overlap import parse_layers
from jpt.analysis.seed_means import over_seeds
from jpt.analysis.transfer_pairs import is_random, serves, shorten
from jpt.backbones.registry import Backbone
from jpt.config import check_counts
from jpt.errors import InputError
from jpt.files.study_files import BASELINES, read_transfer
from jpt.mesh import batch_sharding, make_mesh
from jpt.prompts.seed_prompts import Prompts, load_runs
from jpt.prompts.store import check_prompt
from jpt.recipes.recommend_rows import labelled_task, unlabelled_task
from jpt.tasks.task import Task
from jpt.tuning.prepare import Data, PreparedTask, as_backbone, as_task, prepare_task
from jpt.tuning.settle import settle_length
from jpt.types import Prompt, TransferMatrix

PROBE_STEPS = 60


@dataclass(frozen=True)
class RecommendOptions:
    """How sources are ranked.

    Attributes:
        backbone: instead of the one that the prompts' cards name; the width is checked.
        labels: how many train rows have labels: 64 by default, or all where there are fewer; 0
            where none has.
        probe_steps: how long the probe is tuned.
        learning_rate: of the probe; by default the backbone's own choice.
        by: the ranking that chooses: by default ``zero_shot``, without labels ``sureness``.
        layers: of ``neuron_overlap``; by default the top three.
        seed: of the choice of rows, of the probe and of the untrained start; by default the seed
            that all sources share, so that the probe starts where they did, else 0.
        max_tokens: longest text in tokens; by default the backbone's own choice.
        eval_batch_size: most rows scored at once; changes speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis.

    Example:
        >>> RecommendOptions(labels=16).probe_steps
        60
    """

    backbone: Backbone | str | Path | None = None
    labels: int | None = None
    probe_steps: int = PROBE_STEPS
    learning_rate: float | None = None
    by: str | None = None
    layers: str | tuple[int, int] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks the counts; what else is wrong shows where it is used."""
        names = ("probe_steps", "eval_batch_size", "max_tokens")
        check_counts(**{name: getattr(self, name) for name in names})
        if self.labels != 0:
            check_counts(labels=self.labels)


@dataclass(frozen=True)
class Case:
    """The new task and the sources, before anything is compiled."""

    task: Task  # with the rows alone that may be looked at
    backbone: Backbone  # who reads them
    mesh: Mesh  # its devices
    prompts: dict[str, Prompt]  # all that were given, without rows that no model reads
    sources: dict[str, Prompt]  # those that are a choice
    prepared: PreparedTask  # the task as the backbone reads it
    options: RecommendOptions  # as they were given, the seed settled
    notes: list[str]  # what was left out, and why

    @property
    def labelled(self) -> bool:
        """Whether the labels of the rows are true."""
        return self.options.labels != 0

    @property
    def first(self) -> Prompt:
        """One of the prompts; all are of one kind."""
        return next(iter(self.prompts.values()))


def prepare_case(
    task: Task | str | Path,
    prompts: Prompts,
    data: Data | None,
    options: RecommendOptions,
) -> Case:
    """Loads and checks everything, cheap things first, before anything is compiled."""
    loaded = {  # a row that no model reads has no part in this, and the probe has none
        name: dataclasses.replace(prompt, unused_row=None)
        for name, prompt in load_runs(prompts).items()
    }
    definition = as_task(task, data)
    sources, notes = _sources(definition, loaded)
    seed = _common_seed(sources) if options.seed is None else options.seed
    options = dataclasses.replace(options, seed=seed)
    if options.labels == 0:
        known = unlabelled_task(definition, seed)
    else:
        known, more = labelled_task(definition, options.labels, seed)
        notes += more
    devices, size = make_mesh(options.mesh), options.eval_batch_size
    batch_sharding(devices, size)
    first = next(iter(loaded.values()))
    name = first.card.backbone if options.backbone is None else options.backbone
    model = as_backbone(name, options.dtype, mesh=devices)
    other = options.backbone is not None
    check_prompt(first, model.name, model.config.width, model.layout, other)
    parse_layers(options.layers, model.config.layers)  # refuses those that are not there
    position = first.card.first_position or 0
    tokens = settle_length(options.max_tokens, model, known, len(first.values), position)
    prepared = prepare_task(known, model, tokens, size, position)
    return Case(known, model, devices, loaded, sources, prepared, options, notes)


def known_matrix(
    known: TransferMatrix | str | Path, prompts: Mapping[str, Prompt]
) -> TransferMatrix:
    """Reads a known matrix, and refuses that of other prompts."""
    matrix = known if isinstance(known, TransferMatrix) else read_transfer(known)
    cards = {name: prompt.card for name, prompt in prompts.items()}
    here = over_seeds(Indicators(tuple(cards), {}, cards), matrix.prompts)
    missing = sorted(set(matrix.prompts) - set(here.names) - set(BASELINES))
    if missing:
        raise InputError(
            f"the known matrix names {len(missing)} prompts that are not here"
            f" ({shorten(missing)}; here are {shorten(here.names)}); give the folder of prompts"
            " that it was made with"
        )
    leave_one_out(here, matrix)  # says so where nothing is judged
    return matrix


def _sources(task: Task, prompts: dict[str, Prompt]) -> tuple[dict[str, Prompt], list[str]]:
    """The prompts that are a choice, and a line on those that are none."""
    own = [n for n, prompt in prompts.items() if serves(n, prompt.card, [task.short_name])]
    untrained = [n for n, p in prompts.items() if n not in own and is_random(n, p.card)]
    sources = {n: p for n, p in prompts.items() if n not in own and n not in untrained}
    if not sources:
        raise InputError(
            f"none of the {len(prompts)} prompts ({shorten(list(prompts))}) is for another task"
            f" than {task.short_name}: there is no source to choose; give a folder with prompts of"
            " other tasks"
        )
    notes = []
    if own:
        notes.append(f"{shorten(own)}: for {task.short_name} itself, left out of the ranking")
    if untrained:
        notes.append(f"{shorten(untrained)}: not trained, left out of the ranking")
    return sources, notes


def _common_seed(sources: Mapping[str, Prompt]) -> int:
    seeds = {prompt.card.seed for prompt in sources.values()}
    found = seeds.pop() if len(seeds) == 1 else None
    return 0 if found is None else found
