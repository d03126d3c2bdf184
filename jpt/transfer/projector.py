"""Projectors between models: module, training data, training by task loss or distance, files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
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
from jpt.data.encode import EncodedSplit
from jpt.errors import InputError
from jpt.io.files import parse_json
from jpt.io.tensors import read_header, write_safetensors
from jpt.parallel import batch_sharding, fetch, make_mesh, place, replicated
from jpt.prompts.store import LAYOUTS, PROMPT_FILE, load_prompt, load_prompts
from jpt.results.prompt_table import match_in_task_prompts, refuse_twice, short_task
from jpt.results.records import ProjectorScore
from jpt.tasks.catalog import load_task
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    BoundTask,
    bind,
    data_record,
    resolve_backbone,
    resolve_options,
)
from jpt.tuning.logging import Progress, peak_memory_mb
from jpt.tuning.losses import Answer, answer_loss
from jpt.tuning.run_dir import CHECKPOINTS, Checkpoints, RunFolder
from jpt.tuning.step import StepMetrics, TuneState, prompt_optimizer
from jpt.tuning.trainer import LoopState, Run, Schedule, init_state_of, resume, run_loop
from jpt.tuning.tune import TrainBatches, make_train_batches
from jpt.types import Batch, Parameters, Prompt
from jpt.version import __version__

# --- How a projector is built, trained and measured: every option, its default and its check


# --- The projector: a small network that turns a prompt of one model into a prompt of another
# Paper: section 4. The whole prompt is flattened, goes through a bottleneck, and comes out as the
# rows of the other model's prompt, each of them normalised.

EPSILON = 1e-5
"""Of the norm over each row, as in the paper's code."""

ACTIVATIONS = {
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.01),
    "tanh": jnp.tanh,
    "none": lambda rows: rows,
}


class Projector(nn.Module):
    """Maps prompts of one model to prompts of another; in float32 throughout."""

    # Paper's code: flatten, a linear map to a bottleneck, an activation (LeakyReLU; Tanh towards
    # roberta-large), a linear map, LayerNorm over each row. Its per-token form is one linear map,
    # row by row, and LeakyReLU, without a norm.

    length: int  # P of the target
    width: int  # D of the target
    bottleneck: int = 768  # neurons between the two maps; the per-token form has none
    activation: str = "leaky_relu"  # ``leaky_relu`` (slope 0.01), ``tanh`` or ``none``
    layer_norm: bool = True  # whether each row is normalised, with a learned scale and shift
    # multiplies what leaves the norm so that a fresh projector's rows have this Euclidean norm, in
    # place of the square root of the width. Where a model normalises its input at once, as BERT
    # does, this changes no answer and hardly a step of training; in T5, RoBERTa and decoders it
    # decides how much a prompt row weighs beside a word
    rescale_to: float | None = None
    per_token: bool = False  # whether rows are mapped one by one, all by the same map

    @nn.compact
    def __call__(self, prompts: Float[Array, "*K Ps Ds"]) -> Float[Array, "*K P D"]:
        """Projects one prompt, or several at once."""
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
    """A linear map that starts as torch's: weights and bias even within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def even(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    precision = matmul_precision(jnp.float32)
    return nn.Dense(features, kernel_init=even, bias_init=even, precision=precision, name=name)


def initial_parameters(projector: Projector, length: int, width: int, seed: int = 0) -> Parameters:
    """Draws the weights of a fresh projector."""
    # Paper's code: torch's own start of a linear map towards RoBERTa, which is taken here for every
    # target; it has N(0, 1) towards BERT and T5.
    source = jax.ShapeDtypeStruct((length, width), jnp.float32)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    # Compiled, so that no work is done for an output that nobody looks at.
    draw = jax.jit(lambda key: projector.init(key, jnp.zeros(source.shape, source.dtype))["params"])
    return draw(key)


@partial(jax.jit, static_argnums=0)
def project_on_device(
    projector: Projector, params: Parameters, prompts: Float[Array, "*K Ps Ds"]
) -> Float[Array, "*K P D"]:
    """Projects prompts and leaves the result on the devices."""
    return projector.apply({"params": params}, prompts)


def project(
    projector: Projector, params: Parameters, prompts: Float32[np.ndarray, "*K Ps Ds"]
) -> Float32[np.ndarray, "*K P D"]:
    """Projects prompts; equal prompts give equal rows, bit for bit."""
    return np.asarray(project_on_device(projector, params, jnp.asarray(prompts, jnp.float32)))


def distance_loss(
    projector: Projector,
    params: Parameters,
    sources: Float[Array, "K Ps Ds"],
    targets: Float[Array, "K P D"],
) -> Float[Array, ""]:
    """Gives the mean squared difference between projected prompts and the target's own."""
    return jnp.square(projector.apply({"params": params}, sources) - targets).mean()


# --- One step of a projector's training, for both objectives: pure, compiled, its state donated


class TaskBatch(NamedTuple):
    """Rows of one task with that task's own source prompt."""

    rows: Batch  # the batch; all of one task
    source: Float[Array, "Ps Ds"]  # the source model's prompt of that task
    answer: Answer  # the label words of that task


class Pairs(NamedTuple):
    """Prompts of the same tasks on both models, in one order of the tasks."""

    sources: Float[Array, "K Ps Ds"]  # prompts of the source model
    targets: Float[Array, "K P D"]  # the target model's own prompts


ProjectorStep = Callable[[Any, TuneState, Any, None], tuple[TuneState, StepMetrics]]
"""``step(frozen, state, batch, None)``; ``state.prompt`` holds the projector's weights."""


def start(params: Parameters, optimizer: optax.GradientTransformation) -> TuneState:
    """Builds the state before the first step."""
    return TuneState(jnp.int32(0), params, optimizer.init(params))


def projector_optimizer(objective: str, learning_rate: float) -> optax.GradientTransformation:
    """Gives the optimizer of an objective."""
    # Paper's code: AdamW with eps 1e-6 and no decay for tasks, Adam for the distance, both at a
    # constant rate. (There the rate of the config is ignored and 5e-3 built in; here it is used.)
    if objective == "task":
        return prompt_optimizer(learning_rate)
    return optax.adam(learning_rate)


@lru_cache(maxsize=16)
def task_step(
    module: nn.Module,
    projector: Projector,
    learning_rate: float,
    answer_objective: str = "labels",
    mesh: Mesh | None = None,
) -> ProjectorStep:
    """Gives the compiled step of the task objective."""
    # The projected prompt stands before the rows in the frozen target, and what the task's loss
    # says of it goes back into the projector alone. (In the paper's code for T5 it gets lost on the
    # way.)

    def loss_of(params: Parameters, frozen: Parameters, batch: TaskBatch) -> tuple[Array, Array]:
        prompt = projector.apply({"params": params}, batch.source)
        return answer_loss(module, frozen, prompt, batch.rows, batch.answer, answer_objective)

    return _compiled(loss_of, projector_optimizer("task", learning_rate), mesh)


@lru_cache(maxsize=16)
def distance_step(
    projector: Projector, learning_rate: float, mesh: Mesh | None = None
) -> ProjectorStep:
    """Gives the compiled step of the distance objective."""

    def loss_of(params: Parameters, pairs: Pairs, tasks: Int[Array, "B"]) -> tuple[Array, Array]:
        sources, targets = pairs.sources[tasks], pairs.targets[tasks]
        return distance_loss(projector, params, sources, targets), jnp.float32(0)

    return _compiled(loss_of, projector_optimizer("distance", learning_rate), mesh)


def _compiled(
    loss_of: Callable[[Parameters, Any, Any], tuple[Array, Array]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
) -> ProjectorStep:
    def step(
        frozen: Any, state: TuneState, batch: Any, answer: None = None
    ) -> tuple[TuneState, StepMetrics]:
        del answer  # the batch has its own
        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.prompt, frozen, batch
        )
        # optax raises a float to an int power, which strict promotion (on in tests) refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.prompt)
        params = optax.apply_updates(state.prompt, updates)
        metrics = StepMetrics(loss, accuracy, optax.tree.norm(gradient))
        return TuneState(state.step + 1, params, optimizer_state), metrics

    shardings = {} if mesh is None else {"out_shardings": replicated(mesh)}
    return jax.jit(step, donate_argnums=1, **shardings)


# --- What a projector learns from: prompts of both models paired by task, tasks with their rows

Prompts = Mapping[str, Prompt] | Prompt | str | Path
"""Prompts by name, a folder of them, or one prompt, its file or its run folder."""

TASK_TURNS = zlib.crc32(b"projector/task_turns")
PAIR_STREAM = zlib.crc32(b"projector/pair_draws")
MORE_SAMPLES = zlib.crc32(b"projector/pair_draws/more")


def read_prompts(prompts: Prompts) -> dict[str, Prompt]:
    """Loads prompts of one backbone and length by name."""
    if isinstance(prompts, Prompt):
        return {short_task(prompts.card.task): prompts}
    if isinstance(prompts, (str, Path)):
        path = Path(prompts)
        if path.is_file() or (path / PROMPT_FILE).is_file():
            name = path.parent.name if path.name == PROMPT_FILE else path.stem
            return {name: load_prompt(path)}
    return load_prompts(prompts)


def short_names(tasks: Iterable[Task | str | Path]) -> list[str]:
    """Gives the names of tasks as tables have them."""
    names = [t.short_name if isinstance(t, Task) else short_task(str(t)) for t in tasks]
    refuse_twice(names, "tasks")
    return names


def read_tasks(
    tasks: Iterable[Task | str | Path] | None,
    prompts: Mapping[str, Prompt],
    data: str | Path | None,
) -> dict[str, Task]:
    """Loads the tasks that were asked for, or those that the prompts' cards name."""
    if tasks is not None:
        asked = list(tasks)
        if not asked:
            raise InputError("no tasks were given; name at least one, for instance builtin/imdb")
        loaded = [task if isinstance(task, Task) else _load(task, data) for task in asked]
    else:
        loaded = [_named_by(*item, data) for item in _first_of_each_task(prompts).items()]
    refuse_twice([task.short_name for task in loaded], "tasks")
    return {task.short_name: task for task in loaded}


def _first_of_each_task(prompts: Mapping[str, Prompt]) -> dict[str, str]:
    """The first prompt of each task that the cards name."""
    return {prompt.card.task: name for name, prompt in reversed(list(prompts.items()))}


def _named_by(task: str, prompt: str, data: str | Path | None) -> Task:
    try:
        return _load(task, data)
    except InputError as error:
        raise InputError(f"the card of prompt {prompt} names its task: {error}") from None


def _load(task: str | Path, data: str | Path | None) -> Task:
    if data is None or str(task).startswith("builtin/") or not (Path(data) / str(task)).is_dir():
        return load_task(task)
    return load_task(task, Path(data) / str(task))


def prompts_of_tasks(
    prompts: Mapping[str, Prompt], tasks: Iterable[str], what: str
) -> dict[str, str]:
    """Finds the prompt of each task by what the cards say, never by an order of files."""
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
                f"task {task} has {found} among the {what}, whose cards name "
                f"{', '.join(sorted(set(named.values())))}; one expected: tune it, or leave the "
                "task out"
            )
    return in_task


def prompt_record(prompts: Mapping[str, Prompt], of: Mapping[str, str]) -> dict[str, Any]:
    """Records which prompt stands for which task, so that a resumed run can tell a change."""
    return {
        task: {
            "prompt": name,
            "sha256": hashlib.sha256(prompts[name].values.tobytes()).hexdigest()[:16],
        }
        for task, name in of.items()
    }


@dataclass(frozen=True)
class TrainingTask:
    """One task that a projector is trained on."""

    prepared: BoundTask  # the task as the target reads it
    feed: TrainBatches  # its training batches
    validation: EncodedSplit  # encoded rows
    source: Float[Array, "Ps Ds"]  # the source model's prompt of this task, on the devices


@dataclass(frozen=True)
class TaskBatches:
    """Batches of several tasks, one task a step, each with its own source prompt."""

    # Every task has its turn once before any has its next, in an order of the seed, so all weigh
    # the same, whatever their number of rows. (Paper's code: rows of all tasks in one batch, the
    # larger tasks cut to the smallest, and with more than one task the rows get another task's
    # prompt.)

    tasks: Mapping[str, TrainingTask]  # by short name
    seed: int  # of the order of tasks; that of rows is in their feeds
    mesh: Mesh = field(repr=False)  # the devices

    def task_at(self, step: int) -> str:
        """Gives the task of a step, counted from 0."""
        turn, place = divmod(step, len(self.tasks))
        return list(self.tasks)[shuffled(self.seed, TASK_TURNS, turn, len(self.tasks))[place]]

    def batch_at(self, step: int) -> TaskBatch:
        """Gives the batch of a step, on the devices."""
        task = self.tasks[self.task_at(step)]
        rows = task.feed.batch(step // len(self.tasks), self.mesh)
        return TaskBatch(rows, task.source, task.prepared.answer)


def training_task(
    task: Task, source: Prompt, backbone: Backbone, options: ProjectorOptions, mesh: Mesh
) -> tuple[TrainingTask, str]:
    """Reads what is needed of one task."""
    chosen = resolve_options(options.feeding(), backbone, task)
    prepared = bind(task, backbone, chosen)
    feed = make_train_batches(
        prepared.split("train"), chosen, prepared.batching, backbone.layout, mesh.shape["data"]
    )
    rows = place(jnp.asarray(source.values), replicated(mesh))
    return TrainingTask(prepared, feed, prepared.split("validation"), rows), chosen.objective


def sample_pairs(seed: int, step: int, batch_size: int, count: int) -> Int64[np.ndarray, "B"]:
    """Chooses the tasks of one step of the distance objective."""
    # Paper's code: names drawn without replacement, and topped up with replacement where there are
    # fewer than the batch has places.
    first = shuffled(seed, PAIR_STREAM, step, count)[:batch_size]
    key = np.array([seed, MORE_SAMPLES << 32 | step], dtype=np.uint64)
    more = np.random.Philox(key=key).random_raw(max(0, batch_size - count)) % np.uint64(count)
    return np.concatenate([first, more.astype(np.int64)])


# --- How well a projector does while it is trained, by task


def score_tasks(
    module: Projector, params: Parameters, tasks: Mapping[str, TrainingTask], mesh: Mesh
) -> ProjectorScore:
    """Scores the projected prompt of every task on its validation rows."""
    values, warnings = {}, []
    for name, task in tasks.items():
        prompt = project_on_device(module, params, task.source)
        score = task.prepared.score([prompt], task.validation, mesh)[0]
        values[name] = score.value
        warnings += [f"{name}: {score.warning}"] if score.warning else []
    mean = float(np.mean(list(values.values())))
    return ProjectorScore("mean_score", mean, values, warning=warnings[0] if warnings else None)


def score_pairs(
    module: Projector, params: Parameters, pairs: Pairs, names: list[str], count: int
) -> ProjectorScore:
    """Measures the distance of every projected prompt from the target's own."""
    found = project_on_device(module, params, pairs.sources)
    errors = fetch(jnp.square(found - pairs.targets).mean(axis=(1, 2)))
    values = dict(zip(names, map(float, errors), strict=True))
    learnt = {name: values[name] for name in names[:count]}
    unseen = {name: values[name] for name in names[count:]}
    return ProjectorScore("error", -float(np.mean(list(learnt.values()))), learnt, unseen)


# --- Projectors on disk: ``projector.safetensors``, weights and a card that says what they are
# The card, JSON under ``card`` in the metadata, names the activation and all sizes, so that no
# projector is ever run as another one than was trained (the paper's code loads one trained with
# Tanh as LeakyReLU: the two have equal names of weights).

PROJECTOR_FILE = "projector.safetensors"
"""The name of the projector in the folder of its run."""

_STORE_COUNTS = ("source_length", "source_width", "target_length", "target_width", "bottleneck")
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
    known = {each.name: table[each.name] for each in fields if table.get(each.name) is not None}
    for each in fields:
        if each.default is dataclasses.MISSING and each.name not in known:
            raise InputError(f"the card of {file} names no {each.name}; train the projector again")
    for name, value in known.items():
        expected = _expected(name, value)
        if expected:
            raise InputError(f"the card of {file} has {name} = {value!r}; {expected} expected")
    return ProjectorCard(**{**known, "tasks": tuple(known["tasks"])})


def _expected(name: str, value: Any) -> str | None:
    """What a value of the card should have been, or None where it is right."""
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
    choices = {"activation": tuple(ACTIVATIONS), "target_layout": LAYOUTS}.get(name)
    if choices is not None:
        return None if value in choices else f"one of {', '.join(choices)}"
    return None if isinstance(value, str) else "a text"


# --- How large a projector is: what the prompts of both models say, checked against each other


def refuse_same_backbone(prompts: Mapping[str, Prompt], target: Backbone | str | Path) -> None:
    """Refuses a projector from a model to itself."""
    name = target.name if isinstance(target, Backbone) else str(target)
    if next(iter(prompts.values())).card.backbone == name:
        raise InputError(
            f"source and target are the same backbone, {name}; a projector goes between two: on "
            "one model a prompt is used as it is, with jpt transfer or jpt warm-start"
        )


def make_card(
    prompts: Mapping[str, Prompt],
    backbone: Backbone,
    objective: str,
    tasks: tuple[str, ...],
    options: ProjectorOptions,
) -> ProjectorCard:
    """Describes a projector that is not trained yet."""
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
    """Gives the mean Euclidean norm of a model's word embeddings."""
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
    """Settles length and learning rate, and loads the target."""
    rows = length_of(prompts)
    options = dataclasses.replace(options, length=length or rows)
    if options.per_token and options.length != rows:
        raise InputError(
            f"a per-token projector maps row by row, but the source's prompts have {rows} rows and "
            f"the target's shall have {options.length}; leave per_token out"
        )
    backbone = resolve_backbone(target, options.dtype, mesh=mesh, remat=options.remat)
    check_lengths(backbone, options.length, 1)
    return options.with_rate(objective, backbone.defaults), backbone


def check_targets(targets: Mapping[str, Prompt], backbone: Backbone) -> None:
    """Refuses own prompts that are of another model."""
    first = next(iter(targets.values()))
    if first.card.backbone != backbone.name or first.values.shape[1] != backbone.config.width:
        raise InputError(
            f"the target's own prompts were tuned on {first.card.backbone} (width "
            f"{first.values.shape[1]}), and the target is {backbone.name} (width "
            f"{backbone.config.width}); give prompts tuned on the target"
        )


def length_of(prompts: Mapping[str, Prompt]) -> int:
    """Gives the number of rows that all of some prompts have."""
    return len(next(iter(prompts.values())).values)


# --- Everything a projector's training is made of, loaded and checked before its first step


@dataclass(frozen=True)
class ProjectorPlan:
    """What is trained on what."""

    card: ProjectorCard  # of the projector to come
    options: ProjectorOptions  # with every choice made
    mesh: Mesh  # the devices
    frozen: Any  # the weights that every step reads: the target's, or the pairs of prompts
    step: ProjectorStep  # the compiled step
    batch_at: Callable[[int], Any]  # gives the batch of a step, counted from 0
    score: Callable[[Parameters], ProjectorScore]  # scores the projector's weights
    about: Callable[[int], dict[str, Any]]  # what the log says of a step, counted from 0
    metric: str  # name of the score
    measured_on: str  # what it is measured on
    config: dict[str, Any]  # what defines the run


def plan_projector(
    sources: Prompts,
    target: Backbone | str | Path,
    objective: str,
    tasks: Iterable[Task | str | Path] | None,
    targets: Prompts | None,
    data: str | Path | None,
    options: ProjectorOptions,
) -> ProjectorPlan:
    """Loads and checks everything, cheap things first, before anything is compiled."""
    check_choice("objective", objective, PROJECTOR_OBJECTIVES)
    given, options = read_prompts(sources), options.resolve(objective)
    refuse_same_backbone(given, target)
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
    feed, module = TaskBatches(learnt, options.seed, mesh), backbone.module.clone(dropout_rate=0.0)
    record = {"sources": prompt_record(given, in_task), "data": _data_record(learnt)}
    return ProjectorPlan(
        card=card,
        options=options,
        mesh=mesh,
        frozen=backbone.params,
        step=task_step(module, card.module(), options.learning_rate, answer_objective, mesh),
        batch_at=feed.batch_at,
        score=lambda params: score_tasks(card.module(), params, learnt, mesh),
        about=lambda step: {"task": feed.task_at(step)},
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
            "the distance objective needs the target model's own prompts; give targets, a folder "
            "of prompts tuned on it, or take the objective task"
        )
    wanted = read_prompts(targets)
    common = _common_tasks(given, wanted)
    learnt = common if tasks is None else short_names(tasks)
    if not learnt:
        raise InputError(
            f"the source prompts are of the tasks {_tasks_of(given)} and the target's own of "
            f"{_tasks_of(wanted)}; tune at least one task on both models"
        )
    names = [*learnt, *(name for name in common if name not in learnt)]
    in_task = prompts_of_tasks(given, names, "source prompts")
    goals = prompts_of_tasks(wanted, names, "target's own prompts")
    if options.length not in (None, length_of(wanted)):
        raise InputError(
            f"length is {options.length}, and the target's own prompts have {length_of(wanted)} "
            "rows; leave length out"
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
        drawn = sample_pairs(options.seed, step, options.batch_size, count)
        return place(drawn.astype(np.int32), replicated(mesh))

    return ProjectorPlan(
        card=card,
        options=options,
        mesh=mesh,
        frozen=pairs,
        step=distance_step(module, options.learning_rate, mesh),
        batch_at=batch_at,
        score=lambda params: score_pairs(module, params, pairs, names, count),
        about=lambda step: {},
        metric="error",
        measured_on="its own tasks",
        config=_config(card, options, backbone, record),
    )


def _data_record(tasks: Mapping[str, TrainingTask]) -> dict[str, Any]:
    """What was read of every task."""
    return {
        name: data_record({"train": task.feed.split, "validation": task.validation})
        for name, task in tasks.items()
    }


def _config(
    card: ProjectorCard, options: ProjectorOptions, backbone: Backbone, record: dict[str, Any]
) -> dict[str, Any]:
    """Defines the run: another config is another run."""
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
    """Tasks that both models have prompts of, by short name."""
    first, second = (
        set(short_names({prompt.card.task for prompt in prompts.values()}))
        for prompts in (sources, targets)
    )
    return sorted(first & second)


# --- Training a projector between two models, on tasks or on the distance to the target's prompts


@dataclass(frozen=True)
class ProjectorResult:
    """What a finished training gives.

    Attributes:
        projector: the best one on validation.
        record: scores and settings, as in ``result.json``.
        history: the logged lines.
        folder: where the run lies, where it was written.
    """

    projector: TrainedProjector
    record: dict[str, Any]
    history: list[dict[str, Any]]
    folder: Path | None

    def describe(self) -> str:
        """Says in a few lines what came out."""
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


@dataclass
class _ProjectorRun(Run):
    """A run whose log says of each training step what it was about."""

    about: Callable[[int], dict[str, Any]] = lambda step: {}  # what is added to the line of a step

    def log(self, line: dict[str, Any]) -> None:
        """Keeps one line of the log."""
        if line["split"] == "train":
            more = self.about(line["step"] - 1)
            if not more:  # the distance knows no right answers
                line = {name: value for name, value in line.items() if name != "accuracy"}
            line = {**line, **more}
        super().log(line)


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
    """Trains a projector that turns prompts of one model into prompts of another.

    Paper: section 4. With the objective ``task`` the projected prompt of a task stands before its
    rows in the frozen target, and its loss trains the projector alone; several tasks take turns,
    each with its own prompt. With ``distance`` the projector learns to give the target model's own
    prompts of the same tasks, tuned before; no rows are needed.

    Args:
        sources: the source model's prompts: a folder, or prompts by name; cards name their tasks.
        target_backbone: the frozen target: a loaded one, a name, a folder or a hub id.
        objective: ``task`` or ``distance``.
        tasks: to train on; by default those of the sources' cards (distance: those of both).
        out: run folder. A finished run there returns at once, a broken one goes on and ends bit
            for bit as if it had never stopped. None keeps the run in memory.
        targets: the target's own prompts, for the distance; tasks of both that are not trained on
            are measured and change nothing.
        data: a folder that holds a folder of rows for each catalog task.
        progress: whether to show a bar on stderr.
        **options: fields of :class:`jpt.config.ProjectorOptions`.

    Returns:
        The best projector by mean score on validation, or by distance on its tasks; and the log.

    Raises:
        InputError: for anything that cannot work, before anything is compiled.
        DivergedError: for a loss that is no finite number.
        StoppedError: after SIGTERM or Ctrl-C; the state is saved.

    Example:
        >>> from jpt.types import Prompt, PromptCard
        >>> card = PromptCard("builtin/bert-medium", "builtin/imdb_number")
        >>> source = Prompt(np.ones((4, 192), np.float32), card)
        >>> result = train_projector(source, "builtin/bert-small", steps=1, max_tokens=8)
        >>> result.projector(source).shape
        (4, 128)
    """
    started_s = time.monotonic()
    material = (sources, target_backbone, objective, tasks, targets, data)
    plan = plan_projector(*material, ProjectorOptions(**options))
    folder = None if out is None else RunFolder(Path(out), plan.config)
    if folder is not None and folder.result is not None:
        projector = load_projector(folder.path)
        return ProjectorResult(projector, folder.result, folder.history(), folder.path)
    if folder is None:
        return _run(plan, None, None, progress, started_s)
    with folder.lock(), Checkpoints(folder.path / CHECKPOINTS) as checkpoints:
        return _run(plan, folder, checkpoints, progress, started_s)


def _run(
    plan: ProjectorPlan,
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    progress: bool,
    started_s: float,
) -> ProjectorResult:
    options = plan.options
    run = _ProjectorRun(
        params=plan.frozen,
        answer=None,
        step=plan.step,
        batch_at=plan.batch_at,
        score=plan.score,
        schedule=Schedule(
            options.steps, options.eval_every, options.checkpoint_every, options.batch_size
        ),
        folder=folder,
        checkpoints=checkpoints,
        about=plan.about,
    )
    state = resume(run, _initial_state(plan))
    with Progress(options.steps, int(state.tune.step), shown=progress) as bar:
        state = run_loop(run, state, bar)
    best_step = int(state.best_step)
    record = _record(plan, run.history, best_step, started_s)
    score = record["validation"][record["metric"]]
    card = dataclasses.replace(plan.card, steps=best_step, score=float(score))
    name = "projector" if folder is None else str(folder.path / PROJECTOR_FILE)
    best = jax.tree.map(np.asarray, state.best_prompt)
    projector = TrainedProjector(card, best, name)
    if folder is not None:
        save_projector(folder.path / PROJECTOR_FILE, projector)
        folder.finish(record)
    return ProjectorResult(projector, record, run.history, folder.path if folder else None)


def _initial_state(plan: ProjectorPlan) -> LoopState:
    card, options = plan.card, plan.options
    size = (card.source_length, card.source_width)
    params = initial_parameters(card.module(), *size, options.seed)
    optimizer = projector_optimizer(card.objective, options.learning_rate)
    return init_state_of(place(start(params, optimizer), replicated(plan.mesh)))


def _record(
    plan: ProjectorPlan, history: list[dict[str, Any]], best_step: int, started_s: float
) -> dict[str, Any]:
    """Puts the result together, with the scores as they were when the projector was kept."""
    kept = next(
        line for line in history if line["split"] == "validation" and line["step"] == best_step
    )
    shapes = jax.eval_shape(
        plan.card.module().init,
        jax.random.key(0),
        jnp.zeros((plan.card.source_length, plan.card.source_width), jnp.float32),
    )
    return {
        "objective": plan.card.objective,
        "source_backbone": plan.card.source_backbone,
        "target_backbone": plan.card.target_backbone,
        "tasks": list(plan.card.tasks),
        "metric": plan.metric,
        "measured_on": plan.measured_on,
        "weights": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "steps": plan.options.steps,
        "best_step": best_step,
        "validation": {name: kept[name] for name in kept if name not in ("step", "split")},
        "elapsed_s": round(time.monotonic() - started_s, 2),
        "peak_memory_mb": peak_memory_mb(),
    }
