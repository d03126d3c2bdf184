"""A reader of pickles that cannot run code: it knows data, and of calls only those it is given.

A pickle is a program for a small stack machine; what makes it dangerous are the instructions that
import a name and call it. This machine is our own, not a subclass of Python's: it has no
instruction that makes an object of a class, every imported name is looked up in a table that the
caller gives, and only what stands in that table can be called. It is also held to limits that
Python's machine does not have (a table of 2**32 notes, dictionary keys nested a million deep).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

_MOST_INSTRUCTIONS = 1_000_000  # a tensor takes about 35; bounds the time that a bad file can cost
_MARK = object()


class BrokenPickle(ValueError):
    """The bytes are no pickle of plain data; the message says what is wrong with them."""


class ForbiddenName(ValueError):
    """The pickle asks for a name outside the table; the message is that name."""


@dataclass(frozen=True)
class Callee:
    """A function that a pickle may call."""

    function: Callable[..., Any]  # what is called with the arguments that the pickle gives


@dataclass
class _Machine:
    names: Mapping[tuple[str, str], Any]
    load_persistent: Callable[[Any], Any]
    stack: list[Any] = field(default_factory=list)
    notes: dict[int, Any] = field(default_factory=dict)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop() if self.stack else _MARK
        if value is _MARK:
            raise BrokenPickle("an instruction finds no value")
        return value

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise BrokenPickle(f"an instruction finds no {kind.__name__}")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        values = []
        while self.stack:
            value = self.stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)
        raise BrokenPickle("an instruction finds no mark")

    def find(self, module: Any, name: Any) -> Any:
        if (module, name) not in self.names:
            # Escaped and cut: the name comes from the file and goes into a line of a terminal.
            raise ForbiddenName(f"{module}.{name}"[:100].encode("unicode_escape").decode())
        return self.names[module, name]

    def recall(self, index: int) -> Any:
        if index not in self.notes:
            raise BrokenPickle(f"note {index} is not there")
        return self.notes[index]


def read_pickle(
    stream: BytesIO,
    names: Mapping[tuple[str, str], Any],
    load_persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle of plain data and leaves the stream behind it."""
    machine = _Machine(names, load_persistent or _no_persistent)
    for count, (name, argument) in enumerate(_instructions(stream)):
        if name == "STOP":
            return machine.pop()
        if name not in _INSTRUCTIONS:
            raise BrokenPickle(f"instruction {name} does not belong into plain data")
        if count >= _MOST_INSTRUCTIONS:
            raise BrokenPickle(f"it has more than {_MOST_INSTRUCTIONS} instructions")
        _INSTRUCTIONS[name](machine, argument)
    raise BrokenPickle("it has no end")


def plain_key(key: Any) -> Hashable:
    """Holds the key of a dictionary to text, bytes and numbers of ordinary size."""
    # Keys are hashed: a tuple nested a million deep would overflow the stack of the process, and
    # huge numbers can be chosen so that all of them collide.
    if isinstance(key, str | bytes) or (isinstance(key, int) and abs(key) < 2**60):
        return key
    raise BrokenPickle(f"a dictionary has a key of type {type(key).__name__}")


def _instructions(stream: BytesIO) -> Any:
    """The instructions with their arguments; the standard library knows how they are written."""
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            yield instruction.name, argument
    except (ValueError, OverflowError, IndexError) as error:
        raise BrokenPickle(str(error).splitlines()[0][:100] or type(error).__name__) from None


def _no_persistent(_: Any) -> Any:
    raise BrokenPickle("it refers to something outside itself")


def _push_argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _push_new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


def _push_tuple(length: int) -> Callable[[_Machine, Any], None]:
    def push(machine: _Machine, _: Any) -> None:
        machine.push(tuple([machine.pop() for _ in range(length)][::-1]))

    return push


def _push_to_mark(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make(machine.pop_to_mark()))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise BrokenPickle("a dictionary has a key without a value")
    return {plain_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(dict)[plain_key(key)] = value


def _set_items(machine: _Machine, _: Any) -> None:
    pairs = _pairs(machine.pop_to_mark())
    machine.top(dict).update(pairs)


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _extend(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _find_on_stack(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise BrokenPickle("a name is no text")
    machine.push(machine.find(module, name))


def _call(machine: _Machine, _: Any) -> None:
    arguments, callee = machine.pop(), machine.pop()
    if not (isinstance(callee, Callee) and isinstance(arguments, tuple)):
        raise BrokenPickle("it calls something that is no function")
    try:
        machine.push(callee.function(*arguments))
    except TypeError:  # our functions check their values; what is left is their number
        raise BrokenPickle("it calls a function with the wrong arguments") from None


def _skip_attributes(machine: _Machine, _: Any) -> None:
    """Leaves out the attributes of a dictionary: torch's ``_metadata`` of a state_dict."""
    machine.pop()
    machine.top(dict)


def _note(machine: _Machine, index: Any) -> None:
    if index is None:
        index = len(machine.notes)
    if not 0 <= index < 2**32:
        raise BrokenPickle(f"it makes note {index}")
    machine.notes[index] = machine.top(object)


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(["PROTO", "FRAME"], lambda machine, argument: None),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT"], _push_argument),
    **dict.fromkeys(["BINFLOAT", "FLOAT", "BINSTRING", "SHORT_BINSTRING"], _push_argument),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"], _push_argument),
    **dict.fromkeys(["BINBYTES", "SHORT_BINBYTES", "BINBYTES8"], _push_argument),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"], _note),
    **dict.fromkeys(
        ["GET", "BINGET", "LONG_BINGET"], lambda machine, index: machine.push(machine.recall(index))
    ),
    "NONE": _push_new(lambda: None),
    "NEWTRUE": _push_new(lambda: True),
    "NEWFALSE": _push_new(lambda: False),
    "MARK": _push_new(lambda: _MARK),
    "EMPTY_DICT": _push_new(dict),
    "EMPTY_LIST": _push_new(list),
    "EMPTY_TUPLE": _push_new(tuple),
    "TUPLE1": _push_tuple(1),
    "TUPLE2": _push_tuple(2),
    "TUPLE3": _push_tuple(3),
    "TUPLE": _push_to_mark(tuple),
    "LIST": _push_to_mark(list),
    "DICT": _push_to_mark(_pairs),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _extend,
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "GLOBAL": lambda machine, names: machine.push(machine.find(*names.split(" ", 1))),
    "STACK_GLOBAL": _find_on_stack,
    "REDUCE": _call,
    "BUILD": _skip_attributes,
    "BINPERSID": lambda machine, _: machine.push(machine.load_persistent(machine.pop())),
}
