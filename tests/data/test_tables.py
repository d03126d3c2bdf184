"""Stray quotes in tables, repeated JSON keys, texts without tokens, special tokens in rows."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jpt.data.rows import read_rows
from jpt.tasks.task import Task
from jpt.testing import write_tiny_backbone
from tests.helpers.files import GENERATIVE, SENTIMENT, refusal
from tests.helpers.toys import write_easy

pytestmark = pytest.mark.plain_programs


def read_table(folder: Path, text: str, suffix: str, task: Task = SENTIMENT) -> list[dict]:
    (folder / f"train{suffix}").write_text(text, encoding="utf-8", newline="")
    return read_rows(replace(task, folder=folder, files={"train": f"train{suffix}"}), "train")


def table(*rows: tuple[str, ...], delimiter: str = "\t", end: str = "\n") -> str:
    return end.join(delimiter.join(row) for row in (("text", "label"), *rows)) + end


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "bert", "bert")
    (folder / "tuning.json").write_text('{"length": 4, "max_tokens": 30}')
    return folder


@pytest.fixture
def refused(run: Callable[..., Any], backbone: Path) -> Callable[..., str]:
    """Return the one line with which `jpt tasks` refuses a task folder."""

    def read(folder: Path) -> str:
        code, out, err = run("tasks", folder, "--backbone", backbone)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    return read


# --- Quotes

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
}  # fmt: skip


@pytest.mark.parametrize("rows", STRAY.values(), ids=STRAY)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_stray_quotes_in_tsv_are_characters(rows, end: str, tmp_path: Path) -> None:
    read = read_table(tmp_path, table(*rows, end=end), ".tsv")
    assert [row["text"] for row in read] == [text for text, _ in rows]
    assert [SENTIMENT.labels[int(label)] for _, label in rows] == [row["label"] for row in read]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_csv_and_pandas_write_is_read_back(delimiter, quoting, tmp_path: Path) -> None:
    texts = ['a "fine" film', '"quoted"', "two\nlines", 'one, two\t"three"\r\nfour', '"', '""', "x"]
    frame = pd.DataFrame({"text": texts, "label": ["positive", "negative"] * 3 + ["positive"]})
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting)
    writer.writerow(frame.columns)
    writer.writerows(frame.itertuples(index=False))
    suffix = ".csv" if delimiter == "," else ".tsv"
    by_pandas = frame.to_csv(sep=delimiter, quoting=quoting, index=False)
    for text in (stream.getvalue(), by_pandas):
        assert read_table(tmp_path, text, suffix) == frame.to_dict("records")


def test_a_stray_quote_in_csv_is_refused_where_it_would_swallow_rows(tmp_path: Path) -> None:
    rows = STRAY["at the start of one row and the end of another"]
    with refusal(r"train\.csv:2: a quote opens here and closes in line 5, but lines 2 and 5 are"):
        read_table(tmp_path, table(*rows, delimiter=","), ".csv")
    with refusal(r"train\.csv:3: unclosed quote; double each quote"):
        read_table(tmp_path, table(*STRAY["never closed"], delimiter=","), ".csv")
    # Texts of several lines with commas are read as before.
    text = 'text,label\n"fine,\ngreat,\nfilm",1\n"so, 1\nso",0\n'
    read = [row["text"] for row in read_table(tmp_path, text, ".csv")]
    assert read == ["fine,\ngreat,\nfilm", "so, 1\nso"]


def test_stray_quotes_of_pairs_and_answers(tmp_path: Path) -> None:
    pair = replace(SENTIMENT, fields=("a", "b"), templates={"encoder": ("{a}", "{b}")})
    text = 'a\tb\tlabel\n"one\ttwo"\t1\nthree\t"four\t0\nfive\tsix"\t1\n'
    rows = read_table(tmp_path, text, ".tsv", pair)
    assert [(row["a"], row["b"]) for row in rows] == [
        ('"one', 'two"'), ("three", '"four'), ("five", 'six"'),
    ]  # fmt: skip
    text = 'question\tanswers\n"who\tme\nwhere\there\nwhen"\tnow\n'
    rows = read_table(tmp_path, text, ".tsv", GENERATIVE)
    assert [row["question"] for row in rows] == ['"who', "where", 'when"']
    text = 'question\tanswers\n"who\nis it?"\tme\n"where\there"\tthere\n'
    rows = read_table(tmp_path, text, ".tsv", GENERATIVE)
    assert [row["question"] for row in rows] == ["who\nis it?", "where\there"]


def test_a_line_that_is_no_row_between_stray_quotes_is_named(tmp_path: Path) -> None:
    text = table(('"a fine film', "1")) + "no label\n" + 'the end"\t0\n'
    with refusal(r"train\.tsv:3: expected 2 cells, got 1; is a delimiter missing\?"):
        read_table(tmp_path, text, ".tsv")


def test_all_rows_of_a_tsv_come_through_the_command_line(tmp_path, run, backbone, refused) -> None:
    folder = write_easy(tmp_path / "easy")
    (folder / "train.jsonl").unlink()
    rows = [('"a good film', "good"), ("a bad film", "bad"), ('the end"', "bad"), ("it", "good")]
    (folder / "train.tsv").write_text(table(*rows))
    code, out, _ = run("tasks", folder, "--backbone", backbone)
    assert code == 0 and "train     2 bad, 2 good" in out
    (folder / "train.tsv").rename(folder / "train.csv")
    (folder / "train.csv").write_text(table(*rows, delimiter=","))
    assert "train.csv:2: a quote opens here and closes in line 4" in refused(folder)


# --- Keys that are given twice

TWICE = '{"text": "a film", "label": "good", "label": "bad"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", TWICE, r"train\.jsonl:1: key 'label' is given twice, as 'good' and 'bad'"),
        ("train.json", f"[{TWICE}]", r"train\.json:1: key 'label' is given twice, as 'good' and"),
        ("train.jsonl", '{"text": "a", "x": {"y": 1, "y": 2}, "label": "bad"}\n', "key 'y' is gi"),
        ("task.toml", 'type = "a"\ntype = "b"\n', "task.toml is not TOML: .*line 2"),
        ("train.csv", "text,label,label\na,good,bad\n", "2 columns are named 'label'; rename"),
    ],
)
def test_rows_and_tasks_with_a_key_twice(name, content, message, tmp_path, refused) -> None:
    folder = write_easy(tmp_path / "easy")
    if name.startswith("train"):
        (folder / "train.jsonl").unlink()
    (folder / name).write_text(content)
    with refusal(message):
        raise_line(refused(folder))


def raise_line(line: str) -> None:
    from jpt.errors import InputError

    raise InputError(line.removesuffix("\n"))


def test_configs_and_cards_with_a_key_twice(tmp_path: Path, run, backbone: Path) -> None:
    import numpy as np

    import jpt
    from jpt.io.tensors import write_safetensors

    folder = write_tiny_backbone(tmp_path / "bert", "bert")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[:-1] + ', "hidden_size": 48}')
    code, _, err = run("tasks", write_easy(tmp_path / "easy"), "--backbone", folder)
    assert (
        code == 2 and "config.json" in err and "key 'hidden_size' is given twice, as 32 and" in err
    )
    file = tmp_path / "prompt.safetensors"
    card = '{"backbone": "a", "task": "mood", "task": "other"}'
    write_safetensors(file, {"prompt": np.zeros((2, 32), "f4")}, {"card": card})
    with refusal(
        "the card of .*prompt.safetensors: key 'task' is given twice, as 'mood' and 'other"
    ):
        jpt.load_prompt(file)
    code, _, err = run("evaluate", "--prompt", file, "--task", "sst2")
    assert code == 2 and "key 'task' is given twice" in err


# --- Texts without tokens


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\u200b", r"train\.jsonl:1: field 'text' has invisible characters only, '\\u200b'; expec"),
        ("\u200b \ufeff\u200d", r"train\.jsonl:1: field 'text' has invisible characters only"),
        ("\x00\x07", r"train\.jsonl:1: field 'text' has invisible characters only"),
        (" \u00a0", r"train\.jsonl:1: field 'text' is empty"),
    ],
)
def test_texts_without_a_visible_character(text, message, tmp_path: Path, refused) -> None:
    rows = [json.dumps({"text": given, "label": "good"}) for given in (text, "a film")]
    folder = write_easy(tmp_path / "easy")
    (folder / "train.jsonl").write_text("\n".join(rows))
    with refusal(message):
        raise_line(refused(folder))


def test_texts_of_which_the_tokenizer_keeps_nothing(tmp_path: Path, run) -> None:
    from tokenizers import Tokenizer, normalizers

    backbone = write_tiny_backbone(tmp_path / "bert", "bert")
    (backbone / "tuning.json").write_text('{"length": 4, "max_tokens": 30}')
    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.save(str(backbone / "tokenizer.json"))
    folder = write_easy(tmp_path / "easy")
    text = '{"text": "a film", "label": "good"}\n{"text": "\u0301\u0301", "label": "bad"}\n'
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    code, _, err = run("tasks", folder, "--backbone", backbone)
    assert (
        code == 2 and "task easy, row 2: expected a token in every text, but the tokenizer" in err
    )


# --- Special tokens in rows


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_special_tokens_in_rows_change_nothing_but_the_text(kind, tmp_path: Path, run) -> None:
    backbone = write_tiny_backbone(tmp_path / kind, kind)
    (backbone / "tuning.json").write_text('{"length": 4, "max_tokens": 40}')
    folder = write_easy(tmp_path / "easy")
    texts = ["a fine [MASK] film", "a </s> film <extra_id_0>", "[CLS][PAD] a film"]
    rows = [json.dumps({"text": text, "label": "good"}) for text in texts]
    (folder / "train.jsonl").write_text("\n".join(rows))
    code, out, _ = run("tasks", folder, "--backbone", backbone)
    assert code == 0
    lines = out.splitlines()
    shown = [lines[n + 1].split() for n, line in enumerate(lines) if line.startswith("  row ")]
    for tokens in shown:
        own = {"bert": ("[CLS]", "</s>"), "t5": (None, "</s>"), "llama": (None, None)}[kind]
        inner = tokens[own[0] is not None : len(tokens) - (own[1] is not None)]
        assert {"[MASK]", "</s>", "<extra_id_0>", "[CLS]", "[PAD]"}.isdisjoint(inner), tokens
        assert inner.count("[UNK]") >= 3  # brackets and names are no words of this vocabulary


def test_generate_keeps_the_sentinels_of_its_texts(tmp_path: Path) -> None:
    import jpt
    from jpt.recipes.generate import _encode

    model = jpt.load_backbone(write_tiny_backbone(tmp_path / "t5", "t5"))
    sentinel = model.tokenizer.find("<extra_id_0>")
    (ids,) = _encode(["a <extra_id_0> film"], model)
    assert ids.count(sentinel) == 1
