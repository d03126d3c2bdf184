"""Options that several commands share, shell completion, and the start of processes."""

from __future__ import annotations

import functools
import inspect
import json as json_format
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from jpt.parallel import quiet_others, start_processes

# --- The option that every command that computes has: not to keep compiled programs

CompileCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-compile-cache",
        help="Compile anew; else programs are kept for the next run: ~/.cache/jpt/compiled.",
    ),
]


def with_cache_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--no-compile-cache`` to a command.

    Args:
        command: a function that typer reads its options off.

    Returns:
        The command with one option more, which it need not know.

    Example:
        >>> def greet(name: str) -> None:
        ...     print(name)
        >>> list(inspect.signature(with_cache_option(greet)).parameters)
        ['name', 'no_compile_cache']
    """

    @wraps(command)
    def run(*, no_compile_cache: bool = False, **options: Any) -> None:
        if no_compile_cache:
            from jpt.io.compile_cache import turn_off

            turn_off()
        command(**options)

    signature = inspect.signature(command, eval_str=True)
    more = inspect.Parameter(
        "no_compile_cache",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=CompileCacheOption,
    )
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), more])
    run.__annotations__ = {
        name: each.annotation for name, each in run.__signature__.parameters.items()
    }
    return run


def add_cache_option(group: typer.Typer) -> typer.Typer:
    """Adds ``--no-compile-cache`` to every command of a group.

    Args:
        group: with its commands.

    Returns:
        The group.

    Example:
        >>> group = add_cache_option(typer.Typer())
    """
    for info in group.registered_commands:
        if info.callback is not None:
            info.callback = with_cache_option(info.callback)
    return group


# --- What a shell completes after --backbone and --task: the names that come with jpt

_BUILTIN = Path(__file__).parent.parent / "backbones" / "builtin"


def complete_backbone(incomplete: str) -> list[str]:
    """Lists the built-in backbones that begin so; their folders are looked at, jax is not loaded.

    Args:
        incomplete: what is typed so far.

    Returns:
        The names; none where a path or a hub id is meant, so that the shell completes files.

    Example:
        >>> complete_backbone("builtin/bert-s")
        ['builtin/bert-small']
    """
    names = sorted(f"builtin/{config.parent.name}" for config in _BUILTIN.glob("*/config.json"))
    return [name for name in names if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Lists the tasks with a name that begin so.

    Args:
        incomplete: what is typed so far.

    Returns:
        The names.

    Example:
        >>> complete_task("movie")
        ['movie_rationales']
    """
    from jpt.tasks.catalog import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def complete_tasks(incomplete: str) -> list[str]:
    """Completes the last of several names with commas between them.

    Args:
        incomplete: what is typed so far.

    Returns:
        The whole of what is typed with each name that fits its end and does not yet stand in it.

    Example:
        >>> complete_tasks("imdb,movie")
        ['imdb,movie_rationales']
    """
    *before, last = incomplete.split(",")
    fitting = [name for name in complete_task(last) if name not in before]
    return [",".join([*before, name]) for name in fitting]


# --- Commands that several processes run together: on a TPU pod, under SLURM, or started by hand

_OPTIONS = {
    "coordinator": Annotated[
        str | None,
        typer.Option(
            envvar="JPT_COORDINATOR",
            help="Several processes: HOST:PORT of process 0, or auto on a TPU pod (SLURM is"
            " noticed); none: this one alone.",
        ),
    ],
    "processes": Annotated[
        int | None,
        typer.Option(envvar="JPT_PROCESSES", help="With HOST:PORT: how many there are."),
    ],
    "process": Annotated[
        int | None,
        typer.Option(envvar="JPT_PROCESS", help="With HOST:PORT: which one this is, from 0."),
    ],
}


def with_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command be run by several processes; all compute, the first one writes and prints.

    Args:
        command: with options alone.

    Returns:
        The command with three options more.

    Example:
        >>> @with_processes
        ... def shout(word: str = "prompt") -> None:
        ...     print(word.upper())
        >>> list(inspect.signature(shout).parameters)
        ['word', 'coordinator', 'processes', 'process']
        >>> shout(word="tune")
        TUNE
    """
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
    ]

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        start_processes(**{name: options.pop(name, None) for name in _OPTIONS})
        with quiet_others():
            command(*arguments, **options)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    more = [
        inspect.Parameter(name, kind, default=None, annotation=a) for name, a in _OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature([*own, *more], return_annotation=None)
    run.__annotations__ = {**hints, **_OPTIONS}
    return run


# --- What the commands share: options that several of them take, and how a result is printed

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
