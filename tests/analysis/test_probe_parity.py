"""The probe of the built-in models against the hooks of torch transformers."""

from __future__ import annotations

import numpy as np
import pytest

import jpt
from jpt.backbones.registry import find_folder
from jpt.neurons.probe import activated_neurons
from jpt.types import Prompt, PromptCard

pytestmark = pytest.mark.parity


# The probes of the other layouts are held to torch by the golden fixtures of their families.
@pytest.mark.parametrize("name", ["builtin/bert-medium", "builtin/bert-small"])
def test_activated_neurons_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.backbones.make_encoder_fixtures import TorchReader

    backbone = jpt.load_backbone(name)
    random = np.random.default_rng(0)
    prompts = {
        f"p{number}": Prompt(
            random.normal(0, 0.3, (20, backbone.config.width)).astype(np.float32),
            PromptCard(name, "task"),
        )
        for number in range(3)
    }
    found = activated_neurons(prompts, backbone=backbone)
    model = transformers.BertForMaskedLM.from_pretrained(
        find_folder(name), dtype=torch.float64, attn_implementation="eager"
    ).eval()
    ids = backbone.tokenizer.ids
    inputs = {
        "tokens": np.array([[ids.cls]]),
        "lengths": np.array([1]),
        "mask_id": np.array([ids.mask]),
    }
    reader = TorchReader(model, inputs)
    for place, prompt in enumerate(prompts.values()):
        with torch.no_grad():
            reader.read(torch.from_numpy(prompt.values).double())
        expected = np.stack([layer[0, 0].numpy() for layer in reader.neurons])  # [L, F]
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found.values[place], expected, rtol=0, atol=1e-5 * largest)
        firm = np.abs(expected) > 1e-6  # which neurons count as activated
        assert ((found.values[place] > 0) == (expected > 0))[firm].all()
