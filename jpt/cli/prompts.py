"""Commands that look at prompts: one of them in words, or a whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.options import JsonOption, print_result
from jpt.cli.studies import OtherBackboneOption

app = typer.Typer(
    help="Look at prompts: one in words of the vocabulary, or a whole folder.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FolderArgument = Annotated[
    Path, typer.Argument(help="Folder of NAME.safetensors files or of run folders NAME/.")
]


@app.command()
def show(
    prompt: Annotated[Path, typer.Argument(help="Prompt file, or folder of a run.")],
    backbone: OtherBackboneOption = None,
    top: Annotated[int, typer.Option(help="Nearest pieces of a row.")] = 3,
    json: JsonOption = False,
) -> None:
    """Show the vocabulary nearest to each row, the norms, and how far the rows have moved.

    Example: jpt prompts show study/prompts/imdb.safetensors
    """
    from jpt.recipes.prompts import show_prompt
    from jpt.recipes.prompts_text import describe_reading

    found = show_prompt(prompt, backbone=backbone, top=top)
    print_result(found.record, describe_reading(found), json)


@app.command()
def ls(folder: FolderArgument, json: JsonOption = False) -> None:
    """List the prompts of a folder with task, backbone, size, score and mean norm.

    Example: jpt prompts ls study/prompts
    """
    from jpt.recipes.prompt_folder import describe_entries, read_entries

    entries = read_entries(folder)
    print_result({"prompts": [entry.record for entry in entries]}, describe_entries(entries), json)


@app.command()
def verify(
    folder: FolderArgument,
    backbone: OtherBackboneOption = None,
    json: JsonOption = False,
) -> None:
    """Check that every prompt can be read, is finite, has a whole card and fits its backbone.

    Example: jpt prompts verify study/prompts
    """
    from jpt.errors import InputError
    from jpt.recipes.prompt_folder import describe_entries, read_entries, verify_entries

    entries = verify_entries(read_entries(folder), backbone)
    record = {"prompts": [entry.record for entry in entries]}
    print_result(record, describe_entries(entries, verified=True), json)
    broken = [entry.name for entry in entries if entry.faults]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise InputError(
            f"{len(broken)} of {len(entries)} prompts in {folder} are broken:"
            f" {', '.join(broken[:5])}{more}; see above"
        )
