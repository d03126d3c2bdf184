"""Projectors on disk: ``projector.safetensors``, weights and a card that says what they are.

The card, JSON under ``card`` in the metadata, names the activation and all sizes, so that no
projector is ever run as another one than was trained (the paper's code loads one trained with
Tanh as LeakyReLU: the two have equal names of weights).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float32

from jpt.errors import InputError
from jpt.files.reading import parse_json
from jpt.files.safetensors_file import read_header, write_safetensors
from jpt.prompts.store import LAYOUTS
from jpt.transfer.projector import ACTIVATIONS, Projector, project
from jpt.types import Parameters, Prompt
from jpt.version import __version__

PROJECTOR_FILE = "projector.safetensors"
"""The name of the projector in the folder of its run."""

_COUNTS = ("source_length", "source_width", "target_length", "target_width", "bottleneck")
_FLAGS = ("layer_norm", "per_token")


@dataclass(frozen=True)
class ProjectorCard:
    """What a projector is: written into its file, read by every later step.

    Attributes:
        source_backbone: name of the model whose prompts it reads.
        target_backbone: name of the model whose prompts it writes.
        target_layout: where the target's family has its prompts.
        objective: ``task``, ``distance``, ``least_squares``, or ``untrained``.
        tasks: it was trained on.
        source_length: P of the source.
        source_width: D of the source.
        target_length: P of the target.
        target_width: D of the target.
        bottleneck: neurons between the two maps.
        activation: ``leaky_relu``, ``tanh`` or ``none``.
        layer_norm: whether each row is normalised.
        rescale_to: norm that normalised rows are brought to.
        per_token: whether rows are mapped one by one.
        seed: of its run.
        steps: after how many steps these weights were taken.
        score: their mean score on validation (task), or mean squared error (distance).
        jpt_version: the version that wrote it.
    """

    source_backbone: str
    target_backbone: str
    target_layout: str
    objective: str
    tasks: tuple[str, ...]
    source_length: int
    source_width: int
    target_length: int
    target_width: int
    bottleneck: int = 768
    activation: str = "leaky_relu"
    layer_norm: bool = True
    rescale_to: float | None = None
    per_token: bool = False
    seed: int = 0
    steps: int = 0
    score: float | None = None
    jpt_version: str | None = None

    def module(self) -> Projector:
        """Builds the module that this card describes."""
        return Projector(
            self.target_length,
            self.target_width,
            self.bottleneck,
            self.activation,
            self.layer_norm,
            self.rescale_to,
            self.per_token,
        )


@dataclass(frozen=True)
class TrainedProjector:
    """A projector ready for use.

    Attributes:
        card: what it is.
        params: its weights.
        name: of its file, for messages and for the cards of what it makes.
    """

    card: ProjectorCard
    params: Parameters
    name: str = "projector"

    def __call__(self, prompt: Prompt) -> Float32[np.ndarray, "P D"]:
        """Projects a prompt after a check that it is one of the source model."""
        check_source(self.card, prompt)
        return project(self.card.module(), self.params, prompt.values)


def check_source(card: ProjectorCard, prompt: Prompt, name: str = "the prompt") -> None:
    """Refuses a prompt that a projector was not made for."""
    rows, columns = prompt.values.shape
    if (rows, columns) != (card.source_length, card.source_width):
        raise InputError(
            f"{name} has {rows} rows of {columns} (tuned on {prompt.card.backbone}), but the "
            f"projector reads {card.source_length} rows of {card.source_width} (of "
            f"{card.source_backbone}); give prompts of those sizes or train another projector"
        )
    if prompt.card.backbone != card.source_backbone:
        raise InputError(
            f"{name} was tuned on {prompt.card.backbone}, but the projector reads prompts of "
            f"{card.source_backbone}; give prompts of that model or train another projector"
        )


def save_projector(path: str | Path, projector: TrainedProjector) -> None:
    """Writes a projector in one step.

    Args:
        path: the file, by custom ``projector.safetensors``; its folder must exist.
        projector: what to write.

    Raises:
        InputError: a weight is not finite, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jpt.transfer.projector import initial_parameters
        >>> card = ProjectorCard("a", "b", "encoder", "task", ("sst2",), 2, 6, 3, 4, bottleneck=5)
        >>> params = initial_parameters(card.module(), 2, 6)
        >>> file = Path(tempfile.mkdtemp()) / "projector.safetensors"
        >>> save_projector(file, TrainedProjector(card, params))
        >>> load_projector(file).card.tasks
        ('sst2',)
    """
    flat = flatten_dict(jax.device_get(projector.params), sep="/")
    tensors = {name: np.asarray(values, np.float32) for name, values in sorted(flat.items())}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"cannot write {path}: {name} holds NaN or infinity; train again with a lower rate"
            )
    card = dataclasses.replace(projector.card, jpt_version=__version__)
    told = {k: v for k, v in dataclasses.asdict(card).items() if v is not None}
    write_safetensors(path, tensors, {"card": json.dumps(told, allow_nan=False)})


def load_projector(path: str | Path) -> TrainedProjector:
    """Reads a projector.

    Args:
        path: its file, or the folder of its run.

    Returns:
        The projector.

    Raises:
        InputError: the file is missing, broken, no projector, or its weights have not the sizes
            that its card names.

    Example:
        See `save_projector`.
    """
    file = Path(path)
    if file.is_dir():
        if not (file / PROJECTOR_FILE).is_file():
            raise InputError(
                f"{file} is a folder without {PROJECTOR_FILE}: an unfinished run, or no run; give "
                "a projector file or a finished run"
            )
        file = file / PROJECTOR_FILE
    tensors, metadata = read_header(file)
    card = _parse_card(file, metadata)
    expected = _expected_shapes(card)
    _check_shapes(file, {name: tensor.shape for name, tensor in tensors.items()}, expected)
    flat = {name: np.asarray(tensors[name].read(), np.float32) for name in expected}
    for name, values in flat.items():
        if not np.isfinite(values).all():
            raise InputError(f"{file}: {name} holds NaN or infinity; train the projector again")
    return TrainedProjector(card, unflatten_dict(flat, sep="/"), str(path))


def _expected_shapes(card: ProjectorCard) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a projector, by its name in the file."""
    source = jnp.zeros((card.source_length, card.source_width), jnp.float32)
    shapes = jax.eval_shape(card.module().init, jax.random.key(0), source)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}


def _check_shapes(
    file: Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Names the first weight that is missing, left over or of another size."""
    for name in expected:
        if name not in found:
            held = ", ".join(list(found)[:6]) or "nothing"
            raise InputError(
                f"{file} has no weights '{name}' (it holds {held}); its card and its weights are "
                "of two projectors"
            )
        if found[name] != expected[name]:
            raise InputError(
                f"{file}: '{name}' has the shape {list(found[name])}, and by the card it should "
                f"have {list(expected[name])}; card and weights are of two projectors"
            )
    left = [name for name in found if name not in expected]
    if left:
        raise InputError(f"{file} holds '{left[0]}', which a projector of its card has not")


def _parse_card(file: Path, metadata: Mapping[str, str]) -> ProjectorCard:
    """The card, checked value by value; what a later version adds to it is left out."""
    if "card" not in metadata:
        raise InputError(f"{file} has no card and is no projector; make one with jpt project train")
    table = parse_json(metadata["card"].encode(), f"the card of {file}")
    fields = dataclasses.fields(ProjectorCard)
    if not isinstance(table, dict) or "source_backbone" not in table:
        raise InputError(
            f"{file} is no projector (its card names no source_backbone); give the file of jpt "
            "project train"
        )
    known = {field.name: table[field.name] for field in fields if table.get(field.name) is not None}
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in known:
            raise InputError(f"the card of {file} names no {field.name}; train the projector again")
    for name, value in known.items():
        expected = _expected(name, value)
        if expected:
            raise InputError(f"the card of {file} has {name} = {value!r}; {expected} expected")
    return ProjectorCard(**{**known, "tasks": tuple(known["tasks"])})


def _expected(name: str, value: Any) -> str | None:
    """What a value of the card should have been, or None where it is right."""
    if name in _COUNTS:
        return None if type(value) is int and value > 0 else "a whole number above 0"
    if name in ("seed", "steps"):
        return None if type(value) is int and value >= 0 else "a whole number from 0 on"
    if name in _FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if name in ("score", "rescale_to"):
        is_number = type(value) in (int, float) and math.isfinite(value)
        return None if is_number else "a number"
    if name == "tasks":
        is_list = isinstance(value, list) and all(isinstance(task, str) for task in value)
        return None if is_list else "a list of names"
    choices = {"activation": tuple(ACTIVATIONS), "target_layout": LAYOUTS}.get(name)
    if choices is not None:
        return None if value in choices else f"one of {', '.join(choices)}"
    return None if isinstance(value, str) else "a text"
