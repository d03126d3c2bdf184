"""The neurons of the feed-forward layers that a prompt activates, for many prompts at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jpt.analysis.probe_bank import probe_rows
from jpt.analysis.probe_options import ANSWER, START, ProbeOptions
from jpt.analysis.probe_text import ProbeInput, start_input, text_input
from jpt.backbones.lengths import check_lengths
from jpt.backbones.registry import Backbone, load_backbone
from jpt.config import check_choice
from jpt.errors import InputError
from jpt.files.study_files import write_activations
from jpt.mesh import make_mesh
from jpt.prompts.bank import stack_prompts
from jpt.prompts.seed_prompts import Prompts, load_runs
from jpt.prompts.store import check_prompt
from jpt.types import Activations, Prompt

STACKS = ("decoder", "encoder")


def activated_neurons(
    prompts: Prompts,
    out: str | Path | None = None,
    *,
    backbone: Backbone | str | Path | None = None,
    dtype: str = "float32",
    mesh: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Activations:
    """Reads the feed-forward neurons of all layers behind each prompt, in one compiled call.

    The paper's probe, ``probe="start"``: the input is the prompt and the start token, without any
    text, and the neurons are read where the answer stands, after the non-linearity. In T5 the
    decoder is read at its first step, as in the paper, or the encoder at the start token.

    ``probe="text"`` reads rows of a task behind each prompt: ``rates`` is the share of the rows in
    which a neuron is above 0, ``values`` the mean, and ``cka`` (for 2 to 128 rows) how alike the
    rows' activations are between prompts. The encoder of a T5 is read at the text's first token.

    Args:
        prompts: a folder, or prompts by name; of one backbone and length. Runs are ``NAME/seed-S``.
        out: file to write, by custom ``neurons.npz``.
        backbone: instead of the one that the cards name; the width is checked.
        dtype: of weights and matrix products.
        mesh: devices by axis: prompts go over ``prompt``, rows over ``data``; by default, of a
            loaded backbone those that it lies on.
        progress: whether to show a bar on stderr.
        **options: fields of :class:`jpt.analysis.probe_options.ProbeOptions`: ``probe``, ``task``,
            ``split``, ``rows``, ``data``, ``positions``, ``stack``, ``chunk_mb`` and others.

    Returns:
        Activations [K, L, F], the prompts sorted by name.

    Raises:
        InputError: prompts that do not belong together or to the backbone, broken data, more rows
            than there are, or positions that no row has.

    Example:
        >>> import numpy as np
        >>> from jpt.types import PromptCard
        >>> values = np.zeros((20, 128), np.float32)
        >>> prompt = Prompt(values, PromptCard("builtin/bert-small", "builtin/imdb"))
        >>> activated_neurons({"imdb": prompt}).values.shape
        (1, 4, 512)
    """
    chosen, loaded = ProbeOptions(**options), load_runs(prompts)
    first = next(iter(loaded.values()))
    name = backbone if backbone is not None else first.card.backbone
    model, devices = _on_mesh(name, dtype, mesh)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    given = _input(model, first, chosen)
    bank = stack_prompts(loaded)
    means = probe_rows(model, bank, given, chosen, mesh=devices, progress=progress)
    record = given.record | ({"stack": chosen.stack} if chosen.stack else {})
    of_text = (None, None) if chosen.probe == START else (means.rates, means.cka)
    found = Activations(tuple(loaded), means.values, *of_text, record)
    if out is not None:
        write_activations(out, found)
    return found


def describe_activations(found: Activations) -> tuple[dict[str, Any], str]:
    """Says what was read."""
    active = found.values > 0 if found.rates is None else found.rates
    count, layers, width = found.values.shape
    record = {
        "prompts": list(found.names),
        "layers": layers,
        "neurons": width,
        "share_activated": float(active.mean()),
        "probe": found.probe,
    }
    text = (
        f"{count} prompt{'' if count == 1 else 's'}, {layers} layers of {width} neurons,"
        f" {100 * active.mean():.1f} % of them above 0"
    )
    if found.rates is not None:
        probe = found.probe
        text += f"\nmeans over {probe['rows']} rows of {probe['task']} {probe['split']}"
        text += "" if found.cka is not None else " (no CKA: it needs 2 to 128 rows)"
    return record, text


def _on_mesh(
    backbone: Backbone | str | Path, dtype: str, mesh: str | None
) -> tuple[Backbone, Mesh | None]:
    """The model on the devices that are asked for; without a mesh a loaded one stays."""
    if isinstance(backbone, Backbone):
        devices = None if mesh is None else make_mesh(mesh)
        return (backbone if devices is None else backbone.on_mesh(devices)), devices
    devices = make_mesh(mesh)
    return load_backbone(backbone, dtype=dtype, mesh=devices), devices


def _input(model: Backbone, prompt: Prompt, options: ProbeOptions) -> ProbeInput:
    """What is read behind the prompts, checked against the model."""
    first_position, stack = prompt.card.first_position or 0, options.stack
    check_lengths(model, len(prompt.values), 1, first_position)
    if stack is not None:
        _check_stack(model, stack)
    if options.probe == START:
        return start_input(model, first_position)
    if options.positions != ANSWER and model.layout == "encoder_decoder" and stack != "encoder":
        raise InputError(
            f"positions is {options.positions!r}, but the decoder of {model.name} stands at no"
            " token of the text; set stack to encoder, or positions to answer"
        )
    return text_input(model, options, len(prompt.values), first_position)


def _check_stack(model: Backbone, stack: str) -> None:
    """Refuses a stack that is not there."""
    check_choice("stack", stack, STACKS)
    if model.layout != "encoder_decoder":
        raise InputError(f"stack is '{stack}', but {model.name} has one stack; leave it out")
