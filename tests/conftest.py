"""Settings that hold for every test: eight virtual CPU devices, strict types, one cache."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.helpers.tiers import mark_slow_cases
from tests.helpers.toys import toy_tokenizer, write_tokenizer  # noqa: F401  (fixtures)

# Scripts that make stored fixtures: they import torch, which the tests do not need.
collect_ignore_glob = ["*make_*_fixtures.py"]

ROOT = Path(__file__).resolve().parent.parent
MOST_MAPS = 20_000


def find_reference() -> Path | None:
    """The folder of reference data: JPT_REFERENCE, by default beside the project."""
    folder = Path(os.environ.get("JPT_REFERENCE", ROOT.parent / "shared"))
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    folder = find_reference()
    if folder is None:
        pytest.skip("no reference data: set JPT_REFERENCE to the folder that holds it")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    from tests.helpers.running import type_command

    return lambda *words: type_command(words, monkeypatch, capsys)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_slow_cases(items)


def pytest_configure(config: pytest.Config) -> None:
    import jax

    from tests.helpers.running import PlainPrograms

    # The examples in jpt lie outside this folder, where the hooks of a conftest are not called.
    config.pluginmanager.register(PlainPrograms())
    jax.config.update("jax_num_cpu_devices", 8)
    # Most of the time of a test is compilation, and many tests compile the same.
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
