"""GGUF files: weights, config, rotary scaling, and errors for unsupported or damaged ones."""

import os
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from jpt.backbones.decoder import LLAMA_WEIGHTS, DecoderConfig
from jpt.backbones.layers import inverse_frequencies
from jpt.io.gguf import KINDS, open_gguf, read_gguf_tokenizer, recover_rope_scaling
from tests.helpers.files import KINDS_BY_FORMULA, Sample, check_mutations, pack, refusal

SAMPLES = [
    Sample(),
    Sample(tied=False, layers=1, key_heads=1, head_width=6, words=[f"w{n}" for n in range(9)]),
    Sample(architecture="qwen2", biases=True),
    Sample(biases=True, key_heads=4),
]
# Widths that blocks of 256 divide, and enough rows for several chunks.
BLOCKS = Sample(width=256, heads=2, key_heads=1, head_width=128, neurons=256, layers=1)


@pytest.mark.parametrize("sample", SAMPLES, ids=["tied", "untied", "qwen2", "llama-biases"])
def test_weights_have_the_names_and_the_order_of_hugging_face(sample: Sample, tmp_path) -> None:
    file = open_gguf(sample.write(tmp_path / "a.gguf"))
    expected = sample.weights()
    assert file.source.shapes == {name: values.shape for name, values in expected.items()}
    for name, values in expected.items():
        np.testing.assert_array_equal(file.source.read(name), values, err_msg=name)
    assert file.source.origin("model.norm.weight").endswith(
        "a.gguf: model.norm.weight (output_norm.weight)"
    )
    with refusal("none named 'model.norm'; the nearest are model.norm.w"):
        file.source.read("model.norm")


def test_the_family_finds_every_tensor_it_needs(tmp_path: Path) -> None:
    for sample in SAMPLES[:3]:
        file = open_gguf(sample.write(tmp_path / "a.gguf"))
        config = DecoderConfig.from_huggingface(file.config)
        needed = {
            rule.name.replace("{layer}", str(number)): rule.shape
            for rule in LLAMA_WEIGHTS.rules(config)
            for number in rule.numbers
        }
        assert needed == file.source.shapes


def test_config(tmp_path: Path) -> None:
    sample = Sample(tied=False, fields={"tokenizer.ggml.padding_token_id": 2})
    assert open_gguf(sample.write(tmp_path / "a.gguf")).config == {
        "model_type": "llama", "vocab_size": 8, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_theta": 500_000.0, "rope_scaling": None, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 2,
    }  # fmt: skip
    # What an old file leaves out, and numbers listed once a layer.
    old = dict.fromkeys(
        ["llama.attention.key_length", "llama.attention.value_length", "llama.rope.freq_base"]
    )
    old |= {"llama.attention.head_count_kv": None, "llama.feed_forward_length": [64, 64]}
    config = open_gguf(Sample(key_heads=4, fields=old).write(tmp_path / "a.gguf")).config
    assert (config["head_dim"], config["num_key_value_heads"]) == (8, 4)
    assert (config["rope_theta"], config["intermediate_size"]) == (10_000.0, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_read(kind: str, tmp_path: Path) -> None:
    sample = replace(BLOCKS, kind=kind)
    file = open_gguf(sample.write(tmp_path / "a.gguf"))
    for name, values in sample.weights().items():
        read = file.source.read(name)
        assert read.shape == values.shape and file.source.dtypes[name] == read.dtype
        if values.ndim == 1:
            np.testing.assert_array_equal(read, values)
        elif not ("q_proj" in name or "k_proj" in name) or kind not in KINDS_BY_FORMULA:
            raw = pack(values, kind)
            np.testing.assert_array_equal(read.astype("f4"), gguf.dequantize(raw, Type[kind]))
    float_kinds = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
    assert file.source.dtypes["model.embed_tokens.weight"] == float_kinds.get(kind, np.float32)


def test_blocks_of_four_to_eight_bits_by_their_formulas(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for kind, scales in {"Q4_0": 1, "Q4_1": 2, "Q5_0": 1, "Q5_1": 2, "Q8_0": 1}.items():
        sample = replace(BLOCKS, kind=kind)
        file = open_gguf(sample.write(tmp_path / "a.gguf"))
        raw = pack(sample.weights()["model.layers.0.mlp.down_proj.weight"], kind)
        read = file.source.read("model.layers.0.mlp.down_proj.weight")
        for row, block in rng.integers(0, [256, 8], (40, 2)):
            size = KINDS[kind].block_bytes
            data = raw[row, block * size : (block + 1) * size]
            scale, *offset = np.frombuffer(data[: 2 * scales].tobytes(), np.float16).astype("f4")
            stored, middle = data[2 * scales :], 0 if offset else 8
            if kind == "Q8_0":
                whole = stored.view(np.int8).astype("f4")
            else:
                whole = np.concatenate([stored[-16:] & 15, stored[-16:] >> 4]).astype("f4")
            if kind.startswith("Q5"):
                fifth = np.unpackbits(stored[:4], bitorder="little")
                whole, middle = whole + 16 * fifth, 2 * middle
            whole = whole if kind == "Q8_0" else whole - middle
            expected = scale * whole + offset[0] if offset else scale * whole
            np.testing.assert_array_equal(read[row, block * 32 : block * 32 + 32], expected)


def test_sizes_of_blocks_are_those_of_the_package() -> None:
    for name, kind in KINDS.items():
        assert Type[name] == kind.number
        assert gguf.GGML_QUANT_SIZES[Type[name]] == (kind.block, kind.block_bytes)


def test_reading_needs_little_more_memory_than_the_tensor(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(20_000)]
    path = replace(BLOCKS, kind="Q8_0", words=words).write(tmp_path / "a.gguf")
    source = open_gguf(path).source
    source.read("model.norm.weight")
    tracemalloc.start()
    table = source.read("model.embed_tokens.weight")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.nbytes == 20_000 * 256 * 4
    assert peak_bytes < 1.25 * table.nbytes


def test_a_file_truncated_after_opening(tmp_path: Path) -> None:
    path = Sample(kind="Q8_0").write(tmp_path / "a.gguf")
    source = open_gguf(path).source
    os.truncate(path, path.stat().st_size - 1000)
    with refusal("a.gguf ends within a tensor of .* changed since"):
        for name in source.shapes:
            source.read(name)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Sample(kind="F16").write(tmp_path / "plain.gguf")
    quantised = Sample(kind="Q4_0").write(tmp_path / "quantised.gguf")
    for module in [name for name in sys.modules if name.split(".")[0] == "gguf"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gguf", None)
    source = open_gguf(plain).source
    assert source.read("model.norm.weight").shape == (32,)
    with refusal(r"quantised.gguf has .* `pip install 'jpt\[gguf\]'`"):
        open_gguf(quantised)


def llama3_factors(
    theta: float, width: int, factor: float, low: float, high: float, context: int = 8192
) -> np.ndarray:
    """As llama.cpp's converter writes them, step by step in float32."""
    one = np.float32(1)
    factors = []
    for exponent in np.arange(0, width, 2, dtype=np.float32) / np.float32(width):
        wavelength = np.float32(2 * np.pi) * np.float32(theta**exponent)
        if wavelength < context / high:
            factors.append(one)
        elif wavelength > context / low:
            factors.append(np.float32(factor))
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(one / ((one - smooth) / np.float32(factor) + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize(
    ("width", "factor", "low", "high", "context"),
    [(128, 8.0, 1.0, 4.0, 8192), (64, 32.0, 1.0, 4.0, 8192), (16, 8.0, 1.0, 4.0, 8192),
     (64, 4.0, 0.5, 16.0, 4096)],
)  # fmt: skip
def test_factors_of_llama3_become_its_rope_scaling(width, factor, low, high, context, tmp_path):
    factors = llama3_factors(500_000.0, width, factor, low, high, context)
    sample = Sample(head_width=width, tensors={"rope_freqs.weight": factors})
    config = open_gguf(sample.write(tmp_path / "a.gguf")).config
    scale = context / 8192
    assert config["rope_scaling"] == {
        "rope_type": "llama3", "factor": factor, "original_max_position_embeddings": 8192,
        "low_freq_factor": low / scale, "high_freq_factor": high / scale,
    }  # fmt: skip
    rotary = DecoderConfig.from_huggingface(config).rotary
    assert rotary is not None
    plain = inverse_frequencies(replace(rotary, kind="default", factor=1.0), width)
    np.testing.assert_allclose(inverse_frequencies(rotary, width), plain / factors, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "factors", "expected"),
    [
        ({}, np.ones(4), None),
        ({}, np.full(4, 2.5), {"rope_type": "linear", "factor": 2.5}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, None,
         {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, None, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None, None),
        ({"rope.scaling.factor": 0.0}, np.ones(4), None),
    ],
)  # fmt: skip
def test_other_rope_scaling(fields, factors, expected, tmp_path) -> None:
    own = {f"llama.{key}": value for key, value in fields.items()}
    sample = Sample(fields=own, tensors={"rope_freqs.weight": factors})
    assert open_gguf(sample.write(tmp_path / "a.gguf")).config["rope_scaling"] == expected


def test_factors_without_a_scaling() -> None:
    good = llama3_factors(500_000.0, 64, 8.0, 1.0, 4.0).astype(np.float64)
    assert recover_rope_scaling(good, 500_000.0) is not None
    assert recover_rope_scaling(good, 10_000.0) is None
    frequencies = 500_000.0 ** -(np.arange(32) / 32)
    with_bad = [np.where(np.arange(32) == 7, bad, good) for bad in (0.0, -1.0, np.nan, np.inf)]
    for factors in (good[::-1], good * 1.0001, np.arange(1.0, 33.0), frequencies, *with_bad):
        assert recover_rope_scaling(factors, 500_000.0) is None


REFUSED: list[tuple[Sample, str]] = [
    (Sample(architecture="gpt2"), "architecture llama or qwen2, got 'gpt2'"),
    (Sample(architecture="qwen3"), "got 'qwen3'"),
    (Sample(fields={"general.type": "adapter"}), "type 'adapter', not a model"),
    (Sample(fields={"split.count": 3}), "one of 3 parts of a model; join them with"),
    (Sample(fields={"llama.expert_count": 8}), "llama.expert_count is 8; expected 0"),
    (Sample(fields={"llama.attention.causal": False}), "attention.causal is False; expected True"),
    (Sample(fields={"llama.attention.value_length": 4}), "value_length is 4; expected an even"),
    (Sample(fields={"llama.rope.dimension_count": 4}), "dimension_count is 4; expected an even"),
    (Sample(head_width=5), "value_length is 5; expected an even"),
    (Sample(fields={"llama.rope.scaling.type": "yarn"}), "scaling.type is 'yarn'; expected none"),
    (Sample(fields={"llama.rope.scaling.attn_factor": 2.0}), "attn_factor is '2.0'; expected 1"),
    (Sample(fields={"llama.rope.scaling.factor": -1.0}), "factor is '-1.0'; expected a number"),
    (Sample(fields={"llama.block_count": 3}), "weights of 3 layers, got 2"),
    (Sample(fields={"llama.block_count": None}), "block_count is 'None'; expected a whole number"),
    (Sample(fields={"llama.embedding_length": "32"}), "embedding_length is '32'; expected a whole"),
    (Sample(fields={"llama.feed_forward_length": [64, 32]}), r"is '\[64 32\]'; .*one for all"),
    (Sample(fields={"llama.attention.layer_norm_rms_epsilon": 0.0}), "epsilon is '0.0'; expected"),
    (Sample(heads=2, fields={"llama.attention.head_count": 4}), "16 rows; expected 32 .4 heads"),
    (Sample(fields={"tokenizer.ggml.tokens": ["a"]}), "lists 1 tokens but has 8 embeddings"),
    (Sample(tensors={"token_embd.weight": None}), "no token embeddings token_embd.weight"),
    (Sample(tensors={"blk.0.attn_q_norm.weight": np.ones(8)}), "tensor 'blk.0.attn_q_norm.w"),
    (Sample(tensors={"blk.01.attn_q.weight": np.ones(8)}), "unexpected tensor 'blk.01.attn_q"),
    (Sample(tensors={"rope_freqs.weight": np.arange(1.0, 5.0)}), "not those of Llama 3's scaling"),
    (Sample(tensors={"rope_freqs.weight": np.ones(3)}), "not those of Llama 3's scaling"),
    (Sample(architecture="qwen2", tensors={"rope_freqs.weight": np.ones(4)}), "unexpected tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "message"), REFUSED)
def test_unsupported_models(sample: Sample, message: str, tmp_path: Path) -> None:
    path = sample.write(tmp_path / "a.gguf")
    with refusal(message) as caught:
        open_gguf(path)
    assert "\n" not in str(caught.value) and "a.gguf" in str(caught.value)


def number(data: bytes, at: int, code: str, value: int) -> bytes:
    return data[:at] + struct.pack(code, value) + data[at + struct.calcsize(code) :]


def norm(data: bytes, offset: int, code: str, value: int) -> bytes:
    """Overwrite a number of the second tensor: axes 4 bytes, length 8, type 4, offset 8."""
    name = b"output_norm.weight"
    return number(data, data.index(name) + len(name) + offset, code, value)


DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"", "has only 0 bytes"),
    (lambda data: data[:20], "has only 20 bytes"),
    (lambda data: data[:300], "20 tensors do not fit in 300 bytes"),
    (lambda data: data[:1500], "ends within its header, after 1500 bytes"),
    (lambda data: data[:-100], "ends after .* of .* bytes"),
    (lambda data: data + bytes(40), "expected .* bytes, got"),
    (lambda data: b"PK\x03\x04" + data[4:], "zip archive"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    (lambda data: b"abcd" + data[4:], "expected b'GGUF' at the start, got b'abcd'"),
    (lambda data: b"ggjt" + data[4:], "it is GGJT"),
    (lambda data: number(data, 4, "<I", 1), "version 2 or 3, got 1"),
    (lambda data: number(data, 4, "<I", 4), "version 2 or 3, got 4"),
    (lambda data: number(data, 8, "<Q", 2**62), "4611686018427387904 tensors do not fit"),
    (lambda data: number(data, 8, "<Q", 5), "leaves a gap|not a complete"),
    (lambda data: number(data, 16, "<Q", 2**31), "2147483648 fields do not fit"),
    (lambda data: number(data, 24, "<Q", 2**40), "the name of a field has a length"),
    (lambda data: number(data, 52, "<I", 99), "has the unknown type 99"),
    (lambda data: data.replace(b"block_count", b"block\xff\xfeount"), "is not UTF-8"),
    (lambda data: data.replace(b"l.bos_token_id", b"l.eos_token_id"), "eos_token_id' occurs tw"),
    (lambda data: norm(data, 0, "<I", 2**31), "has 2147483648 axes"),
    (lambda data: norm(data, 0, "<I", 0), "has 0 axes"),
    (lambda data: norm(data, 4, "<Q", 2**61), "not consist of blocks"),
    (lambda data: norm(data, 4, "<Q", 0), "not consist of blocks"),
    (lambda data: norm(data, 4, "<Q", 33), "gap or overlaps"),
    (lambda data: norm(data, 12, "<I", 16), "number 16; quantise the model to one of F32"),
    (lambda data: norm(data, 12, "<I", 8), "gap or overlaps"),
    (lambda data: norm(data, 16, "<Q", 2**60), "gap or overlaps"),
    (lambda data: norm(data, 16, "<Q", 0), "gap or overlaps"),
    (lambda data: norm(data, 16, "<Q", 1025), "gap or overlaps"),
    (lambda data: data.replace(b"attn_k.weight", b"attn_v.weight"), "v.weight' occurs twice"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_files(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = Sample().write(tmp_path / "a.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with refusal(message):
        open_gguf(path)


def test_versions_byte_orders_and_alignment(tmp_path: Path) -> None:
    path = Sample().write(tmp_path / "a.gguf")
    path.write_bytes(number(path.read_bytes(), 4, "<I", 2))
    assert open_gguf(path).config["hidden_size"] == 32
    big = Sample().write(tmp_path / "big.gguf", gguf.GGUFEndian.BIG)
    with refusal("big-endian; convert it .*`gguf-convert-endian big.gguf lit"):
        open_gguf(big)
    path = Sample(fields={"general.alignment": 30}).write(tmp_path / "a.gguf")
    with refusal("general.alignment is 30; expected a power of two"):
        open_gguf(path)
    for path, message in ((tmp_path, "it is a folder"), (tmp_path / "a", "there is no such file")):
        with refusal(message):
            open_gguf(path)


@pytest.mark.parametrize("counts", [(2**20, 1, 0), (0, 2**20, 0), (0, 1, 2**31), (2**31, 1, 0)])
def test_a_sparse_file_is_refused_at_once(counts: tuple[int, int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors, fields, entries = counts
    field = struct.pack("<Q1sIIQ", 1, b"a", 9, 8, entries)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + field)
    os.truncate(path, 2**36)
    started = time.monotonic()
    with refusal("do not fit|has no name|has 0 axes"):
        open_gguf(path)
    assert time.monotonic() - started < 1


BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
BYTE_LEVEL = {
    "model": "gpt2", "pre": "smollm", "merges": ["Ġ t", "h e", "Ġt he"], "scores": None,
    "add_bos_token": True,
}  # fmt: skip
MUTATED = {
    "plain": Sample(),
    "blocks": Sample(kind="Q4_1", tied=False, layers=1),
    "bytes": Sample(
        architecture="qwen2",
        kind="Q8_0",
        biases=True,
        layers=1,
        words=["<unk>", "<s>", "</s>", *BYTES, "Ġt", "he", "Ġthe"],
        fields={f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL.items()},
    ),  # fmt: skip
}


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_file(tmp_path: Path, name: str) -> None:
    path = MUTATED[name].write(tmp_path / "a.gguf")

    def read() -> None:
        file = open_gguf(path)
        for tensor, shape in file.source.shapes.items():
            assert file.source.read(tensor).shape == shape
        tokenizer = read_gguf_tokenizer(file)
        assert tokenizer.vocabulary_size <= file.config["vocab_size"]
        tokenizer.decode(tokenizer.encode(["the <s> 12\n", ""])[0])

    read()  # imports
    stored = sum(tensor.extent_bytes for tensor in open_gguf(path).source.tensors.values())
    # The header is where damage shows: the values are mere numbers.
    check_mutations(path, read, path.stat().st_size - stored + 2000, 9.0, 700)


def test_file_truncated_anywhere_in_its_header(tmp_path: Path) -> None:
    path = MUTATED["blocks"].write(tmp_path / "a.gguf")
    whole = path.read_bytes()
    for end in [*range(0, 2200, 7), *range(2200, len(whole), 1500), len(whole) - 32]:
        path.write_bytes(whole[:end])
        with refusal("not a complete GGUF file|at the start, got"):
            open_gguf(path)
