"""A command of jpt as a user types it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest

from jpt.cli import app


def type_command(
    words: Iterable[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:
    """Runs ``jpt`` with these words; gives exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["jpt", *map(str, words)])
    try:
        app.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()
