"""Projectors between models: module, training data, training by task loss or distance, files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Int64

from jpt.backbones.layers import LayerNorm, matmul_precision
from jpt.backbones.registry import Backbone, check_lengths
from jpt.config import (
    PROJECTOR_OBJECTIVES,
    ProjectorOptions,
    check_choice,
)
from jpt.data.batches import shuffled
from jpt.errors import InputError
from jpt.io.files import parse_json
from jpt.io.tensors import FLOATS, read_header, write_safetensors
from jpt.parallel import batch_sharding, fetch, make_mesh, place, replicated
from jpt.prompts.store import LAYOUTS, PROMPT_FILE, load_prompt, load_prompts, read_scoring
from jpt.results.prompt_table import check_unique, match_in_task_prompts, short_task
from jpt.results.records import ProjectorScore
from jpt.tasks.catalog import load_task
from jpt.tasks.task import Task
from jpt.tuning.batches import TrainBatches, make_train_batches
from jpt.tuning.bound_task import (
    BoundTask,
    Splits,
    bind,
    data_record,
    resolve_backbone,
    resolve_options,
)
from jpt.tuning.logging import peak_memory_mb
from jpt.tuning.losses import Answer, answer_loss
from jpt.tuning.run_dir import RunFolder
from jpt.tuning.step import Optimizer
from jpt.tuning.trainer import Best, Fitted, Problem, fit, intervals_of
from jpt.types import Batch, Parameters, Prompt, PromptCard, Scoring
from jpt.version import __version__

# --- The projector module (paper, section 4)

EPSILON = 1e-5  # of the LayerNorm, as in the paper's code

ACTIVATIONS = {
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.01),
    "tanh": jnp.tanh,
    "none": lambda rows: rows,
}


class Projector(nn.Module):
    """Map of prompts of one model to prompts of another, in float32."""

    # Paper's code: flatten, a linear map to a bottleneck, an activation (LeakyReLU; Tanh towards
    # roberta-large), a linear map, LayerNorm over each token. Its per-token form is one linear map
    # for every token and LeakyReLU, without LayerNorm.

    length: int  # P of the target
    width: int  # D of the target
    bottleneck: int = 768  # neurons between the two maps; the per-token form has none
    activation: str = "leaky_relu"  # ``leaky_relu`` (slope 0.01), ``tanh`` or ``none``
    layer_norm: bool = True  # with a learned scale and shift
    # Euclidean norm of the prompt tokens of a fresh projector; None leaves sqrt(width). It changes
    # no answer of models that normalise their input, such as BERT; in T5, RoBERTa and decoders it
    # sets the weight of a prompt token relative to a word
    rescale_to: float | None = None
    per_token: bool = False  # map tokens one by one, with shared weights

    @nn.compact
    def __call__(self, prompts: Float[Array, "*K Ps Ds"]) -> Float[Array, "*K P D"]:
        """Project one prompt or several."""
        activation = ACTIVATIONS[self.activation]
        prompts = prompts.astype(jnp.float32)
        if self.per_token:
            return activation(_linear(self.width, prompts.shape[-1], "row")(prompts))
        # [..., Ps, Ds] -> [..., Ps * Ds]
        flat = prompts.reshape(*prompts.shape[:-2], prompts.shape[-2] * prompts.shape[-1])
        hidden = activation(_linear(self.bottleneck, flat.shape[-1], "down")(flat))
        rows = _linear(self.length * self.width, self.bottleneck, "up")(hidden)
        # [..., P * D] -> [..., P, D]
        rows = rows.reshape(*rows.shape[:-1], self.length, self.width)
        if not self.layer_norm:
            return rows
        rows = LayerNorm(EPSILON, name="norm")(rows)
        if self.rescale_to is None:
            return rows
        return rows * jnp.float32(self.rescale_to / math.sqrt(self.width))


def _linear(features: int, fan_in: int, name: str) -> nn.Dense:
    """Return a linear map with torch's initialisation: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    precision = matmul_precision(jnp.float32)
    initialisers = {"kernel_init": uniform, "bias_init": uniform}
    return nn.Dense(features, **initialisers, precision=precision, name=name)


def initial_parameters(projector: Projector, length: int, width: int, seed: int = 0) -> Parameters:
    """Initialise the weights of a projector."""
    # Paper's code: torch's default initialisation for RoBERTa targets, used here for every target;
    # N(0, 1) for BERT and T5.
    key = jax.random.fold_in(jax.random.key(seed), 1)
    # Compiled, so that the unused output is not computed.
    init = jax.jit(lambda key: projector.init(key, jnp.zeros((length, width), jnp.float32)))
    return init(key)["params"]


@partial(jax.jit, static_argnums=0)
def project_on_device(
    projector: Projector, params: Parameters, prompts: Float[Array, "*K Ps Ds"]
) -> Float[Array, "*K P D"]:
    """Project prompts; the result stays on the devices."""
    return projector.apply({"params": params}, prompts)


def project(
    projector: Projector, params: Parameters, prompts: Float32[np.ndarray, "*K Ps Ds"]
) -> Float32[np.ndarray, "*K P D"]:
    """Project prompts."""
    return np.asarray(project_on_device(projector, params, jnp.asarray(prompts, jnp.float32)))


def distance_loss(
    projector: Projector,
    params: Parameters,
    sources: Float[Array, "K Ps Ds"],
    targets: Float[Array, "K P D"],
) -> Float[Array, ""]:
    """Return the mean squared error between projected and in-task prompts."""
    return jnp.square(projector.apply({"params": params}, sources) - targets).mean()


# --- Training steps


class TaskBatch(NamedTuple):
    """Batch of one task with the source prompt of that task."""

    rows: Batch
    source: Float[Array, "Ps Ds"]
    answer: Answer


class Pairs(NamedTuple):
    """Prompts of both models, paired by task."""

    sources: Float[Array, "K Ps Ds"]
    targets: Float[Array, "K P D"]


@dataclass(frozen=True)
class TaskLoss:
    """Loss of a task behind a projected prompt: ``frozen`` are the weights of the target."""

    # It is propagated through the frozen target into the projector. (In the paper's code for T5 the
    # gradient does not reach it.)
    module: nn.Module  # the target
    projector: Projector
    objective: str = "labels"

    def __call__(
        self, frozen: Parameters, params: Parameters, batch: TaskBatch, key: Array
    ) -> tuple[Array, Array]:
        """Return loss and accuracy of a batch."""
        prompt = self.projector.apply({"params": params}, batch.source)
        return answer_loss(self.module, frozen, prompt, batch.rows, batch.answer, self.objective)


@dataclass(frozen=True)
class DistanceLoss:
    """Distance between projected and in-task prompts; a batch has numbers of tasks."""

    projector: Projector

    def __call__(
        self, frozen: Pairs, params: Parameters, batch: Int[Array, "B"], key: Array
    ) -> tuple[Array, None]:
        """Return the loss of a batch; it has no accuracy."""
        pairs = (frozen.sources[batch], frozen.targets[batch])
        return distance_loss(self.projector, params, *pairs), None


# Paper's code: AdamW with eps 1e-6 and no decay (task) and Adam (distance), at a constant learning
# rate; it ignores the configured rate and uses 5e-3.
OPTIMIZERS = {"task": Optimizer(), "distance": Optimizer(optax.adam)}


# --- Training data

Prompts = Mapping[str, Prompt] | Prompt | str | Path
"""Prompts by name, a folder of them, or one prompt, its file or its run folder."""

TASK_ORDER = zlib.crc32(b"projector/task_turns")
PAIR_STREAM = zlib.crc32(b"projector/pair_draws")
MORE_SAMPLES = zlib.crc32(b"projector/pair_draws/more")


def read_prompts(prompts: Prompts) -> dict[str, Prompt]:
    """Load prompts of one backbone and length, by name."""
    if isinstance(prompts, Prompt):
        return {short_task(prompts.card.task): prompts}
    if isinstance(prompts, (str, Path)):
        path = Path(prompts)
        if path.is_file() or (path / PROMPT_FILE).is_file():
            name = path.parent.name if path.name == PROMPT_FILE else path.stem
            return {name: load_prompt(path)}
    return load_prompts(prompts)


def short_names(tasks: Iterable[Task | str | Path]) -> list[str]:
    """Return the short names of tasks."""
    names = [t.short_name if isinstance(t, Task) else short_task(str(t)) for t in tasks]
    check_unique(names, "tasks")
    return names


def read_tasks(
    tasks: Iterable[Task | str | Path] | None,
    prompts: Mapping[str, Prompt],
    data: str | Path | None,
) -> dict[str, Task]:
    """Load the given tasks, or those named by the prompts' cards."""
    if tasks is not None:
        asked = list(tasks)
        if not asked:
            raise InputError(
                "tasks: expected at least one, got none; give for instance builtin/imdb"
            )
        loaded = [task if isinstance(task, Task) else _load(task, data) for task in asked]
    else:
        first = {prompt.card.task: name for name, prompt in reversed(list(prompts.items()))}
        loaded = [_load_named(*item, data) for item in first.items()]
    check_unique([task.short_name for task in loaded], "tasks")
    return {task.short_name: task for task in loaded}


def _load_named(task: str, prompt: str, data: str | Path | None) -> Task:
    try:
        return _load(task, data)
    except InputError as error:
        raise InputError(f"task of prompt {prompt}'s card: {error}") from None


def _load(task: str | Path, data: str | Path | None) -> Task:
    if data is None or str(task).startswith("builtin/") or not (Path(data) / str(task)).is_dir():
        return load_task(task)
    return load_task(task, Path(data) / str(task))


def prompts_of_tasks(
    prompts: Mapping[str, Prompt], tasks: Iterable[str], what: str
) -> dict[str, str]:
    """Return the prompt of each task, matched by the cards."""
    tasks = list(tasks)
    in_task, _ = match_in_task_prompts(
        tasks, {name: prompt.card for name, prompt in prompts.items()}
    )
    for task in tasks:
        if task not in in_task:
            named = {n: short_task(prompt.card.task) for n, prompt in prompts.items()}
            several = [name for name, of in named.items() if of == task]
            found = f"{len(several)} prompts ({', '.join(several)})" if several else "no prompt"
            raise InputError(
                f"task {task}: expected 1 prompt among the {what} (of"
                f" {', '.join(sorted(set(named.values())))}), got {found}; tune one, or leave the"
                " task out"
            )
    return in_task


def prompt_record(prompts: Mapping[str, Prompt], of: Mapping[str, str]) -> dict[str, Any]:
    """Return name and checksum of the prompt of each task; a resumed run compares them."""
    return {
        task: {
            "prompt": name,
            "sha256": hashlib.sha256(prompts[name].values.tobytes()).hexdigest()[:16],
        }
        for task, name in of.items()
    }


@dataclass(frozen=True)
class TrainingTask:
    """A training task of a projector."""

    bound: BoundTask
    batches: TrainBatches
    splits: Splits
    source: Float[Array, "Ps Ds"]  # source prompt of this task, on the devices


@dataclass(frozen=True)
class TaskBatches:
    """Batches of several tasks, one task per step."""

    # Each round visits every task once in random order, so that all tasks have the same weight.
    # (Paper's code: rows of all tasks in one batch, larger tasks cut to the smallest; with several
    # tasks, rows get the prompt of another task.)

    tasks: Mapping[str, TrainingTask]  # by short name
    seed: int  # of the order of tasks
    mesh: Mesh = field(repr=False)

    def task_at(self, step: int) -> str:
        """Return the task of a step, counted from 0."""
        round_, index = divmod(step, len(self.tasks))
        return list(self.tasks)[shuffled(self.seed, TASK_ORDER, round_, len(self.tasks))[index]]

    def batch_at(self, step: int) -> TaskBatch:
        """Return the batch of a step, on the devices."""
        task = self.tasks[self.task_at(step)]
        rows = task.batches.batch(step // len(self.tasks), self.mesh)
        return TaskBatch(rows, task.source, task.bound.answer)


def training_task(
    task: Task, source: Prompt, backbone: Backbone, options: ProjectorOptions, mesh: Mesh
) -> tuple[TrainingTask, str]:
    """Bind a task to the target; return it with the resolved objective."""
    chosen = resolve_options(options.tune_options(), backbone, task)
    bound = bind(task, backbone, chosen)
    splits = bound.splits(with_test=False)
    batches = make_train_batches(
        splits["train"], chosen, bound.batching, backbone.layout, mesh.shape["data"]
    )
    rows = place(jnp.asarray(source.values), replicated(mesh))
    return TrainingTask(bound, batches, splits, rows), chosen.objective


def sample_pairs(seed: int, step: int, batch_size: int, count: int) -> Int64[np.ndarray, "B"]:
    """Sample the tasks of one step of the distance objective."""
    # Paper's code: without replacement; with fewer tasks than the batch size, the rest with
    # replacement.
    first = shuffled(seed, PAIR_STREAM, step, count)[:batch_size]
    key = np.array([seed, MORE_SAMPLES << 32 | step], dtype=np.uint64)
    more = np.random.Philox(key=key).random_raw(max(0, batch_size - count)) % np.uint64(count)
    return np.concatenate([first, more.astype(np.int64)])


# --- Validation scores


def score_tasks(
    module: Projector, params: Parameters, tasks: Mapping[str, TrainingTask], mesh: Mesh
) -> ProjectorScore:
    """Score the projected prompt of every task on its validation rows."""
    values, warnings = {}, []
    for name, task in tasks.items():
        prompt = project_on_device(module, params, task.source)
        rows = task.splits["validation"]
        score = task.bound.score([prompt], rows, mesh, may_diverge=True)[0]
        values[name] = score.value
        warnings += [f"{name}: {score.warning}"] if score.warning else []
    mean = float(np.mean(list(values.values())))
    return ProjectorScore("mean_score", mean, values, warning=warnings[0] if warnings else None)


def score_pairs(
    module: Projector, params: Parameters, pairs: Pairs, names: list[str], count: int
) -> ProjectorScore:
    """Return the error of every projected prompt against the target's in-task prompt."""
    found = project_on_device(module, params, pairs.sources)
    errors = fetch(jnp.square(found - pairs.targets).mean(axis=(1, 2)))
    values = dict(zip(names, map(float, errors), strict=True))
    learnt = {name: values[name] for name in names[:count]}
    unseen = {name: values[name] for name in names[count:]}
    return ProjectorScore("error", -float(np.mean(list(learnt.values()))), learnt, unseen)


# --- Projector files
# The card (JSON in the metadata) has the activation and all sizes; from the weights alone a Tanh
# projector cannot be distinguished from a LeakyReLU one (the paper's code loads one as the other).

PROJECTOR_FILE = "projector.safetensors"

_STORE_COUNTS = ("source_length", "source_width", "target_length", "target_width", "bottleneck")
_FLAGS = ("layer_norm", "per_token")


@dataclass(frozen=True)
class ProjectorCard:
    """Metadata of a projector, stored in its file.

    Attributes:
        source_backbone: Name of the source model.
        target_backbone: Name of the target model.
        target_layout: Prompt layout of the target model.
        objective: ``task``, ``distance``, ``least_squares``, or ``untrained``.
        tasks: Training tasks.
        source_length: P of the source.
        source_width: D of the source.
        target_length: P of the target.
        target_width: D of the target.
        bottleneck: Neurons between the two linear maps.
        activation: ``leaky_relu``, ``tanh`` or ``none``.
        layer_norm: LayerNorm over each prompt token.
        rescale_to: Norm of the prompt tokens after LayerNorm.
        per_token: Tokens are mapped one by one, with shared weights.
        seed: Seed of the training run.
        steps: Training steps of these weights.
        score: Mean validation score (task), or mean squared error (distance).
        scoring: Settings of the validation scores, by training task.
        jpt_version: Version that wrote the file.
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
    scoring: dict[str, Scoring] = field(default_factory=dict)
    jpt_version: str | None = None

    def module(self) -> Projector:
        """Return the module that this card describes."""
        names = ("bottleneck", "activation", "layer_norm", "rescale_to", "per_token")
        options = {name: getattr(self, name) for name in names}
        return Projector(self.target_length, self.target_width, **options)


@dataclass(frozen=True)
class TrainedProjector:
    """A projector, callable on prompts of the source model.

    Attributes:
        card: Metadata.
        params: Weights.
        name: File name, for messages and the cards of projected prompts.
    """

    card: ProjectorCard
    params: Parameters
    name: str = "projector"

    def __call__(self, prompt: Prompt) -> Float32[np.ndarray, "P D"]:
        """Project a prompt of the source model."""
        check_source(self.card, prompt)
        return project(self.card.module(), self.params, prompt.values)


def check_source(card: ProjectorCard, prompt: Prompt, name: str = "the prompt") -> None:
    """Raise InputError if shape or backbone of a prompt differ from the projector's source."""
    expected = (card.source_length, card.source_width)
    if prompt.values.shape != expected:
        raise InputError(
            f"{name}: expected shape {list(expected)} ({card.source_backbone}), as the projector"
            f" reads, got {list(prompt.values.shape)} ({prompt.card.backbone}); give prompts of"
            " that shape or train another projector"
        )
    if prompt.card.backbone != card.source_backbone:
        raise InputError(
            f"{name}: expected a prompt of {card.source_backbone}, as the projector reads, got one"
            f" of {prompt.card.backbone}; give prompts of that model or train another projector"
        )


def save_projector(path: str | Path, projector: TrainedProjector) -> None:
    """Write a projector file atomically; raise InputError if a weight is not finite."""
    flat = flatten_dict(jax.device_get(projector.params), sep="/")
    tensors = {name: np.asarray(values, np.float32) for name, values in sorted(flat.items())}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"cannot write {path}: {name} holds NaN or infinity; train again with a lower"
                " learning rate"
            )
    card = dataclasses.replace(projector.card, jpt_version=__version__)
    values = {k: v for k, v in dataclasses.asdict(card).items() if v is not None}
    values["scoring"] = {task: scoring.to_json() for task, scoring in card.scoring.items()}
    write_safetensors(path, tensors, {"card": json.dumps(values, allow_nan=False)})


def load_projector(path: str | Path) -> TrainedProjector:
    """Load a projector.

    Args:
        path: Projector file or run folder.

    Returns:
        The projector.

    Raises:
        InputError: If the file is missing, broken or not a projector, or if its weights do not
            match its card.

    Example:
        See `save_projector`.
    """
    file = Path(path)
    if file.is_dir():
        if not (file / PROJECTOR_FILE).is_file():
            raise InputError(
                f"{file}: expected a finished run, got a folder without {PROJECTOR_FILE}; give a"
                " projector file or a finished run"
            )
        file = file / PROJECTOR_FILE
    tensors, metadata = read_header(file)
    card = _parse_card(file, metadata)
    expected = _expected_shapes(card)
    _check_shapes(file, {name: tensor.shape for name, tensor in tensors.items()}, expected)
    for name in expected:
        if tensors[name].dtype.type not in FLOATS:
            raise InputError(
                f"{file}: expected floating-point weights, got {tensors[name].dtype} in {name};"
                " train the projector again"
            )
    flat = {name: np.asarray(tensors[name].read(), np.float32) for name in expected}
    for name, values in flat.items():
        if not np.isfinite(values).all():
            raise InputError(f"{file}: {name} holds NaN or infinity; train the projector again")
    return TrainedProjector(card, unflatten_dict(flat, sep="/"), str(path))


def _expected_shapes(card: ProjectorCard) -> dict[str, tuple[int, ...]]:
    source = jnp.zeros((card.source_length, card.source_width), jnp.float32)
    shapes = jax.eval_shape(card.module().init, jax.random.key(0), source)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}


def _check_shapes(
    file: Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise InputError for the first missing, unexpected or misshapen weight."""
    cure = "the card is of another projector: train it again"
    for name in expected:
        if name not in found:
            names = ", ".join(list(found)[:6]) or "none"
            raise InputError(f"{file}: expected weights '{name}', got {names}; {cure}")
        if found[name] != expected[name]:
            raise InputError(
                f"{file}: expected shape {list(expected[name])} of '{name}', got"
                f" {list(found[name])}; {cure}"
            )
    left = [name for name in found if name not in expected]
    if left:
        raise InputError(f"{file}: unexpected weights '{left[0]}'; {cure}")


def _parse_card(file: Path, metadata: Mapping[str, str]) -> ProjectorCard:
    """Return the card with every value checked; fields of later versions are ignored."""
    if "card" not in metadata:
        raise InputError(
            f"{file}: expected a projector, got a file without a card; make one with jpt project"
            " train"
        )
    table = parse_json(metadata["card"].encode(), f"the card of {file}")
    fields = dataclasses.fields(ProjectorCard)
    if not isinstance(table, dict) or "source_backbone" not in table:
        raise InputError(
            f"{file}: expected a projector, got a card without source_backbone; make one with jpt"
            " project train"
        )
    known = {each.name: table[each.name] for each in fields if table.get(each.name) is not None}
    for each in fields:
        if each.default is dataclasses.MISSING and each.name not in known:
            raise InputError(f"card of {file}: {each.name} is missing; train the projector again")
    for name, value in known.items():
        expected = _expected(name, value)
        if expected:
            raise InputError(
                f"card of {file}: expected {expected} for {name}, got {value!r}; train the"
                " projector again"
            )
    scoring = {
        task: read_scoring(f"the card of {file}", f"scoring.{task}", each)
        for task, each in known.get("scoring", {}).items()
    }
    return ProjectorCard(**{**known, "tasks": tuple(known["tasks"]), "scoring": scoring})


def _expected(name: str, value: Any) -> str | None:
    """Return what was expected of a card value, or None if it is valid."""
    if name in _STORE_COUNTS:
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
    if name == "scoring":
        return None if isinstance(value, dict) else "an object"
    choices = {"activation": tuple(ACTIVATIONS), "target_layout": LAYOUTS}.get(name)
    if choices is not None:
        return None if value in choices else f"one of {', '.join(choices)}"
    return None if isinstance(value, str) else "a string"


# --- Projected prompts


def projected(
    name: str,
    prompt: Prompt,
    values: Float32[np.ndarray, "P D"],
    backbone: str,
    layout: str,
    method: TrainedProjector | str,
) -> Prompt:
    """Return projected values as a prompt of the target."""
    what, scoring = method, None
    if isinstance(method, TrainedProjector):
        what = describe_origin(method)
        scoring = method.card.scoring.get(short_task(prompt.card.task))
    card = PromptCard(
        backbone=backbone,
        task=prompt.card.task,
        task_type=prompt.card.task_type,
        layout=layout,
        init="projected",
        source=f"{what} from prompt {name} of {prompt.card.backbone}",
        jpt_version=__version__,
        scoring=scoring and dataclasses.replace(scoring, split=None),  # it has no score yet
    )
    return Prompt(np.asarray(values, np.float32), card)


def describe_origin(projector: TrainedProjector) -> str:
    """Return name, objective and training tasks, for cards of projected prompts."""
    card = projector.card
    tasks = f" on {', '.join(card.tasks)}" if card.tasks else ""
    return f"{projector.name} ({card.objective}{tasks})"


def as_projector(projector: TrainedProjector | str | Path) -> TrainedProjector:
    """Load a projector unless it is one already."""
    return projector if isinstance(projector, TrainedProjector) else load_projector(projector)


# --- Sizes and their checks


def check_different_backbones(prompts: Mapping[str, Prompt], target: Backbone | str | Path) -> None:
    """Raise InputError if source and target are the same model."""
    name = target.name if isinstance(target, Backbone) else str(target)
    if next(iter(prompts.values())).card.backbone == name:
        raise InputError(
            f"target backbone: expected another model than the source, got {name} for both; on one"
            " model use the prompts directly, with jpt transfer or jpt warm-start"
        )


def make_card(
    prompts: Mapping[str, Prompt],
    backbone: Backbone,
    objective: str,
    tasks: tuple[str, ...],
    options: ProjectorOptions,
) -> ProjectorCard:
    """Return the card of a projector before training."""
    first = next(iter(prompts.values()))
    return ProjectorCard(
        source_backbone=first.card.backbone,
        target_backbone=backbone.name,
        target_layout=backbone.layout,
        objective=objective,
        tasks=tasks,
        source_length=len(first.values),
        source_width=first.values.shape[1],
        target_length=options.length,
        target_width=backbone.config.width,
        bottleneck=options.bottleneck,
        activation=options.activation,
        layer_norm=options.layer_norm,
        rescale_to=mean_norm(backbone) if options.rescale else None,
        per_token=options.per_token,
        seed=options.seed,
    )


def mean_norm(backbone: Backbone) -> float:
    """Return the mean Euclidean norm of a model's word embeddings."""
    words = backbone.params["embeddings"]["word"].astype(jnp.float32)
    return float(jnp.linalg.norm(words, axis=-1).mean())


def with_backbone(
    prompts: Mapping[str, Prompt],
    target: Backbone | str | Path,
    options: ProjectorOptions,
    objective: str,
    length: int | None,
    mesh: Mesh,
) -> tuple[ProjectorOptions, Backbone]:
    """Resolve length and learning rate, and load the target."""
    rows = length_of(prompts)
    options = dataclasses.replace(options, length=length or rows)
    if options.per_token and options.length != rows:
        raise InputError(
            f"length: expected {rows}, the source's, which a per-token projector keeps, got"
            f" {options.length}; leave per_token out"
        )
    backbone = resolve_backbone(target, options.dtype, mesh=mesh, remat=options.remat)
    check_lengths(backbone, options.length, 1)
    return options.with_learning_rate(objective, backbone.defaults), backbone


def check_targets(targets: Mapping[str, Prompt], backbone: Backbone) -> None:
    """Raise InputError if in-task prompts are of another model than the target."""
    first = next(iter(targets.values()))
    if first.card.backbone != backbone.name or first.values.shape[1] != backbone.config.width:
        raise InputError(
            f"targets: expected prompts of {backbone.name} (width {backbone.config.width}), got"
            f" prompts of {first.card.backbone} (width {first.values.shape[1]}); give prompts tuned"
            " on the target"
        )


def length_of(prompts: Mapping[str, Prompt]) -> int:
    """Return the common number of prompt tokens."""
    return len(next(iter(prompts.values())).values)


# --- Loaded and checked inputs of a training run


@dataclass(frozen=True)
class ProjectorPlan:
    """Everything a training run needs."""

    card: ProjectorCard  # before training
    options: ProjectorOptions  # resolved
    mesh: Mesh
    frozen: Any  # read by every step: the target's weights, or the pairs of prompts
    loss: TaskLoss | DistanceLoss
    batch_at: Callable[[int], Any]  # batch of a step, counted from 0
    score: Callable[[Parameters], ProjectorScore]
    log_fields: Callable[[int], dict[str, Any]]  # added to the log line of a step, from 0
    metric: str
    measured_on: str
    config: dict[str, Any]  # all that defines the run
    splits: Sequence[Splits] = ()

    def problem(self) -> Problem:
        """Return what is trained."""
        card, options = self.card, self.options
        size = (card.source_length, card.source_width)
        return Problem(
            frozen=self.frozen,
            init=initial_parameters(card.module(), *size, options.seed),
            loss=self.loss,
            batch=self.batch_at,
            evaluate=self.score,
            config=self.config,
            finish=self._finish,
            **intervals_of(options),
            learning_rate=options.learning_rate,
            optimizer=OPTIMIZERS[card.objective],
            mesh=self.mesh,
            keep=self._keep,
            log_fields=self.log_fields,
        )

    def projector(
        self, best: Best, folder: RunFolder | None, score: float | None = None
    ) -> TrainedProjector:
        """Return the best projector of a run."""
        if score is None:  # an error is negated, so that the highest score is the best
            score = -best.score if self.metric == "error" else best.score
        card = dataclasses.replace(self.card, steps=best.step, score=score)
        name = "projector" if folder is None else str(folder.path / PROJECTOR_FILE)
        return TrainedProjector(card, best.params, name)

    def _keep(self, best: Best, folder: RunFolder) -> None:
        save_projector(folder.file(PROJECTOR_FILE), self.projector(best, folder))

    def _finish(self, fitted: Fitted, folder: RunFolder | None) -> dict[str, Any]:
        """Write the best projector; return its validation scores."""
        best = fitted.best
        scores = fitted.logged(best.step)
        if folder is not None:
            projector = self.projector(best, folder, float(scores[self.metric]))
            save_projector(folder.file(PROJECTOR_FILE), projector)
        return {
            "objective": self.card.objective,
            "source_backbone": self.card.source_backbone,
            "target_backbone": self.card.target_backbone,
            "tasks": list(self.card.tasks),
            "metric": self.metric,
            "measured_on": self.measured_on,
            "weights": sum(leaf.size for leaf in jax.tree.leaves(best.params)),
            "steps": self.options.steps,
            "best_step": best.step,
            "validation": scores,
            "elapsed_s": fitted.elapsed_s,
            "peak_memory_mb": peak_memory_mb(),
        }


def plan_projector(
    sources: Prompts,
    target: Backbone | str | Path,
    objective: str,
    tasks: Iterable[Task | str | Path] | None,
    targets: Prompts | None,
    data: str | Path | None,
    options: ProjectorOptions,
) -> ProjectorPlan:
    """Load and check all inputs, cheap checks first, before anything compiles."""
    check_choice("objective", objective, PROJECTOR_OBJECTIVES)
    given, options = read_prompts(sources), options.resolve(objective)
    check_different_backbones(given, target)
    mesh = make_mesh(options.mesh)
    if objective == "distance":
        return _plan_distance(given, target, tasks, targets, options, mesh)
    batch_sharding(mesh, options.batch_size)
    batch_sharding(mesh, options.eval_batch_size)
    definitions = read_tasks(tasks, given, data)
    in_task = prompts_of_tasks(given, definitions, "source prompts")
    length = options.length or (None if targets is None else length_of(read_prompts(targets)))
    options, backbone = with_backbone(given, target, options, objective, length, mesh)
    found = {
        name: training_task(task, given[in_task[name]], backbone, options, mesh)
        for name, task in definitions.items()
    }
    learnt = {name: task for name, (task, _) in found.items()}
    answer_objective = next(iter(found.values()))[1]
    card = make_card(given, backbone, objective, tuple(definitions), options)
    scoring = {
        name: dataclasses.replace(task.bound.scoring, split="validation")
        for name, task in learnt.items()
    }
    card = dataclasses.replace(card, scoring=scoring)
    batches = TaskBatches(learnt, options.seed, mesh)
    module = backbone.module.clone(dropout_rate=0.0)
    record = {"sources": prompt_record(given, in_task), "data": _data_record(learnt)}
    return ProjectorPlan(
        card=card,
        options=options,
        mesh=mesh,
        frozen=backbone.params,
        loss=TaskLoss(module, card.module(), answer_objective),
        batch_at=batches.batch_at,
        score=lambda params: score_tasks(card.module(), params, learnt, mesh),
        log_fields=lambda step: {"task": batches.task_at(step)},
        splits=[task.splits for task in learnt.values()],
        metric="mean_score",
        measured_on="validation",
        config=_config(card, options, backbone, record),
    )


def _plan_distance(
    given: dict[str, Prompt],
    target: Backbone | str | Path,
    tasks: Iterable[Task | str | Path] | None,
    targets: Prompts | None,
    options: ProjectorOptions,
    mesh: Mesh,
) -> ProjectorPlan:
    if targets is None:
        raise InputError(
            "targets: the distance objective needs prompts tuned on the target, got none; give"
            " them, or use the task objective"
        )
    wanted = read_prompts(targets)
    common = _common_tasks(given, wanted)
    learnt = common if tasks is None else short_names(tasks)
    if not learnt:
        raise InputError(
            f"tasks: expected one with prompts of both models, got {_tasks_of(given)} (source) and"
            f" {_tasks_of(wanted)} (target); tune at least one task on both models"
        )
    names = [*learnt, *(name for name in common if name not in learnt)]
    in_task = prompts_of_tasks(given, names, "source prompts")
    goals = prompts_of_tasks(wanted, names, "target's prompts")
    if options.length not in (None, length_of(wanted)):
        raise InputError(
            f"length: expected {length_of(wanted)}, as the target's prompts have, got"
            f" {options.length}; leave length out"
        )
    options, backbone = with_backbone(given, target, options, "distance", length_of(wanted), mesh)
    check_targets(wanted, backbone)
    card = make_card(given, backbone, "distance", tuple(learnt), options)
    pairs = Pairs(
        jnp.asarray(np.stack([given[in_task[name]].values for name in names])),
        jnp.asarray(np.stack([wanted[goals[name]].values for name in names])),
    )
    pairs, module, count = place(pairs, replicated(mesh)), card.module(), len(learnt)
    record = {"sources": prompt_record(given, in_task), "targets": prompt_record(wanted, goals)}

    def batch_at(step: int) -> Array:
        tasks = sample_pairs(options.seed, step, options.batch_size, count)
        return place(tasks.astype(np.int32), replicated(mesh))

    return ProjectorPlan(
        card=card,
        options=options,
        mesh=mesh,
        frozen=pairs,
        loss=DistanceLoss(module),
        batch_at=batch_at,
        score=lambda params: score_pairs(module, params, pairs, names, count),
        log_fields=lambda step: {},
        metric="error",
        measured_on="the training tasks",
        config=_config(card, options, backbone, record),
    )


def _data_record(tasks: Mapping[str, TrainingTask]) -> dict[str, Any]:
    return {
        name: {
            **data_record(task.splits),
            "metric": task.bound.task.metric,
            "label_ids": task.bound.label_words.token_ids,
        }
        for name, task in tasks.items()
    }


def _config(
    card: ProjectorCard, options: ProjectorOptions, backbone: Backbone, record: dict[str, Any]
) -> dict[str, Any]:
    """Return all that defines the run; only a run with the same config is resumed."""
    return {
        "jpt_version": __version__,
        "objective": card.objective,
        "source_backbone": card.source_backbone,
        "target_backbone": card.target_backbone,
        "fingerprint": backbone.fingerprint,
        "tasks": list(card.tasks),
        "rescale_to": card.rescale_to,
        **record,
        **dataclasses.asdict(options),
    }


def _tasks_of(prompts: Mapping[str, Prompt]) -> str:
    return ", ".join(sorted({prompt.card.task for prompt in prompts.values()}))


def _common_tasks(sources: Mapping[str, Prompt], targets: Mapping[str, Prompt]) -> list[str]:
    """Return the short names of tasks with prompts of both models."""
    first, second = (
        set(short_names({prompt.card.task for prompt in prompts.values()}))
        for prompts in (sources, targets)
    )
    return sorted(first & second)


# --- Training


@dataclass(frozen=True)
class ProjectorResult:
    """Result of `train_projector`.

    Attributes:
        projector: Projector with the best validation score.
        record: Scores and settings, as in ``result.json``.
        history: Logged lines.
        folder: Run folder; None if the run was kept in memory.
    """

    projector: TrainedProjector
    record: dict[str, Any]
    history: list[dict[str, Any]]
    folder: Path | None

    def describe(self) -> str:
        """Return scores and settings as text."""
        record = self.record
        found = record["validation"]
        value = found[record["metric"]]
        lines = [
            f"{record['source_backbone']} to {record['target_backbone']}, {record['objective']} "
            f"objective, {record['weights']:,} weights: {record['metric']} {value:.4g} on "
            f"{record['measured_on']}; best at step {record['best_step']} of {record['steps']}, "
            f"{record['elapsed_s']:.0f} s"
        ]
        by_task = ", ".join(f"{name} {score:.3g}" for name, score in found["by_task"].items())
        lines.append(f"by task: {by_task}")
        if self.folder is not None:
            lines.append(f"projector: {self.folder / PROJECTOR_FILE}")
        return "\n".join(lines)


def train_projector(
    sources: Prompts,
    target_backbone: Backbone | str | Path,
    objective: str = "task",
    *,
    tasks: Iterable[Task | str | Path] | None = None,
    out: str | Path | None = None,
    targets: Prompts | None = None,
    data: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> ProjectorResult:
    """Train a projector from prompts of one model to prompts of another (paper, section 4).

    The ``task`` objective trains the projector with the task loss of the projected prompt on the
    frozen target; several tasks alternate, one per step. The ``distance`` objective fits the
    target model's in-task prompts of the same tasks and needs no rows.

    Args:
        sources: Prompts of the source model: a folder, or prompts by name; cards name their tasks.
        target_backbone: Frozen target model: loaded, a name, a folder or a hub id.
        objective: ``task`` or ``distance``.
        tasks: Training tasks; defaults to those in the sources' cards (distance: with prompts of
            both models).
        out: Run folder. A finished run returns at once; a stopped one resumes, bit-identical to an
            uninterrupted run. None keeps the run in memory.
        targets: In-task prompts of the target, for ``distance``; others are only evaluated.
        data: Folder with a subfolder of rows for each catalog task.
        progress: Show a progress bar on stderr.
        **options: Fields of :class:`jpt.config.ProjectorOptions`.

    Returns:
        The :class:`ProjectorResult` with the best projector (distance: on the training tasks).

    Raises:
        InputError: If an input is invalid, before anything compiles.
        DivergedError: If the loss is not finite.
        StoppedError: After SIGTERM or Ctrl-C; the state is saved.

    Example:
        >>> from jpt.types import Prompt, PromptCard
        >>> card = PromptCard("builtin/bert-medium", "builtin/imdb_number")
        >>> source = Prompt(np.ones((4, 192), np.float32), card)
        >>> result = train_projector(source, "builtin/bert-small", steps=1, max_tokens=8)
        >>> result.projector(source).shape
        (4, 128)
    """
    started_s = time.monotonic()
    inputs = (sources, target_backbone, objective, tasks, targets, data)
    plan = plan_projector(*inputs, ProjectorOptions(**options))
    folder = None if out is None else RunFolder(Path(out), plan.config)
    if folder is not None and (record := folder.result) is not None:
        projector = load_projector(folder.path)
        return ProjectorResult(projector, record, folder.history(), folder.path)
    for splits in plan.splits:
        splits.warn()
    fitted = fit(plan.problem(), folder, progress=progress, started_s=started_s)
    score = float(fitted.record["validation"][plan.metric])
    projector, path = plan.projector(fitted.best, folder, score), folder.path if folder else None
    return ProjectorResult(projector, fitted.record, fitted.history, path)
