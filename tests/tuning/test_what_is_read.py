"""Token ids that the word table lacks, and more tokens than positions, are refused everywhere."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import jpt
from jpt.config import ScoringOptions, TuneOptions
from jpt.data import encode
from jpt.io.tokenizer import load_tokenizer
from jpt.testing import VOCABULARY, write_tiny_backbone
from jpt.tuning.bound_task import bind, resolve_options
from jpt.types import Prompt, PromptCard
from tests.helpers.running import raises
from tests.helpers.toys import MOOD_TOML, json_lines, write_task

pytestmark = pytest.mark.plain_programs

SIZE, ADDED = len(VOCABULARY), "<laugh>"
OUTSIDE = f"expected token ids below {SIZE}, the number of rows of the model's word table, got "
OUTSIDE += f"{SIZE} ('{ADDED}'); remove this token, or save the model after resize_token_embeddings"
ROW, TEMPLATE = f"task mood, row 3 ('a fine film {ADDED}'): ", "template of task mood: "
WORD = f"label word '{ADDED}' for 'bad' of task mood: "
LAYOUTS = {"bert": "encoder", "t5": "encoder_decoder", "gpt2": "decoder", "llama": "decoder"}
PHRASE = "good the film is fine not dull"  # 7 tokens, of which 6 are read
QA = 'type = "qa"\nname = "asks"\nfields = ["text"]\nanswer = "said"\nanswer_tokens = 3\n'
QA += 'metric = "exact_match"\ntemplate = "{text}"\n'


def write_backbone(folder: Path, model_type: str, size: int = SIZE, **named: str) -> Path:
    """Write a model whose tokenizer got a token, and names for tokens, after its word table."""
    write_tiny_backbone(folder, model_type, vocab_size=size)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.add_tokens([ADDED]) == 1 and tokenizer.token_to_id(ADDED) == SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    if named:
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def write_prompts(folder: Path, backbone: Path, layout: str) -> Path:
    folder.mkdir()
    for name in ("mood", "other"):
        values = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
        card = PromptCard(str(backbone), name, "sentiment", seed=0, layout=layout)
        jpt.save_prompt(folder / f"{name}.safetensors", Prompt(values, card))
    return folder


def write_rows(folder: Path, *rows: dict[str, Any], toml: str = MOOD_TOML) -> Path:
    splits = dict.fromkeys(("train", "validation", "test"), json_lines(rows))
    return write_task(folder, toml=toml, **splits)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write models, prompts of 60 tokens, and tasks with one fault each."""
    root = tmp_path_factory.mktemp("read")
    for model_type, layout in LAYOUTS.items():
        backbone = write_backbone(root / model_type, model_type)
        write_prompts(root / f"{model_type}-prompts", backbone, layout)
    texts = ("a film", "a dull film", f"a fine film {ADDED}", "a bad film", "fine", "poor")
    rows = zip(texts, ("bad", "good") * 3, strict=True)
    write_rows(root / "laughs", *({"text": text, "label": label} for text, label in rows))
    changes = {
        "plain": ("", ""),
        "phrase": ('good = "good"', f'good = "{PHRASE}"'),
        "long": ('good = "good"', f'good = "{f"{PHRASE} " * 4}"'),
        "template": ('"{text}"', f'"{{text}} {ADDED}"'),
        "segment": ('"{text}"', f'["{{text}}", "So {ADDED}"]'),
        "words": ('bad = "bad"', f'bad = "{ADDED}"'),
    }
    for name, change in changes.items():
        write_task(root / name, toml=MOOD_TOML.replace(*change))
    for name in ("laughs", "phrase"):
        fixed = f'backbone = "{root}/gpt2"\ntask = "{root}/{name}"\nmax_tokens = 20\nsteps = 2\n'
        (root / f"sweep-{name}").write_text(f"[fixed]\n{fixed}[grid]\nlength = [10, 60]\n")
    return root


GPT2, LLAMA, T5 = "{root}/gpt2-prompts", "{root}/llama-prompts", "{root}/t5-prompts"
READ = "--max-tokens 20 --task {root}/"
OUT = "--out {out} --steps 2"
COMMANDS = (
    f"tune --backbone {{root}}/gpt2 --length 60 {OUT} {READ}",
    f"tune --backbone {{root}}/llama --length 60 --seeds 0,1 {OUT} {READ}",
    f"evaluate --prompt {GPT2}/mood.safetensors {READ}",
    f"evaluate --prompt {LLAMA}/other.safetensors {READ}",
    f"transfer --prompts {GPT2} --out {{out}} --max-tokens 20 --tasks {{root}}/",
    f"mask --prompt {GPT2}/mood.safetensors --out {{out}} {READ}",
    f"recommend --prompts {GPT2} --labels 6 --out {{out}} {READ}",
    f"mix ensemble --prompts {GPT2} {READ}",
    f"mix learn --prompts {GPT2} {OUT} {READ}",
    f"warm-start --sources {GPT2}/other.safetensors {OUT} {READ}",
    f"project train --sources {LLAMA} --target-backbone {{root}}/gpt2 --length 60 {OUT} "
    "--max-tokens 20 --tasks {root}/",
    f"project evaluate --sources {LLAMA} --methods untrained --target-backbone {{root}}/gpt2 "
    "--out {out} --max-tokens 20 --tasks {root}/",
    f"check --backbone {{root}}/gpt2 --length 60 {READ}",
    "sweep --out {out} {root}/sweep-",
)
FAULTS = {
    "laughs": ROW + OUTSIDE,
    "phrase": "prompt 60 + text 20 + answer 6 = 86 tokens, but MODEL has 80 positions; set "
    "max_tokens to 14 or less",
}
CASES = {f"{command}{task}": FAULTS[task] for command in COMMANDS for task in FAULTS} | {
    f"neurons --prompts {GPT2} --probe text --out {{out}} {READ}laughs": ROW + OUTSIDE,
    f"neurons --prompts {GPT2} --probe text --out {{out}} {READ}phrase --max-tokens 21": "prompt "
    "60 + text 21 = 81 tokens, but MODEL has 80 positions; set max_tokens to 20 or less",
    f"tune --backbone {{root}}/gpt2 --length 60 {OUT} --task {{root}}/long": "prompt 60 + text 1 + "
    "answer 27 = 88 tokens, but MODEL has 80 positions; use a shorter prompt",
    "generate --backbone {root}/gpt2": f"text 2: {OUTSIDE}",
    "generate --backbone {root}/t5": f"text 2: {OUTSIDE}",
    "tasks {root}/laughs --backbone {root}/t5": ROW + OUTSIDE,
    f"mask --prompt {T5}/mood.safetensors --out {{out}} {READ}laughs": ROW + OUTSIDE,
    f"tune --backbone {{root}}/t5 {OUT} {READ}template": TEMPLATE + OUTSIDE,
    f"tune --backbone {{root}}/bert --length 4 {OUT} {READ}segment": TEMPLATE + OUTSIDE,
    f"tune --backbone {{root}}/bert --length 4 {OUT} {READ}words": WORD + OUTSIDE,
    f"evaluate --prompt {T5}/mood.safetensors {READ}words": WORD + OUTSIDE,
    f"tune --backbone {{root}}/bert --init text:fine{ADDED} --length 4 {OUT} {READ}plain": "init "
    f"text:fine{ADDED}: {OUTSIDE}",
}


@pytest.mark.parametrize("command", CASES)
def test_every_command(
    run: Callable[..., Any],
    case: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    lines = io.BytesIO(f"a fine film\na {ADDED} film\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
    code, out, err = run(*command.format(root=case, out=tmp_path / "out").split())
    last = err.splitlines()[-1]
    assert (code, out) == (2, "") and last.startswith("jpt: ") and "Traceback" not in err
    assert all(part in last for part in CASES[command].split("MODEL")), last


# Token ids.


def test_answers_and_cut_texts(case: Path, tmp_path: Path) -> None:
    good, bad = {"text": "a film", "said": "fine"}, {"text": "a", "said": [f"fine {ADDED}", "fine"]}
    task = write_rows(tmp_path / "asks", good, bad, toml=QA)
    match = rf"^task asks, answer of row 2 \('fine {ADDED}'\): expected token ids below {SIZE}"
    raises(jpt.tune, case / "t5", task, length=4, steps=1, max_tokens=12, match=match)
    # Only what is read is refused: not behind the cut, nor a further reference.
    cut = {"text": f"{'film ' * 20}{ADDED}", "said": ["fine", ADDED]}
    task = jpt.load_task(write_rows(tmp_path / "cut", cut, cut, toml=QA))
    given = (jpt.read_rows(task, "test"), task, jpt.load_backbone(case / "t5").tokenizer)
    split = encode.encode_split(*given, 12, "encoder_decoder")
    assert split.cut_rows == 2 and SIZE in split.answers.reference_tokens[0][1]
    raises(encode.encode_split, *given, 40, "encoder_decoder", match="^task asks, row 1 ")


def test_a_table_may_be_larger_and_ids_within_it_are_read(case: Path, tmp_path: Path) -> None:
    """Published tables are padded, e.g. T5's to 32128 rows for 32100 tokens."""
    model = jpt.load_backbone(write_backbone(tmp_path / "padded", "bert", SIZE + 3))
    options = {"length": 4, "steps": 1, "max_tokens": 16, "init": f"text:{ADDED}"}
    _, state = jpt.train_step(model, case / "laughs", **options)
    expected = np.tile(model.params["embeddings"]["word"][SIZE], (4, 1))
    np.testing.assert_array_equal(state.params, expected)
    (batch,) = jpt.training_batches(model, case / "laughs", **options)
    assert (batch.tokens == SIZE).any()


def test_rows_from_the_cache_are_checked(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FEWEST_ROWS", 1)
    monkeypatch.setenv("JPT_CACHE", str(tmp_path / "cache"))
    task, tokenizer = jpt.load_task(case / "laughs"), load_tokenizer(case / "bert")
    given = (jpt.read_rows(task, "test"), task, tokenizer, 16)
    split = encode.encode_cached(*given)
    assert list((tmp_path / "cache" / "tokens").glob("*.npz")) and SIZE in split.tokens
    tokenizer.table_size = SIZE
    raises(encode.encode_cached, *given, match=r"^task mood, row 3 .*got")
    tokenizer.table_size = SIZE + 1
    assert np.array_equal(encode.encode_cached(*given).tokens, split.tokens)


def test_special_tokens(case: Path, tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "bert", "bert", cls_token="[CLS]", sep_token=ADDED)
    raises(jpt.load_backbone, folder, match=rf"sep token of the tokenizer: .*got {SIZE} ")
    folder = write_backbone(tmp_path / "gpt2", "gpt2", eos_token="</s>", bos_token=ADDED)
    prompts = write_prompts(tmp_path / "prompts", folder, "decoder")
    raises(jpt.activated_neurons, prompts, match=r"^start token of .*gpt2: expected token ids")
    # Padding is never read: users add a token to GPT-2 without a row for it, which torch masks.
    folder = write_backbone(tmp_path / "padded", "gpt2", eos_token="</s>", pad_token=ADDED)
    backbone = jpt.load_backbone(folder)
    assert backbone.tokenizer.ids.pad == SIZE and backbone.pad_id == backbone.tokenizer.ids.eos
    (batch,) = jpt.training_batches(backbone, case / "plain", length=4, steps=1)
    assert batch.tokens.max() < SIZE


# Positions.


@pytest.mark.parametrize(
    ("model_type", "scoring", "limit"),
    [
        *(("gpt2", "phrase", 14), ("llama", "phrase", 14)),
        *(("gpt2", "first_token", 20), ("t5", "phrase", 128)),  # no token of an answer counts
    ],
)
def test_by_default_texts_are_cut_to_what_fits(
    case: Path, model_type: str, scoring: str, limit: int
) -> None:
    backbone, task = jpt.load_backbone(case / model_type), jpt.load_task(case / "phrase")
    prompt = jpt.load_prompt(case / f"{model_type}-prompts" / "mood.safetensors")
    options = TuneOptions(length=60, label_scoring=scoring)
    assert resolve_options(options, backbone, task).max_tokens == limit
    scored = bind(task, backbone, ScoringOptions(None, 8, scoring), prompt)
    assert scored.batching.max_tokens == limit


def test_what_fits_is_read_at_its_own_positions(case: Path, tmp_path: Path) -> None:
    prompt = jpt.load_prompt(case / "gpt2-prompts" / "mood.safetensors")
    longer, table = write_tiny_backbone(tmp_path, "gpt2", n_positions=90), "transformer.wpe.weight"
    file, tensors = longer / "model.safetensors", load_file(case / "gpt2" / "model.safetensors")
    more = load_file(file)[table][80:]
    save_file({**tensors, table: np.concatenate([tensors[table], more])}, file)
    config = json.loads((case / "gpt2" / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps({**config, "n_positions": 90}))
    options = {"task": case / "phrase", "max_tokens": 14}
    found = jpt.evaluate(prompt, backbone=case / "gpt2", **options)
    expected = jpt.evaluate(prompt, backbone=longer, **options)
    np.testing.assert_array_equal(found.log_probs, expected.log_probs)
    assert found.loss == expected.loss
