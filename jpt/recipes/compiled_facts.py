"""What a compiled program says of itself: which collectives run, over which axes, how often."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
UNKNOWN_AXES = ("?",)

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"= ([^%\"]*?) ({'|'.join(KINDS)})\(")
_SHAPE = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

# The three ways in which XLA writes who talks to whom: listed, counted off, by the axes of a mesh.
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']*)'=(\d+)")
_MESH_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclass(frozen=True)
class Collective:
    """One kind of talk between devices in a step."""

    kind: str  # for instance ``"all-reduce"``
    # of the mesh over which it goes; `UNKNOWN_AXES` where the program does not tell
    axes: tuple[str, ...]
    count: int  # how often it runs in a step
    # what it leaves on one device in a step, all together; of a reduce-scatter, what goes in
    size_bytes: int


@dataclass(frozen=True)
class Collectives:
    """All talk between devices in a step."""

    found: tuple[Collective, ...]  # by kind and axes, the largest first
    open_loops: int  # loops with collectives whose number of turns is not known; they count once


def read_collectives(program: str, mesh: Mapping[str, int]) -> Collectives:
    """Counts the collectives of a compiled program, those in loops once a turn."""
    computations, entry = _split(program)
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    sizes: Counter[tuple[str, tuple[str, ...]]] = Counter()
    open_loops = 0
    for line, turns, is_open in _walk(computations, entry, 1):
        match = _COLLECTIVE.search(line)
        if match is None:
            open_loops += is_open
            continue
        groups = _read_groups(line, math.prod(mesh.values()))
        key = (match[2], _axes_of(groups, mesh))
        counts[key] += turns
        sizes[key] += turns * _size_bytes(match[1], match[2], groups)
    found = (Collective(*key, count, sizes[key]) for key, count in counts.items())
    order = sorted(found, key=lambda entry: (-entry.size_bytes, entry.kind, entry.axes))
    return Collectives(tuple(order), open_loops)


def _split(program: str) -> tuple[dict[str, list[str]], str]:
    """Cuts a program into its computations, and names the one that it starts with."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in program.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header is not None:
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _walk(
    computations: Mapping[str, Sequence[str]], name: str, turns: int
) -> Iterator[tuple[str, int, bool]]:
    """Gives every line that has a collective or is a loop of unknown length around one."""
    # With it comes how often the line runs, and whether it is such a loop.
    for line in computations.get(name, ()):
        if _COLLECTIVE.search(line) is not None:
            yield line, turns, False
            continue
        is_loop, trips = " while(" in line, _TRIPS.search(line)
        inner_turns = turns * int(trips[1]) if is_loop and trips else turns
        inner = [
            found for called in _called(line) for found in _walk(computations, called, inner_turns)
        ]
        yield from inner
        if inner and is_loop and not trips:
            yield line, turns, True


def _called(line: str) -> list[str]:
    """Names the computations that a line runs."""
    branches = _BRANCHES.search(line)
    listed = re.findall(r"[\w.\-]+", branches[1]) if branches else []
    return [*_CALLED.findall(line), *listed]


def _size_bytes(shapes: str, kind: str, groups: Sequence[Sequence[int]]) -> int:
    """Bytes of one shape or a tuple of them: of the whole, also where each keeps a piece."""
    total = 0
    for letters, bits, dimensions in _SHAPE.findall(shapes):
        width = 1 if letters == "pred" else int(bits or 0) // 8
        total += width * math.prod(int(size) for size in dimensions.split(",") if size)
    return total * len(groups[0]) if kind == "reduce-scatter" and groups else total


def _axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Names the axes along which the devices of a group differ."""
    if not groups:
        return UNKNOWN_AXES
    # [G, N] devices -> one [G, N] of places for each axis
    places = np.unravel_index(np.asarray(groups), tuple(mesh.values()))
    return tuple(a for a, along in zip(mesh, places, strict=True) if np.ptp(along, axis=1).any())


def _read_groups(line: str, devices: int) -> Sequence[Sequence[int]]:
    """Reads which devices talk to each other; none where that is written in another way."""
    if match := _COUNTED.search(line):
        return _count_off(match[2], match[3]).reshape(_numbers(match[1])).tolist()
    if match := _LISTED.search(line):
        listed = re.findall(r"\d[\d,]*", match[1])
        return [_numbers(group) for group in listed] or [range(devices)]
    if match := _MESH.search(line):
        return _mesh_groups(match[1], match[2], match[3])
    return []


def _mesh_groups(mesh: str, order: str | None, along: str) -> Sequence[Sequence[int]]:
    """Reads groups that are written as the axes of a mesh that they go along."""
    axes = {name: int(size) for name, size in _MESH_AXIS.findall(mesh)}
    devices = np.arange(math.prod(axes.values()))
    if order is not None:
        turned = _MESH_ORDER.fullmatch(order)
        devices = devices[:0] if turned is None else _count_off(turned[1], turned[2])
    chosen = [name.strip("'") for name in along.split(", ")]
    # Parts of an axis, written 'axis_1':(2)4, are more than is needed here.
    if devices.size != math.prod(axes.values()) or not set(chosen) <= set(axes):
        return []
    names = list(axes)
    devices = devices.reshape(list(axes.values()))
    # The chosen axes to the back: [..., N]
    devices = np.moveaxis(devices, [names.index(name) for name in chosen], range(-len(chosen), 0))
    return devices.reshape(-1, math.prod(axes[name] for name in chosen)).tolist()


def _count_off(shape: str, turned: str | None) -> np.ndarray:
    """Counts devices off in a shape, its axes turned round where that is said."""
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(turned) if turned else None).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
