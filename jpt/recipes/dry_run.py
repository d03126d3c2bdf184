"""Estimate the memory and collectives of a training step without weights or devices."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from jpt.backbones.registry import Backbone, check_lengths, find_family
from jpt.config import TuneOptions
from jpt.errors import InputError
from jpt.io.files import read_json
from jpt.io.tokenizer import SpecialIds
from jpt.parallel import batch_sharding, make_mesh, parameter_shardings, parse_mesh, replicated
from jpt.tuning.losses import Answer
from jpt.tuning.step import TuneState, init_state, prompt_optimizer
from jpt.tuning.tune import step_of
from jpt.types import Batch, Parameters

# --- What a compiled program says of itself: which collectives run, over which axes, how often

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
UNKNOWN_AXES = ("?",)

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"= ([^%\"]*?) ({'|'.join(KINDS)})\(")
_SHAPE = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

# The three ways in which XLA writes who talks to whom: listed, counted off, by the axes of a mesh.
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']*)'=(\d+)")
_MESH_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclass(frozen=True)
class Collective:
    """One kind of talk between devices in a step."""

    kind: str  # for instance ``"all-reduce"``
    # of the mesh over which it goes; `UNKNOWN_AXES` where the program does not tell
    axes: tuple[str, ...]
    count: int  # how often it runs in a step
    # what it leaves on one device in a step, all together; of a reduce-scatter, what goes in
    size_bytes: int


@dataclass(frozen=True)
class Collectives:
    """All talk between devices in a step."""

    found: tuple[Collective, ...]  # by kind and axes, the largest first
    open_loops: int  # loops with collectives whose number of turns is not known; they count once


def read_collectives(program: str, mesh: Mapping[str, int]) -> Collectives:
    """Counts the collectives of a compiled program, those in loops once a turn."""
    computations, entry = _split(program)
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    sizes: Counter[tuple[str, tuple[str, ...]]] = Counter()
    open_loops = 0
    for line, turns, is_open in _walk(computations, entry, 1):
        match = _COLLECTIVE.search(line)
        if match is None:
            open_loops += is_open
            continue
        groups = _read_groups(line, math.prod(mesh.values()))
        key = (match[2], _axes_of(groups, mesh))
        counts[key] += turns
        sizes[key] += turns * _size_bytes(match[1], match[2], groups)
    found = (Collective(*key, count, sizes[key]) for key, count in counts.items())
    order = sorted(found, key=lambda entry: (-entry.size_bytes, entry.kind, entry.axes))
    return Collectives(tuple(order), open_loops)


def _split(program: str) -> tuple[dict[str, list[str]], str]:
    """Cuts a program into its computations, and names the one that it starts with."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in program.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header is not None:
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _walk(
    computations: Mapping[str, Sequence[str]], name: str, turns: int
) -> Iterator[tuple[str, int, bool]]:
    """Gives every line that has a collective or is a loop of unknown length around one."""
    # With it comes how often the line runs, and whether it is such a loop.
    for line in computations.get(name, ()):
        if _COLLECTIVE.search(line) is not None:
            yield line, turns, False
            continue
        is_loop, trips = " while(" in line, _TRIPS.search(line)
        inner_turns = turns * int(trips[1]) if is_loop and trips else turns
        inner = [
            found for called in _called(line) for found in _walk(computations, called, inner_turns)
        ]
        yield from inner
        if inner and is_loop and not trips:
            yield line, turns, True


def _called(line: str) -> list[str]:
    """Names the computations that a line runs."""
    branches = _BRANCHES.search(line)
    listed = re.findall(r"[\w.\-]+", branches[1]) if branches else []
    return [*_CALLED.findall(line), *listed]


def _size_bytes(shapes: str, kind: str, groups: Sequence[Sequence[int]]) -> int:
    """Bytes of one shape or a tuple of them: of the whole, also where each keeps a piece."""
    total = 0
    for letters, bits, dimensions in _SHAPE.findall(shapes):
        width = 1 if letters == "pred" else int(bits or 0) // 8
        total += width * math.prod(int(size) for size in dimensions.split(",") if size)
    return total * len(groups[0]) if kind == "reduce-scatter" and groups else total


def _axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Names the axes along which the devices of a group differ."""
    if not groups:
        return UNKNOWN_AXES
    # [G, N] devices -> one [G, N] of places for each axis
    places = np.unravel_index(np.asarray(groups), tuple(mesh.values()))
    return tuple(a for a, along in zip(mesh, places, strict=True) if np.ptp(along, axis=1).any())


def _read_groups(line: str, devices: int) -> Sequence[Sequence[int]]:
    """Reads which devices talk to each other; none where that is written in another way."""
    if match := _COUNTED.search(line):
        return _count_off(match[2], match[3]).reshape(_numbers(match[1])).tolist()
    if match := _LISTED.search(line):
        listed = re.findall(r"\d[\d,]*", match[1])
        return [_numbers(group) for group in listed] or [range(devices)]
    if match := _MESH.search(line):
        return _mesh_groups(match[1], match[2], match[3])
    return []


def _mesh_groups(mesh: str, order: str | None, along: str) -> Sequence[Sequence[int]]:
    """Reads groups that are written as the axes of a mesh that they go along."""
    axes = {name: int(size) for name, size in _MESH_AXIS.findall(mesh)}
    devices = np.arange(math.prod(axes.values()))
    if order is not None:
        turned = _MESH_ORDER.fullmatch(order)
        devices = devices[:0] if turned is None else _count_off(turned[1], turned[2])
    chosen = [name.strip("'") for name in along.split(", ")]
    # Parts of an axis, written 'axis_1':(2)4, are more than is needed here.
    if devices.size != math.prod(axes.values()) or not set(chosen) <= set(axes):
        return []
    names = list(axes)
    devices = devices.reshape(list(axes.values()))
    # The chosen axes to the back: [..., N]
    devices = np.moveaxis(devices, [names.index(name) for name in chosen], range(-len(chosen), 0))
    return devices.reshape(-1, math.prod(axes[name] for name in chosen)).tolist()


def _count_off(shape: str, turned: str | None) -> np.ndarray:
    """Counts devices off in a shape, its axes turned round where that is said."""
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(turned) if turned else None).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


# --- The dry run in words

NAMES = {
    "weights": "weights",
    "activations": "activations (temporaries)",
    "prompt_state": "prompt and optimizer state",
    "batch": "batch",
    "results": "results",
    "total": "in all",
}
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
ESTIMATE = (
    "an estimate: the step is compiled for virtual CPU devices; compilers of other hardware fuse, "
    "schedule and join collectives otherwise, and its runtime needs some memory of its own"
)
ESTIMATE_BFLOAT16 = (
    "; CPUs compute bfloat16 in float32, so that activations and collectives are upper bounds"
)


def describe_dry_run(record: dict[str, Any]) -> str:
    """Puts the record of a dry run into lines."""
    model, axes = record["backbone"], ", ".join(f"{a} {n}" for a, n in record["mesh"].items())
    lines = [
        f"  {model['name']}: {model['model_type']}, {model['weights']:,} weights in "
        f"{record['dtype']}, {record['prompt_weights']:,} trainable",
        f"  {record['devices']} virtual devices ({axes}); a step of {record['batch_size']} rows of "
        f"{record['max_tokens']} tokens, prompt {record['length']}, remat {record['remat']}, "
        f"objective {record['objective']}",
        *(f"  {note}" for note in record["notes"]),
        "  on each device:",
        *_text_memory(record),
        f"{'  ' if record['ok'] else '! '}{_text_verdict(record)}",
        *_text_collectives(record),
        f"  traced in {record['trace_s']} s, compiled in {record['compile_s']} s",
        f"  {record['estimate']}",
    ]
    return "\n".join(lines)


def estimate_note(dtype: str) -> str:
    """Says how far the numbers can be trusted."""
    return ESTIMATE + (ESTIMATE_BFLOAT16 if dtype == "bfloat16" else "")


def size_text(size_bytes: int) -> str:
    """Writes a number of bytes for people; 1 GB is 10^9 bytes."""
    for unit, size in UNITS:
        if size_bytes >= size:
            return f"{size_bytes / size:.2f} {unit}"
    return f"{size_bytes} B"


def _text_memory(record: dict[str, Any]) -> list[str]:
    whole = f" of {size_text(record['backbone']['weights_bytes'])}"
    return [
        f"    {NAMES[name]:<27}{size_text(size):>10}{whole if name == 'weights' else ''}"
        for name, size in record["bytes_per_device"].items()
    ]


def _text_verdict(record: dict[str, Any]) -> str:
    total, size = record["bytes_per_device"]["total"], record["device_memory_gb"]
    left = size_text(abs(round(size * 1e9) - total))
    if record["fits"]:
        return f"fits a device of {size:g} GB, {left} left"
    return (
        f"does NOT fit a device of {size:g} GB, {left} too much: try more devices on model, "
        "--remat full, --dtype bfloat16 or fewer rows a step"
    )


def _text_collectives(record: dict[str, Any]) -> list[str]:
    if not record["collectives"]:
        return ["  collectives in a step: none"]
    lines = ["  collectives in a step (those of a layer once a layer; bytes on each device):"]
    for entry in record["collectives"]:
        over = " and ".join(entry["axes"])
        lines.append(
            f"    {entry['count']:>5} x {entry['kind']:<19}over {over:<15}"
            f"{size_text(entry['bytes']):>10}"
        )
    if record["loops_counted_once"]:
        lines.append(
            f"    of {record['loops_counted_once']} loops the turns are not known; they count once"
        )
    return lines


# --- The train step of a model of which nothing is there but its config.json: shapes for arrays

LABEL_WORDS = 2


@dataclass(frozen=True)
class StepShapes:
    """The arguments of a train step, as shapes with places."""

    params: Parameters  # the weights
    state: TuneState  # step number, prompt and optimizer state
    batch: Batch  # the rows
    answer: Answer  # the label words
    # dimensions of weights that stay whole because their axis does not divide them
    notes: tuple[str, ...]


def shape_backbone(path: str | Path, options: TuneOptions) -> Backbone:
    """Builds a backbone whose weights are shapes only."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}; expected an object of fields")
    family = find_family(content, str(path))
    try:
        config = family.config(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    dtype = jnp.dtype(options.dtype)
    # A config names no mask; which word stands there changes no size.
    ids = SpecialIds(cls=None, sep=None, mask=None, pad=None, unk=None)
    module = family.module(config, ids, dtype, 0.0, options.remat)
    return Backbone(
        name=str(path),
        family=family,
        config=config,
        module=module,
        params=_parameter_shapes(module, dtype, path),
        tokenizer=None,  # type: ignore[arg-type]
        fingerprint="",
        defaults=family.choices(config),
    )


def _parameter_shapes(module: nn.Module, dtype: jnp.dtype, path: str | Path) -> Parameters:
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    try:
        shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, lengths)["params"]
    except (OverflowError, MemoryError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{path}: no model of these sizes can be built ({reason}); check them"
        ) from None
    return jax.tree.map(lambda leaf: leaf.update(dtype=dtype), shapes)


def step_shapes(model: Backbone, options: TuneOptions, mesh: Mesh) -> StepShapes:
    """Says what a train step is given, and where each array lies, as `jpt tune` places them."""
    rows = batch_sharding(mesh, options.batch_size)
    shardings, notes = parameter_shardings(model.params, model.family.weights.partition, mesh)

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return leaf.update(sharding=sharding)

    def row(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((options.batch_size, *more), dtype, sharding=rows)

    optimizer = prompt_optimizer(options.learning_rate)
    prompt = jax.ShapeDtypeStruct((options.length, model.config.width), jnp.float32)
    state = jax.eval_shape(lambda prompt: init_state(prompt, optimizer), prompt)
    return StepShapes(
        params=jax.tree.map(place, model.params, shardings),
        state=jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), state),
        batch=Batch(
            tokens=row(jnp.int32, options.max_tokens),
            lengths=row(jnp.int32),
            labels=row(jnp.int32),
            weights=row(jnp.float32),
        ),
        answer=Answer(jax.ShapeDtypeStruct((LABEL_WORDS,), jnp.int32)),
        notes=tuple(notes),
    )


def lower_step(model: Backbone, options: TuneOptions, shapes: StepShapes) -> jax.stages.Lowered:
    """Traces the very step that `jpt tune` runs."""
    step = step_of(model, options, shapes.batch.tokens.sharding.mesh)
    return step.lower(shapes.params, shapes.state, shapes.batch, shapes.answer)


# --- The dry run: what a step of a large model would need, compiled from its config.json alone
# The train step that `jpt tune` runs is compiled for virtual CPU devices with shapes in place of
# arrays, so neither weights nor accelerators are needed. What other hardware needs differs
# somewhat: its compiler fuses and schedules otherwise.

MOST_DEVICES = 4096
DEVICE_MEMORY_GB = 16.0
GB = 1e9
_RATE_BYTES = 4  # of the step's arguments, the learning rate belongs to the optimizer

# Nobody runs the program, so its machine code need not be fast; memory and talk stay the same.
_COMPILE: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11, 1):  # later compilers have it no more, and refuse the name
    _COMPILE["xla_cpu_use_fusion_emitters"] = False
# XLA for CPUs multiplies bfloat16 as float32 and, unless told not to, keeps a float32 copy of the
# whole stack of weights for that. No accelerator does.
_COMPILE_BFLOAT16 = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def use_virtual_devices(mesh: str | None) -> None:
    """Sets this process up for a dry run: CPU devices, as many as the mesh has."""
    # Where jax has started before, nothing changes. Later work of the process stays on the CPU, so
    # this is for commands.
    count = _device_count(mesh)
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:  # jax has started: the dry run says where its devices are too few
        return


def dry_run(
    backbone: str | Path,
    *,
    mesh: str | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    max_tokens: int | None = None,
    dtype: str = "float32",
    remat: str = "dots",
    device_memory: float | None = None,
) -> tuple[dict[str, Any], str]:
    """Compiles the train step of a model without its weights and says what a device must hold.

    Args:
        backbone: the model's ``config.json``.
        mesh: devices by axis, for instance ``data:8,model:8``; one device by default.
        batch_size: rows a step.
        length: prompt rows.
        max_tokens: longest text in tokens.
        dtype: of weights and matrix products.
        remat: what layers keep for the way back: ``dots``, ``full`` or ``none``.
        device_memory: size of a device in GB (10^9 bytes); with it, ``ok`` in the record is
            whether the step fits. By default the size looked at is `DEVICE_MEMORY_GB`.

    Returns:
        A record and the same as text.

    Raises:
        InputError: for a broken or unknown config, lengths or a mesh that cannot be, or too few
            virtual devices.

    Example:
        >>> import json, tempfile
        >>> from jpt.testing import tiny_bert_config
        >>> path = Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = path.write_text(json.dumps(tiny_bert_config()))
        >>> record, text = dry_run(path, batch_size=2, length=4, max_tokens=8)
        >>> record["bytes_per_device"]["weights"], record["fits"]
        (78196, True)
    """
    _check_memory(device_memory)
    options = TuneOptions(
        batch_size=batch_size,
        length=length,
        max_tokens=max_tokens,
        dtype=dtype,
        remat=remat,
        mesh=mesh,
    )
    devices = _make_mesh(mesh)
    model = shape_backbone(backbone, options)
    options = options.resolve(model.defaults)
    check_lengths(model, options.length, options.max_tokens)
    shapes = step_shapes(model, options, devices)
    record = {**_describe(model, options, devices), "notes": list(shapes.notes)}
    compiled, seconds = _compile(model, options, shapes)
    memory = _dry_run_memory(compiled.memory_analysis(), shapes)
    record |= {
        "bytes_per_device": memory,
        **_dry_run_collectives(compiled.as_text(), devices),
        **seconds,
    }
    record |= {**_dry_run_verdict(memory["total"], device_memory), "estimate": estimate_note(dtype)}
    return record, describe_dry_run(record)


def _describe(model: Backbone, options: TuneOptions, mesh: Mesh) -> dict[str, Any]:
    """What is compiled: the model, the mesh and the step."""
    weights = jax.tree.leaves(model.params)
    named = ("batch_size", "length", "max_tokens", "dtype", "remat", "objective")
    return {
        "backbone": {
            "name": model.name,
            "model_type": model.model_type,
            "weights": model.frozen_count,
            "weights_bytes": sum(_bytes(leaf.shape, leaf) for leaf in weights),
        },
        "prompt_weights": options.length * model.config.width,
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        **{name: getattr(options, name) for name in named},
    }


def _device_count(mesh: str | None) -> int:
    count = math.prod(parse_mesh(mesh or "data:1", sys.maxsize).values())
    if count > MOST_DEVICES:
        raise InputError(
            f"mesh {mesh} has {count:,} devices, but a dry run makes at most {MOST_DEVICES:,} "
            "virtual ones; what a device holds hardly changes with more on data"
        )
    return count


def _make_mesh(text: str | None) -> Mesh:
    """Builds the mesh from the virtual devices, where there are enough."""
    count, platform = _device_count(text), jax.default_backend()
    there = len(jax.devices()) if platform == "cpu" else 0
    if there < count:
        raise InputError(
            f"a dry run of this mesh needs {count} virtual CPU devices, but jax has started with "
            f"{there}; before jax's first use call jax.config.update('jax_platforms', 'cpu') and "
            f"jax.config.update('jax_num_cpu_devices', {count}), or use the command jpt check"
        )
    return make_mesh(text)


def _check_memory(device_memory: float | None) -> None:
    if device_memory is not None and not (math.isfinite(device_memory) and device_memory > 0):
        raise InputError(f"device_memory is {device_memory}; give GB, for instance 16")


def _compile(
    model: Backbone, options: TuneOptions, shapes: StepShapes
) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Gives the compiled step and how long it took."""
    compiler = _COMPILE | (_COMPILE_BFLOAT16 if options.dtype == "bfloat16" else {})
    started_s = time.monotonic()
    lowered = lower_step(model, options, shapes)
    traced_s = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=compiler)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"the step cannot be compiled ({reason}); check the sizes") from None
    took_s = {"trace_s": traced_s - started_s, "compile_s": time.monotonic() - traced_s}
    return compiled, {name: round(seconds, 2) for name, seconds in took_s.items()}


def _dry_run_memory(planned: Any, shapes: StepShapes) -> dict[str, int]:
    """What one device holds while the step runs, by what it is for."""
    parts = {
        "weights": _device_bytes(shapes.params),
        "activations": planned.temp_size_in_bytes,
        "prompt_state": _device_bytes(shapes.state) + _RATE_BYTES,
        "batch": _device_bytes((shapes.batch, shapes.answer)),
        # The new state, as far as it cannot take the old one's place.
        "results": planned.output_size_in_bytes - planned.alias_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


def _device_bytes(tree: Any) -> int:
    """Bytes of a tree on one device; what has no place lies whole on each."""
    return sum(
        _bytes(leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape), leaf)
        for leaf in jax.tree.leaves(tree)
    )


def _bytes(shape: tuple[int, ...], leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape) * leaf.dtype.itemsize


def _dry_run_collectives(program: str, mesh: Mesh) -> dict[str, Any]:
    collectives = read_collectives(program, mesh.shape)
    found = [
        {
            "kind": entry.kind,
            "axes": list(entry.axes),
            "count": entry.count,
            "bytes": entry.size_bytes,
        }
        for entry in collectives.found
    ]
    return {"collectives": found, "loops_counted_once": collectives.open_loops}


def _dry_run_verdict(total: int, device_memory: float | None) -> dict[str, Any]:
    """Whether it fits; the size that nobody asked for does not decide whether all is well."""
    size = device_memory or DEVICE_MEMORY_GB
    fits = total <= size * GB
    return {"device_memory_gb": size, "fits": fits, "ok": fits or device_memory is None}
