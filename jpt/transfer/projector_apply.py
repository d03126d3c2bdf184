"""Projecting prompts: ordinary prompt files of the target model come out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jpt.backbones.registry import Backbone
from jpt.errors import InputError
from jpt.files.atomic import make_folder
from jpt.prompts.store import save_prompt
from jpt.transfer.projector_baselines import baseline, checked_method
from jpt.transfer.projector_material import Prompts, read_prompts
from jpt.transfer.projector_options import ANCHORS, BASELINES, ProjectorOptions
from jpt.transfer.projector_sizes import length_of, refuse_same_backbone
from jpt.transfer.projector_store import TrainedProjector, load_projector
from jpt.tuning.prepare import as_backbone
from jpt.types import Prompt, PromptCard
from jpt.version import __version__


def apply_projector(
    projector: TrainedProjector | str | Path,
    prompts: Prompts,
    out: str | Path | None = None,
    *,
    target_backbone: Backbone | str | Path | None = None,
    source_backbone: Backbone | str | Path | None = None,
    length: int | None = None,
    anchors: int = ANCHORS,
    seed: int = 0,
) -> dict[str, Prompt]:
    """Projects prompts of the source model into ordinary prompts of the target model.

    Args:
        projector: a trained one, its file or its run; or one of ``untrained``, ``least_squares``
            and ``relative``, which need no training.
        prompts: of the source model: a folder, a file, or by name.
        out: folder for ``NAME.safetensors`` files; each card's ``source`` says what it came from.
        target_backbone: the target, where no trained projector names it.
        source_backbone: where the words of the source are read, in place of what the cards name.
        length: P of an untrained projector's target; by default the source's.
        anchors: words that ``relative`` holds rows against.
        seed: of an untrained projector.

    Returns:
        The projected prompts by the names of the source's.

    Raises:
        InputError: a prompt of another backbone, length or width than the projector's.

    Example:
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> source = Prompt(np.ones((4, 128), np.float32), card)
        >>> found = apply_projector("relative", source, target_backbone="builtin/bert-medium")
        >>> found["imdb"].values.shape, found["imdb"].card.source
        ((4, 192), 'relative from prompt imdb of builtin/bert-small')
    """
    given = read_prompts(prompts)
    if str(projector) in BASELINES:
        if target_backbone is None:
            raise InputError(f"{projector} is no file that names its target; give target_backbone")
        refuse_same_backbone(given, target_backbone)
        target = as_backbone(target_backbone)
        options = ProjectorOptions(seed=seed, length=length or length_of(given)).settle("task")
        name, layout, what = target.name, target.layout, str(projector)
        method = baseline(
            what, given, lambda: source_of(given, source_backbone), target, options, anchors
        )
    else:
        trained = as_projector(projector)
        method, card = checked_method(trained, given), trained.card
        name, layout, what = card.target_backbone, card.target_layout, describe_origin(trained)
    found = {
        of: projected(prompt, method(prompt), name, layout, f"{what} from prompt {of}")
        for of, prompt in given.items()
    }
    for of, prompt in found.items() if out is not None else ():
        save_prompt(make_folder(out) / f"{of}.safetensors", prompt)
    return found


def projected(
    prompt: Prompt, values: Float32[np.ndarray, "P D"], backbone: str, layout: str, origin: str
) -> Prompt:
    """Puts projected values into a prompt of the target."""
    card = PromptCard(
        backbone=backbone,
        task=prompt.card.task,
        task_type=prompt.card.task_type,
        layout=layout,
        init="projected",
        source=f"{origin} of {prompt.card.backbone}",
        jpt_version=__version__,
    )
    return Prompt(np.asarray(values, np.float32), card)


def describe_origin(projector: TrainedProjector) -> str:
    """Says what a projector is, for the cards of what it makes."""
    card = projector.card
    tasks = f" on {', '.join(card.tasks)}" if card.tasks else ""
    return f"{projector.name} ({card.objective}{tasks})"


def as_projector(projector: TrainedProjector | str | Path) -> TrainedProjector:
    """Loads a projector unless it is one."""
    return projector if isinstance(projector, TrainedProjector) else load_projector(projector)


def source_of(
    prompts: Mapping[str, Prompt], backbone: Backbone | str | Path | None = None
) -> Backbone:
    """Loads the model that prompts were tuned on."""
    first = next(iter(prompts.values()))
    model = as_backbone(backbone if backbone is not None else first.card.backbone)
    if model.config.width != first.values.shape[1]:
        raise InputError(
            f"the source prompts are {first.values.shape[1]} wide, and {model.name} is "
            f"{model.config.width} wide; name the model that they were tuned on"
        )
    return model
