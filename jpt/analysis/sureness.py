"""How sure a prompt is of its answers on texts without labels: a heuristic, nothing is measured."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def sureness(log_probs: Float[np.ndarray, "N C"]) -> float:
    # Computes how much the answer depends on the text: mutual information over its largest value.
    # It is the entropy of the mean answer less the mean entropy of the answers: high where each
    # text has a clear answer (sure) and the texts have different ones (balanced). A prompt that
    # answers every text alike has 0, however sure it is. A high value does not say that answers are
    # right: only labels do. (Choosing text prompts so: Sorensen and others, ACL 2022.)
    probs = np.exp(log_probs.astype(np.float64))
    information = _entropy(probs.mean(0)) - _entropy(probs).mean()
    return float(np.clip(information / np.log(probs.shape[1]), 0, 1))


def _entropy(probs: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N"]:
    return -(probs * np.log(np.maximum(probs, 1e-300))).sum(-1)
