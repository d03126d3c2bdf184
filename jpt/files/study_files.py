"""The results that one command writes and another reads: transfer matrices and activations."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jpt.errors import InputError
from jpt.files.atomic import atomic_file
from jpt.files.reading import read_bytes
from jpt.files.tables import read_number, read_table, write_table
from jpt.types import Activations, TransferMatrix

TRANSFER_COLUMNS = ("target_task", "source_prompt", "metric", "value")

RANDOM, UNTOUCHED = "random", "none"
BASELINES = (RANDOM, UNTOUCHED)
"""Columns of a matrix that are no sources: an untrained prompt, and the model without a prompt."""


def write_transfer(path: str | Path, matrix: TransferMatrix) -> None:
    """Writes a transfer matrix as ``target_task,source_prompt,metric,value``."""
    rows = [
        (target, prompt, metric, value)
        for target, metric, line in zip(matrix.targets, matrix.metrics, matrix.values, strict=True)
        for prompt, value in zip(matrix.prompts, line.tolist(), strict=True)
        if not np.isnan(value)
    ]
    write_table(path, TRANSFER_COLUMNS, rows)


def read_transfer(path: str | Path) -> TransferMatrix:
    """Reads a transfer matrix; targets and prompts stand in the order in which they first come.

    Args:
        path: a table with the columns of `write_transfer`.

    Returns:
        The matrix; NaN where the table has no line for a pair.

    Raises:
        InputError: a column is missing, a value is no number, a pair stands twice, a target has
            two metrics, or there is no line at all.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "transfer.csv"
        >>> write_transfer(
        ...     file, TransferMatrix(("imdb",), ("a", "b"), np.array([[0.5, 0.75]]), ("accuracy",))
        ... )
        >>> read_transfer(file).values
        array([[0.5 , 0.75]])
    """
    rows = read_table(path, TRANSFER_COLUMNS)
    if not rows:
        raise InputError(f"{path} has a header and no line; run jpt transfer again")
    metrics: dict[str, str] = {}
    values: dict[tuple[str, str], float] = {}
    for number, row in enumerate(rows, 2):
        pair = (row["target_task"], row["source_prompt"])
        if pair in values:
            raise InputError(f"{path}, line {number}: {pair[1]} on {pair[0]} stands there twice")
        if metrics.setdefault(pair[0], row["metric"]) != row["metric"]:
            raise InputError(
                f"{path}, line {number}: {pair[0]} is measured by {row['metric']} here and by"
                f" {metrics[pair[0]]} above; one metric a target expected"
            )
        values[pair] = read_number(path, number, row, "value")
    prompts = tuple(dict.fromkeys(prompt for _, prompt in values))
    table = [[values.get((target, prompt), np.nan) for prompt in prompts] for target in metrics]
    return TransferMatrix(tuple(metrics), prompts, np.array(table), tuple(metrics.values()))


def write_activations(path: str | Path, activations: Activations) -> None:
    """Writes activations as ``names`` [K], ``activations`` [K, L, F] and ``probe``."""
    arrays = {
        "names": np.array(activations.names),
        "activations": activations.values.astype(np.float32),
        "probe": np.array(json.dumps(activations.probe)),
    }
    if activations.rates is not None:
        arrays["rates"] = activations.rates.astype(np.float32)
    if activations.cka is not None:
        arrays["cka"] = activations.cka.astype(np.float64)
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def read_activations(path: str | Path) -> Activations:
    """Reads activations."""
    data = read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names, values = arrays["names"], arrays["activations"]
            extra = {name: arrays[name] for name in ("rates", "cka") if name in arrays}
            probe = json.loads(str(arrays["probe"])) if "probe" in arrays else {"kind": "start"}
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        raise InputError(
            f"{path} is no file of activations (names [K] and activations [K, L, F]); make it with"
            " jpt neurons"
        ) from None
    if values.ndim != 3 or names.shape != values.shape[:1] or values.dtype.kind != "f":
        raise InputError(
            f"{path}: names {list(names.shape)} and activations {list(values.shape)}"
            f" ({values.dtype}); [K] and [K, L, F] of floats expected"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path}: an activation is NaN or infinite; make it again")
    _check_extra(path, values.shape, extra, probe)
    listed = tuple(str(name) for name in names)
    refuse_twice(listed, str(path))
    rates, cka = extra.get("rates"), extra.get("cka")
    return Activations(
        listed,
        values.astype(np.float32),
        None if rates is None else rates.astype(np.float32),
        None if cka is None else cka.astype(np.float64),
        probe,
    )


def _check_extra(
    path: str | Path,
    shape: tuple[int, int, int],
    arrays: dict[str, Float[np.ndarray, "..."]],
    probe: Any,
) -> None:
    """Refuses what a probe on text adds where it is not of these prompts and layers."""
    prompts, layers, neurons = shape
    expected = {"rates": (prompts, layers, neurons), "cka": (layers, prompts, prompts)}
    for name, values in arrays.items():
        if values.shape != expected[name] or values.dtype.kind != "f":
            raise InputError(
                f"{path}: {name} is {list(values.shape)} ({values.dtype}); {list(expected[name])}"
                " of floats expected: make it again with jpt neurons --probe text"
            )
    if "rates" in arrays and not ((arrays["rates"] >= 0) & (arrays["rates"] <= 1)).all():
        raise InputError(f"{path}: a rate is outside 0 to 1; make it again with jpt neurons")
    if not isinstance(probe, dict) or probe.get("kind") not in ("start", "text"):
        raise InputError(f"{path}: probe is {probe!r}; an object with kind start or text expected")


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Refuses names that do not tell things apart."""
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise InputError(f"{where} names {name} {count} times; give each prompt its own name")
