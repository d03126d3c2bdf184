"""Everything that a decoder reads counts against its positions, label words included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax

import jpt
from jpt.config import ScoringOptions, TuneOptions
from jpt.testing import write_tiny_backbone
from jpt.tuning.bound_task import bind, resolve_options
from jpt.types import Prompt, PromptCard
from tests.helpers.golden import read
from tests.helpers.running import raises
from tests.helpers.toys import MOOD_TOML, write_task

pytestmark = pytest.mark.plain_programs

LENGTH = 60
PHRASE = "good the film is fine not dull"  # 7 tokens, of which 6 are read
TOML = MOOD_TOML.replace('good = "good"', f'good = "{PHRASE}"')
FAULT = "prompt 60 + text 20 + answer 6 = 86 tokens, but"
CURE = "has 80 positions; set max_tokens to 14 or less"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write decoders, a T5, a task with a label word of seven tokens, and prompts."""
    root = tmp_path_factory.mktemp("positions")
    write_task(root / "mood", toml=TOML)
    random = np.random.default_rng(0)
    for model_type, layout in (
        ("gpt2", "decoder"),
        ("llama", "decoder"),
        ("t5", "encoder_decoder"),
    ):
        backbone = write_tiny_backbone(root / model_type, model_type)
        folder = root / f"{model_type}-prompts"
        folder.mkdir()
        for task in ("mood", "other"):
            card = PromptCard(str(backbone), task, "sentiment", seed=0, layout=layout)
            values = random.normal(size=(LENGTH, 32)).astype(np.float32)
            jpt.save_prompt(folder / f"{task}.safetensors", Prompt(values, card))
    return root


def prompt_of(case: Path) -> Path:
    return case / "gpt2-prompts" / "mood.safetensors"


COMMANDS = (
    "tune --backbone {root}/gpt2 --task {root}/mood --out {out} --length 60 --steps 2",
    "tune --backbone {root}/llama --task {root}/mood --out {out} --length 60 --seeds 0,1 --steps 2",
    "evaluate --prompt {root}/gpt2-prompts/mood.safetensors --task {root}/mood",
    "evaluate --prompt {root}/llama-prompts/other.safetensors --task {root}/mood",
    "transfer --prompts {root}/gpt2-prompts --tasks {root}/mood --out {out}",
    "mask --prompt {root}/gpt2-prompts/mood.safetensors --task {root}/mood --out {out}",
    "recommend --prompts {root}/gpt2-prompts --task {root}/mood --out {out}",
    "mix ensemble --prompts {root}/gpt2-prompts --task {root}/mood",
    "mix learn --prompts {root}/gpt2-prompts --task {root}/mood --out {out} --steps 2",
    "warm-start --sources {root}/gpt2-prompts/other.safetensors --task {root}/mood --out {out}",
    "project train --sources {root}/llama-prompts --target-backbone {root}/gpt2 "
    "--tasks {root}/mood --out {out} --length 60 --steps 2",
    "project evaluate --sources {root}/llama-prompts --methods untrained "
    "--target-backbone {root}/gpt2 --tasks {root}/mood --out {out}",
    "neurons --prompts {root}/gpt2-prompts --probe text --task {root}/mood --out {out}.npz",
    "check --backbone {root}/gpt2 --task {root}/mood --length 60",
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: " ".join(text.split()[:2]))
def test_label_words_count_in_every_command(
    run: Callable[..., Any], case: Path, tmp_path: Path, command: str
) -> None:
    words = command.format(root=case, out=tmp_path / "out").split()
    code, out, err = run(*words, "--max-tokens", "20")
    assert (code, out) == (2, "") and err.count("\n") == 1, err
    assert FAULT in err and CURE in err
    assert not (tmp_path / "out.npz").exists()


def test_by_default_texts_are_cut_to_what_fits(case: Path) -> None:
    mood = jpt.load_task(case / "mood")
    limits = {"gpt2": 14, "llama": 14, "t5": 128}
    for name, limit in limits.items():
        backbone = jpt.load_backbone(case / name)
        prompt = jpt.load_prompt(case / f"{name}-prompts" / "mood.safetensors")
        tuned = resolve_options(TuneOptions(length=LENGTH), backbone, mood)
        scored = bind(mood, backbone, ScoringOptions(None, 8), prompt)
        assert tuned.max_tokens == scored.batching.max_tokens == limit
    # Scored by its first token, a label word needs no position.
    backbone, first = jpt.load_backbone(case / "gpt2"), "first_token"
    tuned = resolve_options(TuneOptions(length=LENGTH, label_scoring=first), backbone, mood)
    prompt = jpt.load_prompt(prompt_of(case))
    scored = bind(mood, backbone, ScoringOptions(None, 8, first), prompt)
    assert tuned.max_tokens == scored.batching.max_tokens == 20


def with_more_positions(source: Path, folder: Path) -> Path:
    """Copy a GPT-2 whose position table has ten further rows."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    table = tensors["transformer.wpe.weight"]
    more = np.random.default_rng(1).normal(size=(10, table.shape[1])).astype(table.dtype)
    tensors["transformer.wpe.weight"] = np.concatenate([table, more])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": len(table) + 10}))
    return folder


def test_what_fits_is_read_at_its_own_positions(case: Path, tmp_path: Path) -> None:
    prompt = jpt.load_prompt(prompt_of(case))
    longer = with_more_positions(case / "gpt2", tmp_path / "longer")
    options = {"task": case / "mood", "max_tokens": 14}
    found = jpt.evaluate(prompt, backbone=case / "gpt2", **options)
    expected = jpt.evaluate(prompt, backbone=longer, **options)
    np.testing.assert_array_equal(found.log_probs, expected.log_probs)
    assert found.loss == expected.loss


def test_t5_has_no_last_position(case: Path, tmp_path: Path) -> None:
    """Its distances share buckets from 128 on, so a label word of 160 tokens is read exactly."""
    phrase = " ".join(PHRASE.split()[number % 7] for number in range(160))
    mood = write_task(tmp_path / "mood", toml=TOML.replace(PHRASE, phrase))
    prompt = jpt.load_prompt(case / "t5-prompts" / "mood.safetensors")
    backbone = jpt.load_backbone(case / "t5")
    found = jpt.evaluate(prompt, mood, backbone=backbone, max_tokens=20).log_probs[0]
    (text,) = backbone.tokenizer.encode([jpt.read_rows(jpt.load_task(mood), "test")[0]["text"]])
    text = [*text, backbone.tokenizer.ids.eos]

    def log_prob(word: str) -> float:
        answer = backbone.tokenizer.word_tokens(word)
        before = [backbone.config.start_id, *answer[:-1]]
        arrays = (np.array([text], np.int32), np.array([len(text)], np.int32), prompt.values)
        options = {"decoder_tokens": np.array([before], np.int32)}
        logits = read(backbone.module, backbone.params, *arrays, **options).logits
        shares = log_softmax(np.asarray(logits[0], np.float64), axis=-1)
        return shares[np.arange(len(answer)), answer].sum()

    expected = log_softmax([log_prob("bad"), log_prob(phrase)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_label_word_that_leaves_no_room_for_text(case: Path, tmp_path: Path) -> None:
    mood = write_task(tmp_path / "mood", toml=TOML.replace(PHRASE, f"{PHRASE} " * 4))
    match = r"prompt 60 \+ text 1 \+ answer 27 = 88 tokens, .* 80 positions; use a shorter prompt"
    raises(jpt.tune, case / "gpt2", mood, length=60, steps=1, match=match)
