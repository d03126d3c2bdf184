"""Commands that carry a prompt to PEFT and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.options import JsonOption, print_result

app = typer.Typer(
    help="Write prompts in the form of other software.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """Keeps ``peft`` a command of its own: typer folds a group of one command into it."""


@app.command("peft")
def export_peft(
    file: Annotated[Path, typer.Argument(help="Prompt file, or folder of a run.")],
    out: Annotated[Path, typer.Option(help="Adapter folder, new or empty.")],
    backbone: Annotated[
        str | None, typer.Option(help="What PEFT shall call the model; by default as the card.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a prompt of a decoder or T5 as an adapter folder that PEFT loads.

    Example: jpt export peft study/prompts/imdb --out adapters/imdb
    """
    from jpt.recipes.peft import export_peft as run

    result = run(file, out, backbone)
    print_result(result.record, result.describe(), json)


def import_peft(
    source: Annotated[str, typer.Argument(help="Adapter folder of prompt tuning, or its hub id.")],
    out: Annotated[Path, typer.Option(help="File for the prompt: NAME.safetensors.")],
    backbone: Annotated[
        str | None, typer.Option(help="Instead of the base model that the adapter names.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What it was tuned for; else the card, or 'unknown'.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Import a prompt that PEFT has trained.

    Example: jpt import peft adapters/imdb --out study/prompts/imdb.safetensors
    """
    from jpt.recipes.peft import import_peft as run

    result = run(source, out, backbone, task)
    print_result(result.record, result.describe(), json)
