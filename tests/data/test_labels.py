"""One rule for labels: names, numbers, truth values and none, from files, Python and the hub."""

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from jpt.data.rows import read_rows, with_rows
from jpt.errors import DataWarning, InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import Task
from jpt.testing import write_tiny_backbone
from tests.helpers.files import WRITERS, refusal

pytestmark = pytest.mark.plain_programs

WORDS = ("good", "bad", "dull", "bright")  # of the tiny vocabulary
TICKETS = ("billing", "bug", "account", "feature")


def task_of(*labels: str) -> Task:
    words = {"default": dict(zip(labels, WORDS, strict=False))}
    return Task("tickets", "support", ("text",), labels, {"encoder": ("{text}",)}, words)


def rows_of(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"a film {number}", "label": label} for number, label in enumerate(labels)]


def labels_read(task: Task, *labels: Any) -> list[str]:
    given = with_rows(task, {"train": rows_of(*labels)})
    return [row["label"] for row in read_rows(given, "train")]


def write_tickets(folder: Path, labels: list[Any], name: str, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    words = "\n".join(f'"{of}" = "{word}"' for of, word in zip(labels, WORDS, strict=False))
    toml = f'type = "support"\nfields = ["text"]\nlabels = {json.dumps(labels)}\n'
    (folder / "task.toml").write_text(f"{toml}[label_words]\n{words}\n")
    (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone whose vocabulary has the label words of laptop, too."""
    folder = write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "bert", "bert")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    for word in ("negative", "moderate", "positive", "conflict"):
        content["model"]["vocab"][word] = len(content["model"]["vocab"])
    file.write_text(json.dumps(content))
    (folder / "tuning.json").write_text('{"length": 4, "max_tokens": 30}')
    return folder


@pytest.fixture
def balance(run: Callable[..., Any], backbone: Path) -> Callable[..., Any]:
    """Read a task by `jpt tasks`; return its number of train rows by label, and the warnings."""

    def read(task: object, *options: object) -> tuple[dict[str, int], list[str]]:
        code, out, err = run("tasks", task, "--backbone", backbone, "--json", *options)
        assert code == 0, err
        warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
        return json.loads(out.splitlines()[-1])["balance"], warnings

    return read


# --- Through the command line


@pytest.mark.parametrize("suffix", WRITERS)
def test_class_numbers_of_ones_own_task_are_positions(suffix, tmp_path, balance) -> None:
    rows = rows_of(0, 1, 2, 3, 3, 1)
    folder = write_tickets(tmp_path / "own", list(TICKETS), f"train{suffix}", WRITERS[suffix](rows))
    found, _ = balance(folder)
    assert found == {"billing": 1, "bug": 2, "account": 1, "feature": 2}
    assert [row["label"] for row in rows] == [0, 1, 2, 3, 3, 1]


@pytest.mark.parametrize(
    ("labels", "cells", "expected"),
    [
        (["bad", "good"], ["1.0", "0.0", "good", "1"], {"bad": 1, "good": 3}),  # a column of floats
        (["bad", "good"], ["True", "FALSE", "true"], {"bad": 1, "good": 2}),
        ([1, 2, 3], ["1", "2", "3", "3.0"], {"1": 1, "2": 1, "3": 2}),  # numbers are the labels
        ([-1, 0, 1], ["-1", "0", "1.0", "-1.0"], {"-1": 2, "0": 1, "1": 1}),
    ],
)
def test_numbers_in_a_table(labels, cells, expected, tmp_path: Path, balance) -> None:
    text = "text,label\n" + "".join(f"a film,{cell}\n" for cell in cells)
    folder = write_tickets(tmp_path / "own", labels, "train.csv", text.encode())
    assert balance(folder)[0] == expected


@pytest.mark.parametrize(
    ("labels", "cells", "message"),
    [
        (["bad", "good"], [0, 1, 2], r"csv:4: label '2' .*; class numbers are positions in labels"),
        ([1, 2, 3], [1, 2, 0], r"csv:4: label '0' .*; as labels are numbers, a number is a label"),
        (["yes", "no"], [1, 0], r"csv:2: label '1' .*; 1 could mean 'yes', or class 1, which is"),
        (["true", "false"], [0, 1], r"csv:2: label '0' .*; 1 could mean 'true', or class 1, wh"),
        (["a", "b", "c"], ["a", "True"], r"csv:3: label 'True' .*; a truth value stands for cl"),
        (["neg", "neutral", "pos"], [0, 1, -1], r"csv:4: label -1 .* has the number of pos;"),
        (["bad", "good"], [1, -1, 1], r"csv:3: label -1 .* no row has the number of bad; write n"),
        (["bad", "good"], ["''", "bad"], "csv:2: label \"''\" is not a label"),
        (["bad", "good"], ["NaN", "null"], r"train\.csv: none of 2 rows has a label"),
    ],
)
def test_ambiguous_numbers_are_refused(labels, cells, message, tmp_path, run, backbone) -> None:
    text = "text,label\n" + "".join(f"a film,{cell}\n" for cell in cells)
    folder = write_tickets(tmp_path / "own", labels, "train.csv", text.encode())
    code, out, err = run("tasks", folder, "--backbone", backbone)
    assert (code, out) == (2, "")
    with refusal(message):
        raise InputError(err.removesuffix("\n"))


@pytest.mark.parametrize("name", ["laptop", "restaurant"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_the_hubs_signs_in_a_folder(name, suffix, tmp_path, balance, run, backbone) -> None:
    rows = [{"text": "a film", "aspect": "it", "label": n} for n in (-1, 0, 1, 1, "negative")]
    (tmp_path / f"train{suffix}").write_bytes(WRITERS[suffix](rows))
    found, warnings = balance(name, "--data", tmp_path)
    assert found == {"negative": 2, "neutral": 1, "positive": 2, "conflict": 0} and not warnings
    # The paper's own numbers are others; a 2 tells them apart.
    rows = [{**rows[0], "label": n} for n in (0, 1, 2)]
    (tmp_path / f"train{suffix}").write_bytes(WRITERS[suffix](rows))
    code, _, err = run("tasks", name, "--data", tmp_path, "--backbone", backbone)
    assert code == 2 and "class numbers are those of the hub: -1 negative, 0 neutral, 1 pos" in err


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_without_a_label_are_dropped_and_counted(suffix, tmp_path: Path, balance) -> None:
    none = "" if suffix in (".csv", ".tsv") else None
    labels = [0, none, 1, -1, 1, none] if suffix != ".parquet" else [0, None, 1, -1, 1, None]
    data = WRITERS[suffix](rows_of(*labels))
    folder = write_tickets(tmp_path / "own", ["bad", "good"], f"train{suffix}", data)
    found, warnings = balance(folder)
    assert found == {"bad": 1, "good": 2}
    place = "row 2" if suffix in (".json", ".parquet") else f"line {2 + (suffix != '.jsonl')}"
    assert warnings == [
        f"warning: {folder}/train{suffix}: 3 of 6 rows have no label (empty, null, NaN or -1) and "
        f"are dropped, first {place}"
    ]


# --- In Python


NONE = (None, float("nan"), "", "  ", "nan", "NaN", "null", "None", "N/A", pd.NA, pd.NaT)
NONE += (np.nan, np.float32("nan"), Decimal("NaN"), Decimal("sNaN"))
MINUS_ONE = (-1, "-1", -1.0, "-1.0", np.int8(-1), Decimal(-1))


@pytest.mark.parametrize("value", (*NONE, *MINUS_ONE), ids=repr)
def test_every_form_of_no_label(value: object) -> None:
    for task in (task_of(*TICKETS), task_of("0", "1"), CATALOG["mnli"], CATALOG["sst2"]):
        assert task.is_unlabelled(value) and task.label_of(value) is None


def test_what_is_a_label_or_nearly_one_is_not_dropped() -> None:
    for value in MINUS_ONE:
        assert task_of("-1", "1").label_of(value) == "-1"
        assert CATALOG["laptop"].label_of(value) == "negative"
        assert not task_of("-1", "1").is_unlabelled(value)
    for value in ("None", "nan", "N/A"):
        for task in (task_of("None", "nan", "N/A"), task_of("NONE", "NaN", "n/a")):
            assert not task.is_unlabelled(value)
            assert task.label_of(value) == (value if value in task.labels else None)


def test_labels_of_every_type_in_python() -> None:
    two, four = task_of("bad", "good"), task_of(*TICKETS)
    forms = (1, 1.0, "1", "1.0", "1.00", np.int64(1), np.float32(1), Decimal(1), np.str_("1"))
    assert labels_read(two, 0, *forms, True, np.True_, "True", "TRUE") == ["bad", *["good"] * 13]
    assert labels_read(four, 3, *forms, 2, 0) == ["feature", *["bug"] * 9, "account", "billing"]
    for value in (4, -2, 0.5, "0.5", "1,0", " 1", "1.", "٣x", float("inf"), [1], b"1", True):
        assert four.label_of(value) is None and not four.is_unlabelled(value)
    with pytest.warns(DataWarning, match="rows given for train: 2 of 5 .* first row 3"):
        assert labels_read(two, 0, 1, None, -1, "good") == ["bad", "good", "good"]
    with refusal(
        "rows given for train, row 2: label 4 is not a label of task tickets .* 3 feature"
    ):
        labels_read(four, 0, 4)
    with refusal("rows given for train, row 2: label -1 could mean no label or a class"):
        labels_read(two, 1, -1)
    assert labels_read(task_of("no", "yes"), True, 0) == ["yes", "no"]


def test_a_frame_of_pandas() -> None:
    frame = pd.DataFrame({"text": list("abcde"), "label": [0, 1, None, 1, 0]})
    assert frame["label"].dtype == float
    task = with_rows(task_of("bad", "good"), {"train": frame.to_dict("records")})
    with pytest.warns(DataWarning, match="1 of 5 rows have no label"):
        counted = Counter(row["label"] for row in read_rows(task, "train"))
    assert counted == {"bad": 2, "good": 2}
    frame["label"] = frame["label"].astype("Int64")
    task = with_rows(task_of("bad", "good"), {"train": frame.to_dict("records")})
    with pytest.warns(DataWarning, match="1 of 5 rows have no label"):
        assert len(read_rows(task, "train")) == 4


def test_class_names_of_a_data_set_of_the_library() -> None:
    import datasets

    def read(task: Task, names: list[str], *numbers: int) -> list[str]:
        classes = datasets.ClassLabel(names=names)
        features = datasets.Features({"text": datasets.Value("string"), "label": classes})
        rows = datasets.Dataset.from_list(rows_of(*numbers), features=features)
        return [row["label"] for row in read_rows(with_rows(task, {"train": rows}), "train")]

    two = task_of("bad", "good")
    assert read(two, ["good", "bad"], 0, 1) == ["good", "bad"]  # by name, not by position
    assert read(two, ["0", "1"], 0, 1) == ["bad", "good"]  # no names
    assert read(task_of("0", "1"), ["neg", "pos"], 0, 1) == ["0", "1"]
    with refusal(r"data name their classes pos, neg, .* tickets knows none \(bad, good\); rename"):
        read(two, ["pos", "neg"], 0, 1)
    with pytest.warns(DataWarning, match="1 of 3 rows have no label"):
        assert read(two, ["good", "bad"], 0, -1, 1) == ["good", "bad"]


def test_the_hubs_rows_are_read_by_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"text": "a", "aspect": "b", "label": label} for label in (-1, 0, 1, 1.0, "-1", None)]
    monkeypatch.setattr(datasets, "load_dataset", Mock(return_value=rows))
    monkeypatch.setattr("jpt.data.rows._is_reachable", lambda address: True)
    with pytest.warns(DataWarning, match="laptops test: 1 of 6 rows have no label"):
        labels = [row["label"] for row in read_rows(CATALOG["laptop"], "test")]
    given = with_rows(CATALOG["laptop"], {"test": rows})
    with pytest.warns(DataWarning, match="rows given for test: 1 of 6"):
        assert [row["label"] for row in read_rows(given, "test")] == labels
    assert labels == ["negative", "neutral", "positive", "positive", "negative"]


def test_labels_that_cannot_be_told_apart() -> None:
    with refusal("labels '1' and '1.0' of task tickets are the same number"):
        task_of("1", "1.0")
    with refusal("label 0 of task tickets is of type int; write it as text, '0'"):
        task_of(0, 1)  # type: ignore[arg-type]
