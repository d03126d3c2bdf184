"""Write the outputs of torch transformers that ``test_golden.py`` compares with.

Run ``python tests/backbones/make_encoder_fixtures.py`` (extra ``parity``). Each folder of
``fixtures/`` is a small Hugging Face checkpoint with ``golden.safetensors``, inputs and outputs.
The input with a soft prompt is built here from the model's embeddings, then its encoder and head
are run, in float64. Weights and inputs come from numpy's frozen ``RandomState``, so that every
version of torch writes the same files.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from tests.backbones import make_decoder_fixtures as decoders

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]  # fields of config.json
    lengths: tuple[int, ...]  # text tokens of each row; the longest is T
    prompt_rows: int  # P
    mask_id: int
    label_ids: tuple[int, ...] = field(default=(11, 7, 30))


# Sizes that share no factor where they can, so that swapped axes cannot pass.
CASES = {
    "bert_tied": Case(
        {
            "model_type": "bert",
            "vocab_size": 53,
            "hidden_size": 30,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "intermediate_size": 37,
            "max_position_embeddings": 19,
            "type_vocab_size": 2,
        },
        lengths=(9, 6, 2, 1),
        prompt_rows=5,
        mask_id=4,
    ),
    "bert_untied": Case(
        {
            "model_type": "bert",
            "vocab_size": 47,
            "hidden_size": 28,
            "num_hidden_layers": 2,
            "num_attention_heads": 7,
            "intermediate_size": 45,
            "max_position_embeddings": 23,
            "type_vocab_size": 3,
            "hidden_act": "relu",
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-3,
        },
        lengths=(2, 11, 8),
        prompt_rows=3,
        mask_id=46,
    ),
    "bert_one_layer": Case(
        {
            "model_type": "bert",
            "vocab_size": 61,
            "hidden_size": 27,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "intermediate_size": 50,
            "max_position_embeddings": 8,
            "type_vocab_size": 2,
            "hidden_act": "gelu_new",
        },
        lengths=(7, 2, 1, 5, 6),
        prompt_rows=8,
        mask_id=2,
    ),
    "roberta_tied": Case(
        {
            "model_type": "roberta",
            "vocab_size": 59,
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 41,
            "max_position_embeddings": 14,
            "type_vocab_size": 1,
            "pad_token_id": 1,
        },
        lengths=(12, 3, 1, 8),  # the longest row fills all 12 positions
        prompt_rows=4,
        mask_id=58,
    ),
    "roberta_untied": Case(
        {
            "model_type": "roberta",
            "vocab_size": 43,
            "hidden_size": 30,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "intermediate_size": 34,
            "max_position_embeddings": 27,
            "type_vocab_size": 2,
            "pad_token_id": 5,  # so text starts at position 6
            "hidden_act": "relu",  # the head keeps GELU
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-5,
        },
        lengths=(2, 10, 7),
        prompt_rows=6,
        mask_id=0,
    ),
}


def build_model(name: str, case: Case) -> PreTrainedModel:
    config = AutoConfig.for_model(**case.config)
    config._attn_implementation = "eager"
    model = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(_weights(f"{name}/{key}", tuple(parameter.shape))))
    return model


def _weights(key: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    normal = random.standard_normal(shape)
    if "norm.weight" in key.lower():
        normal = 1 + 0.3 * normal
    elif len(shape) == 1:
        normal = 0.3 * normal
    elif "embeddings" in key:
        normal = 0.7 * normal
    else:
        normal = 1.4 * normal / np.sqrt(shape[1])
    return normal.astype(np.float32)


def draw_inputs(name: str, case: Case) -> dict[str, np.ndarray]:
    config = case.config
    random = np.random.RandomState(zlib.crc32(name.encode()))
    rows, longest = len(case.lengths), max(case.lengths)
    pad = config.get("pad_token_id", 0)
    words = np.setdiff1d(np.arange(config["vocab_size"]), [pad, case.mask_id])
    lengths = np.array(case.lengths, np.int32)
    is_text = np.arange(longest)[None] < lengths[:, None]
    layers, neurons = config["num_hidden_layers"], config["intermediate_size"]
    kept = random.choice([0.0, 0.5, 1.0], size=(layers, neurons), p=[0.3, 0.1, 0.6])
    return {
        "tokens": np.where(is_text, random.choice(words, is_text.shape), pad).astype(np.int32),
        "lengths": lengths,
        "token_types": random.randint(config["type_vocab_size"], size=is_text.shape).astype(
            np.int32
        ),
        "prompt": (0.9 * random.standard_normal((case.prompt_rows, config["hidden_size"]))).astype(
            np.float32
        ),
        "label_ids": np.array(case.label_ids, np.int32),
        "labels": random.randint(len(case.label_ids), size=rows).astype(np.int32),
        "neuron_mask": kept.astype(np.float32),
        "mask_id": np.array([case.mask_id], np.int32),
    }


class TorchReader:
    """Runs a torch model on ``[MASK] p1 .. pP [CLS] text [SEP]``; captures or masks its neurons."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> None:
        self.model = model
        self.is_bert = model.config.model_type == "bert"
        self.tokens = torch.from_numpy(inputs["tokens"]).long()
        self.lengths = torch.from_numpy(inputs["lengths"]).long()
        self.mask_id = int(inputs["mask_id"][0])
        self.neurons: list[torch.Tensor] = []
        self.neuron_mask: torch.Tensor | None = None
        for number, layer in enumerate(model.base_model.encoder.layer):
            layer.intermediate.register_forward_hook(self._hook(number))

    def read(
        self, prompt: torch.Tensor, first_position: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last states [B, S, D] and the logits at position 0 [B, V]."""
        rows, longest = self.tokens.shape
        front = self._front(prompt).expand(rows, -1, -1)
        states = torch.cat([front, self._text(first_position)], dim=1)
        is_text = torch.arange(states.shape[1])[None] < (self.lengths + front.shape[1])[:, None]
        lowest = torch.finfo(states.dtype).min
        additive = torch.zeros(is_text.shape, dtype=states.dtype).masked_fill(~is_text, lowest)
        self.neurons = []
        encoder, head = self.model.base_model.encoder, self._head()
        hidden = encoder(states, attention_mask=additive[:, None, None, :]).last_hidden_state
        return hidden, head(hidden[:, 0])

    def _text(self, first_position: int) -> torch.Tensor:
        tables = self.model.base_model.embeddings
        start = first_position + (0 if self.is_bert else self.model.config.pad_token_id + 1)
        positions = torch.arange(start, start + self.tokens.shape[1])
        words = tables.word_embeddings(self.tokens) + tables.position_embeddings(positions)[None]
        return tables.LayerNorm(words + tables.token_type_embeddings.weight[0])

    def _front(self, prompt: torch.Tensor) -> torch.Tensor:
        tables = self.model.base_model.embeddings
        front = torch.cat([tables.word_embeddings.weight[self.mask_id][None], prompt])
        if not self.is_bert:
            front = front + tables.token_type_embeddings.weight[0]
        return tables.LayerNorm(front)[None]

    def _head(self) -> torch.nn.Module:
        return self.model.cls if self.is_bert else self.model.lm_head

    _hook = decoders.TorchReader._hook


def ask_torch(model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    reader = TorchReader(model.double(), inputs)
    prompt = torch.from_numpy(inputs["prompt"]).double().requires_grad_()
    label_ids = torch.from_numpy(inputs["label_ids"]).long()
    hidden, scores = reader.read(prompt)
    neurons = torch.stack(reader.neurons)
    labels = torch.from_numpy(inputs["labels"]).long()
    loss = torch.nn.functional.cross_entropy(scores[:, label_ids], labels)
    (gradient,) = torch.autograd.grad(loss, prompt)
    answers = {
        "vocabulary_logits": scores,
        "logits": scores[:, label_ids],
        "loss": loss[None],
        "prompt_gradient": gradient,
        "hidden": hidden,
        "neurons": neurons,
        "no_prompt_logits": reader.read(prompt[:0])[1],
        "plain_logits": _plain_logits(model, inputs),
    }
    if reader.is_bert:
        answers["shifted_logits"] = reader.read(prompt, first_position=1)[1][:, label_ids]
    reader.neuron_mask = torch.from_numpy(inputs["neuron_mask"]).double()
    answers["masked_logits"] = reader.read(prompt)[1][:, label_ids]
    return {key: value.detach().numpy().astype(np.float32) for key, value in answers.items()}


def _plain_logits(model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> torch.Tensor:
    """Return the logits of text alone, with the positions and masks of transformers."""
    tokens = torch.from_numpy(inputs["tokens"]).long()
    lengths = torch.from_numpy(inputs["lengths"]).long()
    is_text = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    token_types = torch.from_numpy(inputs["token_types"]).long()
    return model(tokens, attention_mask=is_text.long(), token_type_ids=token_types).logits


def write_fixtures(folder: Path) -> None:
    for name, case in CASES.items():
        model, inputs = build_model(name, case), draw_inputs(name, case)
        model.save_pretrained(folder / name)
        save_file({**inputs, **ask_torch(model, inputs)}, folder / name / "golden.safetensors")
        (folder / name / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    write_fixtures(FIXTURES)
