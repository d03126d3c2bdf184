"""The command that writes the page of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.options import JsonOption, print_result


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that jpt transfer and others wrote.")
    ],
    json: JsonOption = False,
) -> None:
    """Write DIR/report.html: figures, tables and findings of a study on one page.

    Example: jpt report study
    """
    from jpt.analysis.report import report as write_report
    from jpt.analysis.report import summarize

    path = write_report(folder)
    findings = summarize(folder)
    text = "\n".join([*findings, f"written: {path}"])
    print_result({"report": str(path), "findings": findings}, text, json)
