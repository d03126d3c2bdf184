"""The command that reads which neurons prompts activate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.completion import complete_task
from jpt.cli.options import DtypeOption, JsonOption, MeshOption, print_result
from jpt.cli.several import with_processes
from jpt.cli.studies import OtherBackboneOption, SeedPromptsOption

_NOT_PASSED_ON = ("prompts", "out", "json")


@with_processes
def neurons(
    prompts: SeedPromptsOption,
    out: Annotated[Path, typer.Option(help="File to write, for instance neurons.npz.")],
    probe: Annotated[
        str, typer.Option(help="start (prompt and start token, the paper's) or text (of a task).")
    ] = "start",
    task: Annotated[
        str | None,
        typer.Option(
            help="Whose text: a name (see 'jpt tasks') or a folder.", autocompletion=complete_task
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Of the text: train, validation or test.")
    ] = "validation",
    rows: Annotated[
        int | None, typer.Option(help="Rows of text, by chance; default 64, or all if fewer.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="answer, text (mean over its tokens), or tokens: 0,-1.")
    ] = "answer",
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
    backbone: OtherBackboneOption = None,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    stack: Annotated[
        str | None, typer.Option(help="decoder or encoder of a T5; by default its decoder.")
    ] = None,
    chunk_mb: Annotated[
        float, typer.Option(help="Memory for what is read at once, roughly; changes no number.")
    ] = 256,
    data: Annotated[
        Path | None, typer.Option(help="Folder with train, validation, test rows of the task.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read the feed-forward neurons that each prompt activates, in one compiled call.

    Example: jpt neurons --prompts study/prompts --out study/neurons.npz
    """
    # Every option goes on under its own name, which is that of the Python API.
    options = {name: value for name, value in locals().items() if name not in _NOT_PASSED_ON}
    from jpt.analysis.activations import activated_neurons, describe_activations
    from jpt.analysis.redundancy import describe_redundancy

    found = activated_neurons(prompts, out, progress=probe == "text", **options)
    record, text = describe_activations(found)
    record["redundancy"], shares = describe_redundancy(found)
    print_result({"out": str(out), **record}, f"{text}{shares}\nwritten: {out}", json)
