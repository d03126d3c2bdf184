"""A real GGUF file, against what torch transformers makes of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from jpt.io.gguf import KINDS, open_gguf, read_gguf_tokenizer
from tests.files.gguf_samples import Sample
from tests.files.test_gguf_tokenizer import odd_texts
from tests.smollm2 import smollm2_file

pytestmark = pytest.mark.parity


def test_weights_of_a_real_file_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    from transformers import AutoModelForCausalLM

    path = smollm2_file()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    theirs = {name: values.numpy() for name, values in model.state_dict().items()}
    del theirs["lm_head.weight"]  # the word table once more
    file = open_gguf(path)
    assert file.source.shapes == {name: values.shape for name, values in theirs.items()}
    for name, values in theirs.items():
        np.testing.assert_array_equal(file.source.read(name), values, err_msg=name)
    config = model.config.to_dict()
    for name in set(file.config) & set(config) - {"rms_norm_eps"}:
        assert file.config[name] == config[name], name
    assert np.float32(file.config["rms_norm_eps"]) == np.float32(config["rms_norm_eps"])
    assert file.config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_pieces_of_a_real_file(reference_folder: Path) -> None:
    """Equal to transformers but for digits, where transformers misses the file's kind.

    The model's own tokenizer takes digits one by one, as llama.cpp does for ``smollm``; what
    transformers 5.23 builds from the file splits as GPT-2 does and merges digits with spaces.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer

    path = smollm2_file()
    ours = read_gguf_tokenizer(open_gguf(path))
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert ours.ids == (None, None, None, 2, 0, 1, 2) and not ours.add_bos
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    rows = (reference_folder / "data" / "imdb" / "validation.jsonl").read_text().splitlines()[:100]
    texts = [*odd_texts(3000), *rows, "<|im_start|>user\nHi<|im_end|>"]
    plain = [text for text in texts if not any(letter.isnumeric() for letter in text)]
    assert len(plain) > 100
    assert ours.encode(plain) == theirs(plain, add_special_tokens=False)["input_ids"]
    # With the splitter of the published tokenizer.json, all of them.
    published = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    expected = published.encode_batch(texts, add_special_tokens=False)
    assert ours.encode(texts) == [encoding.ids for encoding in expected]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].is_quantised])
def test_every_type_by_another_implementation(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

    if KINDS[kind].number not in GGML_BLOCK:
        pytest.skip(f"transformers does not read {kind}")
    sample = Sample(width=256, heads=2, key_heads=1, head_width=128, neurons=256, kind=kind)
    path = sample.write(tmp_path / "a.gguf")
    source = open_gguf(path).source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: the array is not writable
        for name, tensor in source.tensors.items():
            if len(tensor.shape) == 1 or "q_proj" in name or "k_proj" in name:
                continue
            data = np.fromfile(path, np.uint8, tensor.extent_bytes, offset=tensor.offset_bytes)
            expected = dequantize(torch.from_numpy(data), KINDS[kind].number).numpy()
            np.testing.assert_array_equal(source.read(name).reshape(-1), expected)
