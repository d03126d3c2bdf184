"""Token ids without a row in the model's word table are refused wherever they enter."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import jpt
from jpt.data import encode
from jpt.io.tokenizer import load_tokenizer
from jpt.testing import VOCABULARY, write_tiny_backbone
from jpt.types import Prompt, PromptCard
from tests.helpers.running import raises
from tests.helpers.toys import MOOD_TOML, json_lines, write_task

pytestmark = pytest.mark.plain_programs

SIZE, ADDED = len(VOCABULARY), "<laugh>"
LAYOUTS = {"bert": "encoder", "t5": "encoder_decoder", "gpt2": "decoder"}
LONG = {"bert": {"max_position_embeddings": 128}}
OUTSIDE = f"expected token ids below {SIZE}, the number of rows of the model's word table, got "
OUTSIDE += f"{SIZE} ('{ADDED}')"


def write_backbone(folder: Path, model_type: str = "bert", vocab_size: int = SIZE) -> Path:
    """Write a model whose tokenizer got a token that its word table did not get."""
    write_tiny_backbone(folder, model_type, vocab_size=vocab_size, **LONG.get(model_type, {}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.add_tokens([ADDED]) == 1 and tokenizer.token_to_id(ADDED) == SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_prompts(folder: Path, backbone: Path, layout: str = "encoder") -> Path:
    folder.mkdir()
    for name in ("mood", "other"):
        values = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
        card = PromptCard(str(backbone), name, "sentiment", seed=0, layout=layout)
        jpt.save_prompt(folder / f"{name}.safetensors", Prompt(values, card))
    return folder


def rows(split: str, third: str = "") -> str:
    """Return rows of which each text occurs once; the third one may have another text."""
    texts = [f"a film of {split} {number}" for number in range(6)]
    texts[2] = third or texts[2]
    return json_lines(
        {"text": text, "label": ("bad", "good")[number % 2]} for number, text in enumerate(texts)
    )


SPLITS = {split: rows(split) for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ids")
    for model_type, layout in LAYOUTS.items():
        backbone = write_backbone(root / model_type, model_type)
        write_prompts(root / f"{model_type}-prompts", backbone, layout)
    write_task(root / "plain", **SPLITS)
    for split in SPLITS:
        laughs = rows(split, f"a fine film {ADDED}")
        write_task(root / f"mood-{split}", **{**SPLITS, split: laughs})
    toml = MOOD_TOML.replace('"{text}"', f'"{{text}} {ADDED}"')
    write_task(root / "template", toml=toml, **SPLITS)
    segment = MOOD_TOML.replace('"{text}"', f'["{{text}}", "So {ADDED}"]')
    write_task(root / "segment", toml=segment, **SPLITS)
    toml = MOOD_TOML.replace('bad = "bad"', f'bad = "{ADDED}"')
    write_task(root / "words", toml=toml, **SPLITS)
    return root


SHORT = "--length 4 --steps 2 --max-tokens 16 --out {out}"
ROW = "task mood, row 3 ('a fine film <laugh>'): "
COMMANDS = {
    f"tune --backbone {{root}}/bert --task {{root}}/mood-train {SHORT}": ROW,
    f"tune --backbone {{root}}/gpt2 --task {{root}}/mood-validation {SHORT}": ROW,
    f"tune --backbone {{root}}/t5 --task {{root}}/mood-test {SHORT}": ROW,
    "evaluate --prompt {root}/bert-prompts/mood.safetensors --task {root}/mood-test": ROW,
    "transfer --prompts {root}/bert-prompts --tasks {root}/mood-test --out {out}": ROW,
    "mask --prompt {root}/bert-prompts/mood.safetensors --task {root}/mood-test --out {out}": ROW,
    "neurons --prompts {root}/bert-prompts --probe text --task {root}/mood-validation "
    "--out {out}": ROW,
    "recommend --prompts {root}/bert-prompts --task {root}/mood-train --labels 6 --out {out}": ROW,
    "mix ensemble --prompts {root}/bert-prompts --task {root}/mood-test": ROW,
    "check --backbone {root}/bert --task {root}/mood-train": ROW,
    "tasks {root}/mood-train --backbone {root}/bert": ROW,
    f"tune --backbone {{root}}/bert --task {{root}}/template {SHORT}": "template of task mood: ",
    f"tune --backbone {{root}}/gpt2 --task {{root}}/segment {SHORT}": "template of task mood: ",
    "evaluate --prompt {root}/t5-prompts/mood.safetensors --task {root}/words": "label word "
    f"'{ADDED}' for 'bad' of task mood: ",
    f"tune --backbone {{root}}/bert --task {{root}}/words {SHORT}": "label word "
    f"'{ADDED}' for 'bad' of task mood: ",
    f"tune --backbone {{root}}/bert --task {{root}}/plain {SHORT} --init text:fine{ADDED}": "init "
    f"text:fine{ADDED}: ",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_templates_label_words_and_starts(
    run: Callable[..., Any], case: Path, tmp_path: Path, command: str
) -> None:
    words = command.format(root=case, out=tmp_path / "out").split()
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    *progress, last = err.splitlines()
    assert last.startswith("jpt: ") and f"{COMMANDS[command]}{OUTSIDE}; remove this token" in last
    assert not any("Traceback" in line or "Warning" in line for line in progress), err


@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_texts_to_continue(
    run: Callable[..., Any], case: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(f"a fine film\na {ADDED} film\n".encode()))
    monkeypatch.setattr(sys, "stdin", lines)
    code, out, err = run("generate", "--backbone", case / model_type)
    assert (code, out) == (2, "") and f"text 2: {OUTSIDE}" in err and err.count("\n") == 1


def test_answers_and_cut_texts(case: Path, tmp_path: Path) -> None:
    toml = 'type = "qa"\nname = "asks"\nfields = ["text"]\nanswer = "said"\nanswer_tokens = 3\n'
    toml += 'metric = "exact_match"\ntemplate = "{text}"\n'
    good = {"text": "a film", "said": "fine"}
    bad = json_lines([good, {"text": "a film", "said": [f"fine {ADDED}", "fine"]}])
    splits = {"train": json_lines([good] * 4), "validation": bad, "test": json_lines([good])}
    task = write_task(tmp_path / "asks", toml=toml, **splits)
    options = {"length": 4, "steps": 1, "max_tokens": 12}
    match = rf"^task asks, answer of row 2 \('fine {ADDED}'\): expected token ids below {SIZE}"
    raises(jpt.tune, case / "t5", task, **options, match=match)
    # Only what is read is refused: not behind the cut, nor a further reference.
    cut = {"text": f"{'film ' * 20}{ADDED}", "said": ["fine", ADDED]}
    cut = {split: json_lines([cut] * 2) for split in splits}
    task = jpt.load_task(write_task(tmp_path / "cut", toml=toml, **cut))
    tokenizer = jpt.load_backbone(case / "t5").tokenizer
    given = (jpt.read_rows(task, "test"), task, tokenizer, 12, "encoder_decoder")
    split = encode.encode_split(*given)
    assert split.cut_rows == 2 and SIZE in split.answers.reference_tokens[0][1]
    raises(encode.encode_split, *given[:3], 40, "encoder_decoder", match="^task asks, row 1 ")


def test_a_table_may_be_larger_and_ids_within_it_are_read(tmp_path: Path) -> None:
    """Published tables are padded, e.g. T5's to 32128 rows for 32100 tokens."""
    backbone = write_backbone(tmp_path / "padded", vocab_size=SIZE + 3)
    laughs = {split: rows(split, f"a fine film {ADDED}") for split in SPLITS}
    mood, model = write_task(tmp_path / "mood", **laughs), jpt.load_backbone(backbone)
    options = {"length": 4, "steps": 1, "max_tokens": 16, "init": f"text:{ADDED}"}
    _, state = jpt.train_step(model, mood, **options)
    table = model.params["embeddings"]["word"]
    np.testing.assert_array_equal(state.prompt, np.tile(table[SIZE], (4, 1)))
    (batch,) = jpt.training_batches(model, mood, **options)
    assert (batch.tokens == SIZE).any()


def test_rows_from_the_cache_are_checked(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FEWEST_ROWS", 1)
    monkeypatch.setenv("JPT_CACHE", str(tmp_path / "cache"))
    wide = load_tokenizer(case / "bert")
    narrow = load_tokenizer(case / "bert")
    narrow.table_size = SIZE
    task = jpt.load_task(case / "mood-test")
    given = (jpt.read_rows(task, "test"), task)
    split = encode.encode_cached(*given, wide, 16)
    assert list((tmp_path / "cache" / "tokens").glob("*.npz")) and SIZE in split.tokens
    raises(encode.encode_cached, *given, narrow, 16, match=r"^task mood, row 3 .*got")
    narrow.table_size = SIZE + 1
    assert np.array_equal(encode.encode_cached(*given, narrow, 16).tokens, split.tokens)


def test_tokens_of_every_text_are_checked_at_loading(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "bert")
    config = {"cls_token": "[CLS]", "sep_token": ADDED}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    raises(jpt.load_backbone, folder, match=rf"sep token of the tokenizer: .*got {SIZE} ")


def test_a_padding_token_outside_the_table_is_never_read(tmp_path: Path) -> None:
    """Users add one to GPT-2 without a row for it, which torch would read and mask."""
    folder = write_backbone(tmp_path / "gpt2", "gpt2")
    mood = write_task(tmp_path / "mood", **SPLITS)
    options = {"length": 4, "steps": 2, "max_tokens": 16, "batch_size": 6}
    expected = jpt.tune(folder, mood, **options).prompt.values
    config = {"eos_token": "</s>", "pad_token": ADDED}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    backbone = jpt.load_backbone(folder)
    assert backbone.tokenizer.ids.pad == SIZE and backbone.pad_id == backbone.tokenizer.ids.eos
    np.testing.assert_array_equal(jpt.tune(backbone, mood, **options).prompt.values, expected)


def test_the_start_token_of_the_probe(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "gpt2", "gpt2")
    config = {"eos_token": "</s>", "bos_token": ADDED}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    prompts = write_prompts(tmp_path / "prompts", folder, "decoder")
    raises(jpt.activated_neurons, prompts, match=r"^start token of .*gpt2: expected token ids")
