"""Assertions on errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jpt.errors import InputError


def refused(call: Callable[..., Any], *arguments: Any, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match):
        call(*arguments, **options)
