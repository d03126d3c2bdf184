"""Versions and machine that a result was computed with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from jpt.version import __version__

PACKAGES = ("jax", "flax", "optax", "numpy")


def environment_info() -> dict[str, Any]:
    """Return versions and machine, without importing jax."""
    versions = {"jpt": __version__, "python": platform.python_version()}
    return {
        "versions": versions | {name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
