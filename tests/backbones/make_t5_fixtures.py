"""Write the outputs of torch transformers that ``test_t5.py`` compares with.

Run ``python -m tests.backbones.make_t5_fixtures`` (extra ``parity``). Each ``t5_*`` folder of
``fixtures/`` is a small Hugging Face checkpoint with ``golden.safetensors``, inputs and outputs in
float64. Soft prompts are ``inputs_embeds`` in front of the text's. Weights and inputs come from
numpy's frozen ``RandomState``. Untied heads are assigned here, because transformers 5 ties every T5
head that no file unties. Seeds are such that no token of a stored sequence was chosen by less than
``LEAST_MARGIN``; the script checks it.
"""

import json
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import T5Config, T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from tests.helpers.plain_models import Search, padded

FIXTURES = Path(__file__).parent / "fixtures"
LEAST_MARGIN = 1e-3
GREEDY_TOKENS = 14
BEAM_SEARCHES = ((3, 6), (3, 14), (4, 9), (4, 14))


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]  # fields of config.json
    own_head: bool  # whether the head is untied
    lengths: tuple[int, ...]  # text tokens of each row; the longest is T
    prompt_rows: int  # P
    seed: int  # of weights and inputs
    word_scale: float = 1.0  # of the embeddings; the larger, the more peaked the predictions
    label_ids: tuple[int, ...] = (11, 7, 30)


# Sizes that share no factor where they can, so that swapped axes cannot pass.
CASES = {
    "t5_relu": Case(
        {
            "vocab_size": 53,
            "d_model": 22,
            "d_kv": 5,
            "d_ff": 27,
            "num_layers": 2,
            "num_decoder_layers": 3,
            "num_heads": 3,
            "relative_attention_num_buckets": 9,
            "relative_attention_max_distance": 13,
            "feed_forward_proj": "relu",
            "eos_token_id": 15,
        },
        own_head=False,
        lengths=(9, 6, 2, 1),
        prompt_rows=5,
        seed=1,
    ),
    "t5_one_layer": Case(
        {
            "vocab_size": 61,
            "d_model": 26,
            "d_kv": 7,
            "d_ff": 33,
            "num_layers": 1,
            "num_decoder_layers": 1,
            "num_heads": 5,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "feed_forward_proj": "gelu",
            "layer_norm_epsilon": 1e-2,
            "decoder_start_token_id": 17,
            "eos_token_id": 2,
        },
        own_head=False,
        lengths=(2, 23, 8, 5),
        prompt_rows=7,
        seed=11,
    ),
    "t5_gated": Case(
        {
            "vocab_size": 47,
            "d_model": 20,
            "d_kv": 3,
            "d_ff": 31,
            "num_layers": 3,
            "num_decoder_layers": 1,
            "num_heads": 7,
            "relative_attention_num_buckets": 7,
            "relative_attention_max_distance": 11,
            "feed_forward_proj": "gated-gelu",
            "eos_token_id": 4,
            "tie_word_embeddings": False,
        },
        own_head=True,
        lengths=(7, 1, 12, 2),
        prompt_rows=4,
        seed=3,
        word_scale=1.5,
    ),
    "t5_gated_silu": Case(
        {
            "vocab_size": 43,
            "d_model": 18,
            "d_kv": 8,
            "d_ff": 25,
            "num_layers": 1,
            "num_decoder_layers": 2,
            "num_heads": 3,
            "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 20,
            "feed_forward_proj": "gated-silu",
            "layer_norm_epsilon": 1e-3,
            "eos_token_id": 5,
            "scale_decoder_outputs": True,  # as transformers 5 may write it for an untied head
        },
        own_head=True,
        lengths=(10, 3, 2, 6),
        prompt_rows=9,
        seed=3,
        word_scale=2.0,
    ),
}
COMMON = {"model_type": "t5", "pad_token_id": 0, "decoder_start_token_id": 0}


def build_model(name: str, case: Case) -> T5ForConditionalGeneration:
    config = T5Config(**{**COMMON, **case.config})
    config._attn_implementation = "eager"
    model = T5ForConditionalGeneration(config).eval()
    if case.own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            values = _weights(f"{name}/{case.seed}/{key}", tuple(parameter.shape), case)
            parameter.copy_(torch.from_numpy(values))
    return model


def _weights(key: str, shape: tuple[int, ...], case: Case) -> np.ndarray:
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if "decoder.final_layer_norm" in key and not case.own_head:
        # Of both signs: otherwise a tied head repeats the token that it has just read.
        normal = 4 * normal
    elif "layer_norm" in key:
        normal = 1 + 0.3 * normal
    elif "shared" in key:
        normal = case.word_scale * normal
    elif "relative" in key:
        normal = 1.5 * normal
    elif "lm_head" in key:
        normal = 0.3 * case.word_scale * normal
    elif ".q." in key:
        normal = 0.8 * normal / np.sqrt(shape[1])
    else:
        normal = 1.4 * normal / np.sqrt(shape[1])
    return normal.astype(np.float32)


def draw_inputs(name: str, case: Case) -> dict[str, np.ndarray]:
    config = {**COMMON, **case.config}
    random = np.random.RandomState(zlib.crc32(f"{name}/{case.seed}".encode()))
    rows, longest, vocabulary = len(case.lengths), max(case.lengths), config["vocab_size"]
    lengths = np.array(case.lengths, np.int32)
    is_text = np.arange(longest)[None] < lengths[:, None]
    prompt = 0.5 * case.word_scale * random.standard_normal((case.prompt_rows, config["d_model"]))

    def mask(layers: int) -> np.ndarray:
        kept = random.choice([0.0, 0.5, 1.0], size=(layers, config["d_ff"]), p=[0.3, 0.1, 0.6])
        return kept.astype(np.float32)

    targets = random.randint(1, vocabulary, (rows, 6)).astype(np.int32)
    start = np.full((rows, 1), config["decoder_start_token_id"], np.int32)
    return {
        "tokens": np.where(is_text, random.randint(1, vocabulary, is_text.shape), 0).astype(
            np.int32
        ),
        "lengths": lengths,
        "prompt": prompt.astype(np.float32),
        "label_ids": np.array(case.label_ids, np.int32),
        "labels": random.randint(len(case.label_ids), size=rows).astype(np.int32),
        "targets": targets,
        "decoder_tokens": np.concatenate([start, targets[:, :-1]], axis=1),
        "neuron_mask": mask(config["num_decoder_layers"]),
        "encoder_neuron_mask": mask(config["num_layers"]),
    }


class TorchReader:
    """Runs a torch model on a soft prompt and text, and captures or masks its neurons by stack."""

    def __init__(self, model: T5ForConditionalGeneration, inputs: dict[str, np.ndarray]) -> None:
        self.model = model
        self.tokens = torch.from_numpy(inputs["tokens"]).long()
        self.lengths = torch.from_numpy(inputs["lengths"]).long()
        self.start = torch.from_numpy(inputs["decoder_tokens"][:, :1]).long()
        self.neurons: dict[str, list[torch.Tensor]] = {"encoder": [], "decoder": []}
        self.masks: dict[str, torch.Tensor] = {}
        for stack in self.neurons:
            for number, block in enumerate(getattr(model, stack).block):
                act = block.layer[-1].DenseReluDense.act
                act.register_forward_hook(partial(self._keep, stack, number))

    def encode(self, prompt: torch.Tensor) -> dict[str, Any]:
        """Return the encoder's states [B, S, D] and their mask as inputs of transformers."""
        rows, longest = self.tokens.shape
        front = prompt[None].expand(rows, -1, -1)
        states = torch.cat([front, self.model.shared(self.tokens)], dim=1)
        is_read = torch.arange(states.shape[1])[None] < (self.lengths + len(prompt))[:, None]
        self.neurons["encoder"].clear()
        encoded = self.model.encoder(inputs_embeds=states, attention_mask=is_read.long())
        outputs = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
        return {"encoder_outputs": outputs, "attention_mask": is_read.long()}

    def read(
        self, prompt: torch.Tensor, decoder_tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits [B, A, V] and the decoder's last states [B, A, D]."""
        tokens = self.start if decoder_tokens is None else decoder_tokens
        encoded = self.encode(prompt)
        self.neurons["decoder"].clear()
        output = self.model(
            **encoded, decoder_input_ids=tokens, use_cache=False, output_hidden_states=True
        )
        return output.logits, output.decoder_hidden_states[-1]

    def _keep(
        self, stack: str, number: int, module: torch.nn.Module, args: Any, output: torch.Tensor
    ) -> torch.Tensor:
        del module, args
        self.neurons[stack].append(output)
        return output if stack not in self.masks else output * self.masks[stack][number]


def ask_torch(
    model: T5ForConditionalGeneration, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    reader = TorchReader(model.double(), inputs)
    prompt = torch.from_numpy(inputs["prompt"]).double().requires_grad_()
    label_ids, labels, targets, decoder_tokens = (
        torch.from_numpy(inputs[name]).long()
        for name in ("label_ids", "labels", "targets", "decoder_tokens")
    )
    entropy = torch.nn.functional.cross_entropy
    scores, hidden = reader.read(prompt)
    label_loss = entropy(scores[:, 0, label_ids], labels)
    teacher, _ = reader.read(prompt, decoder_tokens)
    token_loss = entropy(teacher.flatten(0, 1), targets.flatten())
    answers = {
        "vocabulary_logits": scores[:, 0],
        "logits": scores[:, 0, label_ids],
        "hidden": hidden[:, 0],
        "teacher_logits": teacher,
        "neurons": torch.stack(reader.neurons["decoder"]),
        "encoder_neurons": torch.stack(reader.neurons["encoder"]),
        "encoded": reader.encode(prompt)["encoder_outputs"].last_hidden_state,
        "loss": label_loss[None],
        "prompt_gradient": torch.autograd.grad(label_loss, prompt)[0],
        "token_loss": token_loss[None],
        "token_gradient": torch.autograd.grad(token_loss, prompt)[0],
        "no_prompt_logits": reader.read(prompt[:0])[0][:, 0],
    }
    for stack, name in (("decoder", "neuron_mask"), ("encoder", "encoder_neuron_mask")):
        reader.masks = {stack: torch.from_numpy(inputs[name]).double()}
        answers[name.replace("neuron_mask", "masked_logits")] = reader.read(prompt)[0][:, 0]
    reader.masks = {}
    found = {key: value.detach().numpy().astype(np.float32) for key, value in answers.items()}
    found["relative_buckets"] = _buckets(model.config)
    return found | generate(reader, prompt.detach())


def _buckets(config: T5Config) -> np.ndarray:
    """Return the buckets of key minus query from -300 to 300, of encoder and decoder."""
    from transformers.models.t5.modeling_t5 import T5Attention

    sizes = (config.relative_attention_num_buckets, config.relative_attention_max_distance)
    distances = torch.arange(-300, 301)
    both = [T5Attention._relative_position_bucket(distances, way, *sizes) for way in (True, False)]
    return torch.stack(both).numpy().astype(np.uint8)


@torch.no_grad()
def generate(reader: TorchReader, prompt: torch.Tensor) -> dict[str, np.ndarray]:
    """Return greedy and beam sequences up to the end token [B, N]."""
    eos, answers = reader.model.config.eos_token_id, {}
    for beams, count in ((1, GREEDY_TOKENS), *BEAM_SEARCHES):
        found = reader.model.generate(
            **reader.encode(prompt),
            decoder_input_ids=reader.start,
            # transformers would make a cache of as many layers as the encoder has.
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            max_new_tokens=count,
            num_beams=beams,
            do_sample=False,
            length_penalty=1.0,
            early_stopping=False,
        )[:, 1:].tolist()
        found = [row[: row.index(eos) + 1] if eos in row else row for row in found]
        expected = _search(reader, prompt, beams, count)
        assert found == expected, (found, expected)
        name = "greedy_tokens" if beams == 1 else f"beam{beams}_n{count}_tokens"
        answers[name] = padded(found, count)
    return answers


def _search(reader: TorchReader, prompt: torch.Tensor, beams: int, count: int) -> list[list[int]]:
    """Return the same sequences without transformers' search; assert that no choice was close."""
    encoded, found = reader.encode(prompt), []
    for row in range(len(reader.tokens)):
        states = encoded["encoder_outputs"].last_hidden_state[row : row + 1]
        is_read = encoded["attention_mask"][row : row + 1]

        def score(
            sequences: np.ndarray, states: torch.Tensor = states, is_read: torch.Tensor = is_read
        ) -> np.ndarray:
            tokens = torch.from_numpy(sequences).long()
            start = reader.start[:1].expand(len(tokens), -1)
            logits = reader.model(
                encoder_outputs=BaseModelOutput(states.expand(len(tokens), -1, -1)),
                attention_mask=is_read.expand(len(tokens), -1),
                decoder_input_ids=torch.cat([start, tokens], dim=1),
                use_cache=False,
            ).logits
            return logits[:, -1].numpy()

        search = Search(score, reader.model.config.eos_token_id, count)
        found.append(search.greedy() if beams == 1 else search.beams(beams))
        assert search.margin > LEAST_MARGIN, f"row {row}, {beams} beams: {search.margin}"
    return found


def write_fixtures(folder: Path) -> None:
    for name, case in CASES.items():
        model, inputs = build_model(name, case), draw_inputs(name, case)
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        path = folder / name / "config.json"
        # As in older configs: tie_word_embeddings marks an untied head.
        config = json.loads(path.read_text()) | case.config
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        again = T5ForConditionalGeneration.from_pretrained(folder / name)
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)
        assert again.config.scale_decoder_outputs == model.config.scale_decoder_outputs
        save_file({**inputs, **ask_torch(model, inputs)}, folder / name / "golden.safetensors")


if __name__ == "__main__":
    write_fixtures(FIXTURES)
