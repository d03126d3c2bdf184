"""What jpt says of itself: versions, machine and devices."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version

import jax
import pytest

import jpt
from jpt.cli.commands import version_text


def test_versions_machine_and_devices() -> None:
    first, second, third = version_text().splitlines()
    assert first == f"jpt {jpt.__version__}"
    assert second.startswith(f"python {platform.python_version()} · jax {version('jax')} · ")
    assert f"numpy {version('numpy')}" in second and platform.machine() in second
    assert platform.node() not in second
    assert third == f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"


@pytest.mark.parametrize("platforms", ["cuda", "nothing"])
def test_devices_that_are_not_there_are_said(platforms: str) -> None:
    if platforms == "cuda" and jax.default_backend() != "cpu":
        pytest.skip("this machine has such devices")
    done = subprocess.run(
        [sys.executable, "-m", "jpt.cli", "--version"],
        env={**os.environ, "JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"devices: none (JAX_PLATFORMS={platforms}): " in done.stdout
