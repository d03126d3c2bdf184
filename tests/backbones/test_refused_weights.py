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
from jpt.errors import DataWarning
from jpt.io.tensors import _CHUNK_VALUES, count_not_finite
from jpt.testing import write_tiny_backbone
from jpt.types import Prompt, PromptCard
from tests.helpers.files import Sample, write_torch
from tests.helpers.running import raises
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

Tensors = dict[str, np.ndarray]
Run = Callable[..., Any]
BERT = "bert.encoder.layer.0.output.dense.weight"
FINITE = "expected finite weights in float32, got NaN or infinity in "


def change(folder: Path, edit: Callable[[Tensors], Any], form: str = "safetensors") -> Path:
    """Edit the weights of a folder; store them as safetensors, in two shards, or as torch does."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    file.unlink()
    if form == "torch":
        write_torch(folder / "pytorch_model.bin", tensors)
    elif form == "shards":
        shards = {name: f"shard-{int(name == BERT)}.safetensors" for name in tensors}
        for shard in set(shards.values()):
            save_file({n: tensors[n] for n in tensors if shards[n] == shard}, folder / shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    else:
        save_file(tensors, file)
    return folder


def put(name: str, value: float) -> Callable[[Tensors], Any]:
    """Return an edit of the last value of a tensor."""

    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[-1] = value

    return edit


def refusal_of(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (2, "") and err.count("\n") == 1, err
    return err


FILES = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}
FILES |= {"shards": "shard-1.safetensors"}


@pytest.mark.parametrize(
    ("dtype", "form"),
    [
        *(("int8", form) for form in FILES),
        *(("uint8", "torch"), ("int16", "safetensors"), ("int32", "torch")),
        *(("int64", "safetensors"), ("bool", "torch"), ("bool", "safetensors")),
    ],
)
def test_whole_numbers_are_no_weights(run: Run, tmp_path: Path, dtype: str, form: str) -> None:
    def cast(tensors: Tensors) -> None:
        tensors[BERT] = (tensors[BERT] * 100).astype(dtype)

    folder = change(write_tiny_backbone(tmp_path / "bert", "bert"), cast, form)
    expected = f"{folder / FILES[form]}: {BERT}: expected weights in float32, bfloat16, float16 or "
    assert f"{expected}float64, got {dtype};" in refusal_of(run("check", "--backbone", folder))


TENSORS = {
    "bert": ("bert.embeddings.word_embeddings.weight", BERT, "cls.predictions.bias"),
    "roberta": ("roberta.encoder.layer.1.attention.self.key.bias", "lm_head.layer_norm.weight"),
    "t5": ("shared.weight", "decoder.block.1.layer.1.EncDecAttention.q.weight"),
    "gpt2": ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"),
    "llama": ("model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"),
}


@pytest.mark.parametrize("model_type", TENSORS)
def test_values_that_are_not_finite(tmp_path: Path, model_type: str) -> None:
    for name, value in zip(TENSORS[model_type], (np.nan, -np.inf, np.inf), strict=False):
        folder = change(write_tiny_backbone(tmp_path / name, model_type), put(name, value))
        match = rf"model.safetensors: {name}: {FINITE}1 of \d+ values; download or convert"
        raises(jpt.load_backbone, folder, match=match)


@pytest.mark.parametrize("form", FILES)
def test_a_run_and_a_score_end_before_they_begin(run: Run, tmp_path: Path, form: str) -> None:
    folder = change(write_tiny_backbone(tmp_path / "bert", "bert"), put(BERT, np.nan), form)
    prompt, values = tmp_path / "p.safetensors", np.zeros((4, 32), np.float32)
    jpt.save_prompt(prompt, Prompt(values, PromptCard(str(folder), "mood")))
    given = ("--backbone", folder, "--task", write_task(tmp_path / "mood"))
    expected = f"{FILES[form]}: {BERT}: {FINITE}1 of 1536 values"
    assert expected in refusal_of(run("tune", *given, "--out", tmp_path / "run"))
    assert expected in refusal_of(run("evaluate", *given, "--prompt", prompt))
    half = refusal_of(run("check", "--backbone", folder, "--dtype", "bfloat16"))
    assert expected.replace("float32", "bfloat16") in half
    assert not (tmp_path / "run" / "prompt.safetensors").exists()


def test_values_beyond_the_range_of_the_dtype(run: Run, tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)  # bfloat16 rounds it to infinity
    folder = change(write_tiny_backbone(tmp_path / "bert", "bert"), put(BERT, largest))
    jpt.load_backbone(folder)
    message = refusal_of(run("check", "--backbone", folder, "--dtype", "bfloat16"))
    assert f"{BERT}: expected finite weights in bfloat16, got NaN or infinity in 1 of" in message
    change(folder, lambda tensors: tensors.update({BERT: tensors[BERT].astype(np.float64) * 9}))
    raises(jpt.load_backbone, folder, match=f"{BERT}: {FINITE}1 of")


@pytest.mark.parametrize("command", ["evaluate", "transfer", "mix", "recommend"])
def test_a_prompt_whose_scores_are_not_finite(run: Run, tmp_path: Path, command: str) -> None:
    model, task = write_tiny_backbone(tmp_path / "model", "bert"), write_task(tmp_path / "mood")
    for name, value in (("fine", 0.1), ("huge", 3e38)):
        card = PromptCard(str(model), name)
        jpt.save_prompt(
            tmp_path / f"{name}.safetensors", Prompt(np.full((3, 32), value, "f4"), card)
        )
    words = {
        "evaluate": ("evaluate", "--prompt", tmp_path / "huge.safetensors", "--task", task),
        "transfer": ("transfer", "--prompts", tmp_path, "--tasks", task, "--out", tmp_path / "out"),
        "mix": ("mix", "ensemble", "--prompts", tmp_path, "--task", task),
        "recommend": ("recommend", "--prompts", tmp_path, "--task", task, "--labels", "8"),
    }
    code, out, err = run(*words[command])
    found = err.splitlines()[-1]
    assert (code, out) == (2, "") and "huge" in found
    assert "on task mood: expected finite label scores, got NaN" in found
    assert "largest value of the prompt 3e+38" in found


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_gguf_tensors_are_named_as_in_the_file(run: Run, tmp_path: Path, kind: str) -> None:
    sample = Sample(kind=kind)
    values = sample.file_tensors()["blk.1.ffn_down.weight"].copy()
    values[0, 3] = np.nan
    sample = Sample(kind=kind, tensors={"blk.1.ffn_down.weight": values})
    with np.errstate(all="ignore"):
        file = sample.write(tmp_path / "a.gguf")
    message = refusal_of(run("check", "--backbone", file))
    assert (
        f"a.gguf: model.layers.1.mlp.down_proj.weight (blk.1.ffn_down.weight): {FINITE}" in message
    )


FLOATS = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_the_count_equals_numpy(dtype: type) -> None:
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0, 1]).astype(dtype)
    assert count_not_finite(special) == 4
    for size in (0, 1, _CHUNK_VALUES, 2 * _CHUNK_VALUES + 7):
        # All bit patterns: subnormal and negative numbers, infinities and NaN of every kind.
        bits = np.random.default_rng(0).integers(0, 256, size * np.dtype(dtype).itemsize, np.uint8)
        values = bits.view(dtype)
        with np.errstate(invalid="ignore"):
            expected = int((~np.isfinite(values.astype(np.float64))).sum())
        assert count_not_finite(values) == expected


# Heads of configs that tie them to the word embeddings, as in transformers 5.

HEADS = {
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "roberta": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "t5": ("lm_head.weight", "shared.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
}
TIED = "the config ties the head to the word embeddings, but the file has a head with other values"


@pytest.mark.parametrize("model_type", HEADS)
@pytest.mark.parametrize("form", ["other", "equal", "alone", "untied"])
def test_heads_in_the_file(run: Run, tmp_path: Path, model_type: str, form: str) -> None:
    """Heads with other values are used and reported; equal ones, or one table alone, are tied."""
    (head, words), is_own = HEADS[model_type], form in ("other", "untied")

    def edit(tensors: Tensors) -> None:
        table = tensors.pop(words) if form == "alone" else tensors[words]
        tensors[head] = np.ascontiguousarray(table[::-1] if is_own else table)

    folder = tmp_path / model_type
    write_tiny_backbone(folder, model_type, tie_word_embeddings=form != "untied")
    expected = load_file(folder / "model.safetensors")[words]
    change(folder, edit)
    code, out, err = run("check", "--backbone", folder, "--length", 4, "--max-tokens", 8)
    assert code == 0 and "all checks passed" in out
    assert err.startswith(f"warning: {folder}: {TIED}") if form == "other" else err == ""
    assert err.count("\n") == (form == "other")
    params = jpt.load_backbone(folder).params
    np.testing.assert_array_equal(params["embeddings"]["word"], expected)
    assert ("words" in params.get("head", {})) == is_own
    if is_own:
        np.testing.assert_array_equal(params["head"]["words"], expected[::-1])


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_weight_and_bias_of_a_decoder_are_tied_one_by_one(tmp_path: Path, model_type: str) -> None:
    folder = write_tiny_backbone(tmp_path / model_type, model_type)
    bias = np.random.default_rng(0).normal(size=61).astype(np.float32)
    name = HEADS[model_type][0].replace("weight", "bias")
    change(folder, lambda tensors: tensors.update({name: bias}))
    with pytest.warns(DataWarning, match=TIED):
        params = jpt.load_backbone(folder).params
    assert "words" not in params["head"]
    np.testing.assert_array_equal(params["head"]["bias"], bias)
