"""Beam search against that of torch transformers alive: other penalties, several end tokens."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jpt.backbones.generation import beam_search, greedy
from tests.backbones.golden import FIXTURES, Golden, load_golden

pytestmark = pytest.mark.parity
NEW = 9


def ask_torch(name: str, golden: Golden, ends: list[int], beams: int, penalty: float) -> list:
    """What torch writes behind each row alone, without padding, up to the end."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2LMHeadModel, T5ForConditionalGeneration
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    is_t5 = name.startswith("t5")
    model = (T5ForConditionalGeneration if is_t5 else GPT2LMHeadModel).from_pretrained(
        FIXTURES / name
    )
    model.eval()
    model.generation_config.eos_token_id = ends or None
    options: dict[str, Any] = {"eos_token_id": ends or None, "pad_token_id": 0}
    tokens, lengths, prompt = (torch.from_numpy(np.array(each)) for each in golden.batch)
    found = []
    for row, length in zip(tokens.long(), lengths, strict=True):
        if is_t5:  # transformers would make a cache of as many layers as the encoder has
            options["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        words = model.get_input_embeddings()(row[:length])
        with torch.no_grad():
            written = model.generate(
                inputs_embeds=torch.cat([prompt, words])[None],
                attention_mask=torch.ones(1, len(prompt) + len(words)),
                max_new_tokens=NEW,
                do_sample=False,
                num_beams=beams,
                early_stopping=False,
                length_penalty=penalty,
                **options,
            )[0].tolist()
        written = written[1:] if is_t5 else written
        stop = next((place for place, word in enumerate(written) if word in ends), NEW)
        found.append(written[: stop + 1])
    return found


@pytest.mark.parametrize("name", ["gpt2_tied", "t5_relu"])
@pytest.mark.parametrize(
    ("beams", "n_ends", "penalty"),
    [(2, 0, 1.0), (3, 1, 0.0), (3, 2, 0.5), (4, 3, 2.0), (5, 2, -1.0)],
)
def test_beams_are_those_of_torch(name: str, beams: int, n_ends: int, penalty: float) -> None:
    golden = load_golden(name)
    inputs = (golden.module(), golden.params, *golden.batch, NEW)
    # Words that the model likes to write, so that texts of many lengths end.
    words, counts = np.unique(greedy(*inputs).tokens, return_counts=True)
    ends = words[np.argsort(-counts, kind="stable")][1 : n_ends + 1].tolist()
    tokens, lengths = jax.device_get(beam_search(*inputs, ends, beams, penalty))
    found = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    assert found == ask_torch(name, golden, ends, beams, penalty)
