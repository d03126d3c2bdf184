"""The pickle reader: data as Python's own reads it, and no code."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jpt.errors import InputError
from jpt.io.tensors import open_tensors
from jpt.io.torch_pickle import BrokenPickle, Callee, ForbiddenName, read_pickle, read_torch_object

DATA = {
    "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**40, -(2**300), 1.5, -0.0, float("inf")],
    "texts": ["", "ä", "\U0001f600", "x" * 300, "line\nline"],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "others": [None, True, False, {}, {"a": {1: {"b": []}}}, list(range(2000))],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_data_reads_as_python_reads_it(protocol: int) -> None:
    twice = [DATA, DATA]
    found = read_pickle(io.BytesIO(pickle.dumps(twice, protocol)), {})
    assert repr(found) == repr(twice)  # repr tells 1 from 1.0 and from True
    assert found[0] is found[1]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes(protocol: int) -> None:
    data = [b"", b"a", b"x" * 300, {b"key": 1}]
    assert read_pickle(io.BytesIO(pickle.dumps(data, protocol)), {}) == data


def test_the_stream_stands_behind_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert (read_pickle(stream, {}), read_pickle(stream, {})) == (1, "two")
    assert stream.read() == b"rest"


def test_only_names_of_the_table_are_found() -> None:
    names = {("math", "gcd"): Callee(lambda left, right: ("gcd", left, right))}
    called = b"\x80\x02cmath\ngcd\nK\x04K\x06\x86R."
    assert read_pickle(io.BytesIO(called), names) == ("gcd", 4, 6)
    with pytest.raises(ForbiddenName, match="math.sqrt"):
        read_pickle(io.BytesIO(b"\x80\x02cmath\nsqrt\nK\x04\x85R."), names)


def test_the_name_cannot_write_on_the_terminal() -> None:
    name = "\x1b[2Jos.system\n" + "x" * 1000
    with pytest.raises(ForbiddenName) as caught:
        read_pickle(io.BytesIO(_stack_global("os", name)), {})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def _stack_global(module: str, name: str) -> bytes:
    texts = [text.encode() for text in (module, name)]
    return (
        b"\x80\x04"
        + b"".join(b"X" + len(text).to_bytes(4, "little") + text for text in texts)
        + b"\x93."
    )


BROKEN = {
    "empty": b"",
    "no end": b"\x80\x02K\x01",
    "nothing on the stack": b"\x80\x02.",
    "a mark as value": b"\x80\x02(.",
    "no mark": b"\x80\x02t.",
    "a tuple over a mark": b"\x80\x02K\x01(\x85.",
    "unknown instruction": b"\x80\x02\xff.",
    "note that is not there": b"\x80\x02h\x07.",
    "negative note": b"\x80\x02Np-1\n0.",
    "list of one pair": b"\x80\x02}(K\x01u.",
    "items into a list": b"\x80\x02](K\x01K\x02u.",
    "items into nothing": b"\x80\x02(K\x01K\x02u.",
    "append to a tuple": b"\x80\x02)K\x01a.",
    "extend a number": b"\x80\x02K\x01(K\x02e.",
    "attributes of a number": b"\x80\x02K\x01}b.",
    "call of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "name of numbers": b"\x80\x04K\x01K\x02\x93.",
    "text beyond the end": b"\x80\x02X\xff\xff\xff\xffa.",
    "long text beyond the end": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fa.",
    "array of 2**60 bytes": b"\x80\x05\x96" + b"\x00" * 7 + b"\x10a.",
    "number of 2**31 digits": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "number of many digits": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "negative text": b"\x80\x02T\xff\xff\xff\xffa.",
    "text that is not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "outside reference": b"\x80\x02K\x01Q.",
    "extension 1": b"\x80\x02\x82\x01.",
    "extension 2": b"\x80\x02\x83\x01\x00.",
    "extension 4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "outside buffer": b"\x80\x05\x97.",
    "new object": b"\x80\x02K\x01)\x81.",
    "old object": b"\x80\x02(K\x01o.",
    "instance": b"\x80\x02(ios\nsystem\n.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickle(name: str) -> None:
    with pytest.raises(BrokenPickle):
        read_pickle(io.BytesIO(BROKEN[name]), {})


def test_notes_far_apart_take_no_room() -> None:
    jumping = b"".join(b"r" + (2**32 - 1 - i).to_bytes(4, "little") for i in range(100))
    assert read_pickle(io.BytesIO(b"\x80\x02K\x07" + jumping + b"."), {}) == 7


def test_too_many_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpt.io.torch_pickle._MOST_INSTRUCTIONS", 1000)
    with pytest.raises(BrokenPickle, match="more than 1000 instructions"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * 600 + b"N."), {})


# Malicious files: each would leave a marker if any of its code ran.


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def malicious_pickles(marker: Path) -> dict[str, bytes]:
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    line = f"S'{touch}'\n".encode()
    instance = b"\x80\x02(" + line + b"ios\nsystem\n."
    built = b"\x80\x02ccollections\nOrderedDict\n)R}X\x0a\x00\x00\x00__reduce__"
    return {
        "os.system": pickle.dumps(Calls(os.system, touch)),
        "os.system by protocol 2": pickle.dumps(Calls(os.system, touch), 2),
        "builtins.eval": pickle.dumps(Calls(eval, code)),
        "builtins.exec": pickle.dumps({"weight": [Calls(exec, code)]}),
        "call within a call": pickle.dumps(Calls(list, [Calls(os.system, touch)]), 2),
        "name with dots": _stack_global("builtins", "eval.__call__")[:-1] + line + b"\x85R.",
        "old instance": instance,
        "old object": b"\x80\x02(cos\nsystem\n" + line + b"o.",
        "new object": b"\x80\x02cos\nsystem\n" + line + b"\x85\x81.",
        "new object with names": b"\x80\x04cos\nsystem\n" + line + b"\x85}\x92.",
        "attributes of a name": built + b"cos\nsystem\nsb" + line + b"\x85R.",
        "attributes of a callee": b"\x80\x02ccollections\nOrderedDict\n}X\x08\x00\x00\x00function"
        b"cos\nsystem\nsb" + line + b"\x85R.",
        "extension": b"\x80\x02\x82\x01" + line + b"\x85R.",
        "text protocol": pickle.dumps(Calls(os.system, touch), 0),
        "loader of torch": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + line + b"\x85R.",
        "submodule of torch": b"\x80\x02ctorch\nserialization.os.system\n" + line + b"\x85R.",
    }


NAMES = list(malicious_pickles(Path("marker")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["zip", "stream", "bare"])
def test_malicious_file_does_not_run(tmp_path: Path, name: str, form: str) -> None:
    marker = tmp_path / "marker"
    content = malicious_pickles(marker)[name]
    path = tmp_path / "pytorch_model.bin"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(content if form == "bare" else b"".join([*head, content]))
    for read in (open_tensors, read_torch_object):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "call within a call"])
def test_these_files_are_malicious(tmp_path: Path, name: str) -> None:
    """Holds the test above to its word: Python's own reader does run them."""
    marker = tmp_path / "marker"
    pickle.loads(malicious_pickles(marker)[name])
    assert marker.exists()


def test_the_forbidden_name_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Calls(os.system, "true"), 2))
    with pytest.raises(InputError, match=r"asks for '(posix|nt|os).system'.*nothing of it was run"):
        open_tensors(path)
