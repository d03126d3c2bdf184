"""The notebook of docs/ runs from its first cell to its last, and what is saved in it is whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.conftest import ROOT

FILE = ROOT / "docs" / "notebooks" / "prompt_transfer.ipynb"
TUNED = ("imdb_first_person", "imdb_number", "rotten_tomatoes", "imdb_ending")
MAJORITY = 0.5


class OwnKernel(AsyncKernelManager):
    """Runs cells with the Python of the tests, whatever kernels the machine knows."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python of the tests", language="python")


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def assert_told(notebook: nbformat.NotebookNode) -> None:
    """Asserts that every cell ran and that the outputs say what the text around them claims."""
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
        assert re.search(rf"^{name} .*\d\*", text, re.MULTILINE), "its own prompt is not marked"
    # A prompt's neurons are its own, and those of another overlap with them in part.
    overlaps = re.findall(rf"^({'|'.join(TUNED)}) +((?:\d\.\d{{3}} ?){{4}})$", text, re.MULTILINE)
    for row, (_, values) in enumerate(overlaps[-4:]):
        numbers = [float(value) for value in values.split()]
        assert numbers.pop(row) == 1 and all(0 < number < 1 for number in numbers)
    shares = [float(x) for x in re.findall(r"type: (\S+) of the own prompt's score", text)]
    assert len(shares) == 2 and all(0.4 < share < 1.2 for share in shares)
    ranks = re.findall(r"Spearman, own prompts left out: (\S+)", text)
    assert len(ranks) == 3 and all(-1 <= float(rank) <= 1 for rank in ranks)
    projected, untrained = map(float, re.findall(r"^\w.*: (\S+) on test", text, re.MULTILINE))
    assert projected > untrained and projected > MAJORITY + 0.05


def test_what_is_saved_is_whole() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert_told(notebook)
    assert not re.search(r"/(tmp|home|root|work)/", FILE.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, in an empty folder, with a kernel that knows nothing yet."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    notebook = read_notebook()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, km=OwnKernel(), timeout=1200, resources=place).execute()
    assert_told(notebook)
    assert list(tmp_path.iterdir()) == []
