"""Weights in the forms that people have: shards with an index, and both old forms of torch.save."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpt
from jpt.testing import write_tiny_backbone

TYPES = ("bert", "t5", "gpt2", "llama")
# What real files hold beyond the weights, and what must be passed over.
EXTRAS = {
    "bert": {"bert.embeddings.position_ids": np.arange(40)[None]},
    "t5": {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.zeros((32, 4)),
    },
    "gpt2": {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 80, 80), np.uint8))},
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)},
}


def write(folder: Path, model_type: str) -> dict[str, np.ndarray]:
    """Writes a folder without its weights, and gives them with what real files add."""
    write_tiny_backbone(folder, model_type)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, extra in EXTRAS[model_type].items():
        tensors[name] = tensors[extra].copy() if isinstance(extra, str) else extra
    return tensors


def write_shards(folder: Path, tensors: dict[str, np.ndarray], count: int = 3) -> None:
    names, files = sorted(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        held = {name: tensors[name] for name in names[number::count]}
        save_file(held, folder / file)
        files |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_same(found: jpt.Backbone, expected: jpt.Backbone) -> None:
    found, expected = found.params, expected.params
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))


@pytest.mark.parametrize("model_type", TYPES)
def test_shards_are_read_like_one_file(tmp_path: Path, model_type: str) -> None:
    whole = jpt.load_backbone(write_tiny_backbone(tmp_path / "whole", model_type))
    write_shards(tmp_path / "shards", write(tmp_path / "shards", model_type))
    assert_same(jpt.load_backbone(tmp_path / "shards"), whole)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_missing_shard_and_one_of_another_model_are_named(
    tmp_path: Path, model_type: str
) -> None:
    tensors = write(tmp_path, model_type)
    write_shards(tmp_path, tensors)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    held = load_file(shard)
    broken = next(name for name in held if held[name].ndim == 2 and name not in EXTRAS[model_type])
    save_file({**held, broken: held[broken][:, :-1].copy()}, shard)
    with pytest.raises(jpt.InputError, match=rf"misshaped: {broken}"):
        jpt.load_backbone(tmp_path)
    shard.unlink()
    with pytest.raises(jpt.InputError, match="1 of the 3 shards .* model-00002-of-00003"):
        jpt.load_backbone(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("model_type", TYPES)
def test_both_forms_of_torch_save_are_read(tmp_path: Path, model_type: str, is_zip: bool) -> None:
    torch = pytest.importorskip("torch")
    whole = jpt.load_backbone(write_tiny_backbone(tmp_path / "whole", model_type))
    tensors = write(tmp_path / "old", model_type)
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    file = tmp_path / "old" / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=is_zip)
    assert_same(jpt.load_backbone(tmp_path / "old"), whole)
