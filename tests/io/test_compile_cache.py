"""Compile cache: used by default, left to the user's settings, never an obstacle."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jpt.io.compile_cache as programs
from jpt.tuning.logging import CompileLog
from tests.helpers.toys import write_task

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
NAMES += ("jax_enable_compilation_cache",)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    monkeypatch.setenv("JPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(programs, "LEAST_S", 0.0)
    with warnings.catch_warnings():
        yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute() -> tuple[np.ndarray, bool]:
    """Compile a program; return its result and whether it was read from disk."""

    @jax.jit
    def work(x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ x.T).sum(0)

    jax.clear_caches()
    with CompileLog() as log:
        found = np.asarray(work(jnp.linspace(0, 1, 12).reshape(3, 4)))
        return found, next(each for each in log.take() if "work" in each.name).is_cached


@pytest.mark.slow
def test_a_program_is_read_with_the_same_result(fresh: Path) -> None:
    folder = programs.use_compile_cache()
    assert folder is not None and folder.parent == fresh / "compiled"
    first, was_read = compute()
    assert not was_read
    second, was_read = compute()
    assert was_read
    np.testing.assert_array_equal(first, second)


def test_the_users_settings_are_kept(fresh: Path, tmp_path, monkeypatch) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "in_task"))
    assert programs.use_compile_cache() == tmp_path / "in_task"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JPT_CACHE", "")
    assert programs.use_compile_cache() is None
    monkeypatch.setenv("JPT_CACHE", str(fresh))
    programs.turn_off()
    assert programs.use_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir is None and not fresh.exists()


def test_broken_programs_are_compiled_again(fresh: Path) -> None:
    folder = programs.use_compile_cache()
    assert folder is not None
    first, _ = compute()
    entries = list(folder.glob("*-cache"))
    assert entries
    for damage in (lambda data: b"", lambda data: data[:50], lambda data: data[:-9] + bytes(9)):
        for entry in entries:
            entry.write_bytes(damage(entry.read_bytes()))
        with warnings.catch_warnings(record=True) as warned:
            found, was_read = compute()
        assert not was_read and not warned
        np.testing.assert_array_equal(found, first)


@pytest.mark.parametrize("obstacle", ["file", "gone", "full"])
def test_an_unusable_folder_is_ignored(fresh: Path, obstacle: str, monkeypatch) -> None:
    if obstacle == "file":
        fresh.write_text("no folder")
        assert programs.use_compile_cache() is None
    folder = programs.use_compile_cache()
    if obstacle == "gone":
        assert folder is not None
        folder.rmdir()
    if obstacle == "full":
        full = OSError(28, "No space left on device")
        monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=full))
    with warnings.catch_warnings(record=True) as warned:
        found, was_read = compute()
    assert found.shape == (3,) and not was_read and not warned


def test_the_folder_has_a_size_limit(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = programs.use_compile_cache()
    assert folder is not None
    for number in range(4):
        entry = folder / f"program-{number}-cache"
        entry.write_bytes(bytes(1000))
        os.utime(entry, (number, number))
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(programs, "MOST_BYTES", 2500)
    programs.use_compile_cache()
    assert sorted(path.name for path in folder.iterdir()) == ["program-2-cache", "program-3-cache"]


@pytest.mark.slow
@pytest.mark.alone
def test_the_command_caches_programs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jpt.cli", "tune", "--backbone", "builtin/bert-small"]
    command += ["--task", str(write_task(tmp_path / "mood")), "--steps", "2", "--batch-size", "4"]
    given = {**os.environ, "JAX_PLATFORMS": "cpu", "JPT_CACHE": str(tmp_path / "cache")}
    given.pop("JAX_COMPILATION_CACHE_DIR", None)
    logs = {}
    for run, more in (("without", ["--no-compile-cache"]), ("cold", []), ("warm", [])):
        out = [*command, "--out", str(tmp_path / run), *more]
        found = subprocess.run(out, env=given, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        logs[run] = found.stderr
        kept = list((tmp_path / "cache").rglob("*-cache"))
        assert bool(kept) == (run != "without")
    assert "from the compile cache" not in logs["without"] + logs["cold"]
    assert "compiled the train step for 4 rows of " in logs["cold"]
    assert "loaded the train step for 4 rows of " in logs["warm"] and "compiled" not in logs["warm"]
    for name in ("prompt.safetensors", "last.safetensors"):
        files = {(tmp_path / run / name).read_bytes() for run in logs}
        assert len(files) == 1
