"""Commands for prompts: one of them in words, a whole folder, a library of them on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.options import JsonOption, print_result
from jpt.cli.studies import OtherBackboneOption, split_names

app = typer.Typer(
    help="Look at prompts, in words or a whole folder; share them on a hub.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FolderArgument = Annotated[
    Path, typer.Argument(help="Folder of NAME.safetensors, runs NAME/, or seeds NAME/seed-S/.")
]
RepoArgument = Annotated[
    str, typer.Argument(help="OWNER/NAME on the hub of HF_ENDPOINT, else huggingface.co.")
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


@app.command()
def push(
    folder: FolderArgument,
    repo: RepoArgument,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Create it private; else public, unless its organization's default is private.",
        ),
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, default main; a missing one is created.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Upload the prompts of a folder to a Hugging Face hub, in one commit.

    All are verified first. Prompts, an index (prompts.json) and a model card are sent, nothing
    else; a missing repository is created; prompts there that the folder lacks stay.

    Example: jpt prompts push study/prompts me/prompts --private
    """
    from jpt.recipes.prompt_push import push_prompts

    result = push_prompts(folder, repo, private=private, message=message, revision=revision)
    print_result(result.record, result.describe(), json)


@app.command()
def pull(
    repo: RepoArgument,
    out: Annotated[Path, typer.Option(help="Folder for the prompts.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; default main.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Names of prompts: NAME,NAME.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files here that differ.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Download the prompts of a repository on a Hugging Face hub, and no other file of it.

    All are read before the first is written; hub.json says which commit they came from.

    Example: jpt prompts pull me/prompts --out study/prompts
    """
    from jpt.recipes.prompt_pull import pull_prompts

    result = pull_prompts(repo, out, revision=revision, only=split_names(only), overwrite=overwrite)
    print_result(result.record, result.describe(), json)
