"""Mask neurons and measure what prompts lose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from jpt.backbones.registry import Backbone
from jpt.config import (
    MASK_COMMON,
    MASK_IN_TASK,
    MASK_KINDS,
    MASK_OTHER,
    MASK_RANDOM,
    MASK_SPECIFIC,
    MaskOptions,
    check_ratio,
)
from jpt.data.encode import EncodedSplit
from jpt.distributed import on_first
from jpt.errors import InputError, unknown_name
from jpt.indicators.indicators import parse_layers
from jpt.indicators.pairs import is_random
from jpt.io.files import read_json, write_json, write_table
from jpt.neurons.probe import activated_neurons
from jpt.neurons.selection import OF_SEVERAL, NeuronChoice, choose_neurons
from jpt.parallel import batch_sharding, make_mesh
from jpt.prompts.store import PROMPT_FILE, check_prompt, load_prompt, load_prompts
from jpt.results.prompt_table import (
    match_in_task_prompts,
    read_activations,
    short_task,
    summarize_relative,
)
from jpt.results.provenance import environment_info
from jpt.results.score_table import Cell, CellFile, make_cell
from jpt.results.statistics import above_chance
from jpt.results.value_checks import check_values
from jpt.tasks.catalog import task_type
from jpt.tasks.task import Task
from jpt.transfer.zero_shot import MatrixPlan, plan_matrix
from jpt.tuning.bound_task import (
    BoundTask,
    resolve_backbone,
    resolve_task,
    weights_of,
)
from jpt.tuning.losses import NeuronMask, neuron_shape
from jpt.types import Activations, Data, Prompt, Score

# --- Plan of a masking study

NONE = "none"  # kind of the run without a mask

Prompts = Prompt | Mapping[str, Prompt] | str | Path
Tasks = Task | str | Path | Iterable[Task | str | Path] | None


class MaskedRun(NamedTuple):
    """One score of the study."""

    task: str  # short name of the task
    prompt: str  # its in-task prompt
    kind: str  # `NONE`, or one of `MASK_KINDS`
    source: str | None = None  # prompt whose neurons are masked
    draw: int | None = None  # number of the random sample

    @property
    def name(self) -> str:
        """Name in ``mask_cells.jsonl``, for instance ``random/2``."""
        part = self.source if self.draw is None else str(self.draw)
        return self.kind if part is None else f"{self.kind}/{part}"


@dataclass(frozen=True)
class MaskPlan:
    """Prompts and tasks of a study."""

    options: MaskOptions
    matrix: MatrixPlan  # prompts, tasks and rows
    in_task: dict[str, str]  # prompt of each task
    neurons: Activations | None  # given activations; None to probe the model
    notes: tuple[str, ...]  # what was left out

    @property
    def bank(self) -> dict[str, Prompt]:
        """Prompts by name."""
        named = ((run.column, run.prompt) for run in self.matrix.runs)
        return {name: prompt for name, prompt in named if prompt is not None}

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the prompts whose neurons can be masked."""
        return self.neurons.names if self.neurons is not None else tuple(self.bank)

    def runs(self) -> list[MaskedRun]:
        """Return all runs, by task, the one without a mask first."""
        kinds = self.options.kinds or (
            MASK_KINDS if len(self.sources) > 1 else (MASK_IN_TASK, MASK_RANDOM)
        )
        found = []
        for task, prompt in self.in_task.items():
            others = [name for name in self.sources if name != prompt]
            makers = {
                MASK_IN_TASK: [MaskedRun(task, prompt, MASK_IN_TASK, prompt)],
                MASK_RANDOM: [
                    MaskedRun(task, prompt, MASK_RANDOM, None, draw)
                    for draw in range(self.options.random_draws)
                ],
                MASK_OTHER: [MaskedRun(task, prompt, MASK_OTHER, name) for name in others],
                MASK_COMMON: [MaskedRun(task, prompt, MASK_COMMON)],
                MASK_SPECIFIC: [MaskedRun(task, prompt, MASK_SPECIFIC, prompt)],
            }
            found.append(MaskedRun(task, prompt, NONE))
            found += [run for kind in dict.fromkeys(kinds) for run in makers[kind]]
        return found

    def depends(self, run: MaskedRun) -> dict[str, Any]:
        """Return what a score depends on, except the model."""
        identities = {each.column: self.matrix.identity(each) for each in self.matrix.runs}
        content = {**self.matrix.contents()[run.task], **identities[run.prompt]}
        if run.kind == NONE:
            return {**content, "mask": None}
        options = ("ratio", "layers", "per_layer", "stack", "seed")
        chosen = {name: getattr(self.options, name) for name in options}
        chosen["layers"] = None if chosen["layers"] is None else str(chosen["layers"])
        read_from = {
            MASK_OTHER: [run.source],
            MASK_COMMON: self.sources,
            MASK_SPECIFIC: self.sources,
        }
        names = read_from.get(run.kind, [run.prompt])
        if self.neurons is None:
            chosen_by = [identities[name]["prompt"] for name in names]
        else:
            chosen_by = [_checksum(self.neurons), *names]
        return {**content, "mask": {"kind": run.kind, "draw": run.draw, **chosen, "of": chosen_by}}


def plan_masks(
    prompts: Prompts,
    tasks: Tasks,
    neurons: Activations | str | Path | None,
    data: Data | None,
    options: MaskOptions,
) -> MaskPlan:
    """Load and check prompts, tasks and rows."""
    if neurons is not None and not isinstance(neurons, Activations):
        neurons = read_activations(neurons)
    if _is_one(prompts):
        matrix, in_task, notes = _plan_one(prompts, tasks, data, options)
    else:
        matrix, in_task, notes = _plan_several(prompts, tasks, data, options)
    plan = MaskPlan(options, matrix, in_task, neurons, tuple(notes))
    for name in in_task.values():
        if name not in plan.sources:
            raise unknown_name("prompt of the activations", name, plan.sources)
    asked = [kind for kind in options.kinds or () if kind in OF_SEVERAL]
    if asked and len(plan.sources) < 2:
        raise InputError(
            f"kinds: {', '.join(asked)} needs prompts of 2 or more tasks, got 1"
            f" ({plan.sources[0]}); give more prompts"
        )
    return plan


def _is_one(prompts: Prompts) -> bool:
    if isinstance(prompts, (str, Path)):
        path = Path(prompts)
        return path.suffix == ".safetensors" or path.is_file() or (path / PROMPT_FILE).is_file()
    return isinstance(prompts, Prompt)


def _plan_one(
    prompt: Prompt | str | Path, tasks: Tasks, data: Data | None, options: MaskOptions
) -> tuple[MatrixPlan, dict[str, str], list[str]]:
    """Plan one prompt on one task."""
    loaded = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    if tasks is None:
        tasks = loaded.card.task
    if not isinstance(tasks, (Task, str, Path)):
        raise InputError("tasks: expected one task for one prompt, got several; give one")
    task = resolve_task(tasks, data)
    _check_classification(task)
    name = short_task(loaded.card.task)
    if not isinstance(prompt, Prompt):
        path = Path(prompt)
        name = path.parent.resolve().name if path.name == PROMPT_FILE else path.stem
    matrix = plan_matrix({name: loaded}, [task], options.split, None, False, False, options.seed)
    return matrix, {task.short_name: name}, []


def _plan_several(
    prompts: Mapping[str, Prompt] | str | Path,
    tasks: Tasks,
    data: Data | None,
    options: MaskOptions,
) -> tuple[MatrixPlan, dict[str, str], list[str]]:
    """Plan every prompt on its in-task target."""
    loaded = load_prompts(prompts)
    trained = {name: p for name, p in loaded.items() if not is_random(name, p.card)}
    notes = [f"{name}: not trained, left out" for name in loaded if name not in trained]
    if len(trained) < 2:
        raise InputError(
            f"prompts: expected 2 or more trained prompts, got {len(trained)} of {len(loaded)}; add"
            " prompts, or give one prompt and its task"
        )
    if isinstance(data, Mapping):
        raise InputError("data: expected a folder for several tasks, got rows by split; give one")
    is_asked = tasks is not None
    given = [tasks] if isinstance(tasks, (Task, str, Path)) else tasks
    named = list(given) if is_asked else sorted({p.card.task for p in trained.values()})
    matrix = plan_matrix(trained, named, options.split, data, False, False, options.seed)
    in_task, lacking = match_in_task_prompts(matrix.tasks, matrix.cards)
    if is_asked and lacking:
        names = ", ".join(list(trained)[:5])
        raise InputError(
            f"{lacking[0].split(':')[0]} (prompts: {names}); tune one for it, or leave the task out"
        )
    notes += [line.replace("relative performance is not defined", "left out") for line in lacking]
    for name in list(in_task):
        if matrix.tasks[name].is_generative:
            if is_asked:
                _check_classification(matrix.tasks[name])
            notes.append(f"{name}: a generative task, left out")
            del in_task[name]
    if not in_task:
        raise InputError(
            f"tasks: expected at least one with an in-task prompt, got none"
            f" ({'; '.join(notes[-3:])}); give one prompt of each task"
        )
    return matrix, in_task, notes


def _check_classification(task: Task) -> None:
    if task.is_generative:
        raise InputError(
            f"task {task.name}: masking supports classification tasks only, got a generative one;"
            " leave it out"
        )


def _checksum(activations: Activations) -> str:
    values = np.ascontiguousarray(activations.values, np.float32)
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


# --- Record of a study

Cells = Mapping[MaskedRun, Cell]
_NO_LEAD = (
    "unmasked score not more than two standard errors above chance, so masking is not informative"
)
# Relative scores, and the ends of their names in the record
_MEASURES = {"relative": "", "above_chance": "_above_chance"}
_CRITERIA = {
    MASK_IN_TASK: "activated by the prompt",
    MASK_COMMON: "activated by every prompt",
    MASK_SPECIFIC: "activated by this prompt only",
}


def make_record(
    plan: MaskPlan,
    cells: Cells,
    choices: Mapping[MaskedRun, NeuronChoice],
    window: tuple[int, int],
    study: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of ``mask.json``."""
    targets = {task: _target(plan, task, cells, choices) for task in plan.in_task}
    options = plan.options
    split = options.split
    notes = [
        *plan.notes,
        *plan.matrix.notes(options, weights_of(_backbone_name(plan), options.dtype)),
        *(
            f"{name} has no {split} split: scored on {plan.matrix.splits[name]}"
            for name in plan.in_task
            if plan.matrix.splits[name] != split
        ),
        *(f"{name}: {_NO_LEAD}" for name, each in targets.items() if not _leads(each)),
        *_unmet(choices),
    ]
    choice = next(iter(choices.values()))
    layers, width = choice.mask.shape
    return {
        "backbone": study["backbone"],
        "ratio": options.ratio,
        "layers": list(window),
        "per_layer": options.per_layer,
        "stack": options.stack,
        "seed": options.seed,
        "split": split,
        "masked_neurons": choice.summary()["neurons"],
        "neurons": (window[1] - window[0] + 1) * width,
        "neurons_of_model": layers * width,
        "sources": list(plan.sources),
        "targets": targets,
        **_summary(plan, targets),
        **environment_info(),
        "command": study["command"],
        "key": study["key"],
        "elapsed_s": round(sum(cell.elapsed_s for cell in cells.values()), 2),
        "notes": notes,
    }


def _target(
    plan: MaskPlan, task: str, cells: Cells, choices: Mapping[MaskedRun, NeuronChoice]
) -> dict[str, Any]:
    """Return the scores of a task without a mask and with each."""
    of_task = {run: cell for run, cell in cells.items() if run.task == task}
    plain = next(cell for run, cell in of_task.items() if run.kind == NONE)
    masks: dict[str, Any] = {}
    for kind in dict.fromkeys(run.kind for run in of_task if run.kind != NONE):
        runs = [run for run in of_task if run.kind == kind]
        values = np.array([of_task[run].value for run in runs])
        mean = float(values.mean())
        masks[kind] = {
            "value": mean,
            "std": float(values.std(ddof=1)) if kind == MASK_RANDOM and len(runs) > 1 else None,
            "relative": mean / plain.value if plain.value > 0 else None,
            "above_chance": _above(mean, plain.chance, plain.value, plain.standard_error),
            "runs": [
                {
                    "source": choices[run].source,
                    "draw": run.draw,
                    "value": of_task[run].value,
                    "loss": of_task[run].loss,
                    **choices[run].summary(),
                }
                for run in runs
            ],
        }
    return {
        "task": plan.matrix.tasks[task].name,
        "type": plan.matrix.tasks[task].type,
        "prompt": plan.in_task[task],
        "metric": plain.metric,
        "split": plan.matrix.splits[task],
        "rows": plain.rows,
        "majority": plain.majority,
        "chance": plain.chance,
        "unmasked": plain.value,
        "standard_error": plain.standard_error,
        "masks": masks,
    }


def _above(
    value: float, chance: float | None, unmasked: float, error: float | None
) -> float | None:
    """Return a score above chance over the unmasked one's; None where that is near chance."""
    if chance is None or error is None:
        return None
    found = float(above_chance(value, chance, unmasked, error))
    return None if np.isnan(found) else found


def _summary(plan: MaskPlan, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Return means over tasks: by kind, by task type, and by the types of both tasks."""
    kinds = list(next(iter(targets.values()))["masks"])
    types = list(dict.fromkeys(each["type"] for each in targets.values() if each["type"]))
    record: dict[str, Any] = {}
    for measure in _MEASURES:
        record[f"{measure}_by_kind"] = {kind: _mean(targets, kind, measure) for kind in kinds}
        record[f"{measure}_by_type"] = {
            name: {kind: _mean(_of_type(targets, name), kind, measure) for kind in kinds}
            for name in types
        }
    record["in_task_below_random"] = _below_random(targets)
    if MASK_OTHER not in kinds:
        return {**record, "other_by_type": None}
    cards = plan.matrix.cards
    of_sources = {
        name: (cards[name].task_type or task_type(cards[name].task))
        if name in cards
        else task_type(name)
        for name in plan.sources
    }
    of_targets = {name: each["type"] for name, each in targets.items()}
    for measure, table in _relative_by_source(targets, plan.sources).items():
        names = (list(targets), plan.sources, plan.in_task)
        found = summarize_relative(table, *names, of_targets, of_sources, {}, measure)
        means, end = found[f"{measure}_transfer"], _MEASURES[measure]
        record[f"other_by_type{end}"] = found[f"{measure}_by_type"]
        record[f"other_same_type{end}"] = means["same_type_mean"]
        record[f"other_different_type{end}"] = means["different_type_mean"]
    return record


def _relative_by_source(
    targets: Mapping[str, Any], sources: tuple[str, ...]
) -> dict[str, Float64[np.ndarray, "N K"]]:
    """Return each task's score under the mask of each prompt, relative to the unmasked score."""
    tables = {name: np.full((len(targets), len(sources)), np.nan) for name in _MEASURES}
    for row, target in enumerate(targets.values()):
        whole = target["unmasked"]
        for kind in (MASK_IN_TASK, MASK_OTHER):
            for run in target["masks"].get(kind, {"runs": []})["runs"]:
                pair, value = (row, sources.index(run["source"])), run["value"]
                above = _above(value, target["chance"], whole, target["standard_error"])
                tables["relative"][pair] = value / whole if whole > 0 else np.nan
                tables["above_chance"][pair] = np.nan if above is None else above
    return tables


def _of_type(targets: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {task: each for task, each in targets.items() if each["type"] == name}


def _mean(targets: Mapping[str, Any], kind: str, measure: str) -> float | None:
    """Return the mean relative score over the tasks where it is defined."""
    found = [each["masks"].get(kind, {}).get(measure) for each in targets.values()]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _below_random(targets: Mapping[str, Any]) -> dict[str, int] | None:
    """Count tasks on which in-task neurons cost more than every sample of random ones."""
    pairs = [each["masks"] for each in targets.values()]
    if not all(MASK_IN_TASK in masks and MASK_RANDOM in masks for masks in pairs):
        return None
    below = [
        masks[MASK_IN_TASK]["value"] < min(run["value"] for run in masks[MASK_RANDOM]["runs"])
        for masks in pairs
    ]
    return {"tasks": sum(below), "of": len(below)}


def _leads(target: Mapping[str, Any]) -> bool:
    """Return whether the unmasked score is clearly above chance."""
    level = (target["unmasked"], target["chance"], target["unmasked"], target["standard_error"])
    return _above(*level) is not None


def _unmet(choices: Mapping[MaskedRun, NeuronChoice]) -> list[str]:
    """Return a note if fewer neurons than masked meet the criterion of a kind."""
    counts = []
    for kind, criterion in _CRITERIA.items():
        of = [choice for run, choice in choices.items() if run.kind == kind]
        masked = of[0].summary()["neurons"] if of else 0
        fewest = min((choice.fitting for choice in of), default=masked)
        if fewest < masked:
            least = "at least " if len(of) > 1 else ""
            counts.append(f"{kind}: {least}{fewest} of {masked} masked neurons are {criterion}")
    if not counts:
        return []
    return [f"{'; '.join(counts)}; the next ones in rank fill the mask, a lower ratio avoids this"]


def table_rows(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return every score as a row of ``mask.csv``."""
    first, last = record["layers"]
    found = []
    for task, each in record["targets"].items():
        layers, metric = f"{first}-{last}", each["metric"]
        found.append((task, NONE, "", 0.0, layers, "", metric, each["unmasked"]))
        for kind, mask in each["masks"].items():
            for run in mask["runs"]:
                draw = "" if run["draw"] is None else run["draw"]
                masked = (task, kind, run["source"] or "", record["ratio"], layers, draw)
                found.append((*masked, metric, run["value"]))
    return found


def study_command(
    plan: MaskPlan,
    prompts: Any,
    neurons: Activations | str | Path | None,
    data: Any,
    out: str | Path | None,
) -> str | None:
    """Return the command that reproduces a study, if its inputs are files."""
    files = (prompts, out, *(each for each in (neurons, data) if each is not None))
    if not all(isinstance(each, (str, Path)) for each in files):
        return None
    tasks = [plan.matrix.tasks[name] for name in plan.in_task]
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


# --- Text of a study

WIDTH = 80
_NAME_WIDTH = 18
_TYPE_WIDTH = 13

MEANINGS = {
    MASK_IN_TASK: "largest values with the in-task prompt",
    MASK_RANDOM: "sampled at random, as many per layer as in_task",
    MASK_OTHER: "largest values with the prompts of other tasks",
    MASK_COMMON: "activated by the most prompts",
    MASK_SPECIFIC: "activated by this prompt and the fewest others",
}


def describe_masks(record: Mapping[str, Any]) -> str:
    """Return a study as text: scores by task and kind of mask, then means by task type."""
    lines = [*textwrap.wrap(_head(record), WIDTH), *_scores(record), *_meanings(record)]
    lines += _by_type(record) + _by_both(record)
    below = record["in_task_below_random"]
    if below is not None:
        lines += _wrapped(
            "Masking the in-task neurons costs more than every random sample on"
            f" {below['tasks']} of {below['of']} task{'s' if below['of'] > 1 else ''}."
        )
    for note in record["notes"]:
        lines += _wrapped(f"note: {note}")
    return "\n".join(lines)


def _head(record: Mapping[str, Any]) -> str:
    first, last = record["layers"]
    layers = f"layers {first}-{last}" if last > first else f"layer {first}"
    stack = f" of the {record['stack']}" if record["stack"] else ""
    share = ", the same share in each layer" if record["per_layer"] else ""
    return (
        f"Scores on {record['split']} with {record['masked_neurons']} of {record['neurons']}"
        f" neurons of {layers}{stack} masked{share} ({record['backbone']})"
    )


def _scores(record: Mapping[str, Any]) -> list[str]:
    kinds = list(record["relative_by_kind"])
    metrics = list(dict.fromkeys(each["metric"] for each in record["targets"].values()))
    lines = [["", "none", *kinds, "chance"]]
    for task, each in record["targets"].items():
        cells = [_score(each["masks"].get(kind)) for kind in kinds]
        chance = each.get("chance", each["majority"])  # a record of an older version
        lines.append([_cut(task), f"{each['unmasked']:.3f}", *cells, _figure(chance)])
    caption = f"metric: {', '.join(metrics)}; chance: score of the best constant prediction"
    return [*_aligned(lines), *_wrapped(caption)]


def _score(mask: Mapping[str, Any] | None) -> str:
    if mask is None:
        return "-"
    return f"{mask['value']:.3f}" + ("" if mask["std"] is None else f"±{mask['std']:.3f}")


def _meanings(record: Mapping[str, Any]) -> list[str]:
    return [f"{kind}: {MEANINGS[kind]}" for kind in record["relative_by_kind"]]


def _by_type(record: Mapping[str, Any]) -> list[str]:
    """Return mean relative scores by task type and kind."""
    if len(record["targets"]) < 2:
        return []
    kinds, tables = list(record["relative_by_kind"]), []
    for measure, label in (("above_chance", " above chance"), ("relative", "")):
        if f"{measure}_by_kind" not in record:  # a record of an older version
            continue
        lines = [["", *kinds]]
        for name, means in record[f"{measure}_by_type"].items():
            lines.append([_cut(name, _TYPE_WIDTH), *(_percent(means[kind]) for kind in kinds)])
        lines.append(["all", *(_percent(mean) for mean in record[f"{measure}_by_kind"].values())])
        tables += [f"Mean score{label} relative to the unmasked score, by task type:"]
        tables += _aligned(lines)
    return tables


def _by_both(record: Mapping[str, Any]) -> list[str]:
    """Return mean relative scores by the types of the scored and of the masked task."""
    above = record.get("other_by_type_above_chance")
    table = above or record["other_by_type"]
    if not table:
        return []
    sources = list(next(iter(table.values())))
    head = (
        f"Mean relative score{' above chance' if above else ''} with the neurons of other tasks'"
        " prompts masked, by type of the scored task (rows) and of the other task (columns):"
    )
    lines = [["", *(_cut(name, _TYPE_WIDTH) for name in sources)]]
    for name, means in table.items():
        lines.append([_cut(name, _TYPE_WIDTH), *(_percent(means[source]) for source in sources)])
    return [*textwrap.wrap(head, WIDTH), *_aligned(lines)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{round(100 * value)} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cut(name: str, longest: int = _NAME_WIDTH) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ")


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return an aligned table; columns that do not fit follow in a second one."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    count, used = 1, widths[0]
    while count < len(widths) and used + 2 + widths[count] <= WIDTH:
        used += 2 + widths[count]
        count += 1
    shown = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line[:count], widths, strict=False))
        ).rstrip()
        for line in lines
    ]
    if count == len(widths):
        return shown
    return [*shown, *_aligned([[line[0], *line[count:]] for line in lines])]


# --- The study
# The paper masks the 20 % of neurons with the largest values. Here that is compared with equally
# many random neurons, other prompts' neurons, and those that all prompts or only this one activate.

RECORD, TABLE, CELLS = "mask.json", "mask.csv", "mask_cells.jsonl"
COLUMNS = ("task", "kind", "source_of_mask", "ratio", "layers", "draw", "metric", "value")


@dataclass(frozen=True)
class MaskStudy:
    """Result of `mask_neurons`.

    Attributes:
        record: Scores by task and kind of mask, means by task type, and masked neurons, as in
            ``mask.json``.
    """

    record: dict[str, Any]

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows of ``mask.csv``: one for each mask of each task."""
        return table_rows(self.record)

    def describe(self) -> str:
        """Return the study as text of at most 80 columns."""
        return describe_masks(self.record)


def mask_neurons(
    prompts: Prompts,
    tasks: Tasks = None,
    out: str | Path | None = None,
    *,
    neurons: Activations | str | Path | None = None,
    data: Data | None = None,
    progress: bool = False,
    **options: Any,
) -> MaskStudy:
    """Score prompts on their tasks while selected neurons are masked (set to 0).

    Scores are those of `jpt.evaluate`; the mask holds at every input position. Neurons are selected
    by the paper's probe (see `jpt.activated_neurons`).

    Args:
        prompts: One prompt or its file, a folder of prompts, or prompts by name.
        tasks: Tasks to score, each with its in-task prompt; defaults to those named by the cards.
            One prompt is scored on one task.
        out: Folder for ``mask.json``, ``mask.csv`` and ``mask_cells.jsonl``, which gets a line for
            each score as soon as it is measured. Repeat the call to resume.
        neurons: Activations to select neurons by, or their file; with one prompt it can have those
            of other prompts too. By default the model is probed.
        data: Rows of the task, or a folder of them; for several prompts a folder with a subfolder
            for each task.
        progress: Show a progress bar on stderr.
        **options: Fields of :class:`jpt.config.MaskOptions`: ratio, layers, kinds,
            random_draws, per_layer, stack, split and others.

    Returns:
        The :class:`MaskStudy`.

    Raises:
        InputError: If ratio or layers are out of range, activations are of another backbone, a
            task is generative or has no in-task prompt, or a kind needs more prompts.

    Example:
        >>> import numpy as np
        >>> from jpt.types import Prompt, PromptCard
        >>> random = np.random.default_rng(0).normal(0, 0.1, (5, 128)).astype(np.float32)
        >>> prompt = Prompt(random, PromptCard("builtin/bert-small", "sst2"))
        >>> rows = [{"text": "Fine.", "label": "positive"}, {"text": "Dull.", "label": "negative"}]
        >>> study = mask_neurons(prompt, data={"test": rows}, random_draws=1, max_tokens=8)
        >>> [row[:2] for row in study.rows()]
        [('sst2', 'none'), ('sst2', 'in_task'), ('sst2', 'random')]
    """
    settings = MaskOptions(**options)
    batch_sharding(make_mesh(settings.mesh), settings.eval_batch_size)
    plan = plan_masks(prompts, tasks, neurons, data, settings)
    command = study_command(plan, prompts, neurons, data, out)
    return _run(plan, None if out is None else Path(out), command, progress)


def _run(plan: MaskPlan, folder: Path | None, command: str | None, progress: bool) -> MaskStudy:
    """Return the finished study of the folder, or run and write it."""
    of = _dependencies(plan)
    key = hashlib.sha256(json.dumps(list(of.values())).encode()).hexdigest()[:16]
    finished = _find_finished(folder, key, plan)
    if finished is not None:
        return finished
    file = CellFile(None if folder is None else folder / CELLS)
    worker = _Worker(plan)
    choices = {run: worker.choose(run) for run in of if run.kind != NONE}
    file.open()
    cells = _measure(of, worker, choices, file, progress)
    made = {"key": key, "backbone": worker.model.name, "command": command}
    study = MaskStudy(make_record(plan, cells, choices, worker.window, made))
    if folder is not None:
        write_table(file.file(TABLE), COLUMNS, study.rows())
        write_json(file.file(RECORD), study.record)
    return study


def _find_finished(folder: Path | None, key: str, plan: MaskPlan) -> MaskStudy | None:
    """Return the folder's study if it is the planned one; the key does not cover names."""
    record = None if folder is None else on_first(lambda: _read_finished(folder))
    if folder is None or not isinstance(record, dict) or record.get("key") != key:
        return None
    cure = "remove this file to compute it again"
    check_values(folder / RECORD, record, cure, ("targets", "sources"))
    in_task = {task: each["prompt"] for task, each in record["targets"].items()}
    same = in_task == plan.in_task and record["sources"] == list(plan.sources)
    return MaskStudy(record) if same else None


def _read_finished(folder: Path) -> Any:
    is_whole = (folder / RECORD).is_file() and (folder / TABLE).is_file()
    return read_json(folder / RECORD) if is_whole else None


def _dependencies(plan: MaskPlan) -> dict[MaskedRun, dict[str, Any]]:
    """Return all that each score depends on, without reading weights."""
    options = plan.options
    weights = weights_of(_backbone_name(plan), options.dtype)
    common = {
        "backbone": weights.fingerprint,
        "dtype": weights.dtype,
        "max_tokens": options.max_tokens,
        "label_scoring": options.label_scoring,
        "settings": options.settings,
    }
    return {run: {**plan.depends(run), **common} for run in plan.runs()}


def _backbone_name(plan: MaskPlan) -> Backbone | str | Path:
    asked = plan.options.backbone
    return plan.matrix.first.card.backbone if asked is None else asked


class _Worker:
    """A loaded model with its neurons and the tasks bound to it."""

    def __init__(self, plan: MaskPlan) -> None:
        self._plan, options, first = plan, plan.options, plan.matrix.first
        self._mesh = make_mesh(options.mesh)
        self.model = resolve_backbone(_backbone_name(plan), options.dtype, mesh=self._mesh)
        model = self.model
        check_prompt(
            first, model.name, model.config.width, model.layout, options.backbone is not None
        )
        self.window = self._check_window()
        # Before the probe compiles, since rows and label words may be refused.
        self._tasks = {name: self._bind(name) for name in plan.matrix.tasks}
        self._neurons = self._activations()

    def choose(self, run: MaskedRun) -> NeuronChoice:
        options = self._plan.options
        return choose_neurons(
            self._neurons,
            run.prompt,
            run.kind,
            ratio=options.ratio,
            layers=options.layers,
            per_layer=options.per_layer,
            other=run.source if run.source != run.prompt else None,
            draw=run.draw or 0,
            seed=options.seed,
        )

    def score(self, run: MaskedRun, choice: NeuronChoice | None) -> Score:
        bound, rows = self._tasks[run.task]
        mask = None if choice is None else NeuronMask(choice.mask, self._plan.options.stack)
        values = [self._plan.bank[run.prompt].values]
        return bound.score(values, rows, self._mesh, mask, names=[run.prompt])[0]

    def _check_window(self) -> tuple[int, int]:
        """Return the window of layers; check it and the ratio before anything compiles."""
        options = self._plan.options
        layers, width = neuron_shape(self.model, options.stack)
        window = (0, layers - 1)
        if options.layers is not None:
            window = parse_layers(options.layers, layers)
        check_ratio(
            options.ratio, width if options.per_layer else (window[1] - window[0] + 1) * width
        )
        return window

    def _activations(self) -> Activations:
        given, options = self._plan.neurons, self._plan.options
        if given is None:
            asked = {"stack": options.stack, "mesh": options.mesh}
            return activated_neurons(self._plan.bank, backbone=self.model, **asked)
        expected = neuron_shape(self.model, options.stack)
        if given.values.shape[1:] != expected:
            layers, width = given.values.shape[1:]
            raise InputError(
                f"neurons: expected {expected[0]} layers of {expected[1]} neurons, as"
                f" {self.model.name} has, got {layers} of {width}; probe this backbone and stack"
            )
        return given

    def _bind(self, name: str) -> tuple[BoundTask, EncodedSplit]:
        matrix = self._plan.matrix
        bound = matrix.bind(name, self.model, self._plan.options)
        return bound, bound.encode(matrix.rows[name])


def _measure(
    of: Mapping[MaskedRun, dict[str, Any]],
    worker: _Worker,
    choices: Mapping[MaskedRun, NeuronChoice],
    file: CellFile,
    progress: bool,
) -> dict[MaskedRun, Cell]:
    """Return cached cells and score the missing ones."""
    for run, depends in tqdm(of.items(), disable=not progress, unit="mask", dynamic_ncols=True):
        if file.find(depends) is None:
            started_s = time.monotonic()
            score = worker.score(run, choices.get(run))
            elapsed_s = time.monotonic() - started_s
            file.add(make_cell(run.task, run.name, score, elapsed_s, depends))
    found = {run: file.find(depends) for run, depends in of.items()}
    return {run: cell for run, cell in found.items() if cell is not None}
