"""Commands that list what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from jpt.cli.completion import complete_backbone, complete_task
from jpt.cli.options import DataOption, JsonOption, print_result


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="One task, to see it in full.", autocompletion=complete_task),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Show label word ids and encoded rows of this model.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """List the tasks, or show one with its template, label words and rows.

    Example: jpt tasks builtin/imdb --backbone builtin/bert-small
    """
    from jpt.recipes.listing import describe_task, list_tasks

    record, text = list_tasks() if name is None else describe_task(name, backbone, max_tokens, data)
    print_result(record, text, json)


def backbones(json: JsonOption = False) -> None:
    """List the built-in backbones.

    Example: jpt backbones --json
    """
    from jpt.recipes.listing import list_backbones

    record, text = list_backbones()
    print_result(record, text, json)
