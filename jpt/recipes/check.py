"""Check an installation: versions, devices, lengths, label words, and a short trial run."""

from __future__ import annotations

import os
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jpt.backbones.registry import Backbone, backbone_names, check_lengths
from jpt.config import TuneOptions
from jpt.data.builtin import reviews
from jpt.errors import InputError
from jpt.tuning.bound_task import bind, resolve_backbone, resolve_options, resolve_task
from jpt.tuning.tune import tune
from jpt.version import __version__

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
TRIAL_STEPS = 20


def run_check(
    backbone: str | Path | None = None,
    task: str | Path | None = None,
    *,
    length: int | None = None,
    max_tokens: int | None = None,
    dtype: str = "float32",
    data: str | Path | None = None,
) -> tuple[dict[str, Any], str]:
    """Check the installation and, with a backbone and a task, that a prompt can be tuned."""
    if task is not None and backbone is None:
        raise InputError("check got a task but no backbone; add --backbone")
    record: dict[str, Any] = {"ok": True, "jpt": __version__}
    lines = [*_installation(record)]
    if backbone is not None:
        options = TuneOptions(length=length, max_tokens=max_tokens, dtype=dtype)
        lines += _model(record, backbone, task, options, data)
    lines.append(
        "all checks passed" if record["ok"] else "checks FAILED: see the lines marked with !"
    )
    return record, "\n".join(lines)


def _installation(record: dict[str, Any]) -> list[str]:
    """Check versions, devices, the temporary folder, and built-in texts and backbones."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    devices = [device.device_kind for device in jax.devices()]
    record |= {"versions": versions, "devices": devices, "cores": os.cpu_count()}
    lines = [
        f"  jpt {__version__}, " + ", ".join(f"{name} {v}" for name, v in versions.items()),
        f"  devices: {len(devices)} x {devices[0]} ({jax.default_backend()}), "
        f"{os.cpu_count()} CPU cores",
    ]
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"jpt")
    except OSError as error:
        record["ok"] = False
        lines.append(f"! the temporary folder {tempfile.gettempdir()} is not writable: {error}")
    try:
        count = len(reviews("rotten_tomatoes", "train"))
        lines.append(f"  texts of the built-in tasks: found ({count} training reviews)")
    except InputError as error:
        record["ok"] = False
        lines.append(f"! texts of the built-in tasks: {error}")
    names = ", ".join(backbone_names())
    lines.append(f"  built-in backbones: {names or 'none'}")
    return lines


def _model(
    record: dict[str, Any],
    backbone: str | Path,
    task: str | Path | None,
    options: TuneOptions,
    data: str | Path | None,
) -> list[str]:
    """Load a backbone, describe its input, and run a short trial on a task."""
    model = resolve_backbone(backbone, options.dtype)
    definition = None if task is None else resolve_task(task, data)
    if definition is not None:
        options = resolve_options(options, model, definition)
    else:
        options = options.resolve(model.defaults)
        check_lengths(model, options.length, options.max_tokens)
    record["backbone"] = {"name": model.name, "weights": model.frozen_count}
    record["prompt_weights"] = options.length * model.config.width
    lines = [
        f"  {model.name}: {model.model_type}, {model.frozen_count:,} weights in {options.dtype}, "
        + (
            f"{model.config.positions} positions"
            if model.layout != "encoder_decoder"
            else "relative positions"
        ),
        *_input_layout(model, options.length, options.max_tokens),
    ]
    if definition is None:
        return lines
    bound = bind(definition, model, options)
    record["label_ids"] = bound.label_words.token_ids
    lines.append(f"  {definition.name}: {bound.describe_label_words()}")
    return lines + _trial(record, model, definition, options)


def _input_layout(model: Backbone, length: int, max_tokens: int) -> list[str]:
    """Describe the input: tokens in order, positions, and where the answer is read."""
    rows, end = f"p1 .. p{length}", length + max_tokens
    if model.layout == "encoder":
        return [
            f"  input: [MASK] {rows} [CLS] text [SEP], answer read at [MASK]",
            f"  positions: none on [MASK] {rows}; text 0 .. {max_tokens - 1}",
            f"  longest sequence: 1 + {length} + {max_tokens} = {1 + end} tokens",
        ]
    if model.layout == "encoder_decoder":
        return [
            f"  input: {rows} text </s> into the encoder, answer read at the decoder's first step",
            f"  longest sequence: {length} + {max_tokens} = {end} tokens",
        ]
    start = (
        f"{model.tokenizer.token_text(model.tokenizer.ids.bos)} " if model.tokenizer.add_bos else ""
    )
    return [
        f"  input: {rows} {start}text, answer read at the last text token",
        f"  positions: {rows} 0 .. {length - 1}; text {length} .. {end - 1}",
        f"  longest sequence: {length} + {max_tokens} = {end} tokens",
    ]


def _trial(record: dict[str, Any], model: Any, task: Any, options: TuneOptions) -> list[str]:
    """Tune for a few steps in memory; not ok if the loss grows."""
    started_s = time.monotonic()
    result = tune(
        model,
        task,
        steps=TRIAL_STEPS,
        eval_every=TRIAL_STEPS,
        length=options.length,
        max_tokens=options.max_tokens,
    )
    losses = [line["loss"] for line in result.history if line["split"] == "train"]
    record["trial"] = {"losses": losses, "elapsed_s": round(time.monotonic() - started_s, 1)}
    lines = [
        f"  {TRIAL_STEPS} steps in {record['trial']['elapsed_s']} s with compilation: "
        f"loss {losses[0]:.3f} at step 10, {losses[-1]:.3f} at step {TRIAL_STEPS}"
    ]
    if losses[-1] > losses[0] * 1.5:
        record["ok"] = False
        lines.append("! the loss grows: try a lower --learning-rate")
    return lines
