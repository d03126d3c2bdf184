"""The wheel and the source archive, built as a package index would get them."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import jpt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAME = f"jpt-{jpt.__version__}"
MOST_MB = 25
"""The built-in weights are 17 of them."""
STRAY = {"__pycache__", ".pytest_cache", ".ruff_cache", "runs", "build", "dist", ".git"}


def run(*arguments: str, folder: Path, path: Path | None = None) -> str:
    """Runs Python in a folder, with another one to import from before all others."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("package")
    tools = place / "tools"
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tools), "hatchling"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"hatchling cannot be had: {done.stderr.strip().splitlines()[-1]}")
    build = ("-m", "hatchling", "build", "-d", str(place / "out"))
    run(*build, "-t", "sdist", folder=ROOT, path=tools)
    archive = place / "out" / f"{NAME}.tar.gz"
    with tarfile.open(archive) as opened:
        opened.extractall(place / "sources", filter="data")
    run(*build, "-t", "wheel", folder=place / "sources" / NAME, path=tools)
    return archive, place / "out" / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(place)
    return place


def package_files() -> set[str]:
    """Every file of the package as it lies here, but for what Python leaves behind."""
    files = (path for path in (ROOT / "jpt").rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    wheel = built[1]
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        metadata = opened.read(f"{NAME}.dist-info/METADATA").decode()
    assert {name for name in names if name.startswith("jpt/")} == package_files()
    assert {name.split("/")[0] for name in names} == {"jpt", f"{NAME}.dist-info"}
    needed = ("py.typed", "__init__.pyi", "report/report.css", "report/report.js")
    weights = ("bert-small", "bert-medium", "t5-mini", "gpt2-mini")
    needed += tuple(f"backbones/builtin/{name}/model.safetensors" for name in weights)
    assert {f"jpt/{name}" for name in needed} <= names
    assert f"{NAME}.dist-info/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    assert wheel.stat().st_size < MOST_MB * 1e6


def test_source_archive_holds_what_is_kept_and_nothing_else(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as opened:
        names = {member.name.removeprefix(f"{NAME}/") for member in opened.getmembers()}
    assert package_files() <= names
    for part in ("tests/test_package.py", "experiments", "README.md", "pyproject.toml", "LICENSE"):
        assert any(name == part or name.startswith(f"{part}/") for name in names), part
    assert not {name for name in names if STRAY & set(PurePosixPath(name).parts)}
    for name in names - {"PKG-INFO"}:
        assert (ROOT / name).exists(), name
    assert built[0].stat().st_size < MOST_MB * 1e6


def test_installed_package_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    printed = run("-c", "import jpt; print(jpt.__file__)", folder=tmp_path, path=installed)
    assert Path(printed.strip()).is_relative_to(installed)
    jpt_ = ("-m", "jpt.cli")
    assert run(*jpt_, "--version", folder=tmp_path, path=installed).startswith("jpt ")
    listed = run(*jpt_, "backbones", "--json", folder=tmp_path, path=installed)
    assert len(json.loads(listed.splitlines()[-1])["backbones"]) == 4
    tune = ("tune", "--backbone", "builtin/bert-small", "--task", "builtin/rotten_tomatoes")
    short = ("--steps", "2", "--eval-every", "2", "--out", "study/prompts/mood", "--json")
    printed = run(*jpt_, *tune, *short, folder=tmp_path, path=installed)
    assert json.loads(printed.splitlines()[-1])["steps"] == 2
    run(*jpt_, "report", "study", folder=tmp_path, path=installed)
    assert (tmp_path / "study" / "report.html").stat().st_size > 10_000
