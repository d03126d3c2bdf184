"""DOC"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import jax
import pytest

from jpt.cli import app
from tests.conftest import ROOT

# --- typed


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


# --- plain programs

try:
    from jax._src import compiler  # jax offers these options for one jit, not for all of them
except ImportError:  # another version keeps it elsewhere: tests take longer, nothing else
    compiler = None

# Where compiling is nearly all the work, plainer code takes a quarter of the time.
FAST_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11, 1):  # later compilers have it no more, and refuse the name
    FAST_COMPILE["xla_cpu_use_fusion_emitters"] = False


@contextmanager
def plain_programs() -> Iterator[None]:
    """Lets whatever is compiled inside be compiled without the compiler's slowest passes.

    The programs compute the same, run somewhat slower and take a half to a quarter of the time to
    compile. An option that a jit names itself is left as it is.
    """
    whole = getattr(compiler, "get_compile_options", None)
    if whole is None:
        yield
        return

    def plainer(*arguments: Any, env_options_overrides: Any = None, **options: Any) -> Any:
        chosen = {**FAST_COMPILE, **(env_options_overrides or {})}
        return whole(*arguments, env_options_overrides=chosen, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", plainer)
        yield


class PlainPrograms:
    """Compile doctests and tests marked ``plain_programs`` without the slow passes.

    Not for tests that claim equal bits of two programs: that has to hold of the users' programs.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        if not isinstance(item, pytest.DoctestItem) and not item.get_closest_marker(
            "plain_programs"
        ):
            return (yield)
        with plain_programs():
            return (yield)


# --- experiments scripts


def load_script(path: str) -> ModuleType:
    """Loads a script by its place below experiments/."""
    file = ROOT / "experiments" / path
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
