"""Persistent cache of compiled programs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax

from jpt.io.files import make_room, user_cache

LEAST_S = 0.3
"""Programs that compile faster are not cached."""
MOST_BYTES = 2 << 30


def use_compile_cache() -> Path | None:
    """Enable the cache, unless the user has configured one; return its folder."""
    config = jax.config
    if not config.jax_enable_compilation_cache:
        return None
    if config.jax_compilation_cache_dir is not None:
        return Path(config.jax_compilation_cache_dir)
    parent = user_cache("compiled")
    if parent is None:
        return None
    folder = parent / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return None
        make_room(folder.glob("*-cache"), MOST_BYTES)
    except OSError:
        return None
    # An entry that cannot be read or written is compiled again; a warning would not help.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", LEAST_S)
    return folder


def turn_off() -> None:
    """Disable the cache in this process."""
    jax.config.update("jax_enable_compilation_cache", False)


def _machine() -> str:
    """Return a hash of the processor: its programs may not run on others that share the folder."""
    traits = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        traits += [line for line in lines if line.lower().startswith(("flags", "features"))][:1]
    return hashlib.sha256("\n".join(traits).encode()).hexdigest()[:12]
