"""The scripts of experiments/ as modules, so that a test can call what they do."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from tests.conftest import ROOT


def load_script(path: str) -> ModuleType:
    """Loads a script by its place below experiments/."""
    file = ROOT / "experiments" / path
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
