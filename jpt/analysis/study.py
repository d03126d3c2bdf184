"""A study folder read into one record: every part is optional, a broken one is refused."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from jpt.analysis.choice_facts import ChoiceFacts, read_choice_facts
from jpt.analysis.mask_facts import MaskFacts, read_mask_facts
from jpt.analysis.runs import PromptRecord, read_prompts
from jpt.analysis.seed_means import join_runs, prompt_names
from jpt.analysis.study_facts import (
    Correlations,
    TransferFacts,
    TypeFacts,
    read_correlations,
    read_transfer_facts,
    read_type_facts,
)
from jpt.errors import InputError
from jpt.files.study_files import RANDOM, UNTOUCHED, read_activations, read_transfer
from jpt.files.tables import read_number, read_table
from jpt.types import TransferMatrix


@dataclass(frozen=True)
class Similarities:
    """How alike the prompts are, by every indicator."""

    names: tuple[str, ...]  # of the prompts
    # one matrix an indicator; NaN where the table has no line for a pair
    values: Mapping[str, Float64[np.ndarray, "K K"]]


@dataclass(frozen=True)
class Study:
    """What a study folder holds; None, or nothing, for a part that is missing."""

    folder: Path  # where it lies
    prompts: Mapping[str, PromptRecord]  # prompts and runs by name
    transfer: TransferMatrix | None  # scores of all prompts on all targets
    relative: TransferMatrix | None  # the same over the score of the target's own prompt
    facts: TransferFacts | None  # how the matrix was made
    neurons: tuple[int, int, int] | None  # K prompts, L layers, F neurons of ``neurons.npz``
    similarities: Similarities | None  # the indicators of all pairs of prompts
    correlations: Correlations | None  # of the indicators with the matrix
    types: TypeFacts | None  # means by type of task
    choices: ChoiceFacts | None = None  # which source each indicator would have chosen
    masks: MaskFacts | None = None  # performance without chosen neurons
    computed_relative: bool = False  # whether ``relative`` was computed here, for want of its file

    @property
    def random(self) -> str:
        """Name of the column of the untrained prompt, whether or not there is one."""
        return (self.facts and self.facts.random) or RANDOM

    @property
    def relative_file(self) -> str | None:
        """Where the relative scores stand, or what they were computed from."""
        if self.relative is None:
            return None
        return "transfer.csv" if self.computed_relative else "relative.csv"

    @property
    def untouched(self) -> str:
        """Name of the column of the model without a prompt, whether or not there is one."""
        return (self.facts and self.facts.untouched) or UNTOUCHED


def read_study(folder: str | Path) -> Study:
    """Reads a study."""
    place = Path(folder)
    if not place.is_dir():
        cause = "is a file" if place.exists() else "is not there"
        raise InputError(f"{folder} {cause}; give the folder that jpt transfer --out wrote")
    transfer, indicators = commands(place)["transfer"], commands(place)["indicators"]
    matrix = _matrix(place / "transfer.csv")
    study = Study(
        folder=place,
        prompts=read_prompts(place / "prompts"),
        transfer=matrix,
        relative=_matrix(place / "relative.csv"),
        facts=read_transfer_facts(place / "transfer.json", transfer),
        neurons=_shape(place / "neurons.npz"),
        similarities=_over_seeds(read_similarities(place / "indicators.csv"), matrix),
        correlations=read_correlations(place / "correlation.json", indicators),
        types=read_type_facts(place / "types.json", indicators),
        choices=read_choice_facts(place / "choice.json", indicators),
        masks=read_mask_facts(place / "mask.json", commands(place)["mask"]),
    )
    parts = (value for name, value in vars(study).items() if name != "folder")
    if not any(parts):
        raise InputError(
            f"{folder} holds no study: no prompts/, transfer.csv, neurons.npz or indicators.csv;"
            " give a folder of jpt quickstart, or begin with jpt tune and jpt transfer"
        )
    return study


def commands(folder: Path) -> dict[str, str]:
    """The commands that make the parts of a study."""
    place, prompts = shlex.quote(str(folder)), shlex.quote(str(folder / "prompts"))
    neurons = shlex.quote(str(folder / "neurons.npz"))
    transfer = shlex.quote(str(folder / "transfer.csv"))
    run = shlex.quote(str(folder / "prompts" / "NAME"))
    return {
        "tune": f"jpt tune --backbone BACKBONE --task TASK --out {run}",
        "transfer": f"jpt transfer --prompts {prompts} --tasks TASK,TASK,... --out {place}",
        "neurons": f"jpt neurons --prompts {prompts} --out {neurons}",
        "indicators": f"jpt indicators --prompts {prompts} --neurons {neurons}"
        f" --transfer {transfer} --out {place}",
        "mask": f"jpt mask --prompts {prompts} --ratio 0.2 --out {place}",
    }


def read_similarities(path: str | Path) -> Similarities | None:
    """Reads ``indicators.csv``."""
    if not Path(path).exists():
        return None
    rows = read_table(path, ("prompt_a", "prompt_b"))
    if not rows:
        raise InputError(f"{path} has a header and no line; make it again with jpt indicators")
    names = tuple(dict.fromkeys(row[side] for row in rows for side in ("prompt_a", "prompt_b")))
    place = {name: index for index, name in enumerate(names)}
    columns = [name for name in rows[0] if name not in ("prompt_a", "prompt_b")]
    # Columns that say something else than a number, for instance the types of both tasks.
    columns = [name for name in columns if not name.startswith("type_")]
    values = {name: np.full((len(names), len(names)), np.nan) for name in columns}
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, 2):
        pair = (row["prompt_a"], row["prompt_b"])
        if pair in seen:
            raise InputError(
                f"{path}, line {number}: {pair[0]} and {pair[1]} stand there twice; make it again"
                " with jpt indicators"
            )
        seen.add(pair)
        for name in columns:
            values[name][place[pair[0]], place[pair[1]]] = read_number(path, number, row, name)
    return Similarities(names, values)


def _over_seeds(found: Similarities | None, matrix: TransferMatrix | None) -> Similarities | None:
    """Seeds of a prompt count as one prompt, as in the matrix."""
    if found is None:
        return None
    owners = prompt_names(found.names, () if matrix is None else matrix.prompts)
    return found if owners == list(found.names) else Similarities(*join_runs(owners, found.values))


def _matrix(path: Path) -> TransferMatrix | None:
    return read_transfer(path) if path.exists() else None


def _shape(path: Path) -> tuple[int, int, int] | None:
    if not path.exists():
        return None
    n_prompts, n_layers, n_neurons = read_activations(path).values.shape
    return n_prompts, n_layers, n_neurons
