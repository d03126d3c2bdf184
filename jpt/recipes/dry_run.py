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
from jpt.tuning.step import TrainState, init_state
from jpt.tuning.tune import step_of
from jpt.types import Batch, Parameters

# --- Collectives of a compiled program

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

# XLA's three notations for device groups: explicit lists, iota, and mesh axes.
_LIST_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']*)'=(\d+)")
_MESH_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same mesh axes."""

    kind: str  # for instance ``"all-reduce"``
    axes: tuple[str, ...]  # mesh axes, or `UNKNOWN_AXES`
    count: int  # executions per step
    size_bytes: int  # total output per device and step; of a reduce-scatter, its input


@dataclass(frozen=True)
class Collectives:
    """All collectives of a step."""

    found: tuple[Collective, ...]  # by kind and axes, largest first
    open_loops: int  # loops with collectives and an unknown trip count; counted once


def read_collectives(program: str, mesh: Mapping[str, int]) -> Collectives:
    """Count the collectives of a compiled program, those in loops once per iteration."""
    computations, entry = _split(program)
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    sizes: Counter[tuple[str, tuple[str, ...]]] = Counter()
    open_loops = 0
    for line, times, is_open in _walk(computations, entry, 1):
        match = _COLLECTIVE.search(line)
        if match is None:
            open_loops += is_open
            continue
        groups = _read_groups(line, math.prod(mesh.values()))
        key = (match[2], _axes_of(groups, mesh))
        counts[key] += times
        sizes[key] += times * _size_bytes(match[1], match[2], groups)
    found = (Collective(*key, count, sizes[key]) for key, count in counts.items())
    order = sorted(found, key=lambda entry: (-entry.size_bytes, entry.kind, entry.axes))
    return Collectives(tuple(order), open_loops)


def _split(program: str) -> tuple[dict[str, list[str]], str]:
    """Split a program into its computations; return them and the name of the entry."""
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
    computations: Mapping[str, Sequence[str]], name: str, times: int
) -> Iterator[tuple[str, int, bool]]:
    """Yield each collective, or loop of unknown length around one, with its number of runs."""
    for line in computations.get(name, ()):
        if _COLLECTIVE.search(line) is not None:
            yield line, times, False
            continue
        is_loop, trips = " while(" in line, _TRIPS.search(line)
        inner_times = times * int(trips[1]) if is_loop and trips else times
        inner = [
            found for called in _called(line) for found in _walk(computations, called, inner_times)
        ]
        yield from inner
        if inner and is_loop and not trips:
            yield line, times, True


def _called(line: str) -> list[str]:
    """Return the computations that a line calls."""
    branches = _BRANCHES.search(line)
    listed = re.findall(r"[\w.\-]+", branches[1]) if branches else []
    return [*_CALLED.findall(line), *listed]


def _size_bytes(shapes: str, kind: str, groups: Sequence[Sequence[int]]) -> int:
    """Return the bytes of a shape or tuple of shapes; of a reduce-scatter, before scattering."""
    total = 0
    for letters, bits, dimensions in _SHAPE.findall(shapes):
        width = 1 if letters == "pred" else int(bits or 0) // 8
        total += width * math.prod(int(size) for size in dimensions.split(",") if size)
    return total * len(groups[0]) if kind == "reduce-scatter" and groups else total


def _axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes along which the devices of a group differ."""
    if not groups:
        return UNKNOWN_AXES
    # [G, N] devices -> one [G, N] of coordinates per axis
    coordinates = np.unravel_index(np.asarray(groups), tuple(mesh.values()))
    return tuple(
        a for a, along in zip(mesh, coordinates, strict=True) if np.ptp(along, axis=1).any()
    )


def _read_groups(line: str, devices: int) -> Sequence[Sequence[int]]:
    """Return the device groups of a collective; empty for an unknown notation."""
    if match := _IOTA_GROUPS.search(line):
        return _iota(match[2], match[3]).reshape(_numbers(match[1])).tolist()
    if match := _LIST_GROUPS.search(line):
        listed = re.findall(r"\d[\d,]*", match[1])
        return [_numbers(group) for group in listed] or [range(devices)]
    if match := _MESH_GROUPS.search(line):
        return _mesh_groups(match[1], match[2], match[3])
    return []


def _mesh_groups(mesh: str, order: str | None, along: str) -> Sequence[Sequence[int]]:
    """Return the device groups given as axes of a mesh."""
    axes = {name: int(size) for name, size in _MESH_AXIS.findall(mesh)}
    devices = np.arange(math.prod(axes.values()))
    if order is not None:
        match = _MESH_ORDER.fullmatch(order)
        devices = devices[:0] if match is None else _iota(match[1], match[2])
    chosen = [name.strip("'") for name in along.split(", ")]
    # Sub-axes, written 'axis_1':(2)4, are not supported.
    if devices.size != math.prod(axes.values()) or not set(chosen) <= set(axes):
        return []
    names = list(axes)
    devices = devices.reshape(list(axes.values()))
    # chosen axes last: [..., N]
    devices = np.moveaxis(devices, [names.index(name) for name in chosen], range(-len(chosen), 0))
    return devices.reshape(-1, math.prod(axes[name] for name in chosen)).tolist()


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Return device numbers 0, 1, ... in a shape with its axes transposed, flattened."""
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(order) if order else None).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


# --- Text

NAMES = {
    "weights": "weights",
    "activations": "activations (temporaries)",
    "prompt_state": "prompt and optimizer state",
    "batch": "batch",
    "results": "results",
    "total": "total",
}
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
ESTIMATE = (
    "estimate: the step is compiled for virtual CPU devices; other compilers fuse, schedule and "
    "combine collectives differently, and their runtimes need some memory, too"
)
ESTIMATE_BFLOAT16 = (
    "; CPUs compute bfloat16 in float32, so activations and collectives are upper bounds"
)


def describe_dry_run(record: dict[str, Any]) -> str:
    """Return the record of a dry run as text."""
    model, axes = record["backbone"], ", ".join(f"{a} {n}" for a, n in record["mesh"].items())
    lines = [
        f"  {model['name']}: {model['model_type']}, {model['weights']:,} weights in "
        f"{record['dtype']}, {record['prompt_weights']:,} trainable",
        f"  {record['devices']} virtual devices ({axes}); {record['batch_size']} rows of "
        f"{record['max_tokens']} tokens per step, prompt {record['length']}, "
        f"remat {record['remat']}, objective {record['objective']}",
        *(f"  {note}" for note in record["notes"]),
        "  per device:",
        *_text_memory(record),
        f"{'  ' if record['ok'] else '! '}{_text_verdict(record)}",
        *_text_collectives(record),
        f"  traced in {record['trace_s']} s, compiled in {record['compile_s']} s",
        f"  {record['estimate']}",
    ]
    return "\n".join(lines)


def estimate_note(dtype: str) -> str:
    """Return the note on the accuracy of the numbers."""
    return ESTIMATE + (ESTIMATE_BFLOAT16 if dtype == "bfloat16" else "")


def size_text(size_bytes: int) -> str:
    """Format a number of bytes; 1 GB is 10^9 bytes."""
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
        "--remat full, --dtype bfloat16 or fewer rows per step"
    )


def _text_collectives(record: dict[str, Any]) -> list[str]:
    if not record["collectives"]:
        return ["  collectives per step: none"]
    lines = ["  collectives per step (bytes per device):"]
    for entry in record["collectives"]:
        over = " and ".join(entry["axes"])
        lines.append(
            f"    {entry['count']:>5} x {entry['kind']:<19}over {over:<15}"
            f"{size_text(entry['bytes']):>10}"
        )
    if record["loops_counted_once"]:
        lines.append(f"    {record['loops_counted_once']} loops of unknown length are counted once")
    return lines


# --- Arguments of the train step as shapes

LABEL_WORDS = 2


@dataclass(frozen=True)
class StepShapes:
    """Arguments of a train step, as shapes with shardings."""

    params: Parameters
    state: TrainState
    batch: Batch
    answer: Answer
    notes: tuple[str, ...]  # weight dimensions that are not divisible by their mesh axis


def shape_backbone(path: str | Path, options: TuneOptions) -> Backbone:
    """Return a backbone whose weights are shapes only."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}")
    family = find_family(content, str(path))
    try:
        config = family.config(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    dtype = jnp.dtype(options.dtype)
    # A config names no special tokens; which they are changes no size.
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
            f"{path}: cannot build a model of these sizes ({reason}); check them"
        ) from None
    return jax.tree.map(lambda leaf: leaf.update(dtype=dtype), shapes)


def step_shapes(model: Backbone, options: TuneOptions, mesh: Mesh) -> StepShapes:
    """Return the arguments of a train step with the shardings of `jpt tune`."""
    rows = batch_sharding(mesh, options.batch_size)
    shardings, notes = parameter_shardings(model.params, model.family.weights.partition, mesh)

    def shard(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return leaf.update(sharding=sharding)

    def row(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((options.batch_size, *more), dtype, sharding=rows)

    prompt = jax.ShapeDtypeStruct((options.length, model.config.width), jnp.float32)
    state = jax.eval_shape(init_state, prompt)
    return StepShapes(
        params=jax.tree.map(shard, model.params, shardings),
        state=jax.tree.map(lambda leaf: shard(leaf, replicated(mesh)), state),
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
    """Trace the step that `jpt tune` runs."""
    step = step_of(model, options, shapes.batch.tokens.sharding.mesh)
    return step.lower((shapes.params, shapes.answer), shapes.state, shapes.batch)


# --- Dry run
# The train step of `jpt tune` is compiled for virtual CPU devices with shapes in place of arrays,
# so neither weights nor accelerators are needed.

MOST_DEVICES = 4096
DEVICE_MEMORY_GB = 16.0
GB = 1e9
_RATE_BYTES = 4  # the learning rate, a step argument that counts as optimizer state

# The program is never run, so its code need not be fast; memory and collectives are the same.
_COMPILE: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11, 1):  # later compilers reject the name
    _COMPILE["xla_cpu_use_fusion_emitters"] = False
# XLA for CPUs multiplies bfloat16 as float32 and by default hoists a float32 copy of all stacked
# weights out of the loop. No accelerator does.
_COMPILE_BFLOAT16 = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def use_virtual_devices(mesh: str | None) -> None:
    """Set up as many virtual CPU devices as the mesh has, if jax has not started yet."""
    # For commands only: later work of this process stays on the CPU.
    count = _device_count(mesh)
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:  # jax has started; _make_mesh checks the number of devices
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
    """Compile the train step of a model without its weights and estimate the memory per device.

    Args:
        backbone: The model's ``config.json``.
        mesh: Devices per mesh axis, for instance ``data:8,model:8``; one device by default.
        batch_size: Rows per step.
        length: Number of prompt tokens.
        max_tokens: Maximum text length in tokens.
        dtype: Data type of weights and matrix products.
        remat: Rematerialisation in the backward pass: ``dots``, ``full`` or ``none``.
        device_memory: Memory limit per device in GB (10^9 bytes); ``ok`` in the record is False
            if the step exceeds it. Without it, ``fits`` refers to `DEVICE_MEMORY_GB`.

    Returns:
        The record and the same as text.

    Raises:
        InputError: The config is broken or of an unknown family, lengths or mesh are invalid, or
            there are too few virtual devices.

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
    lengths = {"batch_size": batch_size, "length": length, "max_tokens": max_tokens}
    options = TuneOptions(**lengths, dtype=dtype, remat=remat, mesh=mesh)
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
    """Return the model, the mesh and the step as a record."""
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
            f"mesh {mesh} has {count:,} devices, but a dry run has at most {MOST_DEVICES:,} "
            "virtual ones; use fewer on data, which hardly changes the memory per device"
        )
    return count


def _make_mesh(text: str | None) -> Mesh:
    """Return the mesh of virtual devices."""
    count, platform = _device_count(text), jax.default_backend()
    available = len(jax.devices()) if platform == "cpu" else 0
    if available < count:
        raise InputError(
            f"a dry run of this mesh needs {count} virtual CPU devices, but jax has started with "
            f"{available}; call jax.config.update('jax_platforms', 'cpu') and "
            f"jax.config.update('jax_num_cpu_devices', {count}) before the first use of jax, or use"
            " the command jpt check"
        )
    return make_mesh(text)


def _check_memory(device_memory: float | None) -> None:
    if device_memory is not None and not (math.isfinite(device_memory) and device_memory > 0):
        raise InputError(f"device_memory is {device_memory}; expected GB, for instance 16")


def _compile(
    model: Backbone, options: TuneOptions, shapes: StepShapes
) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Return the compiled step and the time that tracing and compiling took."""
    compiler = _COMPILE | (_COMPILE_BFLOAT16 if options.dtype == "bfloat16" else {})
    started_s = time.monotonic()
    lowered = lower_step(model, options, shapes)
    traced_s = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=compiler)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"could not compile the step ({reason}); check the sizes") from None
    took_s = {"trace_s": traced_s - started_s, "compile_s": time.monotonic() - traced_s}
    return compiled, {name: round(seconds, 2) for name, seconds in took_s.items()}


def _dry_run_memory(planned: Any, shapes: StepShapes) -> dict[str, int]:
    """Return the bytes that one device holds during the step, by purpose."""
    parts = {
        "weights": _device_bytes(shapes.params),
        "activations": planned.temp_size_in_bytes,
        "prompt_state": _device_bytes(shapes.state) + _RATE_BYTES,
        "batch": _device_bytes((shapes.batch, shapes.answer)),
        # New state that does not alias the donated one.
        "results": planned.output_size_in_bytes - planned.alias_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


def _device_bytes(tree: Any) -> int:
    """Return the bytes of a tree on one device; leaves without a sharding are replicated."""
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
    """Return whether the step fits; only a limit that the user gave affects ``ok``."""
    size = device_memory or DEVICE_MEMORY_GB
    fits = total <= size * GB
    return {"device_memory_gb": size, "fits": fits, "ok": fits or device_memory is None}
