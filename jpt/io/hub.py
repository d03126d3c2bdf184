"""Read and write Hugging Face hub repositories."""

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

# --- Errors


@dataclass(frozen=True)
class HubRefusal:
    """Request that a hub refused."""

    repository: str
    endpoint: str  # address of the hub
    doing: str  # for instance ``"write to me/prompts"``
    revision: str | None = None


def hub_error(error: Exception, refusal: HubRefusal) -> InputError:
    """Return the InputError for an error of the hub's library."""
    from huggingface_hub import errors

    start = f"cannot {refusal.doing}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(f"{start}: HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, errors.GatedRepoError):
        page = f"{refusal.endpoint}/{refusal.repository}"
        return InputError(f"{start}: access is restricted; request it on {page}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{start}: it has no revision '{refusal.revision}'; give a branch, tag or commit"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return InputError(f"{start}: {_refused(error, status, refusal)}")
    if status in (409, 412):
        return InputError(
            f"{start}: it was changed at the same time, or exists and is hidden from you"
            f" ({_reason(error)}); check {refusal.endpoint}/{refusal.repository} and run the"
            " command again"
        )
    if status is not None:
        return InputError(f"{start}: {refusal.endpoint} answered {status} ({_reason(error)})")
    if isinstance(error, OSError) and error.filename is not None:  # a local file
        return InputError(f"{start}: {error.filename}: {error.strerror}; check space and rights")
    return InputError(
        f"{start}: {refusal.endpoint} does not answer as a hub ({_reason(error)}); check the"
        " network, and HF_ENDPOINT if it is set"
    )


def _refused(error: Exception, status: int | None, refusal: HubRefusal) -> str:
    """Describe a refusal; hubs do not always tell missing, hidden and forbidden apart."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if status == 404 or isinstance(error, RepositoryNotFoundError):
        what = f"{refusal.endpoint} has no such repository, or hides it from you"
    else:
        reply = getattr(error, "server_message", None)
        what = f"{refusal.endpoint} refuses ({status}{f': {_one_line(reply)}' if reply else ''})"
    return f"{what}; {_token_cure()}"


def _token_cure() -> str:
    from huggingface_hub import get_token

    token = None
    with contextlib.suppress(Exception):  # an expired login
        token = get_token()
    if token is None:
        return "no token is set: set HF_TOKEN, or run 'hf auth login'"
    return "check the name, and the rights of the token (HF_TOKEN or 'hf auth login')"


def _reason(error: Exception) -> str:
    reply = getattr(error, "server_message", None)
    return _one_line(reply) if reply else f"{type(error).__name__}: {_one_line(str(error))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]


# --- Model repositories
# The hub is ``HF_ENDPOINT``, by default huggingface.co; the token is ``HF_TOKEN`` or that of
# ``hf auth login``.

BRANCH = "main"
"""Default branch of a repository."""

_TIMEOUT_S = 10
_PARALLEL_DOWNLOADS = 8


@dataclass(frozen=True)
class HubFile:
    """File of a repository, with the digest of its content."""

    path: str
    size_bytes: int
    git_sha1: str | None  # git's blob id; None for LFS files
    sha256: str | None  # None for files in git

    def holds(self, data: bytes) -> bool:
        """Return whether the file has this content."""
        if len(data) != self.size_bytes:
            return False
        if self.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.sha256
        blob = b"blob %d\0" % len(data) + data
        return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == self.git_sha1


@dataclass(frozen=True)
class HubState:
    """State of a repository at one commit."""

    commit: str | None  # None if the repository is empty
    private: bool
    files: Mapping[str, HubFile] = field(default_factory=dict)  # by path, sorted

    def holds(self, path: str, data: bytes) -> bool:
        """Return whether a file exists with this content."""
        return path in self.files and self.files[path].holds(data)


class HubRepository:
    """Model repository on the hub; the network is used only by its methods."""

    def __init__(self, name: str) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        self.name = name
        # The library reads the variable at import, which may be before it is set.
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise InputError(
                f"'{name}' is not the name of a hub repository; give OWNER/NAME of at most 96"
                " letters, digits, '-', '_', '.'"
            ) from None
        if "/" not in name:
            raise InputError(f"'{name}' has no owner; give OWNER/NAME, for instance me/{name}")
        self._api = HfApi(endpoint=self.endpoint, library_name="jpt", library_version=__version__)

    @property
    def url(self) -> str:
        """Address of its page."""
        return f"{self.endpoint}/{self.name}"

    def state(self, revision: str | None = None) -> HubState:
        """Return the state of the repository."""
        with self._translated(f"read {self.name}", revision):
            return self._state(revision)

    def open_branch(self, branch: str, private: bool) -> HubState:
        """Create the repository and branch if they do not exist; return the branch's state."""
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        with self._translated(f"write to {self.name}", branch):
            try:
                found = self._state(None)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                # None is the owner's default, which is public except for some organizations.
                self._api.create_repo(self.name, private=private or None)
                found = self._state(None)
        if private and not found.private:
            raise InputError(
                f"{self.url} is public, but private was requested; nothing was sent: make it"
                " private in its settings, or choose another repository"
            )
        if branch == BRANCH:
            return found
        with self._translated(f"write to {self.name}", branch):
            try:
                return self._state(branch)
            except RevisionNotFoundError:
                self._api.create_branch(self.name, branch=branch)
                return self._state(branch)

    def read(self, state: HubState, paths: Sequence[str]) -> dict[str, bytes]:
        """Download files and check their digests."""
        with (
            self._translated(f"read {self.name}", None),
            _no_bars(),
            tempfile.TemporaryDirectory() as at,
        ):

            def fetch(path: str) -> bytes:
                # Not the user's cache, which would keep a second copy of every prompt.
                file = self._api.hf_hub_download(
                    self.name, path, revision=state.commit, cache_dir=at
                )
                return Path(file).read_bytes()

            with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
                found = dict(zip(paths, pool.map(fetch, paths), strict=True))
        for path, data in found.items():
            if not state.holds(path, data):
                raise InputError(
                    f"{path} of {self.name} is corrupted: its {len(data)} bytes do not match the"
                    " hub's digest; try again"
                )
        return found

    def commit(
        self, state: HubState, branch: str, files: Mapping[str, bytes], message: str
    ) -> HubState:
        """Write files in one commit; raise InputError if the hub left one out."""
        from huggingface_hub import CommitOperationAdd

        added = [CommitOperationAdd(path, data) for path, data in files.items()]
        with self._translated(f"write to {self.name}", branch), _no_bars():
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
                f"commit {done.oid[:7]} of {self.name} lacks {missing[0]}: check the repository's"
                " .gitignore"
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
    def _translated(self, doing: str, revision: str | None) -> Iterator[None]:
        """Raise the library's errors as InputError."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # the library raises many types
            refusal = HubRefusal(self.name, self.endpoint, doing, revision)
            raise hub_error(error, refusal) from None


def _file(entry: Any) -> HubFile:
    if entry.lfs is not None:
        return HubFile(entry.path, entry.lfs.size, None, entry.lfs.sha256)
    return HubFile(entry.path, entry.size, entry.blob_id, None)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the library's progress bars: one per small file is noise."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
