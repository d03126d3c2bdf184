"""task.toml: what it gives, and an error of one line for each way to get it wrong."""

from pathlib import Path

import pytest

from jpt.errors import InputError
from jpt.tasks.user import load_user_task

MINIMAL = """
type = "sentiment"
fields = ["text"]
labels = ["bad", "good"]

[label_words]
bad = "terrible"
good = "great"
"""


def write(folder: Path, text: str) -> Path:
    (folder / "task.toml").write_text(text, encoding="utf-8")
    return folder


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    task = load_user_task(write(tmp_path, MINIMAL))
    assert (task.name, task.type, task.folder) == (tmp_path.name, "sentiment", tmp_path)
    assert task.templates == {"encoder": ("{text}",)}
    assert task.labels == ("bad", "good")
    assert (task.metric, task.label_field, task.files) == ("accuracy", "label", {})


def test_everything_that_may_be_said(tmp_path: Path) -> None:
    text = """
name = "stance"
type = "nli"
fields = ["claim", "topic", "reply"]
labels = [0, 1]
template = ["{claim} ({topic})", "{reply}"]
metric = "f1_macro"
label_field = "gold"
label_words = {0 = "no", 1 = "yes", roberta = {1 = "true"}}
files = {train = "a/rows.jsonl"}
"""
    task = load_user_task(write(tmp_path, text))
    assert (task.name, task.metric, task.label_field) == ("stance", "f1_macro", "gold")
    assert task.templates == {"encoder": ("{claim} ({topic})", "{reply}")}
    assert task.words("roberta") == {"0": "no", "1": "true"}
    assert task.words("bert") == {"0": "no", "1": "yes"}
    assert task.label_of(1) == "1"
    assert task.files == {"train": "a/rows.jsonl"}


def test_two_fields_make_a_pair(tmp_path: Path) -> None:
    text = MINIMAL.replace('["text"]', '["question", "answer"]')
    task = load_user_task(write(tmp_path, text))
    assert task.templates["encoder"] == ("{question}", "{answer}")


def test_a_label_may_be_called_like_a_model(tmp_path: Path) -> None:
    text = MINIMAL.replace("bad", "bert")
    assert load_user_task(write(tmp_path, text)).words("bert")["bert"] == "terrible"


WRONG = {
    "not toml": ("type = \n", "is not TOML: .*line 1"),
    "unknown key": (MINIMAL.replace("type", "typ"), "unknown key 'typ'; did you mean type"),
    "no type": (MINIMAL.replace('type = "sentiment"', ""), "has no 'type'"),
    "no fields": (MINIMAL.replace('fields = ["text"]', ""), "has no 'fields'"),
    "no labels": (MINIMAL.replace('labels = ["bad", "good"]', ""), "has no 'labels'"),
    "no words": (MINIMAL.split("[label_words]")[0], "has no label words"),
    "word missing": (MINIMAL.replace('good = "great"', ""), "no label word for 'good'"),
    "word for no label": (MINIMAL + 'so = "fine"', "label word for 'so', which is none"),
    "word is a number": (MINIMAL.replace('"great"', "3"), "label word of 'good' is 3"),
    "word is a table": (
        MINIMAL.replace('good = "great"', "[label_words.good]"),
        "no label word for 'good'",
    ),
    "words are a text": (
        MINIMAL.split("[label_words]")[0] + 'label_words = "a"',
        r"label_words is 'a'; it must be a table \[label_words\]",
    ),
    "labels are a text": (MINIMAL.replace('["bad", "good"]', '"bad"'), "must be a list of texts"),
    "empty label": (MINIMAL.replace('"bad"', '""'), "labels is .* must be a list of texts"),
    "type is a number": (MINIMAL.replace('"sentiment"', "1"), "type is 1; it must be a text"),
    "one label": (MINIMAL.replace('["bad", "good"]', '["bad"]'), "label word for 'good'|1 labels"),
    "template": ('template = "{title}"' + MINIMAL, "names the field 'title'"),
    "broken template": ('template = "{text"' + MINIMAL, "template '{text' is broken"),
    "three fields": (MINIMAL.replace('["text"]', '["a", "b", "c"]'), "no 'template'"),
    "three segments": ('template = ["{text}", "a", "b"]' + MINIMAL, "3 segments; give 1 or 2"),
    "metric": ('metric = "rouge"' + MINIMAL, "metric 'rouge'"),
    "name": ('name = "a/b"' + MINIMAL, "use no slash"),
    "split": (MINIMAL + "[files]\ndev = 'a'", "unknown split 'dev'"),
    "file": (MINIMAL + "[files]\ntest = 1", "file of test is 1"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_definitions(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_user_task(write(tmp_path, text))
    assert str(tmp_path / "task.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_bytes(b'type = "caf\xe9"')
    with pytest.raises(InputError, match="is not UTF-8"):
        load_user_task(tmp_path)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "task.toml").mkdir()
    with pytest.raises(InputError, match="cannot read .*task.toml"):
        load_user_task(tmp_path)
