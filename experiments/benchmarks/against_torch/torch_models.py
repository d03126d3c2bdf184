"""A torch user's train step of a soft prompt: PEFT, or hand-written for encoders.

Each side pads to the longest row of its batch, computes gradients for the prompt only, and uses the
fused attention that transformers selects. PEFT has no prompt tuning with a masked-LM head: for
encoders the prompt is prepended to the embedded text, in the layout of jpt, and the answer is read
at the mask; ``plain`` computes logits of every word at every position, as the model's own class
does, ``tuned`` those of the label words at the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

NOT_SCORED = -100
ADAM = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}


class Rows(NamedTuple):
    """A tokenised batch: one array of ids per row, and the label numbers."""

    texts: list[np.ndarray]
    labels: np.ndarray


class Model:
    """A frozen model with a trainable prompt.

    Args:
        prompt: The trainable prompt.
        scores_of: Returns a batch's logits of words at the answer.
        loss_of: Returns the loss of a batch.
    """

    def __init__(
        self,
        prompt: torch.nn.Parameter,
        scores_of: Callable[[Rows, torch.Tensor], torch.Tensor],
        loss_of: Callable[[Rows], torch.Tensor],
    ) -> None:
        self.prompt, self.scores_of, self.loss_of = prompt, scores_of, loss_of

    def start(self, values: np.ndarray, rate: float) -> None:
        """Set the prompt and create a new optimizer."""
        with torch.no_grad():
            self.prompt.copy_(torch.from_numpy(values))
        self.optimizer = torch.optim.AdamW([self.prompt], lr=rate, **ADAM)

    def step(self, rows: Rows) -> torch.Tensor:
        """Take one step and return its loss, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(rows)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def accuracy(self, batches: list[Rows], words: torch.Tensor) -> float:
        """Return the share of rows whose correct label word has the highest score."""
        right = 0
        for rows in batches:
            best = self.scores_of(rows, words).argmax(1).cpu().numpy()
            right += int((best == rows.labels).sum())
        return right / sum(len(rows.labels) for rows in batches)


def build(side: str, model: Path, length: int, task: dict[str, Any]) -> Model:
    """Load a model with a prompt.

    Args:
        side: ``peft``, or for encoders ``plain`` or ``tuned``.
        model: A folder, or the GGUF file of a decoder.
        length: Number of prompt tokens.
        task: Ids of the label words and special tokens; device and dtype.
    """
    if side != "peft":
        return _encoder(model, length, task, is_tuned=side == "tuned")
    is_decoder = task["layout"] == "decoder"
    kind = AutoModelForCausalLM if is_decoder else AutoModelForSeq2SeqLM
    place = {"gguf_file": model.name} if model.suffix == ".gguf" else {}
    base = kind.from_pretrained(
        model.parent if place else model, dtype=getattr(torch, task["dtype"]), **place
    )
    base = base.to(task["device"])
    base.config.use_cache = False
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM if is_decoder else TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=length,
        num_transformer_submodules=1,
    )
    # eval: dropout is off on both sides; to: PEFT leaves the prompt on the CPU.
    tuned = get_peft_model(base, config).eval().to(task["device"])
    return (_decoder if is_decoder else _t5)(tuned, length, task)


def _decoder(tuned: Any, length: int, task: dict[str, Any]) -> Model:
    """The answer is the token after the text; the loss is that of the model's own class."""

    def scores_of(rows: Rows, words: torch.Tensor) -> torch.Tensor:
        ids, mask = pad(rows.texts, task["pad"], task["device"])
        positions = torch.tensor([length + len(text) - 1 for text in rows.texts])
        logits = tuned(input_ids=ids, attention_mask=mask).logits
        return logits[torch.arange(len(ids)), positions][:, words]

    def loss_of(rows: Rows) -> torch.Tensor:
        pairs = zip(rows.texts, rows.labels, strict=True)
        whole = [np.append(text, task["words"][label]) for text, label in pairs]
        ids, mask = pad(whole, task["pad"], task["device"])
        labels, each = torch.full_like(ids, NOT_SCORED), torch.arange(len(whole))
        positions = torch.tensor([len(text) - 1 for text in whole])
        labels[each, positions] = ids[each, positions]
        return tuned(input_ids=ids, attention_mask=mask, labels=labels).loss

    return Model(tuned.prompt_encoder["default"].embedding.weight, scores_of, loss_of)


def _t5(tuned: Any, length: int, task: dict[str, Any]) -> Model:
    """The answer is the decoder's first token."""

    def scores_of(rows: Rows, words: torch.Tensor) -> torch.Tensor:
        ids, mask = pad(rows.texts, task["pad"], task["device"])
        start = torch.full_like(ids[:, :1], tuned.config.decoder_start_token_id)
        found = tuned(input_ids=ids, attention_mask=mask, decoder_input_ids=start)
        return found.logits[:, 0][:, words]

    def loss_of(rows: Rows) -> torch.Tensor:
        ids, mask = pad(rows.texts, task["pad"], task["device"])
        labels = torch.tensor([[task["words"][label]] for label in rows.labels])
        labels = labels.to(task["device"])
        return tuned(input_ids=ids, attention_mask=mask, labels=labels).loss

    return Model(tuned.prompt_encoder["default"].embedding.weight, scores_of, loss_of)


def _encoder(model: Path, length: int, task: dict[str, Any], is_tuned: bool) -> Model:
    masked = AutoModelForMaskedLM.from_pretrained(model, dtype=getattr(torch, task["dtype"]))
    masked = masked.eval().to(task["device"]).requires_grad_(False)
    body = getattr(masked, masked.base_model_prefix)
    is_bert = masked.config.model_type == "bert"
    width = masked.config.hidden_size
    prompt = torch.nn.Parameter(torch.zeros(length, width, device=task["device"]))

    def scores_of(rows: Rows, words: torch.Tensor) -> torch.Tensor:
        ids, mask = pad(rows.texts, task["pad"], task["device"])
        front = _front(body.embeddings, prompt, task["mask"], is_bert)
        states = torch.cat([front.expand(len(ids), -1, -1), body.embeddings(ids)], 1)
        seen = torch.cat([mask.new_ones(len(ids), front.shape[1]), mask], 1)
        # Allowed positions for each position, as scaled_dot_product_attention expects.
        seen = seen[:, None, None, :].bool().expand(-1, -1, states.shape[1], -1)
        hidden = body.encoder(states, attention_mask=seen)[0]
        if is_tuned:
            return _label_scores(masked, hidden[:, 0], words)
        head = masked.cls if is_bert else masked.lm_head
        return head(hidden)[:, 0, words]

    def loss_of(rows: Rows) -> torch.Tensor:
        scores = scores_of(rows, torch.tensor(task["words"])).float()
        return F.cross_entropy(scores, torch.from_numpy(rows.labels).to(scores.device))

    return Model(prompt, scores_of, loss_of)


def _front(embeddings: Any, prompt: torch.Tensor, mask: int, is_bert: bool) -> torch.Tensor:
    """Embed ``[MASK] p1 .. pP``, normalised: no positions, in RoBERTa the one token type."""
    words = embeddings.word_embeddings.weight
    rows = torch.cat([words[mask][None], prompt.to(words.dtype)])
    if not is_bert:
        rows = rows + embeddings.token_type_embeddings.weight[0]
    return embeddings.LayerNorm(rows)[None]


def _label_scores(masked: Any, hidden: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Apply the masked-LM head to the label words only."""
    if masked.config.model_type == "bert":
        head = masked.cls.predictions
        transformed = head.transform(hidden)
        return F.linear(transformed, head.decoder.weight[words], head.decoder.bias[words])
    head = masked.lm_head
    transformed = head.layer_norm(F.gelu(head.dense(hidden)))
    return F.linear(transformed, head.decoder.weight[words], head.decoder.bias[words])


def read_rows(found: Any, name: str) -> Rows:
    """Read a batch that ``rows.py`` wrote."""
    cuts = np.cumsum(found[f"{name}.lengths"])[:-1]
    texts = np.split(found[f"{name}.texts"], cuts)
    return Rows(texts, found[f"{name}.labels"].astype(np.int64))


def pad(texts: list[np.ndarray], filler: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right to the longest of them."""
    longest = max(map(len, texts))
    ids = np.full((len(texts), longest), filler, np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    lengths = np.array([len(text) for text in texts])
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
