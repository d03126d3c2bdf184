"""PEFT loads what jpt exports and computes the same logits; jpt reads what PEFT saves."""

import dataclasses
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.registry import BUILTIN, Backbone, load_backbone
from jpt.errors import InputError
from jpt.prompts.store import load_prompt, save_prompt
from jpt.recipes.interop import export_peft, import_peft
from jpt.types import Prompt, PromptCard
from tests.conftest import ROOT
from tests.helpers.golden import difference, read

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
ROWS = 7
TEXTS = ["a dull film .", "the plot was thin , but i liked the songs and the old houses", "fine"]
DECODED = [[0, 17, 301, 5], [0, 90, 4, 4000], [0, 8, 8, 8]]  # what T5's decoder reads

# Sizes that share no factor where they can, so that swapped axes cannot pass.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 44, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "llama": {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 10},
    "t5": {"d_model": 36, "d_kv": 10, "d_ff": 58, "num_layers": 3, "num_decoder_layers": 2},
}
SHAPES["llama"] |= {"num_key_value_heads": 5, "head_dim": 6, "intermediate_size": 52}
SHAPES["llama"] |= {"max_position_embeddings": 64, "tie_word_embeddings": False}
# As T5 1.1.
SHAPES["t5"] |= {"num_heads": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SHAPES["t5"] |= {"decoder_start_token_id": 0, "relative_attention_num_buckets": 8}
SHAPES["t5"] |= {"relative_attention_max_distance": 20}
TOKENIZERS = {"gpt2": "gpt2-mini", "llama": "gpt2-mini", "t5": "t5-mini"}


class Pair(NamedTuple):
    folder: Path
    backbone: Backbone
    load: Callable[[], Any]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    import transformers

    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    tokenizer = BUILTIN / TOKENIZERS[name]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder)
    ids = {"vocab_size": 8224, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.AutoConfig.for_model(name, **SHAPES[name], **ids)
    kind = "AutoModelForSeq2SeqLM" if name == "t5" else "AutoModelForCausalLM"
    torch.manual_seed(5)
    model = getattr(transformers, kind).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far from their start, where all logits are similar
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    load = getattr(transformers, kind).from_pretrained
    return Pair(folder, load_backbone(folder), lambda: load(folder).eval())


def random_prompt(pair: Pair) -> Prompt:
    size, layout = (ROWS, pair.backbone.config.width), pair.backbone.layout
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    card = PromptCard(str(pair.folder), "builtin/imdb", "sentiment", layout, "vocab", 3, 120)
    card = dataclasses.replace(card, score=0.8112345678901234, metric="accuracy")
    return Prompt(values, dataclasses.replace(card, jpt_version="0.0.1"))


def tokens_of(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and lengths of the texts, equal in jpt and transformers."""
    from transformers import AutoTokenizer

    rows = pair.backbone.tokenizer.encode(TEXTS)
    theirs = AutoTokenizer.from_pretrained(pair.folder)
    assert theirs(TEXTS, add_special_tokens=False)["input_ids"] == rows
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    assert len(set(lengths.tolist())) == 3, "rows of one length would not need the mask"
    return tokens, lengths


def ask_jpt(pair: Pair, values: np.ndarray) -> np.ndarray:
    """Logits at all text positions, or of all of T5's decoder tokens."""
    inputs, backbone = (*map(jnp.asarray, tokens_of(pair)), jnp.asarray(values)), pair.backbone
    options: dict[str, Any] = {"every_position": True}
    if backbone.layout == "encoder_decoder":
        options = {"decoder_tokens": jnp.asarray(DECODED, jnp.int32)}
    return np.asarray(read(backbone.module, backbone.params, *inputs, **options).logits)


def ask_peft(pair: Pair, model: Any) -> np.ndarray:
    import torch

    tokens, lengths = tokens_of(pair)
    seen = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int64)
    given = {"input_ids": torch.from_numpy(tokens).long(), "attention_mask": torch.from_numpy(seen)}
    is_decoder = pair.backbone.layout == "decoder"
    if not is_decoder:
        given["decoder_input_ids"] = torch.tensor(DECODED)
    with torch.no_grad():
        return model(**given).logits[:, ROWS if is_decoder else 0 :].numpy()


def assert_logits_agree(pair: Pair, values: np.ndarray, model: Any) -> None:
    ours, theirs = ask_jpt(pair, values), ask_peft(pair, model)
    if pair.backbone.layout == "decoder":  # values at padding are undefined
        tokens, lengths = tokens_of(pair)
        is_text = np.arange(tokens.shape[1]) < lengths[:, None]
        ours, theirs = ours[is_text], theirs[is_text]
    assert difference(ours, theirs) < TOLERANCE
    other = ask_jpt(pair, values[::-1].copy())
    assert np.abs(other[..., 0, :] - ours.reshape(-1, ours.shape[-1])[0]).max() > 0.01


def saved_by_peft(pair: Pair, out: Path, bin_file: bool = False, **options: Any) -> np.ndarray:
    """Save an adapter with PEFT and return its table."""
    import peft
    import torch

    is_decoder = pair.backbone.layout == "decoder"
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM" if is_decoder else "SEQ_2_SEQ_LM", num_virtual_tokens=ROWS, **options
    )
    model = peft.get_peft_model(pair.load(), config)
    table = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        table += torch.randn(table.shape, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(out, safe_serialization=not bin_file)
    return table.detach().numpy().copy()


def test_peft_loads_an_export_and_agrees_on_logits(pair: Pair, tmp_path: Path) -> None:
    from peft import PeftModel

    prompt = random_prompt(pair)
    save_prompt(tmp_path / "p.safetensors", prompt)
    export_peft(tmp_path / "p.safetensors", tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # for unknown fields
        model = PeftModel.from_pretrained(pair.load(), str(tmp_path / "adapter")).eval()
    assert_logits_agree(pair, prompt.values, model)


def test_an_adapter_that_peft_saved_is_imported(pair: Pair, tmp_path: Path) -> None:
    from peft import PeftModel

    table = saved_by_peft(pair, tmp_path / "theirs")
    found = import_peft(tmp_path / "theirs", tmp_path / "p.safetensors", task="builtin/imdb")
    prompt = load_prompt(tmp_path / "p.safetensors")
    assert np.array_equal(prompt.values, table[:ROWS])
    is_t5 = pair.backbone.layout == "encoder_decoder"
    assert len(table) == (2 * ROWS if is_t5 else ROWS)
    assert ("the first 7 of 14 rows" in found.describe()) == is_t5
    card = prompt.card
    assert (card.backbone, card.layout) == (str(pair.folder), pair.backbone.layout)
    assert (card.task, card.task_type, card.source) == ("builtin/imdb", "sentiment", "peft:theirs")
    model = PeftModel.from_pretrained(pair.load(), str(tmp_path / "theirs")).eval()
    assert_logits_agree(pair, prompt.values, model)


def test_peft_saves_an_export_again_and_it_comes_back(pair: Pair, tmp_path: Path) -> None:
    # Without its card, which PEFT drops, and for a model of which only the name is known.
    from peft import PeftModel

    prompt = random_prompt(pair)
    prompt = Prompt(prompt.values, dataclasses.replace(prompt.card, backbone="somebody/model"))
    export_peft(prompt, tmp_path / "ours")
    model = PeftModel.from_pretrained(pair.load(), str(tmp_path / "ours"))
    model.save_pretrained(tmp_path / "again")
    found = import_peft(tmp_path / "again").prompt
    assert np.array_equal(found.values, prompt.values)
    assert (found.card.task, found.card.source) == ("unknown", "peft:again")
    assert import_peft(tmp_path / "ours").prompt.card == prompt.card


def test_older_files_and_other_starts_are_read(pair: Pair, tmp_path: Path) -> None:
    options = {
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "a good film",
        "tokenizer_name_or_path": str(pair.folder),
    }
    table = saved_by_peft(pair, tmp_path / "bin", bin_file=True, **options)
    assert (tmp_path / "bin" / "adapter_model.bin").is_file()
    found = import_peft(tmp_path / "bin").prompt
    assert np.array_equal(found.values, table[:ROWS])
    assert found.card.init == "text:a good film"
    table = saved_by_peft(
        pair, tmp_path / "one", prompt_tuning_init="SAMPLE_VOCAB", num_transformer_submodules=1
    )
    found = import_peft(tmp_path / "one")
    assert found.prompt.card.init == "vocab" and "rows;" not in found.describe()
    assert np.array_equal(found.prompt.values, table)


OTHERS = {
    "PREFIX_TUNING": ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "P_TUNING": ("PromptEncoderConfig", {"num_virtual_tokens": 4}),
    "LORA": ("LoraConfig", {}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_of_other_kinds_are_refused(pair: Pair, tmp_path: Path, kind: str) -> None:
    import peft

    name, options = OTHERS[kind]
    task_type = "CAUSAL_LM" if pair.backbone.layout == "decoder" else "SEQ_2_SEQ_LM"
    config = getattr(peft, name)(task_type=task_type, **options)
    peft.get_peft_model(pair.load(), config).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=f"expected peft_type PROMPT_TUNING, got {kind}"):
        import_peft(tmp_path / "other")


@pytest.mark.slow
def test_the_lines_of_the_readme_run(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (part for part in text.split("```\n") if part.startswith("jpt export peft "))
    assert block.count("\n") == 4
    shutil.copytree(BUILTIN / "gpt2-mini", tmp_path / "model")
    values = np.random.default_rng(0).normal(size=(ROWS, 128)).astype(np.float32)
    (tmp_path / "runs").mkdir()
    card = PromptCard("model", "builtin/rotten_tomatoes", layout="decoder")
    (tmp_path / "runs" / "mood").mkdir()
    save_prompt(tmp_path / "runs" / "mood" / "prompt.safetensors", Prompt(values, card))
    commands = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
    script = ["bash", "-e", "-c", block]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "builtin/rotten_tomatoes test: accuracy" in done.stdout
    found = load_prompt(tmp_path / "prompts" / "theirs.safetensors")
    assert np.array_equal(found.values, values) and found.card.source == "peft:theirs"
