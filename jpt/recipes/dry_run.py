"""The dry run: what a step of a large model would need, compiled from its config.json alone.

The train step that `jpt tune` runs is compiled for virtual CPU devices with shapes in place of
arrays, so neither weights nor accelerators are needed. What other hardware needs differs somewhat:
its compiler fuses and schedules otherwise.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jpt.backbones.lengths import check_lengths
from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.errors import InputError
from jpt.mesh import make_mesh, parse_mesh
from jpt.recipes.compiled_facts import read_collectives
from jpt.recipes.dry_run_text import describe_dry_run, estimate_note
from jpt.recipes.step_shapes import StepShapes, lower_step, shape_backbone, step_shapes

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
    memory = _memory(compiled.memory_analysis(), shapes)
    record |= {"bytes_per_device": memory, **_collectives(compiled.as_text(), devices), **seconds}
    record |= {**_verdict(memory["total"], device_memory), "estimate": estimate_note(dtype)}
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


def _memory(planned: Any, shapes: StepShapes) -> dict[str, int]:
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


def _collectives(program: str, mesh: Mesh) -> dict[str, Any]:
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


def _verdict(total: int, device_memory: float | None) -> dict[str, Any]:
    """Whether it fits; the size that nobody asked for does not decide whether all is well."""
    size = device_memory or DEVICE_MEMORY_GB
    fits = total <= size * GB
    return {"device_memory_gb": size, "fits": fits, "ok": fits or device_memory is None}
