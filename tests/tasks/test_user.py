"""task.toml: what it gives, and an error of one line for each way to get it wrong."""

import textwrap
from pathlib import Path

import pytest

from jpt.errors import InputError
from jpt.tasks import user
from jpt.tasks.user import load_user_task

MINIMAL = """
type = "sentiment"
fields = ["text"]
labels = ["bad", "good"]

[label_words]
bad = "terrible"
good = "great"
"""


GENERATIVE = """
type = "summarization"
fields = ["document"]
answer = "summary"
answer_tokens = 50
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
    assert (task.is_generative, task.max_tokens) == (False, None)


def test_the_least_that_a_written_answer_needs(tmp_path: Path) -> None:
    task = load_user_task(write(tmp_path, GENERATIVE))
    assert task.is_generative and task.labels == () and task.words("t5") == {}
    assert (task.answer_field, task.answer_tokens, task.metric) == ("summary", 50, "rougeL")
    assert task.templates == {"encoder_decoder": ("{document}",)}
    assert task.template("decoder") == ("{document}", "Answer:")


def test_the_examples_of_the_documentation_are_tasks(tmp_path: Path) -> None:
    # The blocks behind "::" in the order of the text; the last one holds tables for the first.
    parts = [part.split("\n\n") for part in (user.__doc__ or "").split("::\n\n")[1:]]
    blocks = [textwrap.dedent("\n\n".join(p for p in part if p[:1] == " ")) for part in parts]
    labelled, written, tables = blocks
    task = load_user_task(write(tmp_path, f"{labelled}\n{tables}"))
    assert task.words("t5") == {"bad": ("terrible",), "good": ("great", "fine")}
    assert task.files == {"test": "gold.csv"}
    assert task.template("encoder") == ("{text}",)
    assert task.template("encoder_decoder") == ("text: {text}",)
    assert task.template("decoder") == ("Text: {text}", "Mood:")
    assert load_user_task(write(tmp_path, written)).answer_field == "summary"
    assert len(labelled.strip().splitlines()) <= 10 and len(written.strip().splitlines()) <= 10


def test_template_stands_for_the_layout_that_the_others_derive_from(tmp_path: Path) -> None:
    text = 'template = "Sum up: {document}"' + GENERATIVE + '[templates]\ndecoder = "{document}"\n'
    task = load_user_task(write(tmp_path, text))
    assert task.templates == {
        "encoder_decoder": ("Sum up: {document}",),
        "decoder": ("{document}",),
    }


def test_templates_alone_are_enough_for_three_fields(tmp_path: Path) -> None:
    fields = MINIMAL.replace('["text"]', '["a", "b", "c"]')
    task = load_user_task(write(tmp_path, fields + '[templates]\nencoder = ["{a} {b}", "{c}"]'))
    assert task.template("encoder_decoder") == ("{a} {b}", "{c}")


def test_what_else_a_written_task_may_say(tmp_path: Path) -> None:
    text = 'name = "digest"\nmetric = "rouge1"\nmax_tokens = 512' + GENERATIVE
    task = load_user_task(write(tmp_path, text))
    assert (task.name, task.metric, task.max_tokens) == ("digest", "rouge1", 512)


def test_everything_that_may_be_said(tmp_path: Path) -> None:
    text = """
name = "stance"
type = "nli"
fields = ["claim", "topic", "reply"]
labels = [0, 1]
template = ["{claim} ({topic})", "{reply}"]
metric = "f1_macro"
label_field = "gold"
max_tokens = 64
label_words = {0 = ["no", "never"], 1 = "yes", roberta = {1 = "true"}}
files = {train = "a/rows.jsonl"}
"""
    task = load_user_task(write(tmp_path, text))
    assert (task.name, task.metric, task.label_field) == ("stance", "f1_macro", "gold")
    assert task.templates == {"encoder": ("{claim} ({topic})", "{reply}")}
    assert task.words("roberta") == {"0": ("no", "never"), "1": ("true",)}
    assert task.words("bert") == {"0": ("no", "never"), "1": ("yes",)}
    assert task.max_tokens == 64
    assert task.label_of(1) == "1"
    assert task.files == {"train": "a/rows.jsonl"}


def test_two_fields_make_a_pair(tmp_path: Path) -> None:
    text = MINIMAL.replace('["text"]', '["question", "answer"]')
    task = load_user_task(write(tmp_path, text))
    assert task.templates["encoder"] == ("{question}", "{answer}")


def test_a_label_may_be_called_like_a_model(tmp_path: Path) -> None:
    text = MINIMAL.replace("bad", "bert")
    assert load_user_task(write(tmp_path, text)).words("bert")["bert"] == ("terrible",)


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
    "words are numbers": (
        MINIMAL.replace('"great"', '["great", 3]'),
        "of 'good' is .*a list of words",
    ),
    "no words in a list": (MINIMAL.replace('"great"', "[]"), r"label word of 'good' is \[\]"),
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
    "metric of texts": ('metric = "bleu"' + MINIMAL, "'bleu' .* is for written answers"),
    "metric of labels": ('metric = "f1"' + GENERATIVE, "'f1' .* is for labels"),
    "no labels, no answer": (
        MINIMAL.replace('labels = ["bad", "good"]', "").split("[label_words]")[0],
        """has no 'labels'; .*or answer = "...\" where""",
    ),
    "labels and answer": ('labels = ["a", "b"]' + GENERATIVE, "has labels and answer; .*take one"),
    "words and answer": (GENERATIVE + '[label_words]\na = "b"', "has label_words and answer; "),
    "label field and answer": ('label_field = "gold"' + GENERATIVE, "has label_field and answer; "),
    "answer is a number": (GENERATIVE.replace('"summary"', "3"), "answer is 3; it must be a text"),
    "answer is read": (GENERATIVE.replace('"summary"', '"document"'), "leave it out of fields"),
    "no length": (GENERATIVE.replace("answer_tokens = 50", ""), "no 'answer_tokens'; .* = 50"),
    "length is zero": (GENERATIVE.replace("50", "0"), "answer_tokens of task .* is 0; "),
    "length is a text": (GENERATIVE.replace("50", '"50"'), "answer_tokens of task .* is '50'; "),
    "length without answer": ("answer_tokens = 5" + MINIMAL, "answer_tokens and no answer; add"),
    "max_tokens": (
        'max_tokens = "long"' + MINIMAL,
        "max_tokens of task .* is 'long'; give a whole",
    ),
    "label is read": ('label_field = "text"' + MINIMAL, "leave it out of fields"),
    "templates are a text": ('templates = "{text}"' + MINIMAL, r"it must be a table \[templates\]"),
    "layout": (MINIMAL + '[templates]\nt5 = "{text}"', r"\[templates\] unknown layout 't5'"),
    "key under a table": (
        MINIMAL + "[templates]\nmax_tokens = 5",
        r"unknown layout 'max_tokens'.*max_tokens stands above the first \[table\]",
    ),
    "template twice": (
        'template = "{text}"' + MINIMAL + '[templates]\nencoder = "a {text}"',
        r"has template and \[templates\] encoder, which say the same",
    ),
    "template of encoders for an answer": (
        GENERATIVE + '[templates]\nencoder = "{document}"',
        "its answer is written, which encoders cannot do; give one for encoder_decoder",
    ),
    "template is a number": (
        "template = 3" + MINIMAL,
        "template is 3; it must be a text or a list",
    ),
    "template is empty": (MINIMAL + "[templates]\ndecoder = []", r"templates.decoder is \[\]"),
    "template of cues": (MINIMAL + '[templates]\ndecoder = ["Mood:"]', "decoder template .* has 0"),
    "field of a template": (MINIMAL + '[templates]\ndecoder = "{title}"', "the field 'title'"),
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
