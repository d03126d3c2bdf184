"""Run commands, scripts and refused calls; compile without the slow passes."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

from jpt.cli import app
from jpt.errors import InputError
from tests.conftest import ROOT


def type_command(
    arguments: Iterable[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jpt", *map(str, arguments)])
    try:
        app.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


try:
    from jax._src import compiler  # jax offers these options per jit, not globally
except ImportError:  # moved in another version: tests only take longer
    compiler = None

# Two to four times faster to compile; the programs run somewhat slower.
FAST_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11, 1):  # later compilers reject the option
    FAST_COMPILE["xla_cpu_use_fusion_emitters"] = False


@contextmanager
def plain_programs() -> Iterator[None]:
    """Compile without the slowest passes; compiler options of a jit take precedence."""
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

    Not for tests that two programs are bit-identical: that must hold for the users' programs.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        if not isinstance(item, pytest.DoctestItem) and not item.get_closest_marker(
            "plain_programs"
        ):
            return (yield)
        with plain_programs():
            return (yield)


def load_script(path: str) -> ModuleType:
    file = ROOT / "experiments" / path
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def at_step(step: int, action: Callable[[], None]) -> Iterator[None]:
    from jpt.tuning import trainer

    real = trainer._report

    def report(run: Any, progress: Any, pending: Any, *rest: Any) -> None:
        if pending is not None and pending[0] == step:
            action()
        real(run, progress, pending, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_report", report)
        yield


@contextmanager
def crash_at(step: int) -> Iterator[None]:
    """Expect a run to crash when a step is reported; nothing of that step is saved."""

    def crash() -> None:
        raise RuntimeError("crash")

    with at_step(step, crash), pytest.raises(RuntimeError, match="crash"):
        yield


def answer_step(
    module: Any, optimizer: Any, seed: int = 0, *, rate: float = 1e-2, **options: Any
) -> Any:
    """Return the train step of a prompt as ``step(params, state, batch, answer)``."""
    from jpt.tuning.losses import AnswerLoss
    from jpt.tuning.step import bind_step

    loss = AnswerLoss(module, options.pop("objective", "labels"))
    bound = bind_step(loss, optimizer, rate, seed, **options)

    def step(params: Any, state: Any, batch: Any, answer: Any) -> Any:
        return bound((params, answer), state, batch)

    step.program = bound.program
    return step


def read_log(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    clock = {"elapsed_s", "rows_per_s"}
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def assert_equal_runs(first: Path, second: Path) -> None:
    for name in ("prompt.safetensors", "last.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert read_log(first) == read_log(second)


def raises(call: Callable[..., Any], *arguments: Any, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
