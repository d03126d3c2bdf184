"""The jpt command: every subcommand, errors as one line, exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from jpt.cli import commands, groups
from jpt.cli.options import add_cache_option, with_cache_option
from jpt.cli.signals import Stopped, stop_on_signals
from jpt.distributed import process_index
from jpt.errors import DataWarning, DivergedError, InputError, StoppedError

app = typer.Typer(
    name="jpt",
    help="Soft prompts on frozen language models: tune, score and transfer them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print version and devices.")] = False,
) -> None:
    if version:
        typer.echo(commands.version_text())
        raise typer.Exit


for _command in (
    commands.quickstart,
    commands.tune,
    commands.evaluate,
    commands.generate,
    commands.transfer,
    commands.warm_start,
    commands.sweep,
    commands.neurons,
    commands.mask,
    commands.indicators,
    commands.recommend,
    commands.report,
    commands.tasks,
    commands.backbones,
    commands.check,
):
    _computes = _command not in (commands.report, commands.tasks, commands.backbones)
    app.command()(with_cache_option(_command) if _computes else _command)

_imports = typer.Typer(
    help="Import prompts trained by other software.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_imports.command("reference")(commands.import_reference)
_imports.command("peft")(groups.import_peft)
app.add_typer(_imports, name="import")
app.add_typer(groups.export_app, name="export")
app.add_typer(add_cache_option(groups.mix_app), name="mix")
app.add_typer(groups.prompts_app, name="prompts")
app.add_typer(add_cache_option(groups.project_app), name="project")


def main() -> None:
    """Run the command line; invalid input is reported as one line on stderr, with exit code 2."""
    # Silence library notes on missing accelerators and forks.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with _warnings_in_one_line(), stop_on_signals():
            app()
    except InputError as error:
        _fail(str(error), 2)
    except DivergedError as error:
        _fail(str(error), 1)
    except StoppedError as error:
        _fail(str(error), error.exit_code)
    except Stopped as stopped:
        _fail(str(stopped), stopped.exit_code)
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C twice in a training loop: typer caught KeyboardInterrupt
            _fail("interrupted; re-run the command to resume", 130)
        raise


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print each warning about rows once, as one line on stderr."""
    shown, usual = set(), warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, DataWarning):
            usual(message, category, *place)
        elif text not in shown and not process_index():
            shown.add(text)
            print(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = show
        yield


def _fail(message: str, code: int) -> None:
    number = process_index()
    who = f"jpt (process {number})" if number else "jpt"
    print(f"{who}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
