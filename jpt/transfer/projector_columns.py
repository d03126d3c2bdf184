"""The columns of the table of cross-model transfer: which prompt stands for which way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jpt.backbones.lengths import check_lengths
from jpt.backbones.registry import Backbone
from jpt.errors import InputError
from jpt.files.study_files import refuse_twice
from jpt.prompts.initialisers import initial_generator, random_values
from jpt.prompts.own import own_prompts
from jpt.tasks.task import Task
from jpt.transfer.projector_apply import as_projector, describe_origin, projected, source_of
from jpt.transfer.projector_baselines import Method, baseline, checked_method
from jpt.transfer.projector_material import (
    Prompts,
    prompts_of_tasks,
    read_prompts,
    read_tasks,
)
from jpt.transfer.projector_options import BASELINES, EvaluationOptions, ProjectorOptions
from jpt.transfer.projector_sizes import check_targets, length_of, refuse_same_backbone
from jpt.transfer.projector_store import PROJECTOR_FILE, TrainedProjector
from jpt.tuning.prepare import as_backbone
from jpt.types import Prompt, PromptCard

OWN, RANDOM, WARM, VANILLA = "own", "random", "warm", "vanilla"

Projectors = (
    Mapping[str, TrainedProjector | str | Path]
    | Sequence[TrainedProjector | str | Path]
    | TrainedProjector
    | str
    | Path
)
"""Trained projectors by the name that their column gets, or several, or one."""


@dataclass(frozen=True)
class Columns:
    """What is scored, task by task."""

    backbone: Backbone  # the target
    tasks: dict[str, Task]  # by short name
    length: int  # P of the target
    own: dict[str, Prompt]  # the target's own prompt of each task that has one
    random: Prompt | None  # the start of tuning, the same for all tasks; None leaves it out
    projected: dict[str, dict[str, Prompt]]  # prompts by method and task
    record: dict[str, Any]  # what is known of source, target and projectors

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in their order."""
        first = [OWN] * bool(self.own) + [RANDOM] * (self.random is not None)
        return (*first, *self.projected)

    def of_task(self, task: str) -> dict[str, Prompt]:
        """Gives the prompts of one task by column."""
        found = {OWN: self.own[task]} if task in self.own else {}
        if self.random is not None:
            found[RANDOM] = self.random
        return found | {name: prompts[task] for name, prompts in self.projected.items()}


def build_columns(
    projectors: Projectors,
    sources: Prompts,
    tasks: Iterable[Task | str | Path] | None,
    targets: Prompts | None,
    target: Backbone | str | Path | None,
    source: Backbone | str | Path | None,
    data: str | Path | None,
    options: EvaluationOptions,
    mesh: Mesh,
) -> Columns:
    """Loads, checks and projects everything that will be scored."""
    given, trained = read_prompts(sources), name_columns(projectors)
    target = _target_of(trained, target)
    refuse_same_backbone(given, target)
    methods: dict[str, Method] = {
        name: checked_method(projector, given) for name, projector in trained.items()
    }
    definitions = read_tasks(tasks, given, data)
    of = prompts_of_tasks(given, definitions, "source prompts")
    wanted = {} if targets is None else read_prompts(targets)
    length = _length(trained, wanted, options.length, length_of(given))
    backbone = as_backbone(target, options.dtype, mesh=mesh)
    check_lengths(backbone, length, 1)
    _check_projectors(trained, backbone, length)
    if wanted:
        check_targets(wanted, backbone)
    methods |= _baselines(given, trained, backbone, source, length, options)
    if options.warm_start is not None and options.warm_start not in methods:
        raise InputError(
            f"warm_start is {options.warm_start!r}; expected one of {', '.join(methods)}"
        )
    found = _project_all(
        methods, trained, {task: (n, given[n]) for task, n in of.items()}, backbone
    )
    own, _ = own_prompts(definitions, {name: prompt.card for name, prompt in wanted.items()})
    mine = {task: wanted[name] for task, name in own.items()}
    start = _random_prompt(backbone, length, options.seed) if options.random else None
    record = _record(given, trained, backbone, length)
    return Columns(backbone, definitions, length, mine, start, found, record)


def _project_all(
    methods: Mapping[str, Method],
    trained: Mapping[str, TrainedProjector],
    sources: Mapping[str, tuple[str, Prompt]],
    backbone: Backbone,
) -> dict[str, dict[str, Prompt]]:
    """Projects the source prompt of every task in every way."""
    found: dict[str, dict[str, Prompt]] = {}
    for method, project in methods.items():
        what = describe_origin(trained[method]) if method in trained else method
        found[method] = {
            task: projected(
                prompt,
                project(prompt),
                backbone.name,
                backbone.layout,
                f"{what} from prompt {name}",
            )
            for task, (name, prompt) in sources.items()
        }
    return found


def name_columns(projectors: Projectors) -> dict[str, TrainedProjector]:
    """Loads projectors by the names of their columns."""
    if isinstance(projectors, Mapping):
        found = {name: as_projector(projector) for name, projector in projectors.items()}
    else:
        is_one = isinstance(projectors, (TrainedProjector, str, Path))
        loaded = [as_projector(p) for p in ([projectors] if is_one else projectors)]
        names = [_column(projector) for projector in loaded]
        refuse_twice(names, "projectors")
        found = dict(zip(names, loaded, strict=True))
    for name in found:
        if name in (OWN, RANDOM, WARM, VANILLA, *BASELINES):
            raise InputError(f"a projector is called {name}, as another column is; rename it")
    return found


def _column(projector: TrainedProjector) -> str:
    """The name of the run or of the file."""
    path = Path(projector.name)
    return path.parent.name if path.name == PROJECTOR_FILE and path.parent.name else path.stem


def _target_of(
    trained: Mapping[str, TrainedProjector], target: Backbone | str | Path | None
) -> Backbone | str | Path:
    names = sorted({projector.card.target_backbone for projector in trained.values()})
    if target is not None:
        return target
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(
            f"the projectors have the targets {', '.join(names)}; a table has one: evaluate those "
            "of one target at a time"
        )
    raise InputError("no projector was given that names a target; give target_backbone")


def _check_projectors(
    trained: Mapping[str, TrainedProjector], backbone: Backbone, length: int
) -> None:
    for name, projector in trained.items():
        card = projector.card
        size, wanted = (card.target_length, card.target_width), (length, backbone.config.width)
        if size != wanted or card.target_backbone != backbone.name:
            raise InputError(
                f"projector {name} writes {size[0]} rows of {size[1]} (of {card.target_backbone}), "
                f"but {wanted[0]} rows of {wanted[1]} (of {backbone.name}) are compared; give "
                "projectors and own prompts of one target and length"
            )


def _length(
    trained: Mapping[str, TrainedProjector],
    wanted: Mapping[str, Prompt],
    length: int | None,
    source: int,
) -> int:
    """P of the target, as the first that knows says."""
    if trained:
        return next(iter(trained.values())).card.target_length
    return length or (length_of(wanted) if wanted else source)


def _baselines(
    given: Mapping[str, Prompt],
    trained: Mapping[str, TrainedProjector],
    backbone: Backbone,
    source: Backbone | str | Path | None,
    length: int,
    options: EvaluationOptions,
) -> dict[str, Method]:
    names = options.methods
    if names is None:
        names = BASELINES if length == length_of(given) else ("untrained",)
    like = next((p.card for p in trained.values() if not p.card.per_token), None)
    shape = ProjectorOptions(length=length, seed=options.seed).settle("task")
    loaded: list[Backbone] = []

    def load() -> Backbone:
        if not loaded:
            loaded.append(source_of(given, source))
        return loaded[0]

    more = (shape, options.anchors, like)
    return {name: baseline(name, given, load, backbone, *more) for name in names}


def _random_prompt(backbone: Backbone, length: int, seed: int) -> Prompt:
    generator = initial_generator(seed, backbone.name, RANDOM)
    values = random_values(generator, length, backbone.config.width, backbone.init_std())
    return Prompt(values, PromptCard(backbone.name, RANDOM, layout=backbone.layout, seed=seed))


def _record(
    given: Mapping[str, Prompt],
    trained: Mapping[str, TrainedProjector],
    backbone: Backbone,
    length: int,
) -> dict[str, Any]:
    return {
        "source_backbone": next(iter(given.values())).card.backbone,
        "target_backbone": backbone.name,
        "length": length,
        "trained_on": {name: list(projector.card.tasks) for name, projector in trained.items()},
        "projectors": {name: describe_origin(projector) for name, projector in trained.items()},
    }
