"""Loading rules, memory while loading, hub ids, shards and files of torch."""

import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpt
from jpt.backbones import registry
from jpt.backbones.loading import TensorRule, load_parameters, write_parameters
from jpt.backbones.registry import find_folder
from jpt.errors import InputError
from jpt.io.tensors import open_tensors, write_safetensors
from jpt.testing import write_tiny_backbone
from tests.helpers.golden import Dictionary

LAYERS, WIDTH = 3, 4
QKV = [
    TensorRule(f"layer/{name}/kernel", "h.{layer}.qkv", (WIDTH, 9), layers=LAYERS, part=(part, 3))
    for part, name in enumerate(("query", "key", "value"))
]
RULES = [
    TensorRule("embeddings/word", "wte", (7, WIDTH)),
    *QKV,
    TensorRule("side/layers/up", "s.{layer}.up", (5, WIDTH), transpose=True, layers=2),
]


def checkpoint() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"wte": (7, WIDTH)}
    shapes |= {f"h.{layer}.qkv": (WIDTH, 9) for layer in range(LAYERS)}
    shapes |= {f"s.{layer}.up": (5, WIDTH) for layer in range(2)}
    return {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def test_layers_are_stacked_and_the_last_one_is_apart_if_the_rule_says_so() -> None:
    tensors = checkpoint()
    params = load_parameters(Dictionary(tensors), RULES)
    assert set(params) == {"embeddings", "layers", "last_layer", "side"}
    for number, name in enumerate(("query", "key", "value")):
        part = slice(3 * number, 3 * number + 3)
        lower = np.stack([tensors[f"h.{layer}.qkv"][:, part] for layer in range(LAYERS - 1)])
        assert np.array_equal(params["layers"][name]["kernel"], lower)
        assert np.array_equal(params["last_layer"][name]["kernel"], tensors["h.2.qkv"][:, part])
    up = np.stack([tensors[f"s.{layer}.up"].T for layer in range(2)])
    assert np.array_equal(params["side"]["layers"]["up"], up)


def test_writing_is_the_inverse_of_loading() -> None:
    tensors = checkpoint()
    written = write_parameters(load_parameters(Dictionary(tensors), RULES), RULES)
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)


def test_a_missing_layer_of_a_fused_tensor_is_named_once() -> None:
    tensors = checkpoint()
    del tensors["h.1.qkv"]
    tensors["h.0.qkv"] = tensors["h.0.qkv"][:, :6]
    faults = r"missing: h.1.qkv; misshaped: h.0.qkv is \[4, 6\], expected \[4, 9\]$"
    with pytest.raises(InputError, match=f"^the folder x does not match its config.json; {faults}"):
        load_parameters(Dictionary(tensors), RULES, where="the folder x")


def test_each_parameter_is_placed_once_whole_and_in_its_dtype() -> None:
    placed: list[str] = []

    def place(path: str, values: np.ndarray) -> jax.Array:
        assert values.dtype == jnp.bfloat16
        placed.append(path)
        return jnp.asarray(values)

    params = load_parameters(Dictionary(checkpoint()), RULES, dtype=jnp.bfloat16, place=place)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sorted(placed) == sorted("/".join(key.key for key in path) for path, _ in leaves)


def test_host_memory_beyond_the_result_stays_below_twice_the_largest_stack(tmp_path: Path) -> None:
    layers, width = 6, 256
    tensor = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    tensors = {f"{name}.{layer}": tensor for name in "abcd" for layer in range(layers)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    rules = [
        TensorRule(f"layers/{name}", f"{name}.{{layer}}", (width, width), True, layers=layers)
        for name in "abcd"
    ]
    source = open_tensors(tmp_path)

    def drop(path: str, values: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(values.shape, values.dtype)

    tracemalloc.start()
    load_parameters(source, rules, place=drop)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest_bytes = layers * width * width * 4
    assert largest_bytes < peak_bytes < 2 * largest_bytes


def test_the_first_models_are_found_by_their_old_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "_download", lambda hub_id: asked.append(hub_id) or tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("roberta-base", "t5-base", "google-bert/bert-base-uncased"):
        find_folder(name)
    expected = ["FacebookAI/roberta-base", "google-t5/t5-base", "google-bert/bert-base-uncased"]
    assert asked == expected
    own = write_tiny_backbone(tmp_path / "roberta-base", "roberta")
    assert find_folder("roberta-base").resolve() == own.resolve()
    assert asked == expected
    with pytest.raises(InputError, match="unknown backbone 'roberta-bose'"):
        find_folder("roberta-bose")


# Tensors of real files that are not needed.
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
every_type = pytest.mark.parametrize("model_type", EXTRAS)


def write(folder: Path, model_type: str) -> dict[str, np.ndarray]:
    """Write a folder without its weights; return them with the extras of real files."""
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


@every_type
def test_shards_are_read_like_one_file(tmp_path: Path, model_type: str) -> None:
    whole = jpt.load_backbone(write_tiny_backbone(tmp_path / "whole", model_type))
    write_shards(tmp_path / "shards", write(tmp_path / "shards", model_type))
    assert_same(jpt.load_backbone(tmp_path / "shards"), whole)


@every_type
def test_a_missing_or_foreign_shard_is_named(tmp_path: Path, model_type: str) -> None:
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
@every_type
def test_both_forms_of_torch_save_are_read(tmp_path: Path, model_type: str, is_zip: bool) -> None:
    torch = pytest.importorskip("torch")
    whole = jpt.load_backbone(write_tiny_backbone(tmp_path / "whole", model_type))
    tensors = write(tmp_path / "old", model_type)
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    file = tmp_path / "old" / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=is_zip)
    assert_same(jpt.load_backbone(tmp_path / "old"), whole)
