"""A folder of prompts into a repository on a Hugging Face hub, in one commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jpt.errors import InputError
from jpt.files.hub_repository import BRANCH, HubRepository, HubState
from jpt.files.reading import read_bytes
from jpt.prompts.store import PROMPT_FILE
from jpt.recipes.prompt_folder import PromptEntry, read_entries, verify_entries
from jpt.recipes.prompt_library import (
    INDEX,
    HubResult,
    LibraryPrompt,
    check_names,
    file_of,
    index_entry,
    read_index,
    read_prompts,
    split_files,
    write_index,
)
from jpt.recipes.prompt_readme import README, may_rewrite, write_readme


@dataclass(frozen=True)
class PushedPrompts(HubResult):
    """What `push_prompts` has done.

    Attributes:
        repository: its name.
        url: its page.
        commit: the state of the branch now.
        committed: whether this push made that commit; not where nothing had changed.
        new: names of prompts that were not there.
        replaced: names of prompts that were there with other content.
        unchanged: names of prompts that were there as they are.
        kept: names of prompts in the repository that the folder does not have.
        notes: what to know.
    """

    repository: str
    url: str
    commit: str
    committed: bool
    new: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Says it in one line, and a line for each note.

        Returns:
            The text.

        Example:
            >>> print(PushedPrompts("a/b", "", "0" * 40, False, (), (), ("c",), ("d",)).describe())
            nothing changed: a/b has this 1 prompt at 0000000 (and 1 other); no commit
        """
        count = len(self.new) + len(self.replaced) + len(self.unchanged)
        prompts = f"{count} prompt{'' if count == 1 else 's'}"
        others = f"{len(self.kept)} other{'' if len(self.kept) == 1 else 's'}"
        if self.committed:
            kinds = {"new": self.new, "replaced": self.replaced, "unchanged": self.unchanged}
            told = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
            kept = f"; {others} there stay{'s' if len(self.kept) == 1 else ''}" if self.kept else ""
            line = f"{prompts} in {self.url} at {self.commit[:7]}: {told}{kept}"
        else:
            kept = f" (and {others})" if self.kept else ""
            this = "this" if count == 1 else "these"
            line = (
                f"nothing changed: {self.repository} has {this} {prompts} at"
                f" {self.commit[:7]}{kept}; no commit"
            )
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


def push_prompts(
    prompts: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
) -> PushedPrompts:
    """Uploads a folder of prompts to a Hugging Face hub, with an index and a model card.

    Every prompt is verified first. Prompts there that the folder does not have stay; index and
    card are of all. Where nothing changed there is no commit. A card written by hand stays.

    Args:
        prompts: folder of ``NAME.safetensors`` files, run folders ``NAME/``, or folders ``NAME/``
            of several run folders ``seed-S/``. A run folder becomes ``NAME.safetensors``, a
            seed's run ``NAME/seed-S/prompt.safetensors``; nothing else of a run is sent.
        repo: ``OWNER/NAME``, on the hub that ``HF_ENDPOINT`` names, huggingface.co otherwise. It
            is created where it is missing.
        private: create it private, and refuse one that is public. Otherwise a new one is public,
            unless the owner is an organization whose default is private.
        message: of the commit.
        revision: branch to write to, ``main`` by default; a missing one is created.

    Returns:
        What was sent.

    Raises:
        InputError: a prompt is broken, names clash, the token may not write there, or the hub
            cannot be reached.

    Example:
        >>> push_prompts("study/prompts", "prompts")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: 'prompts' names no owner; give OWNER/NAME, for instance me/prompts
    """
    if message is not None and not message.strip():
        raise InputError("the message is empty; give a text, or leave it out")
    hub, branch = HubRepository(repo), revision or BRANCH
    files, index = _verified(prompts)
    state = hub.open_branch(branch, private)
    kept, notes = _others(hub, state, set(index))
    check_names([*kept, *index], hub.url)
    pages = _pages(hub, state, [*kept.values(), *index.values()], notes)
    sent = {path: data for path, data in {**files, **pages}.items() if not state.holds(path, data)}
    after = hub.commit(state, branch, sent, message or _message(index)) if sent else state
    there = {name for name in index if file_of(name) in state.files}
    changed = {name for name in index if file_of(name) in sent}
    return PushedPrompts(
        repository=repo,
        url=hub.url,
        commit=after.commit or "",
        committed=bool(sent),
        new=tuple(sorted(changed - there)),
        replaced=tuple(sorted(changed & there)),
        unchanged=tuple(sorted(set(index) - changed)),
        kept=tuple(kept),
        notes=tuple(notes),
    )


def _pages(
    hub: HubRepository, state: HubState, entries: list[LibraryPrompt], notes: list[str]
) -> dict[str, bytes]:
    """Index and model card; a card written by hand is not touched."""
    pages = {INDEX: write_index(entries), README: write_readme(hub.name, entries)}
    if README in state.files and not may_rewrite(hub.read(state, [README])[README]):
        del pages[README]
        notes.append("README.md there was written by hand and stays as it is")
    return pages


def _verified(folder: str | Path) -> tuple[dict[str, bytes], dict[str, LibraryPrompt]]:
    """The files by path and the entries by name, all of them whole."""
    entries = verify_entries(read_entries(folder))
    broken = [entry for entry in entries if entry.faults]
    if broken:
        first = broken[0]
        raise InputError(
            f"{len(broken)} of {len(entries)} prompts in {folder} are broken, nothing was sent:"
            f" {first.name}: {first.faults[0]}; see jpt prompts verify {folder}"
        )
    check_names([entry.name for entry in entries], str(folder))
    data = {entry.name: _bytes(entry) for entry in entries}
    index = {e.name: index_entry(e.name, data[e.name], e.prompt) for e in entries if e.prompt}
    return {file_of(name): content for name, content in data.items()}, index


def _bytes(entry: PromptEntry) -> bytes:
    return read_bytes(entry.path / PROMPT_FILE if entry.path.is_dir() else entry.path)


def _others(
    hub: HubRepository, state: HubState, own: set[str]
) -> tuple[dict[str, LibraryPrompt], list[str]]:
    """What the repository has besides: out of its index where that is right, else read anew."""
    found, large = split_files(state.files.values())
    others = {name: file for name, file in found.items() if name not in own}
    notes = [f"{path} there is too large for a prompt: not in the index" for path in large]
    if not others:
        return {}, notes
    known = read_index(hub.read(state, [INDEX])[INDEX]) if INDEX in state.files else {}
    kept = {
        name: known[name]
        for name, file in others.items()
        if name in known and file.sha256 == known[name].sha256
    }
    unknown = [file.path for name, file in others.items() if name not in kept]
    read, refused = read_prompts(hub.read(state, unknown)) if unknown else ({}, [])
    kept |= read
    notes += [f"{reason}: not in the index" for reason in refused]
    return dict(sorted(kept.items())), notes


def _message(index: Mapping[str, LibraryPrompt]) -> str:
    names = list(index)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"Push {', '.join(names[:3])}{more} with jpt"
