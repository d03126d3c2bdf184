"""Weights of a wrong type or not finite are refused by name; heads of tied configs are reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpt
from jpt.io.tensors import _CHUNK_VALUES, count_not_finite, write_safetensors
from jpt.testing import write_tiny_backbone
from jpt.types import Prompt, PromptCard
from tests.helpers.files import Sample, write_torch
from tests.helpers.running import raises
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

Tensors = dict[str, np.ndarray]
Run = Callable[..., Any]
BERT = "bert.encoder.layer.0.output.dense.weight"


def change(folder: Path, edit: Callable[[Tensors], Any], form: str = "safetensors") -> Path:
    """Edit the weights of a folder; store them as safetensors or as torch does."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    if form == "torch":
        file.unlink()
        write_torch(folder / "pytorch_model.bin", tensors)
    else:
        save_file(tensors, file)
    return folder


def cast(name: str, dtype: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: (tensors[name] * 100).astype(dtype)})


def put(name: str, value: float, at: int = 1) -> Callable[[Tensors], Any]:
    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[at] = value

    return edit


def refusal_of(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (2, "") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool"])
def test_whole_numbers_are_no_weights(run: Run, tmp_path: Path, dtype: str, form: str) -> None:
    folder = change(write_tiny_backbone(tmp_path / "bert", "bert"), cast(BERT, dtype), form)
    expected = f"expected weights in float32, bfloat16, float16 or float64, got {dtype} in {BERT};"
    assert expected in refusal_of(run("check", "--backbone", folder))


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "float32"])
def test_floats_of_every_precision_are(tmp_path: Path, dtype: str, form: str) -> None:
    folder = write_tiny_backbone(tmp_path / "bert", "bert")
    whole = jpt.load_backbone(folder).params["layers"]["feed_forward_out"]["kernel"]
    change(folder, lambda tensors: tensors.update({BERT: tensors[BERT].astype(dtype)}), form)
    found = jpt.load_backbone(folder).params["layers"]["feed_forward_out"]
    expected = np.asarray(whole).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(found["kernel"], expected)


def test_several_tensors_are_counted(tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "t5", "t5")

    def edit(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].astype("int8" if ".0." in name else "uint8")

    raises(jpt.load_backbone, change(folder, edit), match=r"got int8, uint8 in .* and \d\d more;")


EVERY = {
    "bert": ("bert.embeddings.word_embeddings.weight", BERT, "cls.predictions.bias"),
    "roberta": ("roberta.encoder.layer.1.attention.self.key.bias", "lm_head.layer_norm.weight"),
    "t5": ("shared.weight", "decoder.block.1.layer.1.EncDecAttention.q.weight"),
    "gpt2": ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"),
    "llama": ("model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("model_type", "name"), [(kind, n) for kind in EVERY for n in EVERY[kind]])
def test_values_that_are_not_finite(
    tmp_path: Path, model_type: str, name: str, value: float
) -> None:
    folder = write_tiny_backbone(tmp_path / model_type, model_type)
    size = load_file(folder / "model.safetensors")[name].size
    # The last value of a fused tensor is in its last part.
    change(folder, put(name, value, at=-1))
    match = rf"model.safetensors: {name}: expected finite weights, got NaN or infinity in 1 of "
    parts = 3 if "c_attn" in name else 1
    raises(jpt.load_backbone, folder, match=rf"{match}{size // parts} values; download")


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_run_and_a_score_end_before_they_begin(run: Run, tmp_path: Path, form: str) -> None:
    folder = write_tiny_backbone(tmp_path / "gpt2", "gpt2")
    change(folder, put("transformer.h.1.mlp.c_fc.bias", np.nan), form)
    mood, prompt = write_task(tmp_path / "mood"), tmp_path / "p.safetensors"
    card = PromptCard(str(folder), "mood", layout="decoder")
    jpt.save_prompt(prompt, Prompt(np.zeros((4, 32), np.float32), card))
    given = ("--backbone", folder, "--task", mood)
    expected = "transformer.h.1.mlp.c_fc.bias: expected finite weights, got NaN or infinity in 1"
    for dtype in ("float32", "bfloat16"):
        tune = run("tune", *given, "--out", tmp_path / "run", "--dtype", dtype)
        assert expected in refusal_of(tune)
        assert expected in refusal_of(run("evaluate", "--prompt", prompt, *given))
    assert not (tmp_path / "run" / "prompt.safetensors").exists()


def test_shards_name_their_file(run: Run, tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "bert", "bert")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    put(BERT, np.inf)(tensors)
    file.unlink()
    names = {
        "model-1.safetensors": [BERT],
        "model-2.safetensors": [n for n in tensors if n != BERT],
    }
    for shard, of in names.items():
        save_file({name: tensors[name] for name in of}, folder / shard)
    index = {"weight_map": {name: shard for shard, of in names.items() for name in of}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"model-1.safetensors: {BERT}: expected" in refusal_of(
        run("check", "--backbone", folder)
    )


def test_values_beyond_the_range_of_the_dtype(run: Run, tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)  # bfloat16 rounds it to infinity
    folder = change(write_tiny_backbone(tmp_path / "bert", "bert"), put(BERT, largest))
    jpt.load_backbone(folder)
    message = refusal_of(run("check", "--backbone", folder, "--dtype", "bfloat16"))
    assert f"{BERT}: expected finite" in message and "exceed the range of bfloat16" in message

    def widen(tensors: Tensors) -> None:
        tensors[BERT] = tensors[BERT].astype(np.float64) * 1e30

    raises(jpt.load_backbone, change(folder, widen), match="exceed the range of float32")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_gguf_tensors_are_named_as_in_the_file(run: Run, tmp_path: Path, kind: str) -> None:
    sample = Sample(kind=kind)
    values = sample.file_tensors()["blk.1.ffn_down.weight"].copy()
    values[0, 3] = np.nan
    with np.errstate(all="ignore"):
        file = Sample(kind=kind, tensors={"blk.1.ffn_down.weight": values}).write(
            tmp_path / "a.gguf"
        )
    message = refusal_of(run("check", "--backbone", file))
    assert "a.gguf: model.layers.1.mlp.down_proj.weight (blk.1.ffn_down.weight): exp" in message


FLOATS = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_the_count_equals_numpy(dtype: type) -> None:
    random = np.random.default_rng(0)
    for size in (0, 1, _CHUNK_VALUES - 1, _CHUNK_VALUES, 2 * _CHUNK_VALUES + 7):
        # All bit patterns: subnormal and negative numbers, infinities and NaN of every kind.
        bits = random.integers(0, 256, size * np.dtype(dtype).itemsize, np.uint8)
        values = bits.view(dtype)
        with np.errstate(invalid="ignore"):
            expected = int((~np.isfinite(values.astype(np.float64))).sum())
        assert count_not_finite(values) == expected
        assert expected > 0 or size < 2 or dtype is np.float64
    assert count_not_finite(np.array([np.nan, -np.nan, np.inf, -np.inf, 0, 1]).astype(dtype)) == 4
    assert count_not_finite(np.full((2, 3), np.inf, dtype)) == 6


# Prompts, adapters and projectors.


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool"])
def test_prompts_of_whole_numbers(run: Run, tmp_path: Path, dtype: str) -> None:
    card = {"card": json.dumps({"backbone": "builtin/bert-small", "task": "mood"})}
    file = tmp_path / "p.safetensors"
    write_safetensors(file, {"prompt": np.ones((4, 128), dtype)}, card)
    mood = write_task(tmp_path / "mood")
    message = refusal_of(run("evaluate", "--prompt", file, "--task", mood))
    assert f"in tensor 'prompt', got {dtype}" in message


def test_prompts_that_are_not_finite(run: Run, tmp_path: Path) -> None:
    values = np.zeros((4, 128), np.float32)
    values[2, 5] = np.nan
    card = PromptCard("builtin/bert-small", "mood")
    mood = write_task(tmp_path / "mood")
    match = r"prompt of mood: expected finite values .*1 of 4 rows \(first: row 2\)"
    raises(jpt.evaluate, Prompt(values, card), mood, match=match)
    given = {"a": Prompt(np.zeros((4, 128), np.float32), card), "b": Prompt(values, card)}
    raises(jpt.transfer_matrix, given, [mood], match="prompt b: expected finite values")
    raises(jpt.activated_neurons, given, match="prompt b: expected finite values")
    file = tmp_path / "p.safetensors"
    write_safetensors(file, {"prompt": values}, {"card": json.dumps(vars(card))})
    assert "got NaN or infinity" in refusal_of(run("evaluate", "--prompt", file, "--task", mood))


@pytest.mark.parametrize("dtype", ["int8", "int64"])
def test_adapters_of_whole_numbers(run: Run, tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "token_dim": 128}))
    write_torch(folder / "adapter_model.bin", {"prompt_embeddings": np.ones((4, 128), dtype)})
    found = run("import", "peft", folder, "--out", tmp_path / "p.safetensors")
    assert f"got {dtype}" in refusal_of(found)


# Heads of configs that tie them to the word embeddings, as in transformers 5.

OWN_HEADS = {
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "roberta": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "t5": ("lm_head.weight", "shared.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
}
SIZES = ("--length", 4, "--max-tokens", 8)
NOTE = "the config ties the head to the word embeddings, but the file has a head with other values"


def tied(folder: Path, model_type: str, **config: Any) -> Path:
    """Write a model whose config ties its head, and whose file has another head."""
    write_tiny_backbone(folder, model_type, **{"tie_word_embeddings": True, **config})
    head, words = OWN_HEADS[model_type]

    def edit(tensors: Tensors) -> None:
        tensors[head] = np.ascontiguousarray(tensors[words][::-1])

    return change(folder, edit)


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("model_type", OWN_HEADS)
def test_a_head_with_other_values_is_used_and_reported(
    run: Run, tmp_path: Path, model_type: str, form: str
) -> None:
    folder = change(tied(tmp_path / model_type, model_type), lambda tensors: None, form)
    code, out, err = run("check", "--backbone", folder, *SIZES, "--json")
    assert code == 0 and err.count(NOTE) == 1 and err.startswith(f"note: {folder}: ")
    assert json.loads(out.splitlines()[-1])["ok"]
    params = jpt.load_backbone(folder).params
    words = np.asarray(params["embeddings"]["word"])
    np.testing.assert_array_equal(params["head"]["words"], words[::-1])


@pytest.mark.parametrize("model_type", OWN_HEADS)
def test_heads_without_a_note(run: Run, tmp_path: Path, model_type: str) -> None:
    head, words = OWN_HEADS[model_type]
    equal = write_tiny_backbone(tmp_path / "equal", model_type, tie_word_embeddings=True)
    change(equal, lambda tensors: tensors.update({head: tensors[words].copy()}))
    own = tied(tmp_path / "own", model_type)
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    if model_type in ("bert", "roberta"):  # an untied decoder has a bias of its own
        bias = head.replace("weight", "bias")
        change(own, lambda tensors: tensors.update({bias: np.zeros(61, np.float32)}))
    for folder, has_head in ((equal, False), (own, True)):
        code, _, err = run("check", "--backbone", folder, *SIZES)
        assert (code, err) == (0, "")
        assert ("words" in jpt.load_backbone(folder).params.get("head", {})) == has_head


@pytest.mark.parametrize("model_type", OWN_HEADS)
def test_a_tied_table_may_be_stored_as_the_head_alone(tmp_path: Path, model_type: str) -> None:
    head, words = OWN_HEADS[model_type]
    folder = write_tiny_backbone(tmp_path / model_type, model_type, tie_word_embeddings=True)
    expected = np.asarray(jpt.load_backbone(folder).params["embeddings"]["word"])
    change(folder, lambda tensors: tensors.update({head: tensors.pop(words)}))
    params = jpt.load_backbone(folder).params
    np.testing.assert_array_equal(params["embeddings"]["word"], expected)
    assert "words" not in params.get("head", {})


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_weight_and_bias_of_a_decoder_are_tied_one_by_one(tmp_path: Path, model_type: str) -> None:
    head, _ = OWN_HEADS[model_type]
    folder = write_tiny_backbone(tmp_path / model_type, model_type)
    bias = np.random.default_rng(0).normal(size=61).astype(np.float32)
    change(folder, lambda tensors: tensors.update({head.replace("weight", "bias"): bias}))
    params = jpt.load_backbone(folder).params
    assert "words" not in params["head"]
    np.testing.assert_array_equal(params["head"]["bias"], bias)
