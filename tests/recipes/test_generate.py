"""Generation with whole models: inputs, continuations and invalid input."""

import copy
import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Callable
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
from tests.helpers.running import raises

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
    if kind == "t5":  # with a tied head it repeats its input
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "beams"), [("t5", 3), ("gpt2", 1), ("llama", 1)])
def test_texts_are_continued_independently(backbones, kind, beams):
    # Order, batch size and padding change nothing either.
    backbone, prompt = backbones[kind], prompt_for(backbones[kind])
    options = {"backbone": backbone, "max_tokens": NEW, "beams": beams}
    found = generate(prompt, TEXTS, **options)
    assert found[0] == found[3] and len(set(found)) > 2
    for text, continuation in zip(TEXTS[:2], found[:2], strict=True):
        read = backbone.tokenizer.encode([text])[0] + ([END] if kind == "t5" else [])
        inputs = (jnp.array([read]), jnp.array([len(read)]), jnp.asarray(prompt.values), NEW)
        search = (greedy, beam_search)[beams > 1]
        generated = search(backbone.module, backbone.params, *inputs, [END], *[beams][: beams - 1])
        new = np.asarray(generated.tokens[0, : generated.lengths[0]])
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


@pytest.mark.slow
def test_a_model_may_have_several_end_tokens(backbones, tmp_path):
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
    expected = [itertools.takewhile(lambda each: each != word, text.split()) for text in whole]
    assert [text.split() for text in found] == [list(words) for words in expected]
    assert found != whole


def with_tokenizer(backbone: Backbone, **changes: object) -> Backbone:
    tokenizer = copy.copy(backbone.tokenizer)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return dataclasses.replace(backbone, tokenizer=tokenizer)


@pytest.mark.slow
def test_empty_texts_and_leading_spaces(backbones: dict[str, Backbone]) -> None:
    assert generate(None, [], backbone=backbones["gpt2"]) == []
    assert len(generate(None, ["", "a"], backbone=backbones["t5"], max_tokens=2)) == 2
    # A decoder reads an empty text as its start token, which other texts may start with, too.
    plain = backbones["gpt2"].tokenizer
    ids = plain.ids._replace(bos=3)
    backbone = with_tokenizer(backbones["gpt2"], ids=ids)
    found = generate(None, ["", "[CLS]", "film", "[CLS] film"], backbone=backbone, max_tokens=3)
    assert found[0] == found[1] and found[2] != found[3]
    backbone = with_tokenizer(backbones["gpt2"], ids=ids, add_bos=True)
    again = generate(None, ["", "film", "a", "the"], backbone=backbone, max_tokens=3)
    assert again[:2] == [found[0], found[3]]

    # Tokenizers that mark leading spaces drop the first one on decoding.
    def decode(ids: list[int]) -> str:
        return "".join(f" w{token}" for token in ids if token > 5).removeprefix(" ")

    backbone = with_tokenizer(backbones["llama"], decode=decode)
    found = generate(None, TEXTS, backbone=backbone, max_tokens=NEW)
    assert any(found) and all(text.startswith(" w") for text in found if text)


def test_other_models_and_prompts_are_refused(tmp_path: Path, backbones) -> None:
    bert = "builtin/bert-small"
    with pytest.raises(jpt.InputError, match="layout encoder, .* encoder_decoder or decoder"):
        generate(None, ["a"], backbone=bert)
    raises(generate, None, ["a"], match="expected a prompt or a backbone")
    small = jpt.load_backbone(write_tiny_backbone(tmp_path / "model", "gpt2", vocab_size=30))
    raises(generate, None, ["a", "7"], backbone=small, match="^text 2: .* below 30, .*got 3")
    backbone = backbones["gpt2"]
    wide = jpt.Prompt(np.zeros((4, 33), np.float32), prompt_for(backbone).card)
    raises(generate, wide, ["a"], backbone=backbone, match="got width 33")
    t5 = backbones["t5"]
    raises(generate, prompt_for(t5), ["a"], backbone=backbone, match="layout encoder_decoder")
    long, match = prompt_for(t5, rows=2049), "at most 2048 prompt tokens .*, got 2049"
    raises(generate, long, ["a"], backbone=t5, match=match)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number of 1 or more"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 2.5}, "beams is 2.5"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1"),
        ({"mesh": "data:4", "eval_batch_size": 6}, "batch of 6 rows"),
        ({"beams": 40}, "40 beams .* the model has 61 tokens; use 30 beams or fewer"),
        ({"texts": "the film"}, "expected a list of strings"),
        ({"texts": ["a", None]}, "expected a list of strings"),
    ],
)
def test_invalid_options_are_refused(backbones, options, needle):
    texts = options.pop("texts", ["a"])
    raises(generate, None, texts, backbone=backbones["gpt2"], match=needle, **options)


@pytest.mark.slow
def test_texts_that_exceed_the_positions_are_refused(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["llama"]  # of 80 positions
    prompt, texts = prompt_for(backbone, rows=30), ["a the", "film " * 20]
    assert len(generate(prompt, texts, backbone=backbone, max_tokens=30)) == 2
    needle = (
        r"30 \+ text 20 \(text 2\) .* 31 = 81 tokens, but .* 80 .* set max_tokens to 30 or less"
    )
    raises(generate, prompt, texts, backbone=backbone, max_tokens=31, match=needle)
    texts, needle = ["film " * 90, "a"], r"\(text 1\) .* 121 tokens, .* shorten text 1"
    raises(generate, prompt, texts, backbone=backbone, max_tokens=1, match=needle)
    # T5 has no positions that a text could exceed.
    assert len(generate(None, ["film " * 90], backbone=backbones["t5"], max_tokens=2)) == 1


@pytest.fixture
def continue_lines(run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def call(stdin: bytes, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return run("generate", *arguments)

    return call


def test_command_writes_one_line_per_line(continue_lines, tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "t5", "t5")
    file = tmp_path / "p.safetensors"
    jpt.save_prompt(file, prompt_for(jpt.load_backbone(folder)))
    options = ("--prompt", str(file), "--max-tokens", "4", "--beams", "2")
    expected = generate(file, ["the film", "", "a"], max_tokens=4, beams=2)
    for stdin in (b"the film\n\na", b"the film\n\na\n", b"\xef\xbb\xbfthe film\r\n\r\na\r\n"):
        code, out, err = continue_lines(stdin, *options)
        assert (code, out.splitlines()) == (0, expected), err
        assert "3/3" in err
    code, out, err = continue_lines(b"the film\n\na\n", *options, "--json")
    record = json.loads(out.splitlines()[-1])
    assert code == 0 and record["continuations"] == expected
    assert record["backbone"] == str(folder) and record["lines"] == 3
    assert expected[0] in err


@pytest.mark.parametrize(
    ("stdin", "needle"),
    [
        (b"", "stdin is empty"),
        ("gut\nsch\u00f6n".encode("latin1"), "line 2: expected UTF-8 text, got byte 0xf6"),
        (b"a\nb\0c\n", "line 2: expected text, got a zero byte"),
    ],
)
def test_command_refuses_binary_input(continue_lines, tmp_path, stdin, needle):
    folder = write_tiny_backbone(tmp_path / "t5", "t5")
    code, out, err = continue_lines(stdin, "--backbone", str(folder))
    assert (code, out) == (2, "")
    assert err.startswith("jpt: ") and err.count("\n") == 1 and needle in err


def test_command_refuses_invalid_options(continue_lines, tmp_path: Path) -> None:
    for arguments, needle in (
        ((), "give --prompt FILE or --backbone NAME"),
        (("--backbone", "builtin/bert-small"), "layout encoder"),
        (("--prompt", str(tmp_path / "p.safetensors")), "p.safetensors"),
    ):
        code, out, err = continue_lines(b"a\n", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and needle in err


def test_lines_end_at_new_lines_only() -> None:
    content = "a\u2028b\x0cc\n\nlast \n".encode()
    assert read_lines(io.BytesIO(content)) == ["a\u2028b\x0cc", "", "last "]
    assert read_lines(io.BytesIO(b"\n")) == [""]
    assert one_line("a\r\nb\\n") == "a\\r\\nb\\n"
