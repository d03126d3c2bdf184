"""Write the outputs of torch transformers that ``test_golden.py`` compares with.

Run ``python -m tests.backbones.make_decoder_fixtures`` (extra ``parity``). Each folder of
``fixtures/`` is a small Hugging Face checkpoint with ``golden.safetensors``, inputs and outputs:
torch's model in float64 over ``[prompt; text]`` as input embeddings, rows padded on the right.
Generated tokens (``greedy_tokens`` and ``beam{k}_n{N}_tokens``, [B, N]) end with the token
``eos_id``, followed by -1. Each row is generated alone, so without padding, and searched again by
``plain_models.Search``: a row is only stored if no choice is closer than ``MARGIN``. Weights and
inputs come from numpy's frozen ``RandomState``.
"""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.helpers.plain_models import Search, padded

FIXTURES = Path(__file__).parent / "fixtures"
MARGIN = 1.5e-3
GREEDY_TOKENS = 9
BEAMS = ((3, 1), (3, 4), (3, 9), (4, 5), (4, 9))  # how many beams, how many new tokens


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]  # fields of config.json
    lengths: tuple[int, ...]  # text tokens of each row; the longest is T
    prompt_rows: int  # P
    eos_id: int  # end token
    seeds: tuple[int, ...]  # of the text of each row; chosen so that no choice is close
    label_ids: tuple[int, ...] = field(default=(11, 7, 30))


# Sizes that share no factor where they can, so that swapped axes cannot pass.
CASES = {
    "gpt2_tied": Case(
        {
            "model_type": "gpt2",
            "vocab_size": 53,
            "n_embd": 30,
            "n_layer": 3,
            "n_head": 5,
            "n_inner": 37,
            "n_positions": 23,  # filled by prompt, longest row and generated tokens
        },
        lengths=(9, 6, 2, 1),
        prompt_rows=5,
        eos_id=24,
        seeds=(9, 0, 0, 4),
    ),
    "gpt2_untied": Case(
        {
            "model_type": "gpt2",
            "vocab_size": 47,
            "n_embd": 21,
            "n_layer": 2,
            "n_head": 7,
            "n_inner": None,  # 4 times the width
            "n_positions": 29,
            "activation_function": "relu",
            "scale_attn_weights": False,
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": False,
        },
        lengths=(2, 11, 8, 5),
        prompt_rows=3,
        eos_id=26,
        seeds=(0, 0, 1, 4),
    ),
    "llama_grouped": Case(
        {
            "model_type": "llama",
            "vocab_size": 59,
            "hidden_size": 30,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 41,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            # Of the four frequencies one is kept, one is between, two are divided.
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        lengths=(7, 3, 1, 10),
        prompt_rows=4,
        eos_id=19,
        seeds=(2, 4, 0, 1),
    ),
    "llama_plain": Case(
        {
            "model_type": "llama",
            "vocab_size": 43,
            "hidden_size": 28,
            "num_hidden_layers": 2,
            "num_attention_heads": 7,
            "intermediate_size": 45,
            "max_position_embeddings": 48,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": False,
            # As in configs before transformers 5.
            "rope_theta": 500.0,
            "rope_scaling": {"type": "linear", "factor": 2.5},
        },
        lengths=(2, 12, 5, 6),
        prompt_rows=6,
        eos_id=41,
        seeds=(3, 8, 4, 4),
    ),
    "qwen2_tied": Case(
        {
            "model_type": "qwen2",
            "vocab_size": 61,
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 34,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_theta": 1000.0,
            "rope_scaling": None,
            "use_sliding_window": False,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
        lengths=(8, 1, 5, 2),
        prompt_rows=5,
        eos_id=55,
        seeds=(0, 1, 4, 3),
    ),
    "qwen2_untied": Case(
        {
            "model_type": "qwen2",
            "vocab_size": 51,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "intermediate_size": 50,
            "max_position_embeddings": 40,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
        },
        lengths=(2, 9, 4, 7),
        prompt_rows=7,
        eos_id=42,
        seeds=(3, 0, 3, 5),
    ),
}


def build_model(name: str, case: Case) -> PreTrainedModel:
    fields = {key: value for key, value in case.config.items() if key != "model_type"}
    config = AutoConfig.for_model(case.config["model_type"], **json.loads(json.dumps(fields)))
    config._attn_implementation = "eager"
    config.bos_token_id = config.eos_token_id = case.eos_id
    model = AutoModelForCausalLM.from_config(config).eval()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings, "transformers changed the tying of the head"
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(_weights(f"{name}/{key}", tuple(parameter.shape))))
    return model


def _weights(key: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    normal = random.standard_normal(shape)
    if len(shape) == 1 and key.endswith("weight"):  # of a norm
        normal = 1 + 0.3 * normal
    elif len(shape) == 1:
        normal = 0.15 * normal
    elif any(part in key for part in ("wte", "wpe", "embed_tokens")):
        normal = 0.4 * normal
    else:
        inputs = shape[0] if ".c_" in key else shape[1]  # GPT-2 stores [in, out]
        normal = 1.7 * normal / np.sqrt(inputs)
    return normal.astype(np.float32)


def draw_inputs(name: str, case: Case, model: PreTrainedModel) -> dict[str, np.ndarray]:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    rows, longest = len(case.lengths), max(case.lengths)
    layers, neurons = len(_activations(model)), _neurons(model)
    kept = random.choice([0.0, 0.5, 1.0], size=(layers, neurons), p=[0.3, 0.1, 0.6])
    prompt = 0.9 * random.standard_normal((case.prompt_rows, model.config.hidden_size))
    labels = random.randint(len(case.label_ids), size=rows)
    tokens = np.zeros((rows, longest), np.int32)
    for row, (length, seed) in enumerate(zip(case.lengths, case.seeds, strict=True)):
        tokens[row, :length] = draw_text(name, case, row, seed)[:length]
    return {
        "tokens": tokens,
        "lengths": np.array(case.lengths, np.int32),
        "prompt": prompt.astype(np.float32),
        "label_ids": np.array(case.label_ids, np.int32),
        "labels": labels.astype(np.int32),
        "neuron_mask": kept.astype(np.float32),
        "eos_id": np.array([case.eos_id], np.int32),
    }


def draw_text(name: str, case: Case, row: int, seed: int) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(f"{name}/{row}/{seed}".encode()))
    return random.randint(case.config["vocab_size"], size=case.lengths[row])


def _activations(model: PreTrainedModel) -> list[torch.nn.Module]:
    if model.config.model_type == "gpt2":
        return [block.mlp.act for block in model.transformer.h]
    return [layer.mlp.act_fn for layer in model.model.layers]


def _neurons(model: PreTrainedModel) -> int:
    if model.config.model_type == "gpt2":
        return model.config.n_inner or 4 * model.config.n_embd
    return model.config.intermediate_size


class TorchReader:
    """Runs a torch model on ``[prompt; text]``, and captures or masks its neurons."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> None:
        self.model = model
        self.tokens = torch.from_numpy(inputs["tokens"]).long()
        self.lengths = torch.from_numpy(inputs["lengths"]).long()
        self.neurons: list[torch.Tensor] = []
        self.neuron_mask: torch.Tensor | None = None
        for number, activation in enumerate(_activations(model)):
            activation.register_forward_hook(self._hook(number))

    def read(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last states [B, T, D] and the logits [B, T, V] of the text."""
        rows, longest = self.tokens.shape
        words = self.model.get_input_embeddings()(self.tokens)
        front = prompt[None].expand(rows, -1, -1)
        is_seen = torch.arange(front.shape[1] + longest) < (self.lengths + front.shape[1])[:, None]
        self.neurons = []
        hidden = self.model.base_model(
            inputs_embeds=torch.cat([front, words], dim=1), attention_mask=is_seen.long()
        ).last_hidden_state[:, front.shape[1] :]
        return hidden, self.model.lm_head(hidden)

    def at_answer(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of the last text token: [B, T, ...] -> [B, ...]."""
        return values[torch.arange(len(self.lengths)), self.lengths - 1]

    def _hook(self, number: int) -> Any:
        def keep(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            self.neurons.append(output)
            return output if self.neuron_mask is None else output * self.neuron_mask[number]

        return keep


def ask_torch(model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    reader = TorchReader(model.double(), inputs)
    prompt = torch.from_numpy(inputs["prompt"]).double().requires_grad_()
    label_ids = torch.from_numpy(inputs["label_ids"]).long()
    hidden, scores = reader.read(prompt)
    neurons = torch.stack(reader.neurons)[:, :, len(prompt) :]
    labels = torch.from_numpy(inputs["labels"]).long()
    logits = reader.at_answer(scores)[:, label_ids]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, prompt)
    answers = {
        "vocabulary_logits": scores,
        "logits": logits,
        "loss": loss[None],
        "prompt_gradient": gradient,
        "hidden": hidden,
        "neurons": neurons,
        "no_prompt_logits": reader.at_answer(reader.read(prompt[:0])[1]),
    }
    reader.neuron_mask = torch.from_numpy(inputs["neuron_mask"]).double()
    answers["masked_logits"] = reader.at_answer(reader.read(prompt)[1])[:, label_ids]
    reader.neuron_mask = None
    if model.config.model_type != "gpt2":
        answers["inverse_frequencies"] = model.model.rotary_emb.inv_freq
    return {key: value.detach().numpy().astype(np.float32) for key, value in answers.items()}


def generate(
    model: PreTrainedModel, prompt: np.ndarray, text: np.ndarray, end: int
) -> dict[str, list[int]] | None:
    """Generate behind one row with torch and by hand; None if a choice is close."""
    table = model.get_input_embeddings()
    embedded = torch.cat([torch.from_numpy(prompt).double(), table(torch.from_numpy(text).long())])

    @torch.no_grad()
    def score(sequences: np.ndarray) -> np.ndarray:
        words = table(torch.from_numpy(sequences).long())
        rows = embedded[None].expand(len(words), -1, -1)
        return model(inputs_embeds=torch.cat([rows, words], dim=1)).logits[:, -1].numpy()

    found = {}
    for beams, longest in ((1, GREEDY_TOKENS), *BEAMS):
        search = Search(score, end, longest)
        expected = search.greedy() if beams == 1 else search.beams(beams)
        if search.margin < MARGIN:
            return None
        tokens = model.generate(
            inputs_embeds=embedded[None].detach(),
            attention_mask=torch.ones(1, len(embedded)),
            max_new_tokens=longest,
            num_beams=beams,
            early_stopping=False,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )[0].tolist()
        assert tokens == expected, (beams, longest, tokens, expected)
        found["greedy_tokens" if beams == 1 else f"beam{beams}_n{longest}_tokens"] = tokens
    return found


def generate_rows(model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = []
    for row, length in enumerate(inputs["lengths"]):
        text = inputs["tokens"][row, :length]
        found.append(generate(model, inputs["prompt"], text, int(inputs["eos_id"][0])))
        assert found[-1] is not None, f"row {row} has a close choice; give it another seed"
    lengths = {"greedy_tokens": GREEDY_TOKENS}
    lengths |= {f"beam{beams}_n{longest}_tokens": longest for beams, longest in BEAMS}
    return {name: padded([row[name] for row in found], n) for name, n in lengths.items()}


def write_fixtures(folder: Path) -> None:
    for name, case in CASES.items():
        model = build_model(name, case)
        model.save_pretrained(folder / name)
        # The fields as the case has them: transformers would write the newer form of each.
        config = {**case.config, "eos_token_id": case.eos_id, "torch_dtype": "float32"}
        (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        inputs = draw_inputs(name, case, model)
        answers = {**ask_torch(model, inputs), **generate_rows(model, inputs)}
        save_file({**inputs, **answers}, folder / name / "golden.safetensors")


if __name__ == "__main__":
    write_fixtures(FIXTURES)
