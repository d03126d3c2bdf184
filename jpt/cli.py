"""The command line: thin, one function a command, options named as in the Python API."""

from __future__ import annotations

import json as json_format
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import jpt
from jpt.errors import DivergedError, InputError, StoppedError

app = typer.Typer(
    name="jpt",
    help="Soft prompts on frozen language models: tune them, score them, move them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BackboneOption = Annotated[
    str, typer.Option(help="Built-in name (see 'jpt backbones'), folder of weights, or hub id.")
]
TaskOption = Annotated[
    str, typer.Option(help="Name (see 'jpt tasks') or folder: with task.toml, or named like one.")
]
DataOption = Annotated[
    Path | None, typer.Option(help="Folder with train, validation and test rows of the task.")
]
DtypeOption = Annotated[str, typer.Option(help="float32 or bfloat16.")]
MeshOption = Annotated[
    str | None,
    typer.Option(help="Devices by axis, for instance data:4,model:2; default all on data."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print version and devices.")] = False,
) -> None:
    """Answers ``jpt --version``."""
    if version:
        import jax

        kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
        typer.echo(
            f"jpt {jpt.__version__} · jax {jax.__version__} · {len(jax.devices())} x {kinds}"
        )
        raise typer.Exit


@app.command()
def tune(
    backbone: BackboneOption,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Run folder; the same command goes on there.")],
    init: Annotated[
        str, typer.Option(help="random, vocab, labels, text:WORDS or prompt:FILE.")
    ] = "random",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Constant rate of AdamW.")] = None,
    length: Annotated[int | None, typer.Option(help="Prompt rows.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest text in tokens, special tokens included.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial prompt, row order and dropout.")] = 0,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between saves.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    dropout: Annotated[str, typer.Option(help="off, or paper: on inside the layers.")] = "off",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Tune a soft prompt for a task; only the prompt learns.

    Options left out take the backbone's own choice (built-in ones have one), else the paper's.

    Example: jpt tune --backbone builtin/bert-small --task builtin/rotten_tomatoes --out runs/rt
    """
    from jpt.tuning.tune import tune as run

    result = run(
        backbone,
        task,
        out,
        data=data,
        progress=True,
        init=init,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        length=length,
        max_tokens=max_tokens,
        seed=seed,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        dropout=dropout,
        mesh=mesh,
    )
    _print(result.record, result.describe(), json)


@app.command()
def evaluate(
    prompt: Annotated[Path, typer.Option(help="Prompt file, or the folder of its run.")],
    task: TaskOption,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    backbone: Annotated[
        str | None, typer.Option(help="Instead of the one that the prompt's card names.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Score a prompt on a task, its own or another (zero-shot transfer).

    Example: jpt evaluate --prompt runs/rt --task builtin/imdb
    """
    from jpt.tuning.evaluate import describe_score
    from jpt.tuning.evaluate import evaluate as score_prompt

    score = score_prompt(
        prompt,
        task,
        split=split,
        backbone=backbone,
        max_tokens=max_tokens,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        mesh=mesh,
        data=data,
    )
    record = {"prompt": str(prompt), "task": task, "split": split, **score.summary()}
    _print(record, describe_score(score, task, split), json)


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="One task, to see it in full.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Show label word ids and encoded rows of this model.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest text in tokens.")] = 128,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """List the tasks, or show one with its template, label words and rows.

    Example: jpt tasks builtin/imdb --backbone builtin/bert-small
    """
    from jpt.recipes.listing import describe_task, list_tasks

    record, text = list_tasks() if name is None else describe_task(name, backbone, max_tokens, data)
    _print(record, text, json)


@app.command()
def backbones(json: JsonOption = False) -> None:
    """List the built-in backbones.

    Example: jpt backbones --json
    """
    from jpt.recipes.listing import list_backbones

    record, text = list_backbones()
    _print(record, text, json)


@app.command()
def check(
    backbone: Annotated[str | None, typer.Option(help="Built-in name, folder or hub id.")] = None,
    task: Annotated[str | None, typer.Option(help="Task to try on it.")] = None,
    length: Annotated[int | None, typer.Option(help="Prompt rows.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    dtype: DtypeOption = "float32",
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Say what is wrong before an hour is lost: versions, devices, lengths, label words, 20 steps.

    Example: jpt check --backbone builtin/bert-small --task builtin/rotten_tomatoes
    """
    from jpt.recipes.check import run_check

    record, text = run_check(
        backbone, task, length=length, max_tokens=max_tokens, dtype=dtype, data=data
    )
    _print(record, text, json)
    if not record["ok"]:
        raise typer.Exit(1)


def _print(record: dict[str, Any], text: str, json: bool) -> None:
    if json:
        typer.echo(text, err=True)
        typer.echo(json_format.dumps(record))
    else:
        typer.echo(text)


def main() -> None:
    """Runs the command line: what the user can mend is one line on stderr and exit code 2."""
    # Quiet libraries: their notes on missing accelerators and forks are not the user's concern.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except DivergedError as error:
        _fail(str(error), 1)
    except StoppedError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    print("jpt: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
