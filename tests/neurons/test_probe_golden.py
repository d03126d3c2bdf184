"""Both probes and ON equal stored activations of torch transformers (forward hooks)."""

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpt.backbones.registry import Backbone
from jpt.config import ProbeOptions
from jpt.data.encode import EncodedSplit, join_rows
from jpt.indicators.indicators import neuron_similarities
from jpt.neurons import probe
from jpt.neurons.probe import NeuronMeans, ProbeInput, activated_neurons, probe_rows
from jpt.types import Activations, Prompt, PromptCard
from tests.helpers.golden import FAST_COMPILE, FIXTURES, difference, load_golden

NAMES = ("bert_tied", "roberta_untied", "t5_relu", "t5_gated", "gpt2_tied", "llama_grouped")
NAMES = (*NAMES, "bert_one_layer", "gpt2_untied", "qwen2_tied", "roberta_tied", "t5_one_layer")
TOLERANCE = 1e-5

CASES = [pytest.param(name, None, id=name) for name in NAMES]
CASES += [pytest.param(name, "encoder", id=f"{name}-encoder") for name in NAMES if "t5" in name]
PROMPTS = ("a", "b", "c")


@pytest.fixture(scope="module", autouse=True)
def compiled_fast() -> Iterator[None]:
    options = {"static_argnames": ("module", "first_position", "stack")}
    fast = jax.jit(probe.probe_bank.__wrapped__, compiler_options=FAST_COMPILE, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "probe_bank", fast)
        yield


@cache
def make_backbone(name: str) -> Backbone:
    """Return the model of a fixture; its start token is the first of the stored batch."""
    golden = load_golden(name)
    first = int(golden.stored["tokens"][0, 0])
    ids = SimpleNamespace(cls=first, bos=first, eos=None, pad=0)
    kept = {"find": lambda piece: first, "check_ids": lambda ids, where: None}
    tokenizer = SimpleNamespace(ids=ids, **kept)
    shape = (golden.family, golden.config, golden.module(), golden.params)
    return Backbone(name, *shape, tokenizer, "", {})


@cache
def stored(name: str) -> dict[str, np.ndarray]:
    return load_file(FIXTURES / name / "probes.safetensors")


def make_rows(name: str) -> ProbeInput:
    golden = load_golden(name).stored
    rows = [ids[:n] for ids, n in zip(golden["tokens"], golden["lengths"], strict=True)]
    tokens, offsets = join_rows(rows)
    split = EncodedSplit(tokens, offsets, np.zeros(len(rows), np.int32), 0)
    return ProbeInput(split, golden["tokens"].shape[1], "answer", {"kind": "text"})


def read_text(name: str, stack: str | None, **options: float) -> NeuronMeans:
    chosen = ProbeOptions(probe="text", task="none", stack=stack, **options)
    return probe_rows(make_backbone(name), stored(name)["prompts"], make_rows(name), chosen)


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.sum((a.T @ b) ** 2) / np.sqrt(np.sum((a.T @ a) ** 2) * np.sum((b.T @ b) ** 2)))


def overlap(shares: np.ndarray) -> np.ndarray:
    """Return the cosines of vectors of all neurons of all layers."""
    rows = shares.reshape(len(shares), -1).astype(np.float64)
    return np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in rows] for a in rows])


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_start_probe_and_overlap_equal_torch(name: str, stack: str | None) -> None:
    backbone = make_backbone(name)
    card = PromptCard(name, "task", layout=backbone.layout)
    bank = zip(PROMPTS, stored(name)["prompts"], strict=True)
    prompts = {key: Prompt(rows, card) for key, rows in bank}
    found = activated_neurons(prompts, backbone=backbone, stack=stack)
    expected = stored(name)["encoder_start_neurons" if stack else "start_neurons"]
    assert difference(found.values, expected) < TOLERANCE
    np.testing.assert_array_equal(found.values > 0, expected > 0)
    assert found.probe == {"kind": "start"} | ({"stack": stack} if stack else {})
    ours = neuron_similarities(found)[0]["neuron_overlap_all"]
    np.testing.assert_allclose(ours, overlap(expected > 0), atol=1e-12)


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_text_probe_and_overlap_equal_torch(name: str, stack: str | None) -> None:
    found = read_text(name, stack)
    expected = stored(name)["encoder_text_neurons" if stack else "text_neurons"]  # [3, L, B, F]
    assert difference(found.values, expected.mean(2)) < TOLERANCE
    rates = (expected > 0).mean(2)
    np.testing.assert_allclose(found.rates, rates, atol=1e-7)
    assert 0 < ((rates > 0) & (rates < 1)).mean(), "every neuron is on or off for all rows"
    columns, _ = neuron_similarities(Activations(PROMPTS, found.values, found.rates, found.cka))
    np.testing.assert_allclose(columns["neuron_overlap_all"], overlap(rates), atol=1e-7)
    wide = expected.astype(np.float64)
    for a in range(3):
        for b in range(3):
            layers = [linear_cka(wide[a, n], wide[b, n]) for n in range(wide.shape[1])]
            np.testing.assert_allclose(found.cka[:, a, b], layers, atol=1e-5)


@pytest.mark.parametrize("chunk_mb", [1e-6, 0.1])
def test_chunks_change_no_number(chunk_mb: float) -> None:
    whole, chunks = read_text("gpt2_tied", None), read_text("gpt2_tied", None, chunk_mb=chunk_mb)
    for name in ("values", "cka"):
        assert difference(getattr(chunks, name), getattr(whole, name)) < 1e-6
    np.testing.assert_array_equal(chunks.rates, whole.rates)
