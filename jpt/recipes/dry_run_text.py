"""The dry run in words."""

from __future__ import annotations

from typing import Any

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
        *_memory(record),
        f"{'  ' if record['ok'] else '! '}{_verdict(record)}",
        *_collectives(record),
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


def _memory(record: dict[str, Any]) -> list[str]:
    whole = f" of {size_text(record['backbone']['weights_bytes'])}"
    return [
        f"    {NAMES[name]:<27}{size_text(size):>10}{whole if name == 'weights' else ''}"
        for name, size in record["bytes_per_device"].items()
    ]


def _verdict(record: dict[str, Any]) -> str:
    total, size = record["bytes_per_device"]["total"], record["device_memory_gb"]
    left = size_text(abs(round(size * 1e9) - total))
    if record["fits"]:
        return f"fits a device of {size:g} GB, {left} left"
    return (
        f"does NOT fit a device of {size:g} GB, {left} too much: try more devices on model, "
        "--remat full, --dtype bfloat16 or fewer rows a step"
    )


def _collectives(record: dict[str, Any]) -> list[str]:
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
