"""The option that every command that computes has: not to keep compiled programs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

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
            from jpt.compile_cache import turn_off

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
