"""The persistent cache of compiled programs."""

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
"""What compiles faster is not kept."""
MOST_BYTES = 2 << 30


def use_compile_cache() -> Path | None:
    """Turns the cache on, unless jax has been told about one already."""
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
    # An entry that cannot be read or written is compiled instead, which is all there is to say.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", LEAST_S)
    return folder


def turn_off() -> None:
    """Keeps and reads no programs in this process."""
    jax.config.update("jax_enable_compilation_cache", False)


def _machine() -> str:
    """Tells processors apart: programs for one may not run on another that shares the folder."""
    told = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told.append(next(line for line in lines if line.lower().startswith(("flags", "features"))))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
