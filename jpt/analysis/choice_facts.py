"""What ``choice.json`` says: which source each indicator would have chosen, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jpt.analysis.json_fields import Fields, read_fields


@dataclass(frozen=True)
class ChoiceRange:
    """What there was to choose from on one target."""

    best: tuple[str, ...]  # the best source; several where they score the same
    best_score: float  # its score
    mean_score: float  # the mean score of all sources
    sources: int  # how many there were


@dataclass(frozen=True)
class ChosenSource:
    """What an indicator puts first on one target."""

    sources: tuple[str, ...]  # the source; several where they are alike to it
    score: float  # its score, a mean where there are several
    regret: float  # the best score less its score


@dataclass(frozen=True)
class ChoiceMeans:
    """Means over targets of what choosing by one indicator is worth."""

    targets: int  # on how many it says anything
    hits: float  # share of these on which its first source is the best
    regret: float  # mean of the best score less the score of its first source
    regret_interval: tuple[float, float]  # of that mean over targets; NaN where there is none
    chance_hits: float  # share of these on which a source chosen by chance would be the best
    chance_regret: float  # mean regret of a choice by chance
    gain: float  # how much less its choice costs than one by chance
    gain_interval: tuple[float, float]  # of that mean


@dataclass(frozen=True)
class ChoiceFacts:
    """The choices of a study."""

    ranges: Mapping[str, ChoiceRange]  # what there was to choose from, by target
    means: Mapping[str, ChoiceMeans]  # by indicator
    # by indicator and target; None where it says nothing
    chosen: Mapping[str, Mapping[str, ChosenSource | None]]
    notes: tuple[str, ...] = ()  # what was left out, and why


def read_choice_facts(path: str | Path, cure: str) -> ChoiceFacts | None:
    """Reads ``choice.json``."""
    fields = read_fields(path, cure)
    if fields is None:
        return None
    return ChoiceFacts(
        ranges={name: _range(each) for name, each in fields.fields("targets").each()},
        means={name: _means(each) for name, each in fields.fields("rankings").each()},
        chosen={
            name: {target: _chosen(of) if of.value else None for target, of in each.each()}
            for name, each in fields.fields("chosen").each()
        },
        notes=fields.texts("notes"),
    )


def _range(fields: Fields) -> ChoiceRange:
    return ChoiceRange(
        fields.texts("best"),
        fields.number("best_score"),
        fields.number("mean_score"),
        fields.count("sources") or 0,
    )


def _means(fields: Fields) -> ChoiceMeans:
    return ChoiceMeans(
        targets=fields.count("targets") or 0,
        hits=fields.number("hits"),
        regret=fields.number("regret"),
        regret_interval=fields.pair("regret_interval"),
        chance_hits=fields.number("chance_hits"),
        chance_regret=fields.number("chance_regret"),
        gain=fields.number("gain"),
        gain_interval=fields.pair("gain_interval"),
    )


def _chosen(fields: Fields) -> ChosenSource:
    return ChosenSource(fields.texts("sources"), fields.number("score"), fields.number("regret"))
