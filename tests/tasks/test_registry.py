"""Task arguments: names, folders, and what is neither."""

from pathlib import Path

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import load_task, task_names

DEFINITION = """
type = "sentiment"
fields = ["text"]
labels = ["bad", "good"]
label_words = {bad = "terrible", good = "great"}
"""


@pytest.mark.parametrize("name", task_names())
def test_every_name_finds_its_task(name: str) -> None:
    assert load_task(name).name == name


def test_data_gives_a_catalog_task_its_folder(tmp_path: Path) -> None:
    assert load_task("sst2").folder is None
    assert load_task("sst2", data=tmp_path).folder == tmp_path


def test_a_folder_named_like_a_catalog_task_takes_its_definition(tmp_path: Path) -> None:
    folder = tmp_path / "mnli"
    folder.mkdir()
    task = load_task(str(folder) + "/")
    assert (task.name, task.folder) == ("mnli", folder)
    assert task.labels == load_task("mnli").labels


def test_a_folder_with_a_definition_keeps_it_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "mnli"
    folder.mkdir()
    (folder / "task.toml").write_text(DEFINITION)
    assert load_task(folder).labels == ("bad", "good")
    assert load_task(folder, data=tmp_path).folder == tmp_path


def test_a_plain_word_is_a_name_even_where_a_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sst2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_task("sst2").folder is None
    assert load_task("./sst2").folder == Path("sst2")
    assert load_task(Path("sst2")).folder == Path("sst2")
    monkeypatch.chdir(tmp_path / "sst2")
    assert load_task(".").name == "sst2"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sst", "unknown task 'sst'; did you mean sst2"),
        ("builtin/imbd", "unknown task 'builtin/imbd'; did you mean builtin/imdb"),
        ("../nowhere/sst2", "folder ../nowhere/sst2 does not exist"),
        (Path("nowhere"), "folder nowhere does not exist"),
        ("", "unknown task ''"),
    ],
)
def test_names_that_nothing_has(argument: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_task(argument)


def test_a_folder_that_is_no_task(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(InputError, match="has no task.toml and 'mine' is no task of the catalog"):
        load_task(folder)


def test_a_file_is_no_task(tmp_path: Path) -> None:
    file = tmp_path / "task.toml"
    file.write_text(DEFINITION)
    with pytest.raises(InputError, match="is a file; give a folder"):
        load_task(file)


def test_builtin_tasks_take_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave --data .* out"):
        load_task("builtin/imdb", data=tmp_path)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_task("sst2", data=tmp_path / "none")
