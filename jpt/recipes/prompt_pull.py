"""Prompts out of a repository on a Hugging Face hub into a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jpt.errors import InputError, unknown_name
from jpt.files.atomic import make_folder, write_bytes, write_json
from jpt.files.hub_repository import HubRepository, HubState
from jpt.files.reading import read_bytes, read_json
from jpt.prompts.store import PROMPT_FILE
from jpt.recipes.prompt_library import HubResult, check_names, file_of, read_prompts, split_files

ORIGINS = "hub.json"
"""Says in a folder of prompts where those that were pulled came from."""


@dataclass(frozen=True)
class PulledPrompts(HubResult):
    """What `pull_prompts` has done.

    Attributes:
        repository: its name.
        url: its page.
        commit: which the files are of.
        out: the folder.
        new: names of prompts that were not there.
        replaced: names of prompts that were there with other content.
        unchanged: names of prompts that were there as they are.
        notes: what was passed over.
    """

    repository: str
    url: str
    commit: str
    out: str
    new: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Says it in one line, and a line for each note.

        Returns:
            The text.

        Example:
            >>> print(PulledPrompts("a/b", "", "0" * 40, "out", ("c",), (), ()).describe())
            1 prompt of a/b at 0000000 in out: 1 new
        """
        kinds = {"new": self.new, "replaced": self.replaced, "unchanged": self.unchanged}
        count = sum(map(len, kinds.values()))
        told = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
        line = (
            f"{count} prompt{'' if count == 1 else 's'} of {self.repository} at {self.commit[:7]}"
            f" in {self.out}: {told}"
        )
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


def pull_prompts(
    repo: str,
    out: str | Path,
    *,
    revision: str | None = None,
    only: Sequence[str] | None = None,
    overwrite: bool = False,
) -> PulledPrompts:
    """Downloads the prompts of a repository on a Hugging Face hub; no other file of it.

    Each file is held against the digest that the hub lists and read as strictly as any prompt
    before the first one is written. The files are those of the repository, byte for byte;
    ``hub.json`` beside them says which commit they came from.

    Args:
        repo: ``OWNER/NAME``, on the hub that ``HF_ENDPOINT`` names, huggingface.co otherwise.
        out: folder for ``NAME.safetensors`` and, of several seeds,
            ``NAME/seed-S/prompt.safetensors``.
        revision: branch, tag or commit; ``main`` by default.
        only: names of prompts; of several seeds ``NAME`` for all, ``NAME/seed-S`` for one. All
            prompts by default.
        overwrite: replace files that differ.

    Returns:
        What came.

    Raises:
        InputError: no such repository, revision or prompt; a file is no prompt; one here differs;
            or the hub cannot be reached.

    Example:
        >>> pull_prompts("prompts", "out")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: 'prompts' names no owner; give OWNER/NAME, for instance me/prompts
    """
    hub, place = HubRepository(repo), Path(out).expanduser()
    state = hub.state(revision)
    names, notes = _chosen(hub, state, only)
    here = {name: _here(place, name) for name in names}
    missing = [name for name, data in here.items() if data is None]
    differing = [n for n, d in here.items() if d is not None and not state.holds(file_of(n), d)]
    if differing and not overwrite:
        raise InputError(
            f"{place} has {_listed(differing)} with other content than {hub.url}; give --overwrite"
            " to replace, --only to leave out, or another folder"
        )
    came = sorted([*missing, *differing])
    _write(place, hub, state, _fetched(hub, state, came))
    return PulledPrompts(
        repository=repo,
        url=hub.url,
        commit=state.commit or "",
        out=str(place),
        new=tuple(missing),
        replaced=tuple(differing),
        unchanged=tuple(name for name in names if name not in came),
        notes=tuple(notes),
    )


def _fetched(hub: HubRepository, state: HubState, names: Sequence[str]) -> dict[str, bytes]:
    """Files of prompts by name, all of them read once."""
    paths = [file_of(name) for name in names]
    files = hub.read(state, paths) if paths else {}
    _, refused = read_prompts(files)
    if refused:
        raise InputError(
            f"of {hub.url} {refused[0]}; nothing was written: give --only NAME,NAME with the others"
        )
    return {name: files[path] for name, path in zip(names, paths, strict=True)}


def _chosen(
    hub: HubRepository, state: HubState, only: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Names of the prompts to fetch, and what is passed over."""
    found, large = split_files(state.files.values())
    notes = [f"{path} is too large for a prompt: passed over" for path in large]
    if not found:
        raise InputError(
            f"{hub.url} holds no prompts: looked for NAME.safetensors and"
            f" NAME/seed-S/{PROMPT_FILE} among {len(state.files)} files"
        )
    names = list(found)
    if only is not None:
        asked = [only] if isinstance(only, str) else only
        names = sorted({name for wanted in asked for name in _matching(hub.name, wanted, found)})
        if not names:
            raise InputError("only names no prompt; give NAME,NAME or leave it out")
    check_names(names, hub.url)
    return names, notes


def _matching(repo: str, wanted: str, known: Iterable[str]) -> list[str]:
    """A name, or all seeds of it."""
    names = [name for name in known if wanted in (name, name.split("/")[0])]
    if not names:
        raise unknown_name(f"prompt in {repo}:", wanted, known)
    return names


def _here(place: Path, name: str) -> bytes | None:
    """What the folder has under that name; in another form it would be a second prompt of it."""
    file, base = place / file_of(name), place / name.split("/")[0]
    others = [base / PROMPT_FILE]
    others += [place / file_of(base.name)] if "/" in name else base.glob(f"seed-*/{PROMPT_FILE}")
    for other in others:
        if other.is_file():
            raise InputError(
                f"{other} is a prompt named {base.name} too, in another form than the"
                f" {file_of(name)} that would come; choose another folder"
            )
    return read_bytes(file) if file.exists() else None


def _write(place: Path, hub: HubRepository, state: HubState, files: Mapping[str, bytes]) -> None:
    """Each file in one step, then where they came from."""
    if not files:
        return
    make_folder(place)
    origins = read_json(place / ORIGINS) if (place / ORIGINS).exists() else {}
    if not isinstance(origins, dict):
        raise InputError(f"{place / ORIGINS} is no table; remove it")
    for name, data in files.items():
        file = place / file_of(name)
        make_folder(file.parent)
        write_bytes(file, data)
        origins[name] = {
            "hub": hub.endpoint,
            "repository": hub.name,
            "commit": state.commit,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    write_json(place / ORIGINS, dict(sorted(origins.items())))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
