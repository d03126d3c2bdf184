"""What a Hugging Face hub refuses, in one line with the cure."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from jpt.errors import InputError


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
