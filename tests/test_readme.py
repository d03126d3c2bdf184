"""README, docs and notebook: commands and names exist, Python and outputs work, links resolve."""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
import yaml
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from typer.core import TyperGroup
from typer.main import get_command

import jpt
from jpt.cli.app import app
from jpt.data import builtin
from jpt.recipes.sweep import read_sweep
from jpt.tasks.user import KEYS
from tests.conftest import ROOT
from tests.helpers.running import plain_programs

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FIGURE = ROOT / "docs" / "figures" / "quickstart-transfer.svg"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    # A span may continue on the next line.
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def named(pages: list[Path]) -> Any:
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


def test_the_first_two_blocks_install_and_run_and_test() -> None:
    first, second = blocks(ROOT / "README.md", "")[:2]
    assert first == "pip install -e . && jpt quickstart\n"
    assert second == "pip install -e '.[dev]' && pytest\n"


class Session(NamedTuple):
    folder: Path
    names: dict[str, Any]
    printed: list[str]


def run_python(page: Path, names: dict[str, Any]) -> list[str]:
    printed = []
    for block in blocks(page, "python"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, page.name, "exec"), names)
        printed.append(out.getvalue())
    return printed


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    # The README's Python on a third of the rows; the pages of docs/ run in its folder.
    folder = tmp_path_factory.mktemp("reader")
    builtin._make_split.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch, plain_programs():
            for split, size in builtin.SIZES.items():
                patch.setitem(builtin.SIZES, split, size // 3)
            patch.chdir(folder)
            names: dict[str, Any] = {}
            yield Session(folder, names, run_python(ROOT / "README.md", names))
    finally:
        builtin._make_split.cache_clear()


@pytest.mark.slow
def test_python_of_the_readme(session: Session) -> None:
    first, second = session.printed
    assert "majority class" in first and "accuracy" in first
    assert (session.folder / "rotten_tomatoes.safetensors").exists()
    assert 0 < float(re.search("neuron overlap: (.*)", second)[1]) < 1
    assert -1 <= float(re.search("Spearman with transfer: (.*)", second)[1]) <= 1
    page = (session.folder / "study" / "report.html").read_text()
    assert "imdb_first_person" in page


WITH_PYTHON = [page for page in DOCS if blocks(page, "python")]
# Part of the output of each page.
PRINTED = {
    "tune.md": "builtin/imdb_first_person on builtin/bert-small",
    "transfer.md": "* in-task prompt",
    "neurons.md": "active for every prompt, by layer: [",
    "sweep.md": "['done', 'done']",
    "own-task.md": "mood on builtin/bert-small: validation accuracy",
    "own-backbone.md": "virtual device",
    "prompts.md": "(20, 128) builtin/bert-small builtin/imdb_number random",
}


@pytest.mark.slow
@named(WITH_PYTHON)
def test_python_of_a_page(page: Path, session: Session) -> None:
    prompts = session.folder / "study" / "prompts"
    prompts.mkdir(exist_ok=True)
    for name, prompt in session.names["prompts"].items():
        jpt.save_prompt(prompts / f"{name}.safetensors", prompt)
    printed = "".join(run_python(page, {}))
    assert PRINTED[page.name] in printed


@pytest.mark.slow
def test_the_figure_comes_from_a_report(session: Session) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "from_report.py"))
    page = (session.folder / "study" / "report.html").read_text()
    plotted, kept = script["first_figure"](page), FIGURE.read_text()
    assert len(kept) < 150_000
    for svg in (plotted, kept):
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "Heat map of" in root.get("aria-label") and "var(" not in svg
    assert f"({FIGURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_sweep_files_and_the_custom_task_load(tmp_path: Path) -> None:
    grid, search = blocks(ROOT / "docs" / "sweep.md", "toml")
    (tmp_path / "grid.toml").write_text(grid)
    assert len(read_sweep(tmp_path / "grid.toml").runs) == 36
    (tmp_path / "search.toml").write_text(search)
    assert list(read_sweep(tmp_path / "search.toml").ranges) == ["learning_rate"]
    page = ROOT / "docs" / "own-task.md"
    (tmp_path / "task.toml").write_text(next(b for b in blocks(page, "toml") if "label_words" in b))
    task = jpt.load_task(tmp_path)
    assert task.labels == ("bad", "good")
    assert task.words("bert") == {"bad": ("terrible",), "good": ("great", "fine")}
    line = re.search(r"with `(\{.*?\})`\son a line", page.read_text())[1]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f"{line}\n" * 4)
    result = jpt.tune("builtin/bert-small", tmp_path, steps=2, batch_size=2, eval_batch_size=4)
    assert result.record["test"]["rows"] == 4


def test_every_key_of_a_task_file_is_documented() -> None:
    text = (ROOT / "docs" / "own-task.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in text and f"`[{key}]`" not in text] == []


LEAVES: dict[str, Any] = {}
for _name, _command in get_command(app).commands.items():
    _inner = _command.commands if isinstance(_command, TyperGroup) else {"": _command}
    LEAVES |= {f"{_name} {each}".strip(): leaf for each, leaf in _inner.items()}
GROUPS = {name.split()[0] for name in LEAVES if " " in name}


def options_of(command: Any) -> set[str]:
    of_each = ({*each.opts, *each.secondary_opts} for each in command.params)
    return {"--help"}.union(*of_each)


OPTIONS = {"--version"}.union(*map(options_of, LEAVES.values()))
# Options of the authors' code, in from-the-paper.md.
THEIRS = {"--activate_neuron", "--gpu", "--local_rank", "--model_prompt", "--replacing_prompt"}


def command_lines(page: Path) -> Iterator[str]:
    for text in (*(line for block in blocks(page, "") for line in lines(block)), *spans(page)):
        for part in re.split(r"\s*(?:&&|\||;)\s*", text):
            found = re.search(r'(?:^|[\s="])(jpt [a-z].*?)"?$', part)
            if found:
                yield found[1]


def lines(block: str) -> list[str]:
    # Without the files that a block writes.
    block = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.DOTALL | re.MULTILINE)
    return block.replace("\\\n", " ").splitlines()


def assert_command(line: str) -> str | None:
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    name = " ".join(words[:2]) if words[0] in GROUPS else words[0]
    if name in GROUPS:
        return None
    assert name in LEAVES, f"{line!r}: there is no jpt {name}"
    wrong = {word for word in words if word.startswith("--")} - options_of(LEAVES[name])
    assert not wrong, (line, wrong)
    return name


@named(PAGES)
def test_commands_options_and_public_names_exist(page: Path) -> None:
    for line in command_lines(page):
        assert_command(line)
    for span in spans(page):
        if span.startswith("--"):
            assert span.split()[0] in OPTIONS | THEIRS, span
        for name in re.findall(r"^jpt\.(\w+)", span):
            assert name in jpt.__all__, span


def test_a_wrong_line_is_caught() -> None:
    for line in ("jpt tuna", "jpt tune --stepz 3", "jpt mix blend", "jpt report a --mesh x"):
        with pytest.raises(AssertionError):
            assert_command(line)
    assert assert_command("jpt project apply --out a") == "project apply"


def test_every_command_is_in_the_readme_and_has_a_page() -> None:
    # The index of docs/ names the command and a page that shows it.
    index = (ROOT / "docs" / "README.md").read_text()
    rows = [line for line in index.splitlines() if line.startswith("| `jpt")]
    for name in LEAVES:
        row = next((row for row in rows if f"`jpt {name}`" in row), None)
        assert row is not None, f"docs/README.md has no row for jpt {name}"
        targets = re.findall(r"\(([\w.-]+\.md)", row)
        texts = [(ROOT / "docs" / target).read_text() for target in targets]
        assert any(f"jpt {name}" in text for text in texts), (name, targets)
    shown = {line.split()[1] for line in command_lines(ROOT / "README.md")}
    assert shown == set(get_command(app).commands)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page).lower(), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().replace(" ", "-") for heading in headings}


@named(ALL_PAGES)
def test_links_lead_somewhere_and_no_placeholder_or_local_path_is_left(page: Path) -> None:
    for word in ("PLACEHOLDER", "TODO", "/work", "/tmp", "/root"):
        assert word not in page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path)
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_citation_and_changelog_have_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(jpt.__version__)}\]", changelog, re.MULTILINE)
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert found["version"] == jpt.__version__ and found["license"] == "Apache-2.0"
    assert found["message"] and found["title"] and found["authors"]
    (paper,) = found["references"]
    assert len(paper["authors"]) == 13 and paper["year"] == 2022
    assert {"type": "other", "value": "arXiv:2111.06719"}.items() <= paper["identifiers"][0].items()


FILE = ROOT / "docs" / "notebooks" / "prompt_transfer.ipynb"
TUNED = ("imdb_first_person", "imdb_number", "rotten_tomatoes", "imdb_ending")
MAJORITY = 0.5


class KernelOfTests(AsyncKernelManager):
    # Runs cells with the Python of the tests, whichever kernels are installed.
    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python of the tests", language="python")


def assert_outputs(notebook: nbformat.NotebookNode) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.get("name", output.output_type) for output in outputs}
    assert kinds <= {"stdout", "display_data"}, kinds
    text = "".join(output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2

    for name in TUNED:
        found = re.search(rf"builtin/{name} on builtin/bert-small: test accuracy (\S+)", text)
        assert float(found[1]) > MAJORITY + 0.05, name
        assert re.search(rf"^{name} .*\d\*", text, re.MULTILINE), "the in-task prompt has no star"
    # Overlap is 1 with itself and partial with other prompts.
    overlaps = re.findall(rf"^({'|'.join(TUNED)}) +((?:\d\.\d{{3}} ?){{4}})$", text, re.MULTILINE)
    for row, (_, values) in enumerate(overlaps[-4:]):
        numbers = [float(value) for value in values.split()]
        assert numbers.pop(row) == 1 and all(0 < number < 1 for number in numbers)
    shares = [float(x) for x in re.findall(r"type: (\S+) of the in-task prompt's score", text)]
    assert len(shares) == 2 and -0.2 < shares[1] < shares[0] < 1.2
    ranks = re.findall(r"Spearman without in-task prompts: (\S+)", text)
    assert len(ranks) == 3 and all(-1 <= float(rank) <= 1 for rank in ranks)
    projected, untrained = map(float, re.findall(r"^\w.*: (\S+) on test", text, re.MULTILINE))
    assert projected > untrained and projected > MAJORITY + 0.05


def test_the_saved_notebook_is_complete() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    assert_outputs(notebook)
    assert not re.search(r"/(tmp|home|root|work)/", FILE.read_text(encoding="utf-8"))


@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    notebook = nbformat.read(FILE, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, km=KernelOfTests(), timeout=1200, resources=resources).execute()
    assert_outputs(notebook)
    assert list(tmp_path.iterdir()) == []


PAGE = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
BLOCKS = _BLOCK.findall(PAGE)
TYPED = [text for language, text in BLOCKS if not language and not text.startswith("pip ")]


def run_block(block: str, folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # An address where nothing answers, so that any use of the network fails at once.
    offline = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "PATH": path}
    shell, env = ["bash", "-euo", "pipefail", "-c", block], {**os.environ, **offline}
    run = subprocess.run(shell, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, f"{block}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    return run.stdout


def test_every_command_of_the_page_is_run() -> None:
    commands = re.findall(r"^jpt \S+", "".join(TYPED), re.MULTILINE)
    assert len(commands) == len(re.findall(r"^jpt \S+", PAGE, re.MULTILINE)) > 10
    assert all(language == "text" for language, text in BLOCKS if text not in TYPED and language)


@pytest.mark.long
def test_getting_started_works_in_an_empty_folder(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    printed = "".join(run_block(block, tmp_path) for block in TYPED)
    assert "all checks passed" in printed and "absent = 'without' (386)" in printed
    study = tmp_path / "study"
    for name in TUNED:
        test = json.loads((study / "prompts" / name / "result.json").read_text())["test"]
        assert test["accuracy"] > test["majority"] + 0.05, (name, test)
        assert f"builtin/{name} on builtin/bert-small: test accuracy" in printed
    matrix = (study / "transfer.csv").read_text().splitlines()
    assert len(matrix) == 1 + 4 * (4 + 2)  # four prompts, an untrained one and none
    for file in ("relative.csv", "neurons.npz", "indicators.csv", "correlation.json"):
        assert (study / file).stat().st_size > 0
    assert "All 4 in-task prompts score above chance" in printed
    page = (study / "report.html").read_text()
    assert all(name in page for name in TUNED)
    assert "[good] a film to love" in printed
    for run in ("mood", "warm"):
        record = json.loads((tmp_path / "runs" / run / "result.json").read_text())
        assert record["validation"]["accuracy"] > record["validation"]["majority"], run
    assert re.search(r"^mood validation: accuracy \S+ over 4 rows", printed, re.MULTILINE)
