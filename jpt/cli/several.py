"""Commands that several processes run together: on a TPU pod, under SLURM, or started by hand."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from jpt.joining import start_processes
from jpt.processes import quiet_others

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
