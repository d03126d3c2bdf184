"""Performance without chosen neurons: do a prompt's neurons matter for its task?

The paper zeroes the 20 % of neurons with the largest values and scores again. Here that is held
against as many random neurons, those of other tasks' prompts, those that all prompts share, and
those that only this prompt activates.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jpt.analysis.activations import activated_neurons
from jpt.analysis.neuron_choice import NeuronChoice, check_ratio, choose_neurons
from jpt.analysis.overlap import parse_layers
from jpt.backbones.registry import Backbone, weights_fingerprint
from jpt.data.encode import EncodedSplit
from jpt.data.token_cache import encode_cached
from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_json
from jpt.files.reading import read_json
from jpt.files.tables import write_table
from jpt.mesh import batch_sharding, make_mesh
from jpt.processes import on_first
from jpt.prompts.store import check_prompt
from jpt.recipes.mask_plan import (
    NONE,
    MaskedRun,
    MaskOptions,
    MaskPlan,
    Prompts,
    Tasks,
    plan_masks,
)
from jpt.recipes.mask_record import make_record, study_command, table_rows
from jpt.recipes.mask_text import describe_masks
from jpt.transfer.matrix_cells import Cell, CellFile, make_cell
from jpt.tuning.neuron_mask import NeuronMask, neuron_shape
from jpt.tuning.prepare import Data, PreparedTask, as_backbone, prepare_task
from jpt.tuning.scoring import Score
from jpt.tuning.settle import settle_length
from jpt.types import Activations

RECORD, TABLE, CELLS = "mask.json", "mask.csv", "mask_cells.jsonl"
COLUMNS = ("task", "kind", "source_of_mask", "ratio", "layers", "draw", "metric", "value")


@dataclass(frozen=True)
class MaskStudy:
    """What `mask_neurons` measured.

    Attributes:
        record: scores by task and kind of mask, means by type, and what was masked, as in
            ``mask.json``.
    """

    record: dict[str, Any]

    def rows(self) -> list[tuple[Any, ...]]:
        """Gives every score as ``mask.csv`` has it: a line for each mask of each task."""
        return table_rows(self.record)

    def describe(self) -> str:
        """Lays the study out for reading, in at most 80 columns."""
        return describe_masks(self.record)


def mask_neurons(
    prompts: Prompts,
    tasks: Tasks = None,
    out: str | Path | None = None,
    *,
    neurons: Activations | str | Path | None = None,
    data: Data | None = None,
    progress: bool = False,
    **options: Any,
) -> MaskStudy:
    """Scores prompts on their own tasks while chosen neurons are silent.

    Scores are those of `jpt.evaluate`; a mask multiplies the neurons of the whole input, at every
    position. Neurons are chosen by the paper's probe (see `jpt.activated_neurons`).

    Args:
        prompts: one prompt or its file, a folder of prompts, or prompts by name.
        tasks: what is scored; of one prompt by default its own task, of several the tasks that
            their cards name, each with its own prompt.
        out: folder for ``mask.json``, ``mask.csv`` and ``mask_cells.jsonl``, which gets a line as
            soon as something is scored. The same call goes on from there.
        neurons: activations to choose by, or their file; then one prompt has others beside it.
        data: rows of the one task; of several prompts a folder that holds a folder for each.
        progress: whether to show a bar on stderr.
        **options: fields of :class:`jpt.recipes.mask_plan.MaskOptions`: ratio, layers, kinds,
            random_draws, per_layer, stack, split and others.

    Returns:
        The study.

    Raises:
        InputError: a ratio outside (0, 1), layers that are not there, neurons of another backbone,
            a task without a prompt of its own or with written answers, one prompt where masks of
            other tasks are asked for.

    Example:
        >>> import numpy as np
        >>> from jpt.types import Prompt, PromptCard
        >>> random = np.random.default_rng(0).normal(0, 0.1, (5, 128)).astype(np.float32)
        >>> prompt = Prompt(random, PromptCard("builtin/bert-small", "sst2"))
        >>> rows = [{"text": "Fine.", "label": "positive"}, {"text": "Dull.", "label": "negative"}]
        >>> study = mask_neurons(prompt, data={"test": rows}, random_draws=1, max_tokens=8)
        >>> [row[:2] for row in study.rows()]
        [('sst2', 'none'), ('sst2', 'own'), ('sst2', 'random')]
    """
    settings = MaskOptions(**options)
    batch_sharding(make_mesh(settings.mesh), settings.eval_batch_size)
    plan = plan_masks(prompts, tasks, neurons, data, settings)
    command = study_command(plan, prompts, neurons, data, out)
    return _carry_out(plan, None if out is None else Path(out), command, progress)


def _carry_out(
    plan: MaskPlan, folder: Path | None, command: str | None, progress: bool
) -> MaskStudy:
    """Gives the study that is there, or makes and writes it."""
    of = _dependencies(plan)
    key = hashlib.sha256(json.dumps(list(of.values())).encode()).hexdigest()[:16]
    finished = _find_finished(folder, key, plan)
    if finished is not None:
        return finished
    worker = _Worker(plan)
    choices = {run: worker.choose(run) for run in of if run.kind != NONE}
    cells = _measure(of, worker, choices, folder, progress)
    facts = {"key": key, "backbone": worker.model.name, "command": command}
    study = MaskStudy(make_record(plan, cells, choices, worker.window, facts))
    if folder is not None:
        write_table(make_folder(folder) / TABLE, COLUMNS, study.rows())
        write_json(folder / RECORD, study.record)
    return study


def _find_finished(folder: Path | None, key: str, plan: MaskPlan) -> MaskStudy | None:
    """The study that is there, where it is this one; names are no part of the key."""
    record = None if folder is None else on_first(lambda: _read_finished(folder))
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    own = {task: each["prompt"] for task, each in record["targets"].items()}
    same = own == plan.own and record["sources"] == list(plan.sources)
    return MaskStudy(record) if same else None


def _read_finished(folder: Path) -> Any:
    """What stands in a folder with both files of a study."""
    is_whole = (folder / RECORD).is_file() and (folder / TABLE).is_file()
    return read_json(folder / RECORD) if is_whole else None


def _dependencies(plan: MaskPlan) -> dict[MaskedRun, dict[str, Any]]:
    """All that each score depends on; known before weights are read."""
    options = plan.options
    name = _backbone_name(plan)
    common = {
        "backbone": name.fingerprint if isinstance(name, Backbone) else weights_fingerprint(name),
        "dtype": options.dtype,
        "max_tokens": options.max_tokens,
        "label_scoring": options.label_scoring,
    }
    return {run: {**plan.depends(run), **common} for run in plan.runs()}


def _backbone_name(plan: MaskPlan) -> Backbone | str | Path:
    asked = plan.options.backbone
    return plan.matrix.first.card.backbone if asked is None else asked


class _Worker:
    """A loaded model, its neurons, and the tasks as it reads them."""

    def __init__(self, plan: MaskPlan) -> None:
        self._plan, options, first = plan, plan.options, plan.matrix.first
        self._mesh = make_mesh(options.mesh)
        self.model = as_backbone(_backbone_name(plan), options.dtype, mesh=self._mesh)
        model = self.model
        check_prompt(
            first, model.name, model.config.width, model.layout, options.backbone is not None
        )
        self.window = self._check_window()
        self._tasks: dict[str, tuple[PreparedTask, EncodedSplit]] = {}
        self._neurons = self._activations()

    def choose(self, run: MaskedRun) -> NeuronChoice:
        """Chooses the neurons of one run."""
        options = self._plan.options
        return choose_neurons(
            self._neurons,
            run.prompt,
            run.kind,
            ratio=options.ratio,
            layers=options.layers,
            per_layer=options.per_layer,
            other=run.source if run.source != run.prompt else None,
            draw=run.draw or 0,
            seed=options.seed,
        )

    def score(self, run: MaskedRun, choice: NeuronChoice | None) -> Score:
        """Scores one run."""
        if run.task not in self._tasks:
            self._tasks[run.task] = self._prepare(run.task)
        prepared, rows = self._tasks[run.task]
        mask = None if choice is None else NeuronMask(choice.mask, self._plan.options.stack)
        return prepared.score([self._plan.bank[run.prompt].values], rows, self._mesh, mask)[0]

    def _check_window(self) -> tuple[int, int]:
        """The layers, refused before anything is compiled where they or the ratio are wrong."""
        options = self._plan.options
        layers, width = neuron_shape(self.model, options.stack)
        window = (0, layers - 1)
        if options.layers is not None:
            window = parse_layers(options.layers, layers)
        check_ratio(
            options.ratio, width if options.per_layer else (window[1] - window[0] + 1) * width
        )
        return window

    def _activations(self) -> Activations:
        given, options = self._plan.neurons, self._plan.options
        if given is None:
            asked = {"stack": options.stack, "mesh": options.mesh}
            return activated_neurons(self._plan.bank, backbone=self.model, **asked)
        expected = neuron_shape(self.model, options.stack)
        if given.values.shape[1:] != expected:
            layers, width = given.values.shape[1:]
            raise InputError(
                f"the activations have {layers} layers of {width} neurons, but {self.model.name}"
                f" has {expected[0]} of {expected[1]}; make them with this backbone (and stack)"
            )
        return given

    def _prepare(self, name: str) -> tuple[PreparedTask, EncodedSplit]:
        options, matrix, model = self._plan.options, self._plan.matrix, self.model
        task, first = matrix.tasks[name], matrix.first.card.first_position or 0
        rows = len(matrix.first.values)
        tokens = settle_length(options.max_tokens, model, task, rows, first)
        prepared = prepare_task(
            task, model, tokens, options.eval_batch_size, first, options.label_scoring
        )
        reading = (task, model.tokenizer, tokens, model.layout, prepared.answer_tokens)
        return prepared, encode_cached(matrix.rows[name], *reading)


def _measure(
    of: Mapping[MaskedRun, dict[str, Any]],
    worker: _Worker,
    choices: Mapping[MaskedRun, NeuronChoice],
    folder: Path | None,
    progress: bool,
) -> dict[MaskedRun, Cell]:
    """Takes what is there and scores the rest, one run after the other."""
    file = CellFile(None if folder is None else make_folder(folder) / CELLS)
    for run, depends in tqdm(of.items(), disable=not progress, unit="mask", dynamic_ncols=True):
        if file.find(depends) is None:
            started_s = time.monotonic()
            score = worker.score(run, choices.get(run))
            elapsed_s = time.monotonic() - started_s
            file.add(make_cell(run.task, run.name, score, elapsed_s, depends))
    found = {run: file.find(depends) for run, depends in of.items()}
    return {run: cell for run, cell in found.items() if cell is not None}
