"""Read and write Hugging Face hub repositories, with errors that name the cure."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.version import __version__

# --- What a Hugging Face hub refuses, in one line with the cure


@dataclass(frozen=True)
class HubRefusal:
    """What was asked of a hub."""

    repository: str  # its name
    endpoint: str  # address of the hub
    doing: str  # for instance ``"write to me/prompts"``
    revision: str | None = None  # what was asked for, where something was


def hub_error(error: Exception, refusal: HubRefusal) -> InputError:
    """Words an error of the hub's library."""
    from huggingface_hub import errors

    start = f"cannot {refusal.doing}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(f"{start}: HF_HUB_OFFLINE is set, so no hub is asked; unset it")
    if isinstance(error, errors.GatedRepoError):
        page = f"{refusal.endpoint}/{refusal.repository}"
        return InputError(f"{start}: its owner grants access one by one; ask for it on {page}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{start}: it has no revision '{refusal.revision}'; give a branch, tag or commit of it"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return InputError(f"{start}: {_refused(error, status, refusal)}")
    if status in (409, 412):
        return InputError(
            f"{start}: it was changed by someone else at the same time, or exists and is hidden"
            f" from you ({_reason(error)}); look at {refusal.endpoint}/{refusal.repository} and run"
            " the command again"
        )
    if status is not None:
        return InputError(f"{start}: {refusal.endpoint} answered {status} ({_reason(error)})")
    if isinstance(error, OSError) and error.filename is not None:  # a file here, not the hub
        return InputError(f"{start}: {error.filename}: {error.strerror}; free or permit it")
    return InputError(
        f"{start}: {refusal.endpoint} gives no answer of a hub ({_reason(error)}); look at the"
        " network, and at HF_ENDPOINT if it is set"
    )


def _refused(error: Exception, status: int | None, refusal: HubRefusal) -> str:
    """Not there, not to be seen, or not allowed: a hub does not always tell which."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if status == 404 or isinstance(error, RepositoryNotFoundError):
        what = f"{refusal.endpoint} has no such repository, or hides it from you"
    else:
        said = getattr(error, "server_message", None)
        what = f"{refusal.endpoint} refuses ({status}{f': {_one_line(said)}' if said else ''})"
    return f"{what}; {_token_cure()}"


def _token_cure() -> str:
    from huggingface_hub import get_token

    token = None
    with contextlib.suppress(Exception):  # a login that has run out
        token = get_token()
    if token is None:
        return "no token is set here: set HF_TOKEN, or run 'hf auth login'"
    return "check the name, and whether the token here (HF_TOKEN or 'hf auth login') may do that"


def _reason(error: Exception) -> str:
    said = getattr(error, "server_message", None)
    return _one_line(said) if said else f"{type(error).__name__}: {_one_line(str(error))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]


# --- A model repository on a Hugging Face hub: what it holds, files out of it, one commit into it
# The hub is the one that ``HF_ENDPOINT`` names, huggingface.co otherwise; the token is that of
# ``HF_TOKEN`` or of ``hf auth login``. Nothing here touches the network before a method is called.

BRANCH = "main"
"""The branch of a repository where nothing else is said."""

_TIMEOUT_S = 10
_AT_ONCE = 8  # files


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, known by its content."""

    path: str  # in the repository
    size_bytes: int  # of the content
    # of the content as git names it; None where the content lies outside of git
    git_sha1: str | None
    sha256: str | None  # of the content; None where it lies in git

    def holds(self, data: bytes) -> bool:
        """Tells whether this is the content, byte for byte."""
        if len(data) != self.size_bytes:
            return False
        if self.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.sha256
        named = b"blob %d\0" % len(data) + data
        return hashlib.sha1(named, usedforsecurity=False).hexdigest() == self.git_sha1


@dataclass(frozen=True)
class HubState:
    """A repository at one commit."""

    commit: str | None  # its full name; None where the repository has none yet
    private: bool  # whether others cannot see it
    files: Mapping[str, HubFile] = field(default_factory=dict)  # by path, sorted

    def holds(self, path: str, data: bytes) -> bool:
        """Tells whether a file is there with this content."""
        return path in self.files and self.files[path].holds(data)


class HubRepository:
    """A model repository on the hub."""

    def __init__(self, name: str) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        self.name = name
        # The library reads the variable when it is imported, which may have been before it was set.
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise InputError(
                f"'{name}' names no repository of a hub; give OWNER/NAME: letters, digits, '-',"
                " '_', '.', at most 96"
            ) from None
        if "/" not in name:
            raise InputError(f"'{name}' names no owner; give OWNER/NAME, for instance me/{name}")
        self._api = HfApi(endpoint=self.endpoint, library_name="jpt", library_version=__version__)

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.endpoint}/{self.name}"

    def state(self, revision: str | None = None) -> HubState:
        """Looks at what the repository holds."""
        with self._told(f"read {self.name}", revision):
            return self._state(revision)

    def open_branch(self, branch: str, private: bool) -> HubState:
        """Makes sure that repository and branch are there to be written to."""
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        with self._told(f"write to {self.name}", branch):
            try:
                found = self._state(None)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                # None leaves it to the owner's default, which is public but for some organizations.
                self._api.create_repo(self.name, private=private or None)
                found = self._state(None)
        if private and not found.private:
            raise InputError(
                f"{self.url} is public, and private was asked for; nothing was sent: make it"
                " private in its settings, or choose another repository"
            )
        if branch == BRANCH:
            return found
        with self._told(f"write to {self.name}", branch):
            try:
                return self._state(branch)
            except RevisionNotFoundError:
                self._api.create_branch(self.name, branch=branch)
                return self._state(branch)

    def read(self, state: HubState, paths: Sequence[str]) -> dict[str, bytes]:
        """Fetches files; what came is held against the digests of the listing."""
        with self._told(f"read {self.name}", None), _no_bars(), tempfile.TemporaryDirectory() as at:

            def fetch(path: str) -> bytes:
                # A folder of its own: the user's cache would keep a second copy of every prompt.
                place = self._api.hf_hub_download(
                    self.name, path, revision=state.commit, cache_dir=at
                )
                return Path(place).read_bytes()

            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = dict(zip(paths, pool.map(fetch, paths), strict=True))
        for path, data in found.items():
            if not state.holds(path, data):
                raise InputError(f"{path} of {self.name} came damaged: {len(data)} bytes that are"
                                 " not what the hub lists; try again")  # fmt: skip
        return found

    def commit(
        self, state: HubState, branch: str, files: Mapping[str, bytes], message: str
    ) -> HubState:
        """Writes files in one commit, and sees to it that they are there."""
        from huggingface_hub import CommitOperationAdd

        added = [CommitOperationAdd(path, data) for path, data in files.items()]
        with self._told(f"write to {self.name}", branch), _no_bars():
            done = self._api.create_commit(
                self.name,
                added,
                commit_message=message,
                revision=branch,
                parent_commit=state.commit,
            )
            after = self._state(done.oid)
        missing = [path for path, data in files.items() if not after.holds(path, data)]
        if missing:
            raise InputError(
                f"the hub took the commit {done.oid[:7]} of {self.name} without {missing[0]}: look"
                " at .gitignore there"
            )
        return after

    def _state(self, revision: str | None) -> HubState:
        found = self._api.model_info(self.name, revision=revision, timeout=_TIMEOUT_S)
        files: dict[str, HubFile] = {}
        if found.sha is not None:
            tree = self._api.list_repo_tree(self.name, recursive=True, revision=found.sha)
            for entry in tree:
                if hasattr(entry, "blob_id"):  # folders have none
                    files[entry.path] = _file(entry)
        return HubState(found.sha, bool(found.private), dict(sorted(files.items())))

    @contextmanager
    def _told(self, doing: str, revision: str | None) -> Iterator[None]:
        """Turns whatever the library raises into one line."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # no network, no right, no hub: the library raises many kinds
            refusal = HubRefusal(self.name, self.endpoint, doing, revision)
            raise hub_error(error, refusal) from None


def _file(entry: Any) -> HubFile:
    if entry.lfs is not None:
        return HubFile(entry.path, entry.lfs.size, None, entry.lfs.sha256)
    return HubFile(entry.path, entry.size, entry.blob_id, None)


@contextmanager
def _no_bars() -> Iterator[None]:
    """A bar for each of many small files is only noise."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
