"""A warm-start study as JSON and as text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import jax

from jpt.backbones.registry import Backbone
from jpt.tasks.task import Task
from jpt.transfer.made_with import made_with
from jpt.transfer.warm_start_measures import (
    CONFIDENCE,
    DEFINITIONS,
    Comparison,
    Curve,
    arithmetic_mean,
    compare_curves,
    geometric_mean,
)
from jpt.transfer.warm_start_sources import VANILLA
from jpt.tuning.start import Start
from jpt.tuning.tune import TuneResult

Runs = Mapping[tuple[int, str], TuneResult]
Curves = Mapping[tuple[int, str], Curve]
WIDTH, NAME_WIDTH = 80, 22


def warm_start_record(
    task: Task,
    backbone: Backbone,
    starts: Mapping[str, Start | None],
    runs: Runs,
    curves: Curves,
    tolerance: float,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Puts together what a study measured."""
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
        **facts,
        "sources": {name: _source(start) for name, start in sources.items()},
        "runs": [_run(key, runs[key], curves[key], finals[key], tolerance) for key in runs],
        "comparisons": comparisons,
        "notes": _notes(sources, compared, curves, seeds, tolerance),
        **made_with(),
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


def _source(start: Start) -> dict[str, Any]:
    card = start.prompt.card
    of = {"task": card.task, "type": card.task_type, "seed": card.seed, "steps": card.steps}
    return {**start.record(), **of}


def _run(
    key: tuple[int, str], result: TuneResult, curve: Curve, final: float, tolerance: float
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
    sources: Mapping[str, Start],
    compared: Mapping[str, list[Comparison]],
    curves: Curves,
    seeds: list[int],
    tolerance: float,
) -> list[str]:
    """What a reader of the ratios has to know."""
    notes, of = [], f"of {len(seeds)} seeds"
    unlearnt = sum(curves[s, VANILLA].best_step == 0 for s in seeds)
    if unlearnt:
        notes.append(f"vanilla was never better than its start in {unlearnt} {of}")
    for name, found in compared.items():
        if sources[name].prompt.card.first_position:
            position = sources[name].prompt.card.first_position
            notes.append(f"{name} was tuned with text from position {position}, here from 0")
        missed = sum(one.comparable is None for one in found)
        if missed:
            notes.append(f"{name} did not reach the vanilla run's best in {missed} {of}")
        early = sum(one.reached_at_start for one in found)
        if early:
            notes.append(f"{name} had the vanilla run's best at step 0 in {early} {of}")
        at_once = sum(one.converged_at_start for one in found)
        if at_once:
            notes.append(f"{name} converged at step 0 in {at_once} {of}")
        # Runs that end at different heights do not converge to the same thing.
        gains = [curves[s, name].best - curves[s, VANILLA].best for s in seeds]
        for word, sign in (("less", -1), ("more", 1)):
            count = sum(sign * gain > tolerance + 1e-9 for gain in gains)
            if count:
                notes.append(f"{name} converged to {word} than the vanilla run in {count} {of}")
    return notes


def describe_record(record: Mapping[str, Any]) -> str:
    """Lays scores and speed-ups out for reading."""
    seeds, metric = record["seeds"], record["metric"]
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    lines = [
        f"{record['task']} on {record['backbone']}, {record['steps']} steps, {count}",
        f"{metric}, mean over seeds: validation at step 0, its best, {record['final_split']}",
        "",
        _cells("run", "step 0", "best", record["final_split"], "gain in points"),
    ]
    lines += [_scores(record, name) for name in (VANILLA, *record["sources"])]
    lines += ["", _cells("speed-up against vanilla", "", "", "convergence", "comparable result")]
    lines += [_speed_ups(record, name) for name in record["sources"]]
    if len(seeds) > 1:
        lines.append(f"[ ]: {100 * record['confidence']:.0f} % t interval over seeds")
    lines += [f"note: {note}" for note in record["notes"]]
    # Tables fit; names in the other lines may be long.
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
