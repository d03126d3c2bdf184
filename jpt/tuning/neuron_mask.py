"""Neurons that are made silent while a prompt is scored."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Float

from jpt.backbones.registry import Backbone
from jpt.config import check_choice
from jpt.errors import InputError
from jpt.tasks.task import Task

STACKS = ("decoder", "encoder")


@struct.dataclass
class NeuronMask:
    """What multiplies the neurons before they enter the second matrix of their layer."""

    values: Float[Array, "L F"]  # 0 where a neuron is silent, 1 elsewhere
    # ``"decoder"`` or ``"encoder"`` of a T5; its decoder by default
    stack: str | None = struct.field(pytree_node=False, default=None)


def mask_options(mask: NeuronMask | None) -> dict[str, Any]:
    """Gives the arguments of a forward pass that stand for a mask."""
    if mask is None:
        return {}
    return {"neuron_mask": mask.values, **({"neuron_stack": mask.stack} if mask.stack else {})}


def neuron_shape(backbone: Backbone, stack: str | None = None) -> tuple[int, int]:
    """Says how many neurons a backbone has."""
    if stack is not None:
        check_choice("stack", stack, STACKS)
        if backbone.layout != "encoder_decoder":
            raise InputError(f"stack is '{stack}', but {backbone.name} has one stack; leave it out")
    config = backbone.config
    return config.encoder_layers if stack == "encoder" else config.layers, config.neurons


def check_neuron_mask(mask: NeuronMask, backbone: Backbone, task: Task) -> None:
    """Refuses a mask that a backbone or a task has no use for."""
    expected = neuron_shape(backbone, mask.stack)
    if tuple(mask.values.shape) != expected:
        shape = " x ".join(map(str, mask.values.shape))
        raise InputError(
            f"the neuron mask is {shape}, but {backbone.name} has {expected[0]} layers of"
            f" {expected[1]} neurons; make it from activations of this backbone (and stack)"
        )
    if task.is_written:
        raise InputError(
            f"the answers of task {task.name} are written, and neurons are masked only where"
            " labels are scored so far; leave this task out"
        )
