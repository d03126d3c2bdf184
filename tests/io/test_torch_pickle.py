"""Torch files: tensors as torch reads them, and refusal of broken and malicious ones."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io.tensors import open_tensors, read_header
from jpt.io.torch_pickle import (
    BrokenPickle,
    Callee,
    ForbiddenName,
    Storage,
    read_pickle,
    read_torch_object,
    read_torch_tensors,
)
from tests.helpers.files import (
    REBUILD,
    Named,
    Reference,
    dump,
    refusal,
    storage,
    tensor,
    write_zip,
)

DATA = {
    "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**40, -(2**300), 1.5, -0.0, float("inf")],
    "texts": ["", "ä", "\U0001f600", "x" * 300, "line\nline"],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "others": [None, True, False, {}, {"a": {1: {"b": []}}}, list(range(2000))],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_data_reads_as_in_python(protocol: int) -> None:
    twice = [DATA, DATA]
    found = read_pickle(io.BytesIO(pickle.dumps(twice, protocol)), {})
    assert repr(found) == repr(twice)  # repr tells 1 from 1.0 and from True
    assert found[0] is found[1]
    if protocol > 2:
        data = [b"", b"a", b"x" * 300, {b"key": 1}]
        assert read_pickle(io.BytesIO(pickle.dumps(data, protocol)), {}) == data


def test_the_stream_is_left_after_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert (read_pickle(stream, {}), read_pickle(stream, {})) == (1, "two")
    assert stream.read() == b"rest"


def test_only_names_of_the_table_are_allowed() -> None:
    names = {("math", "gcd"): Callee(lambda left, right: ("gcd", left, right))}
    called = b"\x80\x02cmath\ngcd\nK\x04K\x06\x86R."
    assert read_pickle(io.BytesIO(called), names) == ("gcd", 4, 6)
    with pytest.raises(ForbiddenName, match="math.sqrt"):
        read_pickle(io.BytesIO(b"\x80\x02cmath\nsqrt\nK\x04\x85R."), names)


def test_forbidden_names_are_escaped_and_shortened() -> None:
    name = "\x1b[2Jos.system\n" + "x" * 1000
    with pytest.raises(ForbiddenName) as caught:
        read_pickle(io.BytesIO(_stack_global("os", name)), {})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def _stack_global(*names: str) -> bytes:
    texts = [struct.pack("<cI", b"X", len(name.encode())) + name.encode() for name in names]
    return b"\x80\x04" + b"".join(texts) + b"\x93."


BROKEN = {
    "empty": b"",
    "no end": b"\x80\x02K\x01",
    "nothing on the stack": b"\x80\x02.",
    "a mark as value": b"\x80\x02(.",
    "no mark": b"\x80\x02t.",
    "a tuple over a mark": b"\x80\x02K\x01(\x85.",
    "unknown instruction": b"\x80\x02\xff.",
    "missing memo entry": b"\x80\x02h\x07.",
    "negative memo index": b"\x80\x02Np-1\n0.",
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


def test_large_memo_indices_need_no_memory() -> None:
    jumping = b"".join(b"r" + (2**32 - 1 - i).to_bytes(4, "little") for i in range(100))
    with pytest.raises(BrokenPickle, match="memo index 4294967295"):
        read_pickle(io.BytesIO(b"\x80\x02K\x07" + jumping + b"."), {})


def nested(levels: int) -> bytes:
    return b"\x80\x02)" + b"\x85" * levels


COSTLY = {
    "key nested a million deep": b"\x80\x02}" + nested(900_000)[2:] + b"K\x01s.",
    "value nested a million deep": nested(900_000) + b".",
    "tuple nested by the memo": b"\x80\x02)"
    + b"".join(b"q\x00h\x00\x86" for _ in range(40))
    + b".",
    "key of a tuple": b"\x80\x02})K\x01s.",
    "keys that collide": b"\x80\x02}(\x8a\x09" + b"\xff" * 8 + b"\x00K\x01u.",
    "long key": b"\x80\x02}X\x00\x00\x01\x00" + b"a" * 2**16 + b"K\x01s.",
    "marks over a deep stack": b"\x80\x02" + b"N" * 400_000 + b"(t" * 200_000 + b"0" * 600_000,
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_pickles_are_refused_at_once(name: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(BrokenPickle):
        read_pickle(io.BytesIO(COSTLY[name]), {})
    assert time.monotonic() - began_s < 10


ATTRIBUTES = {
    "function": (b"cmath\ngcd\n}X\x0c\x00\x00\x00__defaults__)sb.", "attributes of a function"),
    "slots of a function": (b"cmath\ngcd\nN}X\x01\x00\x00\x00a)s\x86b.", "of a function"),
    "dictionary": (b"}}X\x05\x00\x00\x00items)sb.", ""),
    "result": (b"cmath\ngcd\nK\x04K\x06\x86R}X\x05\x00\x00\x00count)sb.", ""),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_no_attribute_is_set(name: str) -> None:
    pickled, message = ATTRIBUTES[name]
    storage = Storage("0", np.dtype(np.float32), 4)
    with pytest.raises(BrokenPickle, match=message or None):
        read_pickle(
            io.BytesIO(b"\x80\x02" + pickled), {("math", "gcd"): Callee(lambda *_: storage)}
        )
    assert storage.count == 4


def test_too_many_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpt.io.torch_pickle._MOST_INSTRUCTIONS", 1000)
    with pytest.raises(BrokenPickle, match="more than 1000 instructions"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * 600 + b"N."), {})


# Malicious files: each would leave a marker if any of its code ran.


class Calls:
    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def malicious_pickles(marker: Path) -> dict[str, bytes]:
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    line = f"S'{touch}'\n".encode()
    built = b"\x80\x02ccollections\nOrderedDict\n)R}X\x0a\x00\x00\x00__reduce__"
    return {
        "os.system": pickle.dumps(Calls(os.system, touch)),
        "os.system by protocol 2": pickle.dumps(Calls(os.system, touch), 2),
        "builtins.eval": pickle.dumps(Calls(eval, code)),
        "builtins.exec": pickle.dumps({"weight": [Calls(exec, code)]}),
        "call within a call": pickle.dumps(Calls(list, [Calls(os.system, touch)]), 2),
        "name with dots": _stack_global("builtins", "eval.__call__")[:-1] + line + b"\x85R.",
        "old instance": b"\x80\x02(" + line + b"ios\nsystem\n.",
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


@pytest.mark.parametrize("name", malicious_pickles(Path("marker")))
@pytest.mark.parametrize("form", ["zip", "stream", "bare"])
def test_malicious_file_does_not_run(tmp_path: Path, name: str, form: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "pytorch_model.bin"
    content = malicious_pickles(marker)[name]
    if form == "zip":
        write_zip(path, content, {})
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
    # Python's own reader does run them.
    marker = tmp_path / "marker"
    pickle.loads(malicious_pickles(marker)[name])
    assert marker.exists()


def test_the_forbidden_name_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Calls(os.system, "true"), 2))
    with refusal(r"imports '(posix|nt|os).system'.*no code of it was run"):
        open_tensors(path)


FIXTURES = Path(__file__).parent / "fixtures"
FORMS = ["zip", "stream"]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    tensors, _ = read_header(FIXTURES / "expected.safetensors")
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.flags.c_contiguous and found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_every_type_of_tensor(form: str, expected: dict[str, np.ndarray]) -> None:
    tensors = read_torch_tensors(FIXTURES / f"state_{form}.bin")
    assert set(tensors) == {name for name in expected if "." not in name}
    for name, found in tensors.items():
        assert found.shape == expected[name].shape
        assert_same(found.read(), expected[name])
    assert tensors["bfloat16"].read().dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file, name", [("parameter", "plain"), ("tensor", "transposed")])
def test_bare_tensor(form: str, file: str, name: str, expected: dict[str, np.ndarray]) -> None:
    assert_same(read_torch_object(FIXTURES / f"{file}_{form}.bin"), expected[name])
    with refusal("no named tensors"):
        read_torch_tensors(FIXTURES / f"{file}_{form}.bin")


@pytest.mark.parametrize("form", FORMS)
def test_checkpoint(form: str, expected: dict[str, np.ndarray]) -> None:
    path = FIXTURES / f"checkpoint_{form}.bin"
    tensors = read_torch_tensors(path)
    assert sorted(tensors) == ["bias", "weight"]
    assert_same(tensors["weight"].read(), expected["layer.weight"])
    found = read_torch_object(path)
    assert_same(found["optimizer"]["state"][0]["exp_avg"], expected["optimizer.exp_avg"])
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert found["shape"] == (2, 3)
    assert (found["device"], found["dtype"]) == ("cuda:1", "torch.float32")
    assert (found["trained_epoch"], found["scores"]) == (3, [0.5, None, True])


@pytest.mark.parametrize("form", FORMS)
def test_protocol_4_and_nested_names(form: str, expected: dict[str, np.ndarray]) -> None:
    found = read_torch_object(FIXTURES / f"protocol4_{form}.bin")
    assert_same(found["a"], expected["plain"])
    assert_same(found["b"], expected["bfloat16"])
    tensors = read_torch_tensors(FIXTURES / f"nested_{form}.bin")
    assert list(tensors) == ["encoder.layer.0", "encoder.layer.1"]
    assert_same(tensors["encoder.layer.1"].read(), expected["int32"])


# Files that torch does not write, or no longer.


def write_stream(path: Path, content: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    machine = {"protocol_version": 1001, "little_endian": True}
    head = [dump(0x1950A86A20F9469CFC6C), dump(1001), dump(machine), content, dump(list(storages))]
    body = [struct.pack("<q", count) + data for count, data in storages.values()]
    path.write_bytes(b"".join(head + body))
    return path


VALUES = np.arange(6, dtype=np.float32)


def test_storage_of_either_device(tmp_path: Path) -> None:
    for kind in ("torch.FloatStorage", "torch.cuda.FloatStorage"):
        content = dump({"a": tensor(storage("0", 6, kind), 1, (2, 2), (2, 1))})
        path = write_zip(tmp_path / "a.bin", content, {"0": VALUES.tobytes()})
        assert read_torch_object(path)["a"].tolist() == [[1, 2], [3, 4]]


def test_view_of_a_storage_before_torch_1_6(tmp_path: Path) -> None:
    view = (("17", 2, 3),)
    content = dump({"a": tensor(storage("5", 6, view=view), 1, (2,), (1,))})
    path = write_stream(tmp_path / "a.bin", content, {"5": (6, VALUES.tobytes())})
    assert read_torch_object(path)["a"].tolist() == [3, 4]


def test_shared_objects_are_read_once(tmp_path: Path) -> None:
    one = tensor(storage("0", 6), 0, (6,), (1,))
    content = dump({"a": [one], "b": [one]})
    shared = [{"a": 1}]
    for _ in range(12):
        shared = [shared, shared, shared, shared]
    path = write_zip(tmp_path / "a.bin", content, {"0": VALUES.tobytes()})
    assert read_torch_object(path)["b"][0].tolist() == VALUES.tolist()
    bomb = write_zip(tmp_path / "bomb.bin", dump(shared), {})
    assert len(read_torch_object(bomb)) == 4  # 4**12 references, 12 lists
    with refusal("more than 1000000 entries"):
        read_torch_tensors(bomb)


WRONG_TENSORS = {
    "beyond its storage": tensor(storage("0", 6), 0, (7,), (1,)),
    "beyond by its offset": tensor(storage("0", 6), 5, (2,), (1,)),
    "beyond by its strides": tensor(storage("0", 6), 0, (2, 2), (5, 1)),
    "negative offset": tensor(storage("0", 6), -1, (2,), (1,)),
    "negative stride": tensor(storage("0", 6), 3, (2,), (-1,)),
    "negative shape": tensor(storage("0", 6), 0, (-2,), (1,)),
    "huge shape": tensor(storage("0", 6), 0, (2**62,), (0,)),
    "repeated without end": tensor(storage("0", 6), 0, (2**40,), (0,)),
    "huge product": tensor(storage("0", 6), 0, (2**20, 2**20, 2**20), (0, 0, 0)),
    "many axes": tensor(storage("0", 6), 0, (1,) * 70, (1,) * 70),
    "shape and strides differ": tensor(storage("0", 6), 0, (2, 3), (1,)),
    "shape is text": tensor(storage("0", 6), 0, "ab", (1, 1)),
    "shape of floats": tensor(storage("0", 6), 0, (2.0,), (1,)),
    "shape of truths": tensor(storage("0", 6), 0, (True,), (1,)),
    "storage longer than its bytes": tensor(storage("0", 2**40), 0, (2**39,), (1,)),
    "storage of negative length": tensor(storage("0", -6), 0, (2,), (1,)),
    "missing storage": tensor(storage("1", 6), 0, (2,), (1,)),
    "storage key is a number": tensor(storage(0, 6), 0, (2,), (1,)),
    "storage is a text": tensor("0", 0, (2,), (1,)),
    "storage type is a function": tensor(storage("0", 6, REBUILD), 0, (2,), (1,)),
    "view beyond": tensor(storage("0", 6, view=(("1", 4, 3),)), 0, (2,), (1,)),
    "view is a number": tensor(storage("0", 6, view=(7,)), 0, (2,), (1,)),
    "reference to something else": tensor(Reference("module", "a"), 0, (2,), (1,)),
    "too few arguments": Named(REBUILD, 1),
    "call of a type": Named("torch.FloatStorage", 1),
    "device of a list": Named("torch.device", [[]], 2**70),
    "dictionary of a number": Named("collections.OrderedDict", 3),
    "dictionary of triples": Named("collections.OrderedDict", [(1, 2, 3)]),
    "key that is a tuple": {(1, 2): 3},
    "key that is a huge number": {2**61 - 1: 3},
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
@pytest.mark.parametrize("form", FORMS)
def test_wrong_tensor_is_refused(tmp_path: Path, name: str, form: str) -> None:
    content, data = dump({"a": WRONG_TENSORS[name]}), VALUES.tobytes()
    write, stored = (write_zip, data) if form == "zip" else (write_stream, (6, data))
    path = write(tmp_path / "a.bin", content, {"0": stored})
    with refusal("a.bin is not a complete torch file"):
        read_torch_object(path)


def test_nesting_and_circles_are_refused(tmp_path: Path) -> None:
    circle: list[object] = []
    circle.append(circle)
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    tuples = b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"Nu."
    chain = b"\x80\x02](]q\x00" + b"".join(b"]q%ch%ca" % (i + 1, i) for i in range(200)) + b"e."
    # In the chain every list is also at the top level, where it is first seen.
    for content in (dump(circle), chain, deep, tuples):
        with refusal("nested|key of type tuple"):
            read_torch_object(write_zip(tmp_path / "a.bin", content, {}))


def test_tensors_far_larger_than_the_file_and_compressed_ones(tmp_path: Path) -> None:
    views = [tensor(storage("0", 4096), first, (4096,), (0,)) for first in range(200)]
    path = write_zip(tmp_path / "a.bin", dump(views), {"0": bytes(4 * 4096)})
    with refusal("far larger than the file"):
        read_torch_object(path)
    content = dump({"a": "x" * 1000})
    path = write_zip(tmp_path / "a.bin", content, {}, compression=zipfile.ZIP_DEFLATED)
    with refusal("data.pkl' is compressed"):
        read_torch_object(path)


def test_other_archives(tmp_path: Path) -> None:
    for entries, message in (
        ({"model.txt": b"a"}, "zip archive without data.pkl"),
        ({"a/data.pkl": b"", "a/constants.pkl": b""}, "TorchScript"),
        ({"a/data.pkl": b"", "a/byteorder": b"big"}, "big-endian"),
    ):
        with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        with refusal(message):
            read_torch_object(tmp_path / "a.bin")


def test_other_pickles(tmp_path: Path) -> None:
    path, head = tmp_path / "a.bin", [0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}]
    path.write_bytes(b"".join(map(dump, head)))
    with refusal("big-endian"):
        read_torch_object(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with refusal("a pickle, but not of torch.save"):
        read_torch_object(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.95, 0.999])
def test_truncated_file(tmp_path: Path, form: str, share: float) -> None:
    data, path = (FIXTURES / f"state_{form}.bin").read_bytes(), tmp_path / "pytorch_model.bin"
    path.write_bytes(data[: int(share * len(data))])
    with refusal(r"pytorch_model.bin (is not a complete torch file|ends)"):
        read_torch_object(path)


def test_a_file_truncated_after_opening(tmp_path: Path) -> None:
    data, path = (FIXTURES / "nested_stream.bin").read_bytes(), tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    tensors = read_torch_tensors(path)
    path.write_bytes(data[:-20])
    with refusal("copy it again"):
        [tensor.read() for tensor in tensors.values()]
