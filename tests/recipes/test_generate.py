"""Texts continued by whole models: what is read, what comes back, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.generation import beam_search, greedy
from jpt.backbones.registry import Backbone
from jpt.cli.commands import one_line, read_lines
from jpt.recipes.generate import generate
from jpt.testing import write_tiny_backbone
from tests.helpers.running import type_command

pytestmark = pytest.mark.plain_programs

TEXTS = [
    "the film is good",
    "a",
    "bad dull bright fine great lovely poor awful boring number not , 1 2 3 4 5 6 7 8 9 0 , a the "
    "film is was good bad dull bright",
    "the film is good",
    "was not : fine",
]
KINDS = ("t5", "gpt2", "llama")
END = 4  # </s> of the toy vocabulary
NEW = 6


def load_lively(folder: Path, kind: str, **changes: object) -> Backbone:
    """A tiny model of large weights, which writes one word here and another there."""
    if kind == "t5":  # with a tied head it says the word that it has just read
        changes = {"tie_word_embeddings": False, **changes}
    backbone = jpt.load_backbone(write_tiny_backbone(folder, kind, **changes))
    scale = {"t5": 3.0}.get(kind, 4.0)
    params = jax.tree.map(lambda leaf: leaf * (scale if leaf.ndim > 1 else 1.0), backbone.params)
    return dataclasses.replace(backbone, params=params)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    return {kind: load_lively(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def prompt_for(backbone: Backbone, rows: int = 5) -> jpt.Prompt:
    values = 0.2 * np.random.default_rng(3).standard_normal((rows, backbone.config.width))
    card = jpt.PromptCard(backbone.name, "builtin/imdb", layout=backbone.layout)
    return jpt.Prompt(values.astype(np.float32), card)


@pytest.mark.parametrize(
    ("kind", "beams"),
    [
        ("t5", 3),
        pytest.param("gpt2", 1, marks=pytest.mark.slow),
        pytest.param("llama", 1, marks=pytest.mark.slow),
    ],
)
def test_each_text_is_continued_as_if_it_were_alone(
    backbones: dict[str, Backbone], kind: str, beams: int
) -> None:
    """Also the order of the texts, the size of batches and padding change nothing."""
    backbone, prompt = backbones[kind], prompt_for(backbones[kind])
    options = {"backbone": backbone, "max_tokens": NEW, "beams": beams}
    found = generate(prompt, TEXTS, **options)
    assert found[0] == found[3] and len(set(found)) > 2
    for text, continuation in zip(TEXTS[:2], found[:2], strict=True):
        read = backbone.tokenizer.encode([text])[0] + ([END] if kind == "t5" else [])
        inputs = (jnp.array([read]), jnp.array([len(read)]), jnp.asarray(prompt.values), NEW)
        search = (greedy, beam_search)[beams > 1]
        written = search(backbone.module, backbone.params, *inputs, [END], *[beams][: beams - 1])
        new = np.asarray(written.tokens[0, : written.lengths[0]])
        words = backbone.tokenizer.decode(new[new != END])
        assert continuation == (words if kind == "t5" or not words else f" {words}")
    assert generate(prompt, TEXTS[::-1], eval_batch_size=2, **options)[::-1] == found
    if beams == 1:
        assert generate(prompt, TEXTS[::-1], mesh="data:2,model:4", **options)[::-1] == found
        assert generate(None, TEXTS, **options) != found


def test_a_prompt_file_names_its_backbone(tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "t5", "t5")
    backbone, file = jpt.load_backbone(folder), tmp_path / "p.safetensors"
    jpt.save_prompt(file, prompt_for(backbone))
    found = generate(file, TEXTS[:2], max_tokens=3)
    assert found == generate(prompt_for(backbone), TEXTS[:2], backbone=backbone, max_tokens=3)
    assert found == generate(str(file), TEXTS[:2], backbone=folder, max_tokens=3)


def test_a_model_may_name_several_tokens_that_end_a_text(
    backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """As instruction-tuned models do in generation_config.json."""
    plain = backbones["llama"]
    whole = generate(None, TEXTS, backbone=plain, max_tokens=NEW)
    longest = max(whole, key=lambda text: len(text.split()))
    word = longest.split()[1]
    folder = write_tiny_backbone(tmp_path, "llama")
    ends = [END, plain.tokenizer.find(word)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer = jpt.load_backbone(folder).tokenizer
    assert tokenizer.end_ids == tuple(ends)
    other = dataclasses.replace(plain, tokenizer=tokenizer)
    found = generate(None, TEXTS, backbone=other, max_tokens=NEW)
    expected = [itertools.takewhile(lambda said: said != word, text.split()) for text in whole]
    assert [text.split() for text in found] == [list(words) for words in expected]
    assert found != whole


def with_tokenizer(backbone: Backbone, **changes: object) -> Backbone:
    """A backbone with a tokenizer that does some things otherwise."""
    own = copy.copy(backbone.tokenizer)
    for name, value in changes.items():
        setattr(own, name, value)
    return dataclasses.replace(backbone, tokenizer=own)


def test_texts_may_be_none_or_empty(backbones: dict[str, Backbone]) -> None:
    assert generate(None, [], backbone=backbones["gpt2"]) == []
    assert len(generate(None, ["", "a"], backbone=backbones["t5"], max_tokens=2)) == 2
    # To a decoder an empty text is the piece that stands before a text, which others may have too.
    plain = backbones["gpt2"].tokenizer
    ids = plain.ids._replace(bos=3)
    backbone = with_tokenizer(backbones["gpt2"], ids=ids)
    found = generate(None, ["", "[CLS]", "film", "[CLS] film"], backbone=backbone, max_tokens=3)
    assert found[0] == found[1] and found[2] != found[3]
    backbone = with_tokenizer(backbones["gpt2"], ids=ids, add_bos=True)
    again = generate(None, ["", "film", "a", "the"], backbone=backbone, max_tokens=3)
    assert again[:2] == [found[0], found[3]]


def test_a_continuation_keeps_the_space_that_begins_it(backbones: dict[str, Backbone]) -> None:
    """A vocabulary that marks leading spaces drops the first of what it decodes."""

    def decode(ids: list[int]) -> str:
        return "".join(f" w{token}" for token in ids if token > 5).removeprefix(" ")

    backbone = with_tokenizer(backbones["llama"], decode=decode)
    found = generate(None, TEXTS, backbone=backbone, max_tokens=NEW)
    assert any(found) and all(text.startswith(" w") for text in found if text)


def test_only_models_that_write_are_taken() -> None:
    with pytest.raises(jpt.InputError, match="layout encoder, .* encoder_decoder and decoder can"):
        generate(None, ["a"], backbone="builtin/bert-small")
    with pytest.raises(jpt.InputError, match="nothing to write with"):
        generate(None, ["a"])


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number of 1 or more"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 2.5}, "beams is 2.5"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1"),
        ({"mesh": "data:4", "eval_batch_size": 6}, "batch of 6 rows"),
        ({"beams": 40}, "40 beams .* the model has 61 tokens; use 30 beams or fewer"),
        ({"texts": "the film"}, "texts is no list"),
        ({"texts": ["a", None]}, "texts is no list"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    backbones: dict[str, Backbone], options: dict, needle: str
) -> None:
    texts = options.pop("texts", ["a"])
    with pytest.raises(jpt.InputError, match=needle):
        generate(None, texts, backbone=backbones["gpt2"], **options)


def test_prompts_of_other_models_are_refused(
    backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    backbone = backbones["gpt2"]
    wide = jpt.Prompt(np.zeros((4, 33), np.float32), prompt_for(backbone).card)
    with pytest.raises(jpt.InputError, match="got width 33"):
        generate(wide, ["a"], backbone=backbone)
    with pytest.raises(jpt.InputError, match="layout encoder_decoder"):
        generate(prompt_for(backbones["t5"]), ["a"], backbone=backbone)
    long = prompt_for(backbones["t5"], rows=2049)
    with pytest.raises(jpt.InputError, match="at most 2048 prompt tokens .*, got 2049"):
        generate(long, ["a"], backbone=backbones["t5"])


def test_what_does_not_fit_is_refused_with_the_arithmetic(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["llama"]  # of 80 positions
    prompt, texts = prompt_for(backbone, rows=30), ["a the", "film " * 20]
    assert len(generate(prompt, texts, backbone=backbone, max_tokens=30)) == 2
    needle = (
        r"prompt 30 \+ text 20 \(text 2\) \+ max_tokens 31 = 81 tokens, but .* 80 positions; "
        "set max_tokens to 30 or less"
    )
    with pytest.raises(jpt.InputError, match=needle):
        generate(prompt, texts, backbone=backbone, max_tokens=31)
    with pytest.raises(jpt.InputError, match=r"\(text 1\) .* 121 tokens, .* shorten text 1"):
        generate(prompt, ["film " * 90, "a"], backbone=backbone, max_tokens=1)
    # T5 has no positions that a text could exceed.
    assert len(generate(None, ["film " * 90], backbone=backbones["t5"], max_tokens=2)) == 1


def test_pieces_that_the_model_has_no_words_for_are_refused(tmp_path: Path) -> None:
    backbone = jpt.load_backbone(write_tiny_backbone(tmp_path / "model", "gpt2", vocab_size=30))
    with pytest.raises(jpt.InputError, match="text 2 has the piece 3., but .* has 30 words"):
        generate(None, ["a", "7"], backbone=backbone)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command with bytes on stdin and gives exit code, stdout and stderr."""

    def call(stdin: bytes, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return type_command(["generate", *arguments], monkeypatch, capsys)

    return call


def test_command_writes_one_line_a_line(run, tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "t5", "t5")
    file = tmp_path / "p.safetensors"
    jpt.save_prompt(file, prompt_for(jpt.load_backbone(folder)))
    options = ("--prompt", str(file), "--max-tokens", "4", "--beams", "2")
    expected = generate(file, ["the film", "", "a"], max_tokens=4, beams=2)
    for stdin in (b"the film\n\na", b"the film\n\na\n", b"\xef\xbb\xbfthe film\r\n\r\na\r\n"):
        code, out, err = run(stdin, *options)
        assert (code, out.splitlines()) == (0, expected), err
        assert "3/3" in err
    code, out, err = run(b"the film\n\na\n", *options, "--json")
    record = json.loads(out.splitlines()[-1])
    assert code == 0 and record["continuations"] == expected
    assert record["backbone"] == str(folder) and record["lines"] == 3
    assert expected[0] in err


@pytest.mark.parametrize(
    ("stdin", "needle"),
    [
        (b"", "stdin is empty; give one text a line"),
        (
            "gut\nsch\u00f6n".encode("latin1"),
            "line 2 of stdin is no UTF-8 text (its byte 4 is 0xf6)",
        ),
        (b"a\nb\0c\n", "line 2 of stdin holds a zero byte"),
    ],
)
def test_command_refuses_what_is_no_text(run, tmp_path: Path, stdin: bytes, needle: str) -> None:
    code, out, err = run(stdin, "--backbone", str(write_tiny_backbone(tmp_path / "t5", "t5")))
    assert (code, out) == (2, "")
    assert err.startswith("jpt: ") and err.count("\n") == 1 and needle in err


def test_command_refuses_options_in_one_line(run, tmp_path: Path) -> None:
    for arguments, needle in (
        ((), "give --prompt FILE or --backbone NAME"),
        (("--backbone", "builtin/bert-small"), "layout encoder"),
        (("--prompt", str(tmp_path / "p.safetensors")), "p.safetensors"),
    ):
        code, out, err = run(b"a\n", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and needle in err


def test_lines_end_at_new_lines_only() -> None:
    content = "a\u2028b\x0cc\n\nlast \n".encode()
    assert read_lines(io.BytesIO(content)) == ["a\u2028b\x0cc", "", "last "]
    assert read_lines(io.BytesIO(b"\n")) == [""]
    assert one_line("a\r\nb\\n") == "a\\r\\nb\\n"
