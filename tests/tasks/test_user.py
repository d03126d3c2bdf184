"""User-defined tasks: contents of task.toml, and one-line errors for invalid ones."""

from pathlib import Path

import pytest

from jpt.tasks.task import Task
from jpt.tasks.user import load_user_task
from tests.helpers.files import refusal

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
NO_WORDS = MINIMAL.split("[label_words]")[0]


def load(folder: Path, text: str) -> Task:
    (folder / "task.toml").write_text(text, encoding="utf-8")
    return load_user_task(folder)


def test_minimal_classification_task(tmp_path: Path) -> None:
    task = load(tmp_path, MINIMAL)
    assert (task.name, task.type, task.folder) == (tmp_path.name, "sentiment", tmp_path)
    assert task.templates == {"encoder": ("{text}",)}
    assert task.labels == ("bad", "good")
    assert (task.metric, task.label_field, task.files) == ("accuracy", "label", {})
    assert (task.is_generative, task.max_tokens) == (False, None)


def test_minimal_generative_task(tmp_path: Path) -> None:
    task = load(tmp_path, GENERATIVE)
    assert task.is_generative and task.labels == () and task.words("t5") == {}
    assert (task.answer_field, task.answer_tokens, task.metric) == ("summary", 50, "rougeL")
    assert task.templates == {"encoder_decoder": ("{document}",)}
    assert task.template("decoder") == ("{document}", "Answer:")


def test_word_lists_files_and_templates(tmp_path: Path) -> None:
    text = MINIMAL.replace('"great"', '["great", "fine"]') + '[files]\ntest = "gold.csv"\n'
    text += '[templates]\nencoder_decoder = ["text: {text}"]\ndecoder = ["Text: {text}", "Mood:"]'
    task = load(tmp_path, text)
    assert task.words("t5") == {"bad": ("terrible",), "good": ("great", "fine")}
    assert task.files == {"test": "gold.csv"}
    assert task.template("encoder") == ("{text}",)
    assert task.template("encoder_decoder") == ("text: {text}",)
    assert task.template("decoder") == ("Text: {text}", "Mood:")


def test_template_is_that_of_the_base_layout(tmp_path: Path) -> None:
    text = 'template = "Sum up: {document}"' + GENERATIVE + '[templates]\ndecoder = "{document}"\n'
    templates = load(tmp_path, text).templates
    assert templates == {"encoder_decoder": ("Sum up: {document}",), "decoder": ("{document}",)}


def test_several_fields(tmp_path: Path) -> None:
    fields = MINIMAL.replace('["text"]', '["a", "b", "c"]')
    task = load(tmp_path, fields + '[templates]\nencoder = ["{a} {b}", "{c}"]')
    assert task.template("encoder_decoder") == ("{a} {b}", "{c}")
    task = load(tmp_path, MINIMAL.replace('["text"]', '["question", "answer"]'))
    assert task.templates["encoder"] == ("{question}", "{answer}")


def test_all_keys_of_a_generative_task(tmp_path: Path) -> None:
    text = 'name = "digest"\nmetric = "rouge1"\nmax_tokens = 512' + GENERATIVE
    task = load(tmp_path, text)
    assert (task.name, task.metric, task.max_tokens) == ("digest", "rouge1", 512)


def test_all_keys_of_a_classification_task(tmp_path: Path) -> None:
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
    task = load(tmp_path, text)
    assert (task.name, task.metric, task.label_field) == ("stance", "f1_macro", "gold")
    assert task.templates == {"encoder": ("{claim} ({topic})", "{reply}")}
    assert task.words("roberta") == {"0": ("no", "never"), "1": ("true",)}
    assert task.words("bert") == {"0": ("no", "never"), "1": ("yes",)}
    assert (task.max_tokens, task.label_of(1)) == (64, "1")
    assert task.files == {"train": "a/rows.jsonl"}


def test_a_label_may_have_the_name_of_a_model(tmp_path: Path) -> None:
    text = MINIMAL.replace("bad", "bert")
    assert load(tmp_path, text).words("bert")["bert"] == ("terrible",)


def changed(old: str, new: str = "", text: str = MINIMAL) -> str:
    assert old in text
    return text.replace(old, new)


TYPE, FIELDS, LABELS = 'type = "sentiment"', 'fields = ["text"]', 'labels = ["bad", "good"]'
ONE, TABLE = 'template = "{text}"\n', MINIMAL + "[templates]\n"
WRONG = {
    "not toml": ("type = \n", "is not TOML: .*line 1"),
    "unknown key": (changed("type", "typ"), "unknown key 'typ'; did you mean type"),
    "no type": (changed(TYPE), "has no 'type'"),
    "no fields": (changed(FIELDS), "has no 'fields'"),
    "no labels": (changed(LABELS), "has no 'labels'"),
    "no words": (NO_WORDS, "has no label words"),
    "word missing": (changed('good = "great"'), "no label word for 'good'"),
    "word for no label": (MINIMAL + 'so = "fine"', "label word for 'so', which is not one of"),
    "word is a number": (changed('"great"', "3"), "label word of 'good' is 3"),
    "words are numbers": (changed('"great"', '["great", 3]'), "of 'good' is .*a list of words"),
    "no words in a list": (changed('"great"', "[]"), r"label word of 'good' is \[\]"),
    "word is a table": (changed('good = "great"', "[label_words.good]"), "no label word for 'good"),
    "words are a text": (NO_WORDS + 'label_words = "a"', r"'a'; expected a table \[label_words\]"),
    "labels are a text": (changed('["bad", "good"]', '"bad"'), "expected a list of texts"),
    "empty label": (changed('"bad"', '""'), "labels is .* expected a list of texts"),
    "type is a number": (changed('"sentiment"', "1"), "type is 1; expected a text"),
    "one label": (changed('["bad", "good"]', '["bad"]'), "label word for 'good'|1 labels"),
    "template": ('template = "{title}"' + MINIMAL, "names the field 'title'"),
    "broken template": ('template = "{text"' + MINIMAL, "template '{text' is broken"),
    "three fields": (changed('["text"]', '["a", "b", "c"]'), "no 'template'"),
    "three segments": ('template = ["{text}", "a", "b"]' + MINIMAL, "3 segments; give 1 or 2"),
    "metric": ('metric = "rouge"' + MINIMAL, "metric 'rouge'"),
    "metric of texts": ('metric = "bleu"' + MINIMAL, "'bleu' .* is for generated answers"),
    "metric of labels": ('metric = "f1"' + GENERATIVE, "'f1' .* is for labels"),
    "no labels, no answer": (changed(LABELS, "", NO_WORDS), "has no 'labels'; .*or answer = "),
    "labels and answer": ('labels = ["a", "b"]' + GENERATIVE, "has labels and answer; .*remove"),
    "words and answer": (GENERATIVE + '[label_words]\na = "b"', "has label_words and answer; "),
    "label field and answer": ('label_field = "gold"' + GENERATIVE, "has label_field and answer; "),
    "answer is a number": (changed('"summary"', "3", GENERATIVE), "answer is 3; expected a text"),
    "answer is read": (changed('"summary"', '"document"', GENERATIVE), "remove it from fields"),
    "no length": (changed("answer_tokens = 50", "", GENERATIVE), "no 'answer_tokens'; .* = 50"),
    "length is zero": (changed("50", "0", GENERATIVE), "answer_tokens of task .* is 0; "),
    "length is a text": (changed("50", '"50"', GENERATIVE), "answer_tokens of task .* is '50'; "),
    "length without answer": ("answer_tokens = 5" + MINIMAL, "answer_tokens but no answer; add"),
    "max_tokens": ('max_tokens = "long"' + MINIMAL, "max_tokens of task .* is 'long'; give a"),
    "label is read": ('label_field = "text"' + MINIMAL, "remove it from fields"),
    "templates are a text": ('templates = "{text}"' + MINIMAL, r"expected a table \[templates\]"),
    "layout": (MINIMAL + '[templates]\nt5 = "{text}"', r"\[templates\] unknown layout 't5'"),
    "key under a table": (TABLE + "max_tokens = 5", "layout 'max_tokens'.*move max_tokens above"),
    "template twice": (ONE + TABLE + 'encoder = "a"', r"has template and \[templates\] encoder, "),
    "encoder": (GENERATIVE + '[templates]\nencoder = "a"', "give a template for encoder_decoder"),
    "template is a number": ("template = 3" + MINIMAL, "template is 3; expected a text or a list"),
    "template is empty": (MINIMAL + "[templates]\ndecoder = []", r"templates.decoder is \[\]"),
    "template of cues": (MINIMAL + '[templates]\ndecoder = ["Mood:"]', "decoder template .* has 0"),
    "field of a template": (MINIMAL + '[templates]\ndecoder = "{title}"', "the field 'title'"),
    "name": ('name = "a/b"' + MINIMAL, "use no slash"),
    "split": (MINIMAL + "[files]\ndev = 'a'", "unknown split 'dev'"),
    "file": (MINIMAL + "[files]\ntest = 1", "file of test is 1"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_invalid_definition(tmp_path: Path, text: str, message: str) -> None:
    with refusal(message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "task.toml") in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_bytes(b'type = "caf\xe9"')
    with refusal("is not UTF-8"):
        load_user_task(tmp_path)
    (tmp_path / "task.toml").unlink()
    (tmp_path / "task.toml").mkdir()
    with refusal("cannot read .*task.toml"):
        load_user_task(tmp_path)
