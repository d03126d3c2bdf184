"""The prompts of a study with what their run folders tell: settings, scores, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from jpt.analysis.json_fields import Fields, read_fields
from jpt.errors import InputError
from jpt.files.reading import parse_json, read_bytes, read_error
from jpt.prompts.seed_prompts import run_name, seed_runs
from jpt.prompts.store import load_prompt
from jpt.types import PromptCard

_CURE = "jpt tune"
# What a scored line holds besides the score itself (see jpt.tuning.scoring.Score.summary).
_NOT_SCORES = ("step", "split", "loss", "rows", "majority", "counts", "elapsed_s")


@dataclass(frozen=True)
class Curve:
    """How a run went."""

    train_steps: Float64[np.ndarray, "M"]  # steps whose loss was logged
    train_loss: Float64[np.ndarray, "M"]  # the loss of those steps, each of one batch
    steps: Float64[np.ndarray, "N"]  # steps at which validation was scored
    loss: Float64[np.ndarray, "N"]  # loss on validation
    score: Float64[np.ndarray, "N"]  # score on validation


@dataclass(frozen=True)
class PromptRecord:
    """A prompt of the study."""

    name: str  # its name in every table
    card: PromptCard | None  # where it comes from; None for a run that has no prompt yet
    finished: bool  # whether it is usable: a finished run, or a prompt file
    settings: Mapping[str, Any]  # the config of its run; empty for a prompt file
    metric: str | None  # name of its score
    score: float  # its score on validation; NaN where not known
    majority: float  # share of the commonest class of validation; NaN where not known
    steps: int | None  # of the whole run
    best_step: int | None  # after how many steps the prompt was taken
    elapsed_s: float  # how long its run took; NaN where not known
    curve: Curve | None  # how its run went; None without a log


def read_prompts(folder: str | Path) -> dict[str, PromptRecord]:
    """Reads every prompt and every run of a folder."""
    place = Path(folder)
    if not place.is_dir():
        return {}
    try:
        entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise read_error(folder, error) from None
    several, places = seed_runs(folder), []
    for entry in entries:
        runs = several.get(entry.name)
        if runs is not None:
            places += [(run_name(entry.name, seed), run) for seed, run in runs.items()]
        else:
            places.append((entry.name if entry.is_dir() else entry.stem, entry))
    found = [(name, _read(name, entry)) for name, entry in places]
    return {name: record for name, record in sorted(found, key=itemgetter(0)) if record is not None}


def _read(name: str, entry: Path) -> PromptRecord | None:
    """What a run folder or a prompt file tells; None for what is neither."""
    if entry.is_dir() and (entry / "config.json").exists():
        return _read_run(entry, name)
    if entry.suffix == ".safetensors" or (entry / "prompt.safetensors").exists():
        return _from_card(name, load_prompt(entry).card)
    return None


def _from_card(name: str, card: PromptCard) -> PromptRecord:
    score = math.nan if card.score is None else card.score
    return PromptRecord(
        name, card, True, {}, card.metric, score, math.nan, None, card.steps, math.nan, None
    )


def _read_run(folder: Path, name: str) -> PromptRecord:
    config = read_fields(folder / "config.json", _CURE)
    result = read_fields(folder / "result.json", _CURE)
    assert config is not None
    stored = (folder / "prompt.safetensors").exists()
    card = load_prompt(folder / "prompt.safetensors").card if stored else None
    lines = _read_log(folder / "metrics.jsonl", cut_is_normal=result is None)
    metric = _metric(result, card, lines)
    last = result.fields("validation") if result is not None else Fields({}, folder, _CURE)
    task = config.text("task")
    if card is None:
        card = PromptCard(config.text("backbone") or "", task) if task else None
    return PromptRecord(
        name=name,
        card=card,
        finished=result is not None and stored,
        settings=config.value,
        metric=metric,
        score=last.number(metric) if metric else math.nan,
        majority=last.number("majority"),
        steps=config.count("steps"),
        best_step=result.count("best_step") if result is not None else None,
        elapsed_s=result.number("elapsed_s") if result is not None else math.nan,
        curve=_curve(lines, metric),
    )


def _read_log(path: Path, cut_is_normal: bool) -> list[Fields]:
    """The lines of a log; the last one of a run that was killed may be cut short."""
    if not path.exists():
        return []
    *whole, rest = read_bytes(path).split(b"\n")
    if rest.strip() and not cut_is_normal:
        raise InputError(f"{path}: the last line is cut short; copy it again, or run {_CURE} again")
    lines = []
    for number, line in enumerate(whole, 1):
        place = f"{path}, line {number}"
        fields = Fields(parse_json(line, place), place, _CURE)
        if fields.count("step") is None:
            raise InputError(f"{place} names no step; copy the log again, or run {_CURE} again")
        lines.append(fields)
    return lines


def _metric(result: Fields | None, card: PromptCard | None, lines: list[Fields]) -> str | None:
    told = (result.text("metric") if result is not None else None) or (card and card.metric)
    scored = [line for line in lines if line.text("split") == "validation"]
    names = [name for line in scored[:1] for name in line.value if name not in _NOT_SCORES]
    return told or (names[0] if names else None)


def _curve(lines: list[Fields], metric: str | None) -> Curve | None:
    train = [line for line in lines if line.text("split") == "train"]
    scored = [line for line in lines if line.text("split") == "validation"]
    if not train and not scored:
        return None
    return Curve(
        train_steps=_column(train, "step"),
        train_loss=_column(train, "loss"),
        steps=_column(scored, "step"),
        loss=_column(scored, "loss"),
        score=_column(scored, metric or "score"),
    )


def _column(lines: list[Fields], name: str) -> Float64[np.ndarray, "N"]:
    return np.array([line.number(name) for line in lines], np.float64)
