"""What ``jpt --version`` says: the versions of the programs, the machine, the devices."""

from __future__ import annotations

import os
from collections import Counter


def version_text() -> str:
    """Tells versions, machine and devices; for the devices jax is loaded."""
    from jpt.transfer.made_with import made_with

    told = made_with()
    versions = dict(told["versions"])
    first = f"jpt {versions.pop('jpt')}"
    rest = " · ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([first, f"{rest} · {told['machine']}", f"devices: {_devices()}"])


def _devices() -> str:
    import jax

    try:
        kinds = Counter(device.device_kind for device in jax.devices())
    # What jax raises depends on what is missing: a driver, a plugin, the platform asked for.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "jax finds no such platform"
        return f"none (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {reason}"
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
