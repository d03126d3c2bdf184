"""Write rows as tokenised by jpt, without padding, for the other sides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_rows(path: Path, batches: Mapping[str, Any], **arrays: Any) -> None:
    """Write batches by name.

    Args:
        path: The ``.npz`` file.
        batches: Batches as returned by `jpt.training_batches`.
        **arrays: Further arrays.
    """
    found = dict(arrays)
    for name, batch in batches.items():
        pairs = zip(batch.tokens, batch.lengths, strict=True)
        found[f"{name}.texts"] = np.concatenate([row[:length] for row, length in pairs])
        found[f"{name}.lengths"], found[f"{name}.labels"] = batch.lengths, batch.labels
    np.savez(path, **found)


def write_task(
    path: Path,
    backbone: Any,
    label_ids: Sequence[int],
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Write the ids and settings that a torch side needs."""
    task = {
        "layout": backbone.layout,
        "words": np.asarray(label_ids).tolist(),
        "pad": backbone.pad_id,
        "mask": backbone.tokenizer.ids.mask,
        "device": device,
        "dtype": dtype,
    }
    path.write_text(json.dumps(task))
