"""Programs that are quick to compile, for tests whose time is nearly all compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import pytest

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


class PlainExamples:
    """Compiles the examples of docstrings so: they show how a call looks and what it gives."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if not isinstance(item, pytest.DoctestItem):
            return (yield)
        with plain_programs():
            return (yield)
