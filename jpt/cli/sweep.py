"""The command that runs many tunings from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jpt.cli.options import JsonOption, MeshOption, print_result
from jpt.cli.several import with_processes
from jpt.errors import InputError, unknown_name


@with_processes
def sweep(
    grid: Annotated[
        Path, typer.Argument(help="TOML file: [fixed], [grid], [[zip]], [search], [run].")
    ],
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on there.")],
    shard: Annotated[
        str | None, typer.Option(help="i/n: only this part of the work, for job arrays.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="ray: hand the work to a Ray cluster (extra cluster).")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="With ray: HOST:PORT of the cluster; default the running one, or none."),
    ] = None,
    needs: Annotated[
        str | None,
        typer.Option(help="With ray: what a bank takes of a node, for instance GPU:1,CPU:4."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="With [search]: how many settings to try (extra search).")
    ] = None,
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Tune a prompt for every combination in a file; a table of scores at the end.

    The file has [fixed] (the same for all), [grid] (every combination of lists and ranges),
    [[zip]] (lists that go together) and [run] (places: runs at once; memory_gb). Names are those
    of the options of jpt tune: backbone, task, data, steps, seed, learning_rate, ... [search] has
    ranges without a count: every trial takes values from them and runs the rest of the file.

    On a Ray cluster paths must be the same on every node, and places, which default to what this
    machine would take, are best set in [run].

    Example: jpt sweep grid.toml --out sweeps/rates
    """
    from jpt.recipes.sweep import sweep as run

    workers = _workers(on, address, needs)
    result = run(grid, out, shard=shard, trials=trials, mesh=mesh, workers=workers, progress=True)
    print_result(result.record, result.describe(), json)


def _workers(on: str | None, address: str | None, needs: str | None) -> Any:
    """Who trains; None is this process."""
    if on is None:
        if address or needs:
            raise InputError("address and needs are for Ray; give --on ray as well")
        return None
    if on != "ray":
        raise unknown_name("place to run on", on, ("ray",))
    from jpt.recipes.sweep_ray import ray_workers

    return ray_workers(address, needs)
