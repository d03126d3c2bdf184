"""Rules for rows: labels by number, tables, repeated keys, odd texts, splits that share rows."""

import csv
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

import jpt
from jpt.data.rows import data_warnings, read_rows, with_rows
from jpt.errors import DataWarning, InputError
from jpt.tasks.catalog import CATALOG, load_task
from jpt.tasks.task import Task
from jpt.testing import write_tiny_backbone
from tests.helpers.files import GENERATIVE, SENTIMENT, WRITERS, refusal
from tests.helpers.toys import json_lines, source_prompt, write_task

pytestmark = pytest.mark.plain_programs

WORDS = ("good", "bad", "dull", "bright")  # of the tiny vocabulary
TWO, FOUR = ("bad", "good"), ("billing", "bug", "account", "feature")


def task_of(*labels: str) -> Task:
    words = {"default": dict(zip(labels, WORDS, strict=False))}
    return Task("tickets", "support", ("text",), labels, {"encoder": ("{text}",)}, words)


def rows_of(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"a film {number}", "label": label} for number, label in enumerate(labels)]


def labels_read(task: Task, *labels: Any) -> list[str]:
    given = with_rows(task, {"train": rows_of(*labels)})
    return [row["label"] for row in read_rows(given, "train")]


def write_own(folder: Path, name: str, data: bytes | str, labels: tuple = TWO) -> Path:
    folder.mkdir()
    words = "\n".join(f'"{of}" = "{word}"' for of, word in zip(labels, WORDS, strict=False))
    toml = f'type = "support"\nfields = ["text"]\nlabels = {json.dumps(labels)}\n'
    (folder / "task.toml").write_text(f"{toml}[label_words]\n{words}\n")
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def write_tiny(folder: Path, kind: str = "bert") -> Path:
    write_tiny_backbone(folder, kind)
    (folder / "tuning.json").write_text('{"length": 4, "max_tokens": 40}')
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone whose vocabulary has the label words of laptop, too."""
    folder = write_tiny(tmp_path_factory.mktemp("backbone") / "bert")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    for word in ("negative", "moderate", "positive", "conflict"):
        content["model"]["vocab"][word] = len(content["model"]["vocab"])
    file.write_text(json.dumps(content))
    return folder


Balance = Callable[..., tuple[dict[str, int], list[str]]]


@pytest.fixture
def balance(run: Callable[..., Any], backbone: Path) -> Balance:
    """Read a task by `jpt tasks`; return its train rows by label, and the warnings."""

    def read(task: object, *options: object) -> tuple[dict[str, int], list[str]]:
        code, out, err = run("tasks", task, "--backbone", backbone, "--json", *options)
        assert code == 0, err
        found = [line.removeprefix("warning: ") for line in err.splitlines() if "warning: " in line]
        return json.loads(out.splitlines()[-1])["balance"], found

    return read


@pytest.fixture
def refused(run: Callable[..., Any], backbone: Path) -> Callable[..., None]:
    """Expect `jpt tasks` to refuse a task with one line."""

    def read(message: str, task: object, *options: object) -> None:
        code, out, err = run("tasks", task, "--backbone", backbone, *options)
        assert (code, out, err[:5]) == (2, "", "jpt: ")
        with refusal(message):
            raise InputError(err.removesuffix("\n"))

    return read


# --- Labels by number


@pytest.mark.parametrize("suffix", WRITERS)
def test_positions_and_rows_without_a_label_in_every_format(
    suffix, tmp_path: Path, balance: Balance
) -> None:
    rows = rows_of(0, 1, 2, 3, 3, 1)
    data = WRITERS[suffix](rows)
    found, lines = balance(write_own(tmp_path / "own", f"train{suffix}", data, FOUR))
    assert found == {"billing": 1, "bug": 2, "account": 1, "feature": 2} and not lines
    none = "" if suffix in (".csv", ".tsv") else None
    data = WRITERS[suffix](rows_of(0, none, 1, -1, 1, none))
    found, (line,) = balance(folder := write_own(tmp_path / "none", f"train{suffix}", data))
    place = ", row 2" if suffix in (".json", ".parquet") else f":{2 + (suffix != '.jsonl')}"
    cause = "no label (empty, null, NaN or -1), as in 3 of 6 rows, which are dropped"
    assert found == {"bad": 1, "good": 2}
    assert line == f"{folder}/train{suffix}{place}: {cause}"


@pytest.mark.parametrize(
    ("labels", "column", "expected"),
    [
        (TWO, ["1.0", "0.0", "good", "1", "TRUE", "false"], {"bad": 2, "good": 4}),
        ((1, 2, 3), ["1", "2", "3", "3.0"], {"1": 1, "2": 1, "3": 2}),  # the labels themselves
        ((-1, 0, 1), ["-1", "0", "1.0", "-1.0"], {"-1": 2, "0": 1, "1": 1}),
        (TWO, [0, 1, 2], r"csv:4: label '2' is not .*; class numbers: 0 bad, 1 good$"),
        ((1, 2, 3), [1, 2, 0], r"csv:4: label '0' .*; as labels are numbers, a number is a label"),
        (("yes", "no"), [1, 0], r"csv:2: label '1' .*; 1 could mean 'yes', or class 1, which is"),
        (("true", "false", "open"), [0], r"csv:2: label '0' .*; 1 could mean 'true', or class 1"),
        (("a", "b", "c"), ["a", "True"], r"csv:3: label 'True' .*; class numbers: 0 a, 1 b, 2 c"),
        (("neg", "so", "pos"), [0, 1, -1], r"csv:4: label -1 could .* has the number of pos;"),
        (TWO, [1, -1, 1], r"csv:3: label -1 could mean no label or a class, .* number of bad; wr"),
        (TWO, ["''", "bad"], "csv:2: label \"''\" is not a label"),
        (TWO, ["NaN", "null"], r"train\.csv has 2 rows, but no label; task own needs at least one"),
    ],
)
def test_numbers_in_a_table(labels, column, expected, tmp_path, balance: Balance, refused) -> None:
    text = "text,label\n" + "".join(f"a film,{label}\n" for label in column)
    folder = write_own(tmp_path / "own", "train.csv", text, labels)
    if isinstance(expected, str):
        refused(expected, folder)
    else:
        assert balance(folder)[0] == expected


@pytest.mark.parametrize("name", ["laptop", "restaurant"])
def test_the_hubs_signs_in_a_folder(name: str, tmp_path: Path, balance: Balance, refused) -> None:
    rows = [{"text": "a film", "aspect": "it", "label": n} for n in (-1, 0, 1, 1, "negative")]
    (tmp_path / "train.jsonl").write_text(json_lines(rows))
    found, lines = balance(name, "--data", tmp_path)
    assert found == {"negative": 2, "neutral": 1, "positive": 2, "conflict": 0} and not lines
    # The paper's own numbers are others; a 2 tells them apart.
    (tmp_path / "train.jsonl").write_text(json_lines([{**rows[0], "label": 2}]))
    refused("class numbers: -1 negative, 0 neutral, 1 positive", name, "--data", tmp_path)


NONE = (None, float("nan"), "", "  ", "nan", "null", "None", "N/A", pd.NA, np.float32("nan"))
MINUS_ONE = (-1, "-1", -1.0, "-1.0", np.int8(-1), Decimal(-1))


def test_every_form_of_no_label() -> None:
    for value in (*NONE, Decimal("NaN"), *MINUS_ONE):
        for task in (task_of(*FOUR), task_of("0", "1"), CATALOG["mnli"], CATALOG["sst2"]):
            assert task.is_unlabelled(value) and task.label_of(value) is None, repr(value)
    for value in MINUS_ONE:
        assert task_of("-1", "1").label_of(value) == "-1"
        assert CATALOG["laptop"].label_of(value) == "negative"
    for value in ("None", "nan", "N/A"):  # labels, or nearly: refused, not dropped
        assert task_of("None", "nan", "N/A").label_of(value) == value
        assert not task_of("NONE", "NaN", "n/a").is_unlabelled(value)
    assert task_of("None", "nan").is_unlabelled(None)


def test_tables_of_pandas_and_labels_that_mean_the_same() -> None:
    for kind in (float, "Int64"):
        column = pd.Series([0, 1, None, 1, 0], dtype=kind).tolist()
        with pytest.warns(DataWarning, match="^rows given for train, row 3: no label .* 1 of 5"):
            assert labels_read(task_of(*TWO), *column) == ["bad", "good", "good", "bad"]
    for labels, message in (
        (("1", "1.0"), "labels '1' and '1.0' of task tickets mean the same in the data; remove"),
        (("True", "TRUE"), "labels 'True' and 'TRUE' of task tickets mean the same"),
        ((0, 1), "label 0 of task tickets is of type int; write it as text, '0'"),
    ):
        with refusal(message):
            task_of(*labels)


# --- Tables

STRAY = {
    "at the start of one row and the end of another": (
        ('"a fine film', "1"), ("a dull film", "0"), ("the bright film", "1"),
        ('it was the end"', "0"), ("good", "1"),
    ),
    "alone in a cell": (("a", "1"), ('"', "0"), ("b", "1"), ('"', "1"), ("c", "0")),
    "never closed": (("a", "1"), ('"b', "0"), ("c", "1")),
    "around a word at the start": (('"Great" film', "1"), ("b", "0"), ('"so" what', "1")),
    "opened in many rows": (('"a', "1"), ('"b', "0"), ('c"', "1"), ('"d', "1"), ('e"', "0")),
    "in the middle": (('a 5" screen', "1"), ("b", "0"), ('a "fine" film', "1")),
    "in the only row": (('"a', "1"),),
}  # fmt: skip


def table(rows: tuple[tuple[str, str], ...], delimiter: str = "\t") -> str:
    return "\n".join(delimiter.join(row) for row in (("text", "label"), *rows)) + "\n"


def read_table(folder: Path, text: str, suffix: str, task: Task = SENTIMENT) -> list[dict]:
    (folder / f"train{suffix}").write_text(text, encoding="utf-8", newline="")
    return read_rows(replace(task, folder=folder, files={"train": f"train{suffix}"}), "train")


@pytest.mark.parametrize("rows", STRAY.values(), ids=STRAY)
def test_stray_quotes_in_tsv_are_characters(rows, tmp_path: Path) -> None:
    expected = [{"text": text, "label": SENTIMENT.labels[int(label)]} for text, label in rows]
    for end in ("\n", "\r\n", "\r"):
        assert read_table(tmp_path, table(rows).replace("\n", end), ".tsv") == expected


@pytest.mark.parametrize("name", list(STRAY)[:3])
def test_stray_quotes_through_the_command_line(name, tmp_path, balance: Balance, refused) -> None:
    rows = STRAY[name]
    ones = sum(int(label) for _, label in rows)
    folder = write_own(tmp_path / "tsv", "train.tsv", table(rows))
    assert balance(folder) == ({"bad": len(rows) - ones, "good": ones}, [])
    message = r"train\.csv:[23]: (a quote opens here and closes in line 5, but lines [23] and 5 are"
    message += " rows of their own|unclosed quote); double each quote within a cell and put the"
    refused(message, write_own(tmp_path / "csv", "train.csv", table(rows, ",")))


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_pandas_writes_is_read_back(delimiter, quoting, tmp_path: Path) -> None:
    texts = ['a "fine" film', '"quoted"', "two\nlines", 'one, two\t"three"\r\nfour', '"', '""', "x"]
    texts += ["fine,\ngreat,\nfilm", "so, 1\nso", "a\tb\nc"]
    frame = pd.DataFrame({"text": texts, "label": ["positive", "negative"] * 5})
    text = frame.to_csv(sep=delimiter, quoting=quoting, index=False)
    suffix = ".csv" if delimiter == "," else ".tsv"
    assert read_table(tmp_path, text, suffix) == frame.to_dict("records")


PAIRS = replace(SENTIMENT, fields=("a", "b"), templates={"encoder": ("{a}", "{b}")})
WIDE = 'a\tb\tlabel\n"one\ttwo"\t1\nthree\t"four\t0\nfive\tsix"\t1\n'
ASKED = 'question\tanswers\n"who\tme\nwhere\there\nwhen"\tnow\n'
MULTILINE = 'question\tanswers\n"who\nis it?"\tme\n"where\there"\tthere\n'
SWALLOWED = r"csv:2: a quote opens here and closes in line 4, but lines 2 and 4 are rows of their"
NO_LABEL = 'text,label\n"a fine film,\na dull film,0\nthe end",0\n'
NO_ROW = 'text\tlabel\n"a film\t1\nno label\nthe end"\t0\n'


@pytest.mark.parametrize(
    ("task", "suffix", "text", "expected"),
    [
        (PAIRS, ".tsv", WIDE, [['"one', 'two"'], ["three", '"four'], ["five", 'six"']]),
        (GENERATIVE, ".tsv", ASKED, [['"who'], ["where"], ['when"']]),
        (GENERATIVE, ".tsv", MULTILINE, [["who\nis it?"], ["where\there"]]),
        (GENERATIVE, ".csv", ASKED.replace("\t", ","), SWALLOWED),
        (SENTIMENT, ".csv", NO_LABEL, SWALLOWED),
        (SENTIMENT, ".tsv", NO_ROW, r"tsv:3: expected 2 cells, got 1; is a delimiter missing\?"),
    ],
)
def test_stray_quotes_of_other_tables(task, suffix, text, expected, tmp_path: Path) -> None:
    if isinstance(expected, str):
        with refusal(expected):
            read_table(tmp_path, text, suffix, task)
    else:
        rows = read_table(tmp_path, text, suffix, task)
        assert [[row[name] for name in task.fields] for row in rows] == expected


# --- Keys that are given twice, texts without tokens

TWICE = '{"text": "a", "label": "good", "label": "bad"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", TWICE, r"train\.jsonl:1: key 'label' is given twice, as 'good' and 'bad'"),
        ("train.json", f"[{TWICE}]", r"train\.json: key 'label' is given twice, as 'good' and"),
        ("train.jsonl", '{"text": "a", "x": {"y": 1, "y": 2}, "label": "bad"}', "key 'y' is giv"),
        ("task.toml", 'type = "a"\ntype = "b"\n', "task.toml is not TOML: .*line 2"),
        ("train.csv", "text,label,label\na,good,bad\n", "2 columns are named 'label'; rename"),
        *(
            ("train.jsonl", json_lines([{"text": text, "label": "bad"}]), "l:1: field 'text' " + of)
            for text, of in (
                ("\u200b", r"has no visible character, '\\u200b'; expected text"),
                ("\u200b \ufeff\u200d", "has no visible character"),
                ("\x00\x07", "has no visible character"),
                ("\ufe0f\u3164", "has no visible character"),
                (" \u00a0", "is empty"),
            )
        ),
    ],
)  # fmt: skip
def test_rows_with_a_key_twice_or_nothing_to_read(name, content, message, tmp_path, refused):
    folder = write_own(tmp_path / "own", name if name != "task.toml" else "x", content)
    (folder / name).write_text(content)
    refused(message, folder)


def test_configs_and_cards_with_a_key_twice(tmp_path: Path, run, refused) -> None:
    from jpt.io.tensors import write_safetensors

    folder = write_tiny(tmp_path / "bert")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[:-1] + ', "hidden_size": 48}')
    message = "config.json.* key 'hidden_size' is given twice, as 32 and 48"
    refused(message, write_task(tmp_path / "mood"), "--backbone", folder)
    card = '{"backbone": "a", "task": "mood", "task": "other"}'
    file = tmp_path / "prompt.safetensors"
    write_safetensors(file, {"prompt": np.zeros((2, 32), "f4")}, {"card": card})
    code, _, err = run("evaluate", "--prompt", file, "--task", "sst2")
    assert code == 2 and "prompt.safetensors: key 'task' is given twice, as 'mood' and 'oth" in err


def test_texts_of_which_the_tokenizer_keeps_nothing(tmp_path: Path, refused, backbone) -> None:
    from tokenizers import Tokenizer, normalizers

    folder = write_tiny(tmp_path / "bert")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Replace("~", "")
    tokenizer.save(str(folder / "tokenizer.json"))
    task = write_task(
        tmp_path / "mood", train=json_lines([*rows_of("bad"), {"text": "~", "label": 1}])
    )
    message = (
        "task mood, row 2: expected a token in every text, but the tokenizer finds none in '~'"
    )
    refused(message, task, "--backbone", folder)


# --- Special tokens in rows


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_special_tokens_in_rows_change_nothing_but_the_text(kind, tmp_path: Path, run) -> None:
    folder = write_tiny(tmp_path / kind, kind)
    texts = ["a fine [MASK] film", "a </s> film <extra_id_0>", "[CLS][PAD] a film"]
    rows = json_lines({"text": text, "label": "good"} for text in texts)
    task = write_task(tmp_path / "mood", train=rows)
    code, out, _ = run("tasks", task, "--backbone", folder)
    assert code == 0
    lines = out.splitlines()
    shown = [lines[n + 1].split() for n, line in enumerate(lines) if line.startswith("  row ")]
    first, last = {"bert": (1, 1), "t5": (0, 1), "llama": (0, 0)}[kind]
    for tokens in shown:
        inner = tokens[first : len(tokens) - last]
        assert {"[MASK]", "</s>", "<extra_id_0>", "[CLS]", "[PAD]"}.isdisjoint(inner), tokens
        assert inner.count("[UNK]") >= 3  # brackets and names are no words of this vocabulary


def test_generate_keeps_the_sentinels_of_its_texts(tmp_path: Path) -> None:
    from jpt.recipes.generate import _encode

    model = jpt.load_backbone(write_tiny_backbone(tmp_path / "t5", "t5"))
    (ids,) = _encode(["a <extra_id_0> film"], model)
    assert ids.count(model.tokenizer.find("<extra_id_0>")) == 1


# --- Splits that share rows


def texts_of(*texts: str, label: str = "good") -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text in texts]


SPLITS = {
    "train": [*texts_of("a fine film", "a great film"), *texts_of("a dull film", label="bad")],
    "validation": [*texts_of("a lovely film"), *texts_of("an awful film", label="bad")],
    "test": [*texts_of("the bright film"), *texts_of("the boring film", label="bad")],
}
TRAIN, VALIDATION, TEST = SPLITS.values()
IN_TRAIN = "have texts that are also in train, so their scores are too high"
CHOSEN = "have texts that are also in validation, so the prompt is chosen by rows that it is then"
CHOSEN += " tested on"
CASES = {
    "nothing": ({}, []),
    "one class": (
        {"train": texts_of("a", label="bad"), "validation": texts_of("the", "film")},
        ["all 1 train rows have the label 'bad'; nothing can be learned from one class"],
    ),
    "both in train, but for outer spaces": (
        {"validation": [*VALIDATION, TRAIN[0]], "test": [TRAIN[2], *texts_of(" a great film ")]},
        [f"1 of 3 validation rows and 2 of 2 test rows {IN_TRAIN}"],
    ),
    "test is validation in another order, and has one more": (
        {"test": [*VALIDATION[::-1], TEST[0]]},
        [f"2 of 3 test rows {CHOSEN}"],
    ),
    "two labels in train": (
        {"train": [*TRAIN, *texts_of("a fine film", label="bad")]},
        ["1 text has more than one label, first 'a fine film' (bad, good)"],
    ),
    "other labels in test": (
        {"test": [*TEST, *texts_of("a fine film", "a great film", label="bad")]},
        [
            f"2 of 4 test rows {IN_TRAIN}",
            "2 texts have more than one label, first 'a fine film' (bad, good)",
        ],
    ),
}
OPTIONS = ("--steps", 2, "--max-tokens", 12, "--batch-size", 2)


@pytest.fixture
def warned(run, backbone: Path, tmp_path: Path, monkeypatch) -> Callable[..., list[str]]:
    """Return the warnings of a command, stopped before anything compiles."""

    def stop(*arguments: object, **options: object) -> None:
        raise InputError("stopped")

    def start(folder: Path, *command: object) -> list[str]:
        monkeypatch.setattr("jpt.tuning.tune.fit", stop)
        monkeypatch.setattr("jpt.transfer.projector.fit", stop)
        command = command or ("tune", "--backbone", backbone, "--length", 2, "--task", folder)
        _, _, err = run(*command, "--out", tmp_path / "run", *OPTIONS)
        assert err.splitlines()[-1] == "jpt: stopped"
        return [line for line in err.splitlines() if line.startswith("warning:")]

    return start


@pytest.mark.parametrize(("changes", "expected"), CASES.values(), ids=CASES)
def test_each_kind_is_one_line_of_tune(changes, expected, tmp_path: Path, warned) -> None:
    files = {name: json_lines(of) for name, of in {**SPLITS, **changes}.items()}
    expected = [f"warning: task mood: {line}" for line in expected]
    assert warned(write_task(tmp_path / "mood", **files)) == expected


def test_the_same_file_as_validation_and_test(tmp_path: Path, warned) -> None:
    folder = write_task(tmp_path / "mood", train=json_lines(TRAIN), test=json_lines(TEST))
    toml = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(toml + '[files]\nvalidation = "test.jsonl"\n')
    assert warned(folder) == [f"warning: task mood: 2 of 2 test rows {CHOSEN}"]


def test_a_projector_is_trained_on_the_same_rows(tmp_path: Path, backbone: Path, warned) -> None:
    folder = write_task(tmp_path / "mood")  # the same rows in each split
    (tmp_path / "prompts").mkdir()
    jpt.save_prompt(tmp_path / "prompts" / "mood.safetensors", source_prompt(1, "mood", rows=2))
    given = ("--sources", tmp_path / "prompts", "--target-backbone", backbone, "--tasks", folder)
    found = warned(folder, "project", "train", *given, "--bottleneck", 4)
    assert found == [f"warning: task mood: 42 of 42 validation rows {IN_TRAIN}"]


def test_warnings_are_shown_once_and_json_stays_json(tmp_path: Path, run, backbone: Path) -> None:
    folder = write_task(tmp_path / "mood")
    options = (*OPTIONS, "--length", 2, "--json", "--seeds", "0,1", "--out", tmp_path / "runs")
    code, out, err = run("tune", "--backbone", backbone, "--task", folder, *options)
    assert code == 0 and json.loads(out.splitlines()[-1])["task"] == "mood"
    line = f"warning: task mood: 42 of 42 validation rows and 42 of 42 test rows {IN_TRAIN}\n"
    assert err.count(line) == 1


def test_in_python_it_is_a_warning_of_the_callers_line(backbone: Path, monkeypatch) -> None:
    monkeypatch.setattr("jpt.tuning.tune.fit", Mock(side_effect=InputError("stopped")))
    options: dict[str, Any] = {"steps": 1, "length": 2, "max_tokens": 12, "batch_size": 2}
    data = {"train": texts_of("a", "b"), "validation": VALIDATION}
    with (
        pytest.warns(DataWarning, match="all 2 train rows have the label 'good'") as caught,
        pytest.raises(InputError, match="stopped"),
    ):
        jpt.tune(backbone, task_of(*TWO), data=data, **options)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="stopped"):
            jpt.tune(backbone, task_of(*TWO), data={**data, "train": TRAIN}, **options)


def test_pairs_and_answers() -> None:
    pair = CATALOG["mnli"]
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}
    other = {**row, "hypothesis": "It is dry.", "label": "contradiction"}
    turned = {**row, "premise": row["hypothesis"], "hypothesis": row["premise"]}
    assert not list(data_warnings({"train": [row, other], "test": [turned]}, pair))
    (found,) = data_warnings({"train": [row, other], "test": [turned, row]}, pair)
    assert found.startswith("task mnli: 1 of 2 test rows have texts that are also in train")
    rows = [{"question": "who", "answers": ("a",)}, {"question": "who", "answers": ("b",)}]
    (found,) = data_warnings({"train": rows, "validation": rows}, GENERATIVE)
    assert "2 of 2 validation rows have texts that are also in train" in found


BUILTIN = pytest.param("builtin/rotten_tomatoes", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [BUILTIN, "laptop", "snli", "nq_open"])
def test_real_rows_have_no_warning(name: str, reference_folder: Path) -> None:
    task = load_task(name if "/" in name else reference_folder / "data" / name)
    splits = {split: read_rows(task, split) for split in SPLITS}
    assert not list(data_warnings(splits, task))
    leaked = {**splits, "test": [*splits["test"], *splits["train"][:7]]}
    (found,) = data_warnings(leaked, task)
    assert f"7 of {len(leaked['test'])} test rows" in found
