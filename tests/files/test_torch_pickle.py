"""Files of torch.save: every stored kind of tensor, and nothing but tensors."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io.tensors import read_header
from jpt.io.torch_pickle import read_torch_object, read_torch_tensors

FIXTURES = Path(__file__).parent / "fixtures"
FORMS = ["zip", "stream"]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    tensors, _ = read_header(FIXTURES / "expected.safetensors")
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert found.flags.c_contiguous
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_tensor(form: str, expected: dict[str, np.ndarray]) -> None:
    tensors = read_torch_tensors(FIXTURES / f"state_{form}.bin")
    names = [name for name in expected if "." not in name]
    assert sorted(tensors) == sorted(names)
    for name in names:
        assert tensors[name].shape == expected[name].shape
        assert_same(tensors[name].read(), expected[name])
    assert tensors["bfloat16"].read().dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_protocol_4(form: str, expected: dict[str, np.ndarray]) -> None:
    found = read_torch_object(FIXTURES / f"protocol4_{form}.bin")
    assert_same(found["a"], expected["plain"])
    assert_same(found["b"], expected["bfloat16"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file, name", [("parameter", "plain"), ("tensor", "transposed")])
def test_bare_tensor(form: str, file: str, name: str, expected: dict[str, np.ndarray]) -> None:
    assert_same(read_torch_object(FIXTURES / f"{file}_{form}.bin"), expected[name])
    with pytest.raises(InputError, match="no named tensors"):
        read_torch_tensors(FIXTURES / f"{file}_{form}.bin")


@pytest.mark.parametrize("form", FORMS)
def test_checkpoint_gives_its_model(form: str, expected: dict[str, np.ndarray]) -> None:
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
def test_nested_names_are_joined_by_dots(form: str, expected: dict[str, np.ndarray]) -> None:
    tensors = read_torch_tensors(FIXTURES / f"nested_{form}.bin")
    assert list(tensors) == ["encoder.layer.0", "encoder.layer.1"]
    assert_same(tensors["encoder.layer.1"].read(), expected["int32"])


# Files that torch does not write today or never writes, put together by hand.


class Named:
    """Pickles as the import of a name, or as a call of it."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.module, _, self.name = name.rpartition(".")
        self.arguments = arguments


class Reference:
    def __init__(self, *parts: object) -> None:
        self.parts = parts


class ByHand(pickle._Pickler):
    """Python's own pickler (the slow one, which can be extended) for names that do not exist."""

    def persistent_id(self, value: object) -> object:
        return value.parts if isinstance(value, Reference) else None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if not isinstance(value, Named):
            return super().save(value, save_persistent_id)
        self.write(f"c{value.module}\n{value.name}\n".encode())
        if value.arguments:
            super().save(tuple(value.arguments))
            self.write(pickle.REDUCE)


def dump(value: object) -> bytes:
    file = io.BytesIO()
    ByHand(file, protocol=2).dump(value)
    return file.getvalue()


def storage(key: str, count: object, kind: str = "torch.FloatStorage", view: object = ()) -> object:
    return Reference("storage", Named(kind), key, "cpu", count, *view)


def tensor(source: object, first: object, shape: object, strides: object) -> Named:
    hooks = collections.OrderedDict()
    return Named("torch._utils._rebuild_tensor_v2", source, first, shape, strides, False, hooks)


def write_zip(path: Path, content: bytes, storages: dict[str, bytes], **options: object) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_stream(path: Path, content: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    machine = {"protocol_version": 1001, "little_endian": True}
    head = [dump(0x1950A86A20F9469CFC6C), dump(1001), dump(machine), content, dump(list(storages))]
    body = [struct.pack("<q", count) + data for count, data in storages.values()]
    path.write_bytes(b"".join(head + body))
    return path


VALUES = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize("kind", ["torch.FloatStorage", "torch.cuda.FloatStorage"])
def test_storage_of_either_device(tmp_path: Path, kind: str) -> None:
    content = dump({"a": tensor(storage("0", 6, kind), 1, (2, 2), (2, 1))})
    path = write_zip(tmp_path / "a.bin", content, {"0": VALUES.tobytes()})
    assert read_torch_object(path)["a"].tolist() == [[1, 2], [3, 4]]


def test_view_of_a_storage_before_torch_1_6(tmp_path: Path) -> None:
    view = (("17", 2, 3),)
    content = dump({"a": tensor(storage("5", 6, view=view), 1, (2,), (1,))})
    path = write_stream(tmp_path / "a.bin", content, {"5": (6, VALUES.tobytes())})
    assert read_torch_object(path)["a"].tolist() == [3, 4]


def test_object_in_two_places_is_read_once(tmp_path: Path) -> None:
    one = tensor(storage("0", 6), 0, (6,), (1,))
    content = dump({"a": [one], "b": [one]})
    shared = [{"a": 1}]
    for _ in range(12):
        shared = [shared, shared, shared, shared]
    path = write_zip(tmp_path / "a.bin", content, {"0": VALUES.tobytes()})
    assert read_torch_object(path)["b"][0].tolist() == VALUES.tolist()
    bomb = write_zip(tmp_path / "bomb.bin", dump(shared), {})
    assert len(read_torch_object(bomb)) == 4  # 4**12 places, 12 lists
    with pytest.raises(InputError, match="more than 1000000 entries"):
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
    "storage that is not there": tensor(storage("1", 6), 0, (2,), (1,)),
    "storage key is a number": tensor(storage(0, 6), 0, (2,), (1,)),
    "storage is a text": tensor("0", 0, (2,), (1,)),
    "storage type is a function": tensor(
        storage("0", 6, "torch._utils._rebuild_tensor_v2"), 0, (2,), (1,)
    ),
    "view beyond": tensor(storage("0", 6, view=(("1", 4, 3),)), 0, (2,), (1,)),
    "view is a number": tensor(storage("0", 6, view=(7,)), 0, (2,), (1,)),
    "reference to something else": tensor(Reference("module", "a"), 0, (2,), (1,)),
    "too few arguments": Named("torch._utils._rebuild_tensor_v2", 1),
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
    if form == "zip":
        path = write_zip(tmp_path / "a.bin", content, {"0": data})
    else:
        path = write_stream(tmp_path / "a.bin", content, {"0": (6, data)})
    with pytest.raises(InputError, match="a.bin is not a whole torch file"):
        read_torch_object(path)


def test_nesting_and_circles_are_refused(tmp_path: Path) -> None:
    circle: list[object] = []
    circle.append(circle)
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    tuples = b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"Nu."
    chain = b"\x80\x02](]q\x00" + b"".join(b"]q%ch%ca" % (i + 1, i) for i in range(200)) + b"e."
    # In the chain every list stands at the top too, where it is first seen nested by one only.
    contents = [dump(circle), chain, deep, tuples]
    for content in contents:
        with pytest.raises(InputError, match="nested|key of type tuple"):
            read_torch_object(write_zip(tmp_path / "a.bin", content, {}))


def test_tensors_far_larger_than_the_file(tmp_path: Path) -> None:
    views = [tensor(storage("0", 4096), first, (4096,), (0,)) for first in range(200)]
    data = np.zeros(4096, np.float32).tobytes()
    path = write_zip(tmp_path / "a.bin", dump(views), {"0": data})
    with pytest.raises(InputError, match="far larger than the file"):
        read_torch_object(path)


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    content = dump({"a": "x" * 1000})
    path = write_zip(tmp_path / "a.bin", content, {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="data.pkl' is compressed"):
        read_torch_object(path)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"model.txt": b"a"}, "zip archive without data.pkl"),
        ({"a/data.pkl": b"", "a/constants.pkl": b""}, "TorchScript"),
        ({"a/data.pkl": b"", "a/byteorder": b"big"}, "big-endian"),
    ],
)
def test_other_archives(tmp_path: Path, entries: dict[str, bytes], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match=message):
        read_torch_object(tmp_path / "a.bin")


def test_stream_of_a_big_endian_machine(tmp_path: Path) -> None:
    content = [dump(0x1950A86A20F9469CFC6C), dump(1001), dump({"little_endian": False})]
    (tmp_path / "a.bin").write_bytes(b"".join(content))
    with pytest.raises(InputError, match="big-endian"):
        read_torch_object(tmp_path / "a.bin")


def test_pickle_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="a pickle, but not one of torch.save"):
        read_torch_object(tmp_path / "a.bin")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.95, 0.999])
def test_truncated_file(tmp_path: Path, form: str, share: float) -> None:
    data = (FIXTURES / f"state_{form}.bin").read_bytes()
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"pytorch_model.bin (is not a whole torch file|ends)"):
        read_torch_object(path)


def test_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    data = (FIXTURES / "nested_stream.bin").read_bytes()
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    tensors = read_torch_tensors(path)
    path.write_bytes(data[:-20])
    with pytest.raises(InputError, match="copy it again"):
        [tensor.read() for tensor in tensors.values()]
