"""From masked scores to what is written: by task, by kind of mask, and by type of task."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from jpt.analysis.neuron_choice import COMMON, OTHER, OWN, RANDOM, SPECIFIC, NeuronChoice
from jpt.prompts.relative_means import summarize_relative
from jpt.recipes.mask_plan import NONE, MaskedRun, MaskOptions, MaskPlan
from jpt.tasks.reference_names import task_type
from jpt.transfer.made_with import made_with
from jpt.transfer.matrix_cells import Cell
from jpt.types import Activations

Cells = Mapping[MaskedRun, Cell]
_NO_LEAD = "no better than the commonest answer without a mask, so masks show nothing there"
_PROMISES = {
    OWN: "above 0 behind the prompt",
    COMMON: "above 0 behind every prompt",
    SPECIFIC: "above 0 behind this prompt and no other",
}


def make_record(
    plan: MaskPlan,
    cells: Cells,
    choices: Mapping[MaskedRun, NeuronChoice],
    window: tuple[int, int],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Says what was masked and what that cost."""
    targets = {task: _target(plan, task, cells, choices) for task in plan.own}
    options = plan.options
    split = options.split
    notes = [
        *plan.notes,
        *(
            f"{name} has no {split} split: scored on {plan.matrix.splits[name]}"
            for name in plan.own
            if plan.matrix.splits[name] != split
        ),
        *(f"{name}: {_NO_LEAD}" for name, each in targets.items() if not _leads(each)),
        *_unmet(choices),
    ]
    silent = next(iter(choices.values())).summary()["neurons"]
    layers, width = next(iter(choices.values())).mask.shape
    return {
        "backbone": facts["backbone"],
        "ratio": options.ratio,
        "layers": list(window),
        "per_layer": options.per_layer,
        "stack": options.stack,
        "seed": options.seed,
        "split": split,
        "silent_neurons": silent,
        "neurons": (window[1] - window[0] + 1) * width,
        "neurons_of_model": layers * width,
        "sources": list(plan.sources),
        "targets": targets,
        **_summary(plan, targets),
        **made_with(),
        "command": facts["command"],
        "key": facts["key"],
        "elapsed_s": round(sum(cell.elapsed_s for cell in cells.values()), 2),
        "notes": notes,
    }


def _target(
    plan: MaskPlan, task: str, cells: Cells, choices: Mapping[MaskedRun, NeuronChoice]
) -> dict[str, Any]:
    """One task: its score without a mask, and under each."""
    own = {run: cell for run, cell in cells.items() if run.task == task}
    plain = next(cell for run, cell in own.items() if run.kind == NONE)
    masks: dict[str, Any] = {}
    for kind in dict.fromkeys(run.kind for run in own if run.kind != NONE):
        runs = [run for run in own if run.kind == kind]
        values = np.array([own[run].value for run in runs])
        mean = float(values.mean())
        masks[kind] = {
            "value": mean,
            "std": float(values.std(ddof=1)) if kind == RANDOM and len(runs) > 1 else None,
            "relative": mean / plain.value if plain.value > 0 else None,
            "runs": [
                {
                    "source": choices[run].source,
                    "draw": run.draw,
                    "value": own[run].value,
                    "loss": own[run].loss,
                    **choices[run].summary(),
                }
                for run in runs
            ],
        }
    return {
        "task": plan.matrix.tasks[task].name,
        "type": plan.matrix.tasks[task].type,
        "prompt": plan.own[task],
        "metric": plain.metric,
        "split": plan.matrix.splits[task],
        "rows": plain.rows,
        "majority": plain.majority,
        "unmasked": plain.value,
        "masks": masks,
    }


def _summary(plan: MaskPlan, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Means over tasks: by kind, by type of task and kind, and by type of both tasks."""
    kinds = list(next(iter(targets.values()))["masks"])
    types = list(dict.fromkeys(each["type"] for each in targets.values() if each["type"]))
    record: dict[str, Any] = {
        "relative_by_kind": {kind: _mean(targets, kind) for kind in kinds},
        "relative_by_type": {
            name: {kind: _mean(_of_type(targets, name), kind) for kind in kinds} for name in types
        },
        "own_below_random": _below_random(targets),
    }
    if OTHER not in kinds:
        return {**record, "other_by_type": None}
    cards = plan.matrix.cards
    of_sources = {
        name: (cards[name].task_type or task_type(cards[name].task))
        if name in cards
        else task_type(name)
        for name in plan.sources
    }
    of_targets = {name: each["type"] for name, each in targets.items()}
    table = _relative_by_source(targets, plan.sources)
    found = summarize_relative(
        table, list(targets), plan.sources, plan.own, of_targets, of_sources, {}
    )
    means = found["relative_transfer"]
    return {
        **record,
        "other_by_type": found["relative_by_type"],
        "other_same_type": means["same_type_mean"],
        "other_different_type": means["different_type_mean"],
    }


def _relative_by_source(
    targets: Mapping[str, Any], sources: tuple[str, ...]
) -> Float64[np.ndarray, "N K"]:
    """What is left of each score under the mask of each prompt."""
    table = np.full((len(targets), len(sources)), np.nan)
    for row, target in enumerate(targets.values()):
        for kind in (OWN, OTHER):
            for run in target["masks"].get(kind, {"runs": []})["runs"]:
                if target["unmasked"] > 0:
                    place = sources.index(run["source"])
                    table[row, place] = run["value"] / target["unmasked"]
    return table


def _of_type(targets: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {task: each for task, each in targets.items() if each["type"] == name}


def _mean(targets: Mapping[str, Any], kind: str) -> float | None:
    """Mean of what is left, over the tasks where that is defined."""
    found = [each["masks"].get(kind, {}).get("relative") for each in targets.values()]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _below_random(targets: Mapping[str, Any]) -> dict[str, int] | None:
    """On how many tasks the own neurons cost more than every draw of random ones."""
    pairs = [each["masks"] for each in targets.values()]
    if not all(OWN in masks and RANDOM in masks for masks in pairs):
        return None
    below = [
        masks[OWN]["value"] < min(run["value"] for run in masks[RANDOM]["runs"]) for masks in pairs
    ]
    return {"tasks": sum(below), "of": len(below)}


def _leads(target: Mapping[str, Any]) -> bool:
    """Whether there is something to lose: more than the commonest answer alone would score."""
    return target["metric"] != "accuracy" or target["unmasked"] > (target["majority"] or 0)


def _unmet(choices: Mapping[MaskedRun, NeuronChoice]) -> list[str]:
    """Says so where there are too few neurons of a kind, and what stood in for them."""
    counts = []
    for kind, promise in _PROMISES.items():
        of = [choice for run, choice in choices.items() if run.kind == kind]
        silent = of[0].summary()["neurons"] if of else 0
        fewest = min((choice.fitting for choice in of), default=silent)
        if fewest < silent:
            least = "at least " if len(of) > 1 else ""
            counts.append(f"{kind}: {least}{fewest} of {silent} masked neurons are {promise}")
    if not counts:
        return []
    return [f"{'; '.join(counts)}; the next best fill a mask up, a smaller ratio needs fewer"]


def table_rows(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Lists every score as a line of ``mask.csv``."""
    first, last = record["layers"]
    found = []
    for task, each in record["targets"].items():
        layers, metric = f"{first}-{last}", each["metric"]
        found.append((task, NONE, "", 0.0, layers, "", metric, each["unmasked"]))
        for kind, mask in each["masks"].items():
            for run in mask["runs"]:
                draw = "" if run["draw"] is None else run["draw"]
                told = (task, kind, run["source"] or "", record["ratio"], layers, draw)
                found.append((*told, metric, run["value"]))
    return found


def study_command(
    plan: MaskPlan,
    prompts: Any,
    neurons: Activations | str | Path | None,
    data: Any,
    out: str | Path | None,
) -> str | None:
    """Writes the command that gives a study again."""
    files = (prompts, out, *(each for each in (neurons, data) if each is not None))
    if not all(isinstance(each, (str, Path)) for each in files):
        return None
    tasks = [plan.matrix.tasks[name] for name in plan.own]
    if any(task.rows is not None for task in tasks):
        return None
    one, names = len(plan.bank) == 1, ",".join(str(task.folder or task.name) for task in tasks)
    words = ["jpt", "mask", "--prompt" if one else "--prompts", str(prompts)]
    words += ["--task" if one else "--tasks", names, "--ratio", str(plan.options.ratio)]
    for name, value in (("neurons", neurons), ("data", data)):
        words += [] if value is None else [f"--{name}", str(value)]
    for option in dataclasses.fields(MaskOptions):
        value = getattr(plan.options, option.name)
        if option.name != "ratio" and value != option.default:
            words += _option(option.name, value)
    return shlex.join([*words, "--out", str(out)])


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag]
    if name == "backbone":
        return [flag, str(getattr(value, "name", value))]
    if isinstance(value, (list, tuple)):
        return [flag, ("-" if name == "layers" else ",").join(map(str, value))]
    return [flag, str(value)]
