"""Prompts of several seeds: the runs of one task that differ in their seed alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jpt.errors import InputError
from jpt.prompts.collection import load_prompts
from jpt.prompts.store import PROMPT_FILE, list_prompts, load_prompt
from jpt.types import Prompt

Prompts = Mapping[str, Prompt | Mapping[int, Prompt]] | str | Path
"""A folder of prompts, or prompts by name; of several seeds by name and seed."""

_SEED = re.compile(r"seed-(\d+)")


def load_seed_prompts(prompts: Prompts) -> dict[str, dict[int | None, Prompt]]:
    """Loads prompts of one or of several seeds each, and sees to it that they belong together."""
    if isinstance(prompts, (str, Path)):
        prompts = _read_folder(Path(prompts))
    given = {name: _by_seed(name, of) for name, of in prompts.items()}
    load_prompts(_runs_of(given))  # refuses prompts that cannot be compared
    for name, of in given.items():
        _check_tasks(name, of)
    return {name: given[name] for name in sorted(given)}


def run_name(name: str, seed: int | None) -> str:
    """Names one run of a prompt."""
    return name if seed is None else f"{name}/seed-{seed}"


def split_run_name(name: str) -> tuple[str, int | None]:
    """Takes the name of a run apart."""
    owner, _, last = name.rpartition("/")
    match = _SEED.fullmatch(last) if owner else None
    return (owner, int(match[1])) if match else (name, None)


def load_runs(prompts: Prompts) -> dict[str, Prompt]:
    """Loads every run of every prompt under a name of its own."""
    return dict(sorted(_runs_of(load_seed_prompts(prompts)).items()))


def _runs_of(prompts: Mapping[str, Mapping[int | None, Prompt]]) -> dict[str, Prompt]:
    return {run_name(name, s): prompt for name, of in prompts.items() for s, prompt in of.items()}


def listseed_runs(folder: str | Path) -> dict[str, dict[int, Path]]:
    """Finds the runs of several seeds in a folder of prompts."""
    found = seed_runs(folder)
    for name, runs in found.items():
        _check_runs(Path(folder) / name, runs)
    return found


def seed_runs(folder: str | Path) -> dict[str, dict[int, Path]]:
    """Finds the runs of several seeds in a folder of prompts, finished or not."""
    place, found = Path(folder), {}
    if not place.is_dir():
        return found  # `list_prompts` says what is wrong
    for entry in sorted(place.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir() or _SEED.fullmatch(entry.name):
            continue
        inner = [(_SEED.fullmatch(each.name), each) for each in entry.iterdir() if each.is_dir()]
        runs = {int(match[1]): each for match, each in inner if match}
        if runs:
            found[entry.name] = dict(sorted(runs.items()))
    return found


def list_runs(folder: str | Path) -> dict[str, Path]:
    """Finds every prompt of a folder, each run of several seeds under a name of its own."""
    several = seed_runs(folder)
    found = dict(_single_prompts(Path(folder), several))
    for name, runs in several.items():
        found |= {run_name(name, seed): run for seed, run in runs.items()}
    return dict(sorted(found.items()))


def _read_folder(folder: Path) -> dict[str, Prompt | dict[int, Prompt]]:
    several = listseed_runs(folder)
    single = _single_prompts(folder, several)
    found: dict[str, Prompt | dict[int, Prompt]] = {
        name: load_prompt(path) for name, path in single.items()
    }
    for name, runs in several.items():
        found[name] = {seed: load_prompt(run) for seed, run in runs.items()}
    return found


def _single_prompts(folder: Path, several: Iterable[str]) -> dict[str, Path]:
    """Those beside the names of several seeds, which may be all there is."""
    several = list(several)
    if several and not any(_is_prompt(entry) for entry in folder.iterdir()):
        return {}
    single = list_prompts(folder)
    for name in several:
        if name in single:
            raise InputError(f"{folder} has two prompts named {name}: a file and seeds; rename one")
    return single


def _is_prompt(entry: Path) -> bool:
    if entry.is_dir():
        return (entry / PROMPT_FILE).is_file()
    return entry.suffix == ".safetensors" and not entry.name.startswith(".")


def _check_runs(entry: Path, runs: Mapping[int, Path]) -> None:
    """A mean over the seeds that happen to be finished would be another number tomorrow."""
    if (entry / PROMPT_FILE).is_file():
        raise InputError(
            f"{entry} is a run and holds runs of seeds ({', '.join(r.name for r in runs.values())})"
            "; move them apart"
        )
    for run in runs.values():
        if not (run / PROMPT_FILE).is_file():
            raise InputError(
                f"{run} has no {PROMPT_FILE}: an unfinished run, one of {len(runs)} seeds of"
                f" {entry.name}; finish it or remove its folder"
            )


def _by_seed(name: str, prompts: Prompt | Mapping[int, Prompt]) -> dict[int | None, Prompt]:
    if isinstance(prompts, Prompt):
        return {None: prompts}
    if not prompts:
        raise InputError(f"prompt {name} has no seed; give at least one prompt")
    return dict(sorted(prompts.items()))


def _check_tasks(name: str, prompts: Mapping[int | None, Prompt]) -> None:
    tasks = {seed: prompt.card.task for seed, prompt in prompts.items()}
    first = next(iter(tasks))
    for seed, task in tasks.items():
        if task != tasks[first]:
            raise InputError(
                f"prompt {name} has seed {first} for the task {tasks[first]} and seed {seed} for"
                f" {task}; the seeds of a prompt are runs of one task: put them into folders of"
                " their own"
            )
