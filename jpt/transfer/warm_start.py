"""Tune from given prompts and from a random start, and compare convergence."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from jpt.backbones.registry import Backbone
from jpt.config import TuneOptions
from jpt.errors import InputError
from jpt.io.files import OutFolder, write_json, write_table
from jpt.parallel import make_mesh
from jpt.prompts.store import PROMPT_FILE, check_prompt, load_prompt, load_prompts
from jpt.results.provenance import environment_info
from jpt.results.records import Comparison
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    in_task_of,
    resolve_backbone,
    resolve_options,
    resolve_task,
    scoring_notes,
    weights_of,
    with_inherited,
)
from jpt.tuning.tune import TuneResult, WarmStart, read_start, tune
from jpt.types import Data, Prompt

# --- Speed-ups
# The paper names both speed-ups, but its code computes neither: the definitions below are ours.

TOLERANCE = 0.01  # a run has converged within this of its best score
CONFIDENCE = 0.95
_ROUNDING = 1e-9  # 0.71 - 0.01 is a little more than 0.70 in binary

DEFINITIONS = {
    "best": "highest validation score of a run, without smoothing and including step 0; the best "
    "step is the first step with this score",
    "convergence": "first evaluated step whose validation score is within the tolerance of the "
    "run's best score",
    "convergence_speed_up": "convergence step of the vanilla run divided by that of the warm run; "
    "a run that learns nothing counts as converged at step 0, so compare the best scores as well",
    "comparable_speed_up": "best step of the vanilla run divided by the first evaluated step at "
    "which the warm run reaches the vanilla run's best score; undefined if it never does",
    "step_0": "a score reached at step 0 counts as reached at the first evaluated step after it",
    "gain": "final score of the warm run's selected checkpoint minus that of the vanilla run's",
    "over_seeds": "speed-ups: geometric mean, with a t interval computed from the logarithms; "
    "gains: mean, with a t interval; runs are paired by seed; seeds without a value are excluded "
    "and counted",
}


class ScoreCurve(NamedTuple):
    """Validation scores of a run."""

    steps: Int64[np.ndarray, "N"]  # increasing, from 0
    values: Float64[np.ndarray, "N"]

    def first_at(self, value: float) -> int | None:
        """Return the first step that reaches a score."""
        reached = np.flatnonzero(self.values >= value - _ROUNDING)
        return int(self.steps[reached[0]]) if reached.size else None

    @property
    def best(self) -> float:
        """Highest score."""
        return float(self.values.max())

    @property
    def best_step(self) -> int:
        """First step with the highest score."""
        return int(self.steps[self.values.argmax()])

    def convergence_step(self, tolerance: float = TOLERANCE) -> int:
        """Return the first step within a tolerance of the best score."""
        step = self.first_at(self.best - tolerance)
        assert step is not None
        return step

    def counted(self, step: int) -> int:
        """Return the step; step 0 counts as the first scored step after it."""
        return step if step > 0 else int(self.steps[self.steps > 0][0])


def compare_curves(
    vanilla: ScoreCurve, warm: ScoreCurve, tolerance: float = TOLERANCE
) -> Comparison:
    """Return both speed-ups of one seed (see `DEFINITIONS`)."""
    converged, reached = warm.convergence_step(tolerance), warm.first_at(vanilla.best)
    vanilla_converged = vanilla.counted(vanilla.convergence_step(tolerance))
    comparable = None
    if reached is not None:
        comparable = vanilla.counted(vanilla.best_step) / warm.counted(reached)
    return Comparison(
        vanilla_converged / warm.counted(converged), comparable, converged == 0, reached == 0
    )


def geometric_mean(ratios: Sequence[float | None]) -> dict[str, Any]:
    """Return the geometric mean of ratios over seeds, with its t interval."""
    found = arithmetic_mean([None if ratio is None else math.log(ratio) for ratio in ratios])
    ends = ("mean", "low", "high")
    ratio_of = {name: None if found[name] is None else math.exp(found[name]) for name in ends}
    return {**found, **ratio_of, "values": list(ratios)}


def arithmetic_mean(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean of values over seeds, with its t interval."""
    known = np.array([value for value in values if value is not None], np.float64)
    mean = float(known.mean()) if known.size else None
    low = high = None
    if known.size > 1:
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, known.size - 1) * stats.sem(known)
        low, high = mean - float(half), mean + float(half)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "values": list(values),
        "seeds_without": len(values) - known.size,
    }


# --- Source prompts

VANILLA = "vanilla"
"""The run from a random initial prompt, the baseline."""

Sources = Mapping[str, Prompt | str | Path] | Iterable[str | Path] | str | Path
"""Prompts by name, or prompt files and run folders, or one of these."""


def read_sources(sources: Sources, copy_moments: bool = False) -> dict[str, WarmStart]:
    """Load the sources of a warm-start study."""
    starts = {name: _read(name, source, copy_moments) for name, source in _by_name(sources).items()}
    load_prompts({name: start.prompt for name, start in starts.items()})  # checks that they match
    return starts


def _by_name(sources: Sources) -> dict[str, Prompt | str | Path]:
    if isinstance(sources, Mapping):
        named = list(sources.items())
    else:
        files = [sources] if isinstance(sources, str | Path) else list(sources)
        named = [(source_name(file), file) for file in files]
    if not named:
        raise InputError(
            "sources: expected at least one, got none; give prompt files or run folders"
        )
    found: dict[str, Prompt | str | Path] = {}
    for name, source in named:
        if name == VANILLA:
            raise InputError(
                f"source {VANILLA}: the name of the run from a random prompt; rename the file"
            )
        if name in found:
            raise InputError(f"source {name}: given twice; rename a file, or give sources by name")
        if not name or name in (".", "..") or {"/", "\\", "\0"} & set(name):
            raise InputError(f"source {name!r}: expected a name that can be a folder; rename it")
        found[name] = source
    return found


def source_name(source: str | Path) -> str:
    """Return the name of the prompt file or run folder."""
    path = Path(source)
    if path.name == PROMPT_FILE:
        path = path.parent
    if path.suffix == ".safetensors":
        return path.stem
    return path.name or path.resolve().name


def _read(name: str, source: Prompt | str | Path, copy_moments: bool) -> WarmStart:
    if not copy_moments:
        return WarmStart(name, source if isinstance(source, Prompt) else load_prompt(source))
    if isinstance(source, Prompt):
        raise InputError(
            f"source {name}: copy_moments needs a run folder, got a prompt; give the folder of its"
            " run, or leave copy_moments out"
        )
    return read_start(name, source)


def check_sources(starts: Mapping[str, WarmStart], backbone: Backbone, other: bool) -> None:
    """Raise InputError if a source does not fit the backbone."""
    for name, start in starts.items():
        try:
            check_prompt(start.prompt, backbone.name, backbone.config.width, backbone.layout, other)
        except InputError as error:
            raise InputError(f"source {name}: {error}") from None


# --- Record and text of a study

Runs = Mapping[tuple[int, str], TuneResult]
Curves = Mapping[tuple[int, str], ScoreCurve]
WIDTH, NAME_WIDTH = 80, 22


def warm_start_record(
    task: Task,
    backbone: Backbone,
    starts: Mapping[str, WarmStart | None],
    runs: Runs,
    curves: Curves,
    tolerance: float,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of ``warm_start.json``."""
    seeds = list(dict.fromkeys(seed for seed, _ in runs))
    sources = {name: start for name, start in starts.items() if start is not None}
    split = "test" if "test" in next(iter(runs.values())).record else "validation"
    finals = {key: run.record[split][task.metric] for key, run in runs.items()}
    compared, comparisons = {}, {}
    for name in sources:
        compared[name] = [
            compare_curves(curves[s, VANILLA], curves[s, name], tolerance) for s in seeds
        ]
        gains = [finals[s, name] - finals[s, VANILLA] for s in seeds]
        comparisons[name] = _comparison(compared[name], gains)
    return {
        "task": task.name,
        "task_type": task.type,
        "backbone": backbone.name,
        "metric": task.metric,
        "steps": runs[seeds[0], VANILLA].record["steps"],
        "seeds": seeds,
        "final_split": split,
        "tolerance": tolerance,
        "confidence": CONFIDENCE,
        "definitions": DEFINITIONS,
        **settings,
        "sources": {name: _source(start) for name, start in sources.items()},
        "runs": [_run(key, runs[key], curves[key], finals[key], tolerance) for key in runs],
        "comparisons": comparisons,
        "notes": _notes(sources, compared, curves, seeds, tolerance),
        **environment_info(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _comparison(found: list[Comparison], gains: list[float]) -> dict[str, Any]:
    return {
        "convergence_speed_up": geometric_mean([one.convergence for one in found]),
        "comparable_speed_up": geometric_mean([one.comparable for one in found]),
        "gain": arithmetic_mean(gains),
        "converged_at_start": sum(one.converged_at_start for one in found),
        "reached_at_start": sum(one.reached_at_start for one in found),
    }


def _source(start: WarmStart) -> dict[str, Any]:
    card = start.prompt.card
    of = {"task": card.task, "type": card.task_type, "seed": card.seed, "steps": card.steps}
    return {**start.record(), **of}


def _run(
    key: tuple[int, str], result: TuneResult, curve: ScoreCurve, final: float, tolerance: float
) -> dict[str, Any]:
    seed, name = key
    return {
        "run": name,
        "seed": seed,
        "at_start": float(curve.values[0]),
        "best": curve.best,
        "best_step": curve.best_step,
        "convergence_step": curve.convergence_step(tolerance),
        "kept_step": result.record["best_step"],
        "final": final,
        "curve": {"steps": curve.steps.tolist(), "values": curve.values.tolist()},
    }


def _notes(
    sources: Mapping[str, WarmStart],
    compared: Mapping[str, list[Comparison]],
    curves: Curves,
    seeds: list[int],
    tolerance: float,
) -> list[str]:
    """Return the caveats about the speed-ups."""
    notes, of = [], f"of {len(seeds)} seeds"
    unlearnt = sum(curves[s, VANILLA].best_step == 0 for s in seeds)
    if unlearnt:
        notes.append(f"vanilla never improved on step 0 in {unlearnt} {of}")
    for name, found in compared.items():
        if sources[name].prompt.card.first_position:
            position = sources[name].prompt.card.first_position
            notes.append(f"{name} was tuned with text positions from {position}, here from 0")
        missed = sum(one.comparable is None for one in found)
        if missed:
            notes.append(f"{name} did not reach the vanilla run's best in {missed} {of}")
        early = sum(one.reached_at_start for one in found)
        if early:
            notes.append(f"{name} reached the vanilla run's best at step 0 in {early} {of}")
        at_once = sum(one.converged_at_start for one in found)
        if at_once:
            notes.append(f"{name} converged at step 0 in {at_once} {of}")
        # Convergence steps of runs with different best scores are not comparable.
        gains = [curves[s, name].best - curves[s, VANILLA].best for s in seeds]
        for word, sign in (("lower", -1), ("higher", 1)):
            count = sum(sign * gain > tolerance + 1e-9 for gain in gains)
            if count:
                notes.append(
                    f"{name} converged to a {word} score than the vanilla run in {count} {of}"
                )
    return notes


def describe_record(record: Mapping[str, Any]) -> str:
    """Return scores and speed-ups as text."""
    seeds, metric = record["seeds"], record["metric"]
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    lines = [
        f"{record['task']} on {record['backbone']}, {record['steps']} steps, {count}",
        f"{metric}, mean over seeds: validation at step 0, its best, {record['final_split']}",
        "",
        _cells("run", "step 0", "best", record["final_split"], "gain in points"),
    ]
    lines += [_scores(record, name) for name in (VANILLA, *record["sources"])]
    lines += ["", _cells("speed-up over vanilla", "", "", "convergence", "comparable result")]
    lines += [_speed_ups(record, name) for name in record["sources"]]
    if len(seeds) > 1:
        lines.append(f"[ ]: {100 * record['confidence']:.0f} % t interval over seeds")
    lines += [f"note: {note}" for note in record["notes"]]
    # Tables fit; other lines may have long names.
    return "\n".join(textwrap.fill(line.rstrip(), WIDTH, drop_whitespace=False) for line in lines)


def _scores(record: Mapping[str, Any], name: str) -> str:
    runs = [run for run in record["runs"] if run["run"] == name]
    means = (sum(run[of] for run in runs) / len(runs) for of in ("at_start", "best", "final"))
    gain = ""
    if name in record["comparisons"]:
        gain = _interval(record["comparisons"][name]["gain"], "+.1f", 100)
    return _cells(name, *(f"{mean:.3f}" for mean in means), gain)


def _speed_ups(record: Mapping[str, Any], name: str) -> str:
    found, count = record["comparisons"][name], len(record["seeds"])
    comparable = found["comparable_speed_up"]
    text = _interval(comparable, ".2f")
    if 0 < comparable["seeds_without"] < count:
        text += f" {count - comparable['seeds_without']}/{count}"
    convergence = _interval(found["convergence_speed_up"], ".2f")
    return f"{_short(name)}  {convergence:>24}  {text:>28}"


def _cells(name: str, start: str, best: str, final: str, gain: str) -> str:
    if not start:
        return f"{name:<{NAME_WIDTH}}  {final:>22}  {gain:>28}"
    return f"{_short(name)}  {start:>7}  {best:>7}  {final:>10}  {gain:>22}"


def _short(name: str) -> str:
    shown = name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 9]}…{name[-8:]}"
    return f"{shown:<{NAME_WIDTH}}"


def _interval(found: Mapping[str, Any], form: str, times: float = 1) -> str:
    if found["mean"] is None:
        return "not reached"
    text = f"{times * found['mean']:{form}}"
    if found["low"] is None:
        return text
    low, high = (times * found[end] for end in ("low", "high"))
    return (
        f"{text} [{low:{form}}, {high:{form}}]" if high < 1000 else f"{text} [{low:{form}}, >999]"
    )


# --- The study (paper, section 3: transfer with prompt tuning, "TPT")

RECORD, CURVES = "warm_start.json", "curves.csv"
SCORINGS = 20  # validation scores per run by default

_COMPARED = ("seed", "init", "start", "score_start", "predictions")


@dataclass(frozen=True)
class WarmStartResult:
    """Result of `warm_start`.

    Attributes:
        runs: Runs by seed and name, ``vanilla`` first.
        curves: Validation scores of each run, from step 0.
        record: Definitions, settings, runs and speed-ups, as in ``warm_start.json``.
        folder: Study folder; None if the study was kept in memory.
    """

    runs: dict[tuple[int, str], TuneResult]
    curves: dict[tuple[int, str], ScoreCurve]
    record: dict[str, Any]
    folder: Path | None

    def describe(self) -> str:
        """Return scores and speed-ups as text of at most 80 columns."""
        return describe_record(self.record)


@dataclass(frozen=True)
class _Study:
    """Loaded and checked inputs that all runs share."""

    task: Task
    backbone: Backbone
    options: TuneOptions
    starts: dict[str, WarmStart | None]
    notes: tuple[str, ...]

    def shared(self) -> dict[str, Any]:
        """Return the options of every run; with the seed they fix row order and number of rows."""
        options = dataclasses.asdict(self.options)
        return {name: value for name, value in options.items() if name not in _COMPARED}


def warm_start(
    task: Task | str | Path,
    sources: Sources,
    out: str | Path | None = None,
    *,
    backbone: Backbone | str | Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    copy_moments: bool = False,
    tolerance: float = TOLERANCE,
    data: Data | None = None,
    progress: bool = False,
    **options: Any,
) -> WarmStartResult:
    """Tune a task from a random and from source prompts; compare convergence (paper, section 3).

    Each seed has one vanilla run and one run per source, with the same rows in the same order,
    scored on validation at step 0 and every ``eval_every`` steps. *Convergence speed-up*: the
    vanilla run's convergence step divided by the warm run's, where a run converges at the first
    step within ``tolerance`` of its best score. *Comparable-result speed-up*: the step of the
    vanilla run's best divided by the first step at which the warm run reaches that value.

    Args:
        task: Target task, its name, or its folder.
        sources: Prompt files or run folders, or prompts by name; all of one backbone and shape.
        out: Folder for the run folders ``seed-S/NAME``, ``warm_start.json`` and ``curves.csv``;
            repeat the call to resume. None keeps the study in memory.
        backbone: Backbone to use instead of the one in the cards; the width is checked.
        seeds: Seeds of row order and vanilla prompt. Intervals need two or more.
        copy_moments: Copy Adam's moments, with its step count reset to 0 (as the authors' script).
            Sources must be run folders; prompt and moments are those of the last step.
        tolerance: Tolerance of convergence, in the unit of the score (0.01: one point of accuracy).
        data: Folder of the task's rows, or the rows by split.
        progress: Show a progress bar for each run on stderr.
        **options: Fields of :class:`jpt.config.TuneOptions` except ``seed`` and ``init``.

    Returns:
        The :class:`WarmStartResult`: runs, curves, and speed-ups with 95 % intervals over seeds.

    Raises:
        InputError: If an input is invalid, before anything compiles.
        StoppedError: After SIGTERM or Ctrl-C; the state is saved.

    Example:
        >>> from jpt.types import Prompt, PromptCard
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> ones = Prompt(np.ones((4, 128), np.float32), card)
        >>> rows = [{"text": "film", "label": label} for label in ("positive", "negative")]
        >>> options = {"data": {"train": rows, "validation": rows}, "steps": 4, "eval_every": 2}
        >>> warm_start("sst2", {"one": ones}, seeds=[0], **options).curves[0, "one"].steps.tolist()
        [0, 2, 4]
    """
    seeds = _check(seeds, tolerance, options)
    study = _prepare(task, sources, backbone, copy_moments, data, options)
    folder = None if out is None else OutFolder(out)
    runs = _run_all(study, folder, seeds, progress)
    curves = {key: _curve(result, study.task.metric) for key, result in runs.items()}
    record = _record(study, runs, curves, tolerance, copy_moments)
    if folder is not None:
        _write(folder, record, curves)
    return WarmStartResult(runs, curves, record, folder and folder.path)


def _check(seeds: Sequence[int], tolerance: float, options: dict[str, Any]) -> list[int]:
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"seeds: expected one or more distinct seeds, got {seeds}; give e.g. 0,1,2"
        )
    for seed in seeds:
        TuneOptions(seed=seed)
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance: expected 0 <= tolerance < 1, got {tolerance}; give e.g. 0.01")
    for name in _COMPARED:
        if name in options:
            raise InputError(f"{name}: set by warm_start for each run; leave it out")
    return seeds


def _prepare(
    task: Task | str | Path,
    sources: Sources,
    backbone: Backbone | str | Path | None,
    copy_moments: bool,
    data: Data | None,
    options: dict[str, Any],
) -> _Study:
    """Load and check what the runs share; each run checks rows and lengths itself."""
    given = TuneOptions(**options)
    starts = read_sources(sources, copy_moments)
    name, start = next(iter(starts.items()))
    rows = len(start.prompt.values)
    if given.length not in (None, rows):
        raise InputError(
            f"length: expected {rows}, as source {name} has, got {given.length}; leave length out"
        )
    definition = resolve_task(task, data)
    asked = start.prompt.card.backbone if backbone is None else backbone
    dropout, mesh = given.dropout == "paper", make_mesh(given.mesh)
    model = resolve_backbone(asked, given.dtype, dropout, mesh, given.remat)
    check_sources(starts, model, backbone is not None)
    cards = {name: start.prompt.card for name, start in starts.items()}
    in_task = in_task_of(definition, cards)
    notes = scoring_notes(cards, definition, given, weights_of(model), in_task)
    definition, given = with_inherited(definition, given, model, in_task)
    resolved = resolve_options(dataclasses.replace(given, length=rows), model, definition)
    default = max(1, resolved.steps // SCORINGS)
    every = given.eval_every or default
    if every > resolved.steps:
        raise InputError(
            f"eval_every: expected at most {resolved.steps}, the number of steps, got {every};"
            f" give e.g. {default}"
        )
    resolved = dataclasses.replace(resolved, eval_every=every)
    return _Study(definition, model, resolved, {VANILLA: None, **starts}, tuple(notes))


def _run_all(
    study: _Study, folder: OutFolder | None, seeds: list[int], progress: bool
) -> dict[tuple[int, str], TuneResult]:
    runs: dict[tuple[int, str], TuneResult] = {}
    for seed, (name, start) in itertools.product(seeds, study.starts.items()):
        if progress:
            of = len(seeds) * len(study.starts)
            print(f"run {len(runs) + 1} of {of}: {name}, seed {seed}", file=sys.stderr)
        runs[seed, name] = tune(
            study.backbone,
            study.task,
            None if folder is None else folder.run(f"seed-{seed}/{name}"),
            start=start,
            score_start=True,
            seed=seed,
            progress=progress,
            **study.shared(),
        )
    return runs


def _curve(result: TuneResult, metric: str) -> ScoreCurve:
    scored = [line for line in result.history if line["split"] == "validation"]
    steps = np.array([line["step"] for line in scored], np.int64)
    return ScoreCurve(steps, np.array([line[metric] for line in scored], np.float64))


def _record(
    study: _Study,
    runs: dict[tuple[int, str], TuneResult],
    curves: dict[tuple[int, str], ScoreCurve],
    tolerance: float,
    copy_moments: bool,
) -> dict[str, Any]:
    settings = {"copy_moments": copy_moments, "settings": study.shared()}
    measured = (study.starts, runs, curves, tolerance)
    record = warm_start_record(study.task, study.backbone, *measured, settings)
    return {**record, "notes": [*record["notes"], *study.notes]}


def _write(
    folder: OutFolder, record: dict[str, Any], curves: dict[tuple[int, str], ScoreCurve]
) -> None:
    rows = [
        (name, seed, step, value)
        for (seed, name), curve in curves.items()
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
    ]
    write_table(folder.file(CURVES), ("run", "seed", "step", "value"), rows)
    write_json(folder.file(RECORD), record)
