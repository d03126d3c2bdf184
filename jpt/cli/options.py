"""What the commands share: options that several of them take, and how a result is printed."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jpt.cli.completion import complete_backbone, complete_task

BackboneOption = Annotated[
    str,
    typer.Option(
        help="Built-in name (see 'jpt backbones'), folder of weights, or hub id.",
        autocompletion=complete_backbone,
    ),
]
TaskOption = Annotated[
    str,
    typer.Option(
        help="Name (see 'jpt tasks') or folder: with task.toml, or named like one.",
        autocompletion=complete_task,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="Folder with train, validation, test rows: .jsonl, .csv, .parquet."),
]
DtypeOption = Annotated[str, typer.Option(help="float32 or bfloat16.")]
InitOption = Annotated[str, typer.Option(help="random, vocab, labels, text:WORDS or prompt:FILE.")]
ObjectiveOption = Annotated[
    str | None, typer.Option(help="labels or vocabulary: which words the loss is over.")
]
LabelScoringOption = Annotated[
    str,
    typer.Option(help="T5 and decoders: phrase (all pieces of a label word) or first_piece."),
]
AnswerTokensOption = Annotated[
    int | None, typer.Option(help="Longest written answer in tokens; default the task's.")
]
TokensPerBatchOption = Annotated[
    int | None, typer.Option(help="Instead: tokens a step; short rows in large batches.")
]
ClipNormOption = Annotated[
    float | None, typer.Option(help="Shorten a gradient of a larger norm to it; default never.")
]
CheckpointMinutesOption = Annotated[
    float | None, typer.Option(help="Save too when the last save is so old.")
]
LogOption = Annotated[
    str | None, typer.Option(help="Show the log in these too: tensorboard,wandb.")
]
RematOption = Annotated[
    str, typer.Option(help="What layers keep for the way back: dots, full (least) or none.")
]
MeshOption = Annotated[
    str | None,
    typer.Option(help="Devices by axis: prompt:2,data:4,model:1; default all on data."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]


def print_result(record: dict[str, Any], text: str, json: bool) -> None:
    """Prints a result: text for people, or one JSON object on stdout and the text on stderr.

    Args:
        record: the result as JSON.
        text: the same for people.
        json: whether a machine reads stdout.

    Example:
        >>> print_result({"score": 0.5}, "score 0.5", json=False)
        score 0.5
    """
    stream = sys.stderr if json else sys.stdout
    # Blocks and accents that a terminal of an old kind cannot show are no reason to fail.
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "replace").decode(encoding), err=json)
    if json:
        typer.echo(json_format.dumps(record))
