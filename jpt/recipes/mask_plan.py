"""What a masking study scores, known before a model is loaded: prompts, tasks and masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jpt.analysis.neuron_choice import (
    COMMON,
    KINDS,
    OF_SEVERAL,
    OTHER,
    OWN,
    RANDOM,
    SPECIFIC,
    check_ratio,
)
from jpt.analysis.transfer_pairs import is_random
from jpt.backbones.registry import Backbone
from jpt.config import LABEL_SCORING, check_choice, check_counts
from jpt.errors import InputError, unknown_name
from jpt.files.study_files import read_activations
from jpt.prompts.collection import load_prompts
from jpt.prompts.own import own_prompts, short_task
from jpt.prompts.store import PROMPT_FILE, load_prompt
from jpt.tasks.task import SPLITS, Task
from jpt.transfer.matrix_plan import MatrixPlan, plan_matrix
from jpt.tuning.prepare import Data, as_task
from jpt.types import Activations, Prompt

NONE = "none"
"""The run without a mask."""

Prompts = Prompt | Mapping[str, Prompt] | str | Path
Tasks = Task | str | Path | Iterable[Task | str | Path] | None


@dataclass(frozen=True)
class MaskOptions:
    """How neurons are chosen and prompts are scored.

    Attributes:
        ratio: share of the neurons of the layers that is silent. Paper: 0.2.
        layers: first and last layer, from 0, both included, as ``"9-11"``. Paper: all.
        per_layer: take the share from each layer, instead of from all of them together.
        kinds: what is masked (see `jpt.choose_neurons`); by default all, and of one prompt alone
            its own and random neurons.
        random_draws: how often random neurons are drawn.
        stack: ``"decoder"`` or ``"encoder"`` of a T5; its decoder by default.
        seed: of random neurons.
        split: that is scored; a task without it is scored on validation.
        backbone: instead of the one that the prompts' cards name; the width is checked.
        max_tokens: longest text in tokens; by default the backbone's own choice.
        label_scoring: ``"phrase"`` or ``"first_piece"``.
        eval_batch_size: rows at once; changes speed, never a number.
        dtype: of weights and matrix products.
        mesh: devices by axis.
    """

    ratio: float = 0.2
    layers: str | tuple[int, int] | None = None
    per_layer: bool = False
    kinds: Sequence[str] | None = None
    random_draws: int = 3
    stack: str | None = None
    seed: int = 0
    split: str = "test"
    backbone: Backbone | str | Path | None = None
    max_tokens: int | None = None
    label_scoring: str = "phrase"
    eval_batch_size: int = 64
    dtype: str = "float32"
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        check_counts(
            random_draws=self.random_draws,
            max_tokens=self.max_tokens,
            eval_batch_size=self.eval_batch_size,
        )
        check_choice("label_scoring", self.label_scoring, LABEL_SCORING)
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)
        check_ratio(self.ratio, 10**9)
        if self.kinds is not None and not list(self.kinds):
            raise InputError(f"kinds is empty; name some of {', '.join(KINDS)}")
        for kind in self.kinds or ():
            check_choice("kinds", kind, KINDS)


class MaskedRun(NamedTuple):
    """One score of the study."""

    task: str  # short name of the task
    prompt: str  # its own prompt
    kind: str  # `NONE`, or what is masked
    source: str | None = None  # the other prompt whose neurons are masked
    draw: int | None = None  # number of a random choice

    @property
    def name(self) -> str:
        """Its name in ``cells.jsonl``, for instance ``random/2``."""
        part = self.source if self.draw is None else str(self.draw)
        return self.kind if part is None else f"{self.kind}/{part}"


@dataclass(frozen=True)
class MaskPlan:
    """Prompts and tasks of a study."""

    options: MaskOptions  # how it is carried out
    matrix: MatrixPlan  # prompts, tasks and rows
    own: dict[str, str]  # the prompt of each task
    # activations that were given; None where they are read from the model
    neurons: Activations | None
    notes: tuple[str, ...]  # what was left out

    @property
    def bank(self) -> dict[str, Prompt]:
        """The prompts by name."""
        named = ((run.column, run.prompt) for run in self.matrix.runs)
        return {name: prompt for name, prompt in named if prompt is not None}

    @property
    def sources(self) -> tuple[str, ...]:
        """The prompts whose neurons can be masked."""
        return self.neurons.names if self.neurons is not None else tuple(self.bank)

    def runs(self) -> list[MaskedRun]:
        """Lists all scores, by task the one without a mask first."""
        kinds = self.options.kinds or (KINDS if len(self.sources) > 1 else (OWN, RANDOM))
        found = []
        for task, prompt in self.own.items():
            others = [name for name in self.sources if name != prompt]
            makers = {
                OWN: [MaskedRun(task, prompt, OWN, prompt)],
                RANDOM: [
                    MaskedRun(task, prompt, RANDOM, None, draw)
                    for draw in range(self.options.random_draws)
                ],
                OTHER: [MaskedRun(task, prompt, OTHER, name) for name in others],
                COMMON: [MaskedRun(task, prompt, COMMON)],
                SPECIFIC: [MaskedRun(task, prompt, SPECIFIC, prompt)],
            }
            found.append(MaskedRun(task, prompt, NONE))
            found += [run for kind in dict.fromkeys(kinds) for run in makers[kind]]
        return found

    def depends(self, run: MaskedRun) -> dict[str, Any]:
        """Gives what a score depends on, but for the model."""
        identities = {each.column: self.matrix.identity(each) for each in self.matrix.runs}
        content = {**self.matrix.contents()[run.task], **identities[run.prompt]}
        if run.kind == NONE:
            return {**content, "mask": None}
        options = ("ratio", "layers", "per_layer", "stack", "seed")
        told = {name: getattr(self.options, name) for name in options}
        told["layers"] = None if told["layers"] is None else str(told["layers"])
        read_from = {OTHER: [run.source], COMMON: self.sources, SPECIFIC: self.sources}
        names = read_from.get(run.kind, [run.prompt])
        if self.neurons is None:
            chosen_by = [identities[name]["prompt"] for name in names]
        else:
            chosen_by = [_checksum(self.neurons), *names]
        return {**content, "mask": {"kind": run.kind, "draw": run.draw, **told, "of": chosen_by}}


def plan_masks(
    prompts: Prompts,
    tasks: Tasks,
    neurons: Activations | str | Path | None,
    data: Data | None,
    options: MaskOptions,
) -> MaskPlan:
    """Loads and checks prompts, tasks and rows."""
    if neurons is not None and not isinstance(neurons, Activations):
        neurons = read_activations(neurons)
    if _is_one(prompts):
        matrix, own, notes = _plan_one(prompts, tasks, data, options)
    else:
        matrix, own, notes = _plan_several(prompts, tasks, data, options)
    plan = MaskPlan(options, matrix, own, neurons, tuple(notes))
    for name in own.values():
        if name not in plan.sources:
            raise unknown_name("prompt of the activations", name, plan.sources)
    asked = [kind for kind in options.kinds or () if kind in OF_SEVERAL]
    if asked and len(plan.sources) < 2:
        raise InputError(
            f"kinds names {', '.join(asked)}, which compare prompts, but there is 1"
            f" ({plan.sources[0]}); give the prompts of two tasks or more"
        )
    return plan


def _is_one(prompts: Prompts) -> bool:
    if isinstance(prompts, (str, Path)):
        path = Path(prompts)
        return path.suffix == ".safetensors" or path.is_file() or (path / PROMPT_FILE).is_file()
    return isinstance(prompts, Prompt)


def _plan_one(
    prompt: Prompt | str | Path, tasks: Tasks, data: Data | None, options: MaskOptions
) -> tuple[MatrixPlan, dict[str, str], list[str]]:
    """One prompt on one task, its own or another."""
    loaded = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    if tasks is None:
        tasks = loaded.card.task
    if not isinstance(tasks, (Task, str, Path)):
        raise InputError("one prompt is scored on one task; give one task, or several prompts")
    task = as_task(tasks, data)
    _refuse_written(task)
    name = short_task(loaded.card.task)
    if not isinstance(prompt, Prompt):
        path = Path(prompt)
        name = path.parent.resolve().name if path.name == PROMPT_FILE else path.stem
    matrix = plan_matrix({name: loaded}, [task], options.split, None, False, False, options.seed)
    return matrix, {task.short_name: name}, []


def _plan_several(
    prompts: Mapping[str, Prompt] | str | Path,
    tasks: Tasks,
    data: Data | None,
    options: MaskOptions,
) -> tuple[MatrixPlan, dict[str, str], list[str]]:
    """Every prompt on its own task."""
    loaded = load_prompts(prompts)
    trained = {name: p for name, p in loaded.items() if not is_random(name, p.card)}
    notes = [f"{name} is an untrained prompt: left out" for name in loaded if name not in trained]
    if len(trained) < 2:
        raise InputError(
            f"{len(trained)} of {len(loaded)} prompts is tuned for a task, but masks of other tasks"
            " need 2 or more; add prompts, or give one prompt and its task"
        )
    if isinstance(data, Mapping):
        raise InputError("data is rows by split, but there are several tasks; give a folder")
    is_asked = tasks is not None
    given = [tasks] if isinstance(tasks, (Task, str, Path)) else tasks
    named = list(given) if is_asked else sorted({p.card.task for p in trained.values()})
    matrix = plan_matrix(trained, named, options.split, data, False, False, options.seed)
    own, lacking = own_prompts(matrix.tasks, matrix.cards)
    if is_asked and lacking:
        names = ", ".join(list(trained)[:5])
        raise InputError(
            f"{lacking[0].split(':')[0]} (prompts: {names}); tune one for it, or leave the task out"
        )
    notes += [line.replace("relative performance is not defined", "left out") for line in lacking]
    for name in list(own):
        if matrix.tasks[name].is_written:
            if is_asked:
                _refuse_written(matrix.tasks[name])
            notes.append(f"{name}: its answers are written, left out")
            del own[name]
    if not own:
        raise InputError(
            f"no task can be masked ({'; '.join(notes[-3:])}); give one prompt of each task, whose"
            " card names it"
        )
    return matrix, own, notes


def _refuse_written(task: Task) -> None:
    if task.is_written:
        raise InputError(
            f"the answers of task {task.name} are written, and neurons are masked only where labels"
            " are scored so far; leave this task out"
        )


def _checksum(activations: Activations) -> str:
    values = np.ascontiguousarray(activations.values, np.float32)
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]
