"""Linear CKA: how alike two prompts make a model see the same rows of text, in each layer.

With X_a [rows, F] the activations of a layer behind prompt a, each column minus its mean, and the
kernel K_a = X_a X_a', CKA(a, b) = <K_a, K_b> / (|K_a| |K_b|), as Kornblith et al. (2019) define it
for linear kernels. Kernels are rows x rows however many neurons a layer has, so that neither the
activations of all prompts nor F x F products are ever held: K x L x rows^2 numbers are.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

# Activations are float32: variation below this share of their squares is rounding.
_ROUNDING = 1e-11


def row_kernels(
    neurons: Float32[np.ndarray, "K L N F"],
) -> Float64[np.ndarray, "L K N*N"]:
    """Multiplies the centred activations of every row with those of every other."""
    prompts, layers, rows, _ = neurons.shape
    kernels = np.zeros((layers, prompts, rows * rows))
    for prompt in range(prompts):
        for layer in range(layers):
            values = neurons[prompt, layer].astype(np.float64)
            size = (values**2).sum()
            values -= values.mean(0)
            if (values**2).sum() > _ROUNDING * size:
                kernels[layer, prompt] = (values @ values.T).ravel()
    return kernels


def align_kernels(kernels: Float64[np.ndarray, "L K N*N"]) -> Float64[np.ndarray, "L K K"]:
    """Computes the CKA of every two prompts."""
    products = np.einsum("kif,kjf->kij", kernels, kernels, optimize=True)
    products = np.triu(products) + np.triu(products, 1).transpose(0, 2, 1)
    squares = np.einsum("kii->ki", products)
    norms = np.sqrt(squares[:, :, None] * squares[:, None])
    found = np.where(norms > 0, products / np.where(norms > 0, norms, 1), np.nan)
    places = np.arange(found.shape[1])
    found[:, places, places] = np.where(squares > 0, 1.0, np.nan)
    return found
