"""The command that lets a model write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from jpt.cli.completion import complete_backbone
from jpt.cli.options import DtypeOption, JsonOption, MeshOption, print_result
from jpt.cli.several import with_processes
from jpt.errors import InputError
from jpt.processes import is_first, on_first


@with_processes
def generate(
    prompt: Annotated[
        Path | None, typer.Option(help="Prompt file, or the folder of its run.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Instead of the prompt's own; alone, without a prompt.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of a continuation.")] = 32,
    beams: Annotated[
        int, typer.Option(help="Continuations kept side by side; 1 takes the best token each time.")
    ] = 1,
    eval_batch_size: Annotated[int, typer.Option(help="Lines continued at once.")] = 16,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    r"""Continue the lines of stdin: one continuation a line, new lines in it written as \n.

    Example: echo 'The film was' | jpt generate --backbone models/gpt2 --max-tokens 20
    """
    from jpt.prompts.store import load_prompt
    from jpt.recipes.generate import generate as run

    if prompt is None and backbone is None:
        raise InputError("there is nothing to write with; give --prompt FILE or --backbone NAME")
    loaded = None if prompt is None else load_prompt(prompt)
    if is_first() and sys.stdin.isatty():
        typer.echo("reading lines from the terminal up to Ctrl-D", err=True)
    found = run(
        loaded,
        on_first(lambda: read_lines(sys.stdin.buffer)),
        backbone=backbone,
        max_tokens=max_tokens,
        beams=beams,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        mesh=mesh,
        progress=True,
    )
    record = {
        "prompt": None if prompt is None else str(prompt),
        "backbone": loaded.card.backbone if backbone is None else backbone,
        "max_tokens": max_tokens,
        "beams": beams,
        "lines": len(found),
        "continuations": found,
    }
    print_result(record, "\n".join(map(one_line, found)), json)


def read_lines(stream: BinaryIO) -> list[str]:
    r"""Reads lines of UTF-8 text; an empty line counts.

    Args:
        stream: of bytes.

    Returns:
        The lines, without what ends them.

    Raises:
        InputError: there are none, or a line is no text.

    Example:
        >>> import io
        >>> read_lines(io.BytesIO(b"The film\r\n\nwas"))
        ['The film', '', 'was']
    """
    content = stream.read().removeprefix(b"\xef\xbb\xbf")  # a mark some editors put in front
    if not content:
        raise InputError(
            "stdin is empty; give one text a line, for instance: echo 'The film was' | jpt generate"
        )
    lines = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} of stdin is no UTF-8 text (its byte {error.start + 1} is "
                f"{error.object[error.start]:#04x}); convert it, for instance by iconv -t utf-8"
            ) from None
        if "\0" in lines[-1]:
            raise InputError(
                f"line {number} of stdin holds a zero byte; give text, not binary data"
            )
    return lines


def one_line(text: str) -> str:
    r"""Writes a text so that it stays on one line.

    Args:
        text: of any number of lines.

    Returns:
        The text with ``\n`` and ``\r`` written out.

    Example:
        >>> print(one_line("a good film\nit was"))
        a good film\nit was
    """
    return text.replace("\r", "\\r").replace("\n", "\\n")
