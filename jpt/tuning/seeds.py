"""One prompt tuned from several seeds, and how much the seed matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jpt.backbones.registry import Backbone
from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_json
from jpt.mesh import make_mesh
from jpt.tasks.task import Task
from jpt.tuning.prepare import as_backbone
from jpt.tuning.tune import TuneResult, tune

SEEDS = "seeds.json"


@dataclass(frozen=True)
class SeedsResult:
    """What `tune_seeds` gives.

    Attributes:
        results: of each seed's run.
        record: mean, standard deviation and every value, as in ``seeds.json``.
    """

    results: dict[int, TuneResult]
    record: dict[str, Any]

    @property
    def best(self) -> TuneResult:
        """The run with the highest score on validation."""
        metric = self.record["metric"]
        return max(self.results.values(), key=lambda result: result.record["validation"][metric])

    def describe(self) -> str:
        """Says a line for each split: mean, standard deviation, and the values."""
        record = self.record
        lines = [
            f"{record['task']} on {record['backbone']}, {len(self.results)} seeds "
            f"({', '.join(map(str, self.results))})"
        ]
        for split in ("test", "validation"):
            if split in record:
                found = record[split]
                values = ", ".join(f"{value:.3f}" for value in found["values"])
                lines.append(
                    f"{split} {record['metric']}: {found['mean']:.3f} ± {found['std']:.3f} "
                    f"({values})"
                )
        return "\n".join(lines)


def parse_seeds(text: str) -> list[int]:
    """Reads seeds from text."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(
            f"seeds is {text!r}; give whole numbers with commas between, such as 0,1,2"
        )
    return [int(part) for part in parts]


def tune_seeds(
    backbone: Backbone | str | Path,
    task: Task | str | Path,
    seeds: Sequence[int],
    out: str | Path | None = None,
    **options: Any,
) -> SeedsResult:
    """Tunes a prompt from each of several seeds.

    The seed sets initial prompt, order of the rows and dropout. The backbone is loaded once,
    and all runs share their compiled programs where dropout is off.

    Args:
        backbone: a loaded backbone, a built-in name, a folder of weights or a hub id.
        task: a task, its name, or its folder.
        seeds: two or more different ones.
        out: folder for a run folder ``seed-S`` each and ``seeds.json``; None keeps all in memory.
        **options: as for :func:`jpt.tune`, without ``seed``.

    Returns:
        Every run, with mean and sample standard deviation.

    Raises:
        InputError: for fewer than two seeds, or one that comes twice; and as `jpt.tune`.

    Example:
        >>> rows = [{"text": "Fine.", "label": "positive"}, {"text": "Dull.", "label": "negative"}]
        >>> options = {"data": {"train": rows, "validation": rows}, "steps": 1, "batch_size": 2}
        >>> several = tune_seeds("builtin/bert-small", "sst2", [0, 1], **options)
        >>> len(several.record["validation"]["values"])
        2
    """
    seeds = list(seeds)
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {seeds}; give two or more different ones, for instance 0,1,2")
    if not isinstance(backbone, Backbone):
        choices = {"dtype": options.get("dtype", "float32"), "remat": options.get("remat", "dots")}
        choices |= {"dropout": options.get("dropout") == "paper"}
        backbone = as_backbone(backbone, mesh=make_mesh(options.get("mesh")), **choices)
    folder = None if out is None else make_folder(out)
    results = {
        seed: tune(
            backbone,
            task,
            None if folder is None else folder / f"seed-{seed}",
            seed=seed,
            **options,
        )
        for seed in seeds
    }
    record = _record(results)
    if folder is not None:
        write_json(folder / SEEDS, record)
    return SeedsResult(results, record)


def _record(results: dict[int, TuneResult]) -> dict[str, Any]:
    first = next(iter(results.values())).record
    record = {
        **{name: first[name] for name in ("backbone", "task", "metric", "steps")},
        "seeds": list(results),
    }
    for split in ("validation", "test"):
        if split in first:
            values = [result.record[split][first["metric"]] for result in results.values()]
            record[split] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)),
                "values": values,
            }
    return record
