"""Released prompts on disk: found by name, read without unpickling, every broken one told apart."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io.tensors import read_header
from jpt.prompts.interop import find_reference_files, read_reference_values

VALUES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
FIXTURES = Path(__file__).parent.parent / "files" / "fixtures"


def write(path: Path, values: np.ndarray = VALUES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, values)
    return path


def described(source: Path) -> list[tuple[str, str, str]]:
    return [(file.name, file.task, file.backbone) for file in find_reference_files(source)]


def test_arrays_of_a_folder(tmp_path: Path) -> None:
    for name in ("sst2.npy", "Imdb.npy", ".hidden.npy"):
        write(tmp_path / "roberta-base" / name)
    (tmp_path / "roberta-base" / "notes.txt").write_text("no prompt")
    assert described(tmp_path / "roberta-base") == [
        ("Imdb", "imdb", "roberta-base"),
        ("sst2", "sst2", "roberta-base"),
    ]
    assert described(tmp_path / "roberta-base" / "sst2.npy") == [("sst2", "sst2", "roberta-base")]


AUTHORS_NAMES = [
    ("IMDBPromptRoberta", "imdb", "Roberta"),
    ("multi_newsPromptT5Small", "multi_news", "T5Small"),
    ("ethicsdeontologyPromptRobertaLarge_125", "ethicsdeontology", "RobertaLarge"),
    ("IMDB_trainedPromptRoberta", "imdb_trained", "Roberta"),
    ("IMDBPrompt_cross_model_T5_to_Roberta", "imdb", ""),
    ("anything", "anything", ""),
]


@pytest.mark.parametrize(("folder", "task", "backbone"), AUTHORS_NAMES)
def test_names_of_the_authors_folders(
    tmp_path: Path, folder: str, task: str, backbone: str
) -> None:
    (tmp_path / folder).mkdir()
    shutil.copy(FIXTURES / "parameter_zip.bin", tmp_path / folder / "task_prompt")
    (tmp_path / "empty").mkdir()
    assert described(tmp_path) == [(folder, task, backbone)]
    assert described(tmp_path / folder) == [(folder, task, backbone)]
    assert described(tmp_path / folder / "task_prompt") == [(folder, task, backbone)]


def test_folder_of_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t5-base" / "sst2.npy")
    monkeypatch.chdir(tmp_path / "t5-base")
    assert described(Path(".")) == [("sst2", "sst2", "t5-base")]


def test_places_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"looked for NAME.npy and NAME/task_prompt among 0 entr"):
        find_reference_files(tmp_path)
    with pytest.raises(InputError, match=r"cannot read .*/none: there is no such file"):
        find_reference_files(tmp_path / "none")
    write(tmp_path / "a.npy")
    (tmp_path / "a").mkdir()
    shutil.copy(FIXTURES / "parameter_zip.bin", tmp_path / "a" / "task_prompt")
    with pytest.raises(InputError, match="two prompts named a; rename one"):
        find_reference_files(tmp_path)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i4", "|u1"])
def test_other_numbers_are_cast(tmp_path: Path, dtype: str) -> None:
    values = np.abs(VALUES * 10).astype(dtype)
    found = read_reference_values(write(tmp_path / "a.npy", np.asfortranarray(values)))
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_torch_files_are_read_without_torch(form: str) -> None:
    expected = read_header(FIXTURES / "expected.safetensors")[0]["plain"].read()
    np.testing.assert_array_equal(
        read_reference_values(FIXTURES / f"parameter_{form}.bin"), expected
    )


NAN, LARGE = VALUES.copy(), VALUES.astype(np.float64)
NAN[3, 1], LARGE[0, 0] = np.nan, 1e300
WRONG = {
    "one axis": (VALUES[0], r"the shape \[4\] and type float32; rows x width of real numbers"),
    "three axes": (VALUES[None], r"the shape \[1, 5, 4\]"),
    "no rows": (VALUES[:0], r"the shape \[0, 4\]"),
    "complex": (VALUES.astype(complex), "type complex128; rows x width of real numbers expected"),
    "yes and no": (VALUES > 0, "type bool"),
    "text": (np.array([["a"]]), "type <U1"),
    "NaN": (NAN, r"row 3 holds NaN or a number beyond float32 \(1 of 5 rows do\)"),
    "beyond float32": (LARGE, r"row 0 holds NaN or a number beyond float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(tmp_path: Path, case: str) -> None:
    values, said = WRONG[case]
    with pytest.raises(InputError, match=said):
        read_reference_values(write(tmp_path / "a.npy", values))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    data = io.BytesIO()
    np.save(data, np.array([[Bomb()]], object), allow_pickle=True)
    (tmp_path / "a.npy").write_bytes(data.getvalue())
    with pytest.raises(InputError, match="a.npy is no whole array of numbers"):
        read_reference_values(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.npy").read_bytes()
    np.savez(tmp_path / "b.npz", a=VALUES)
    huge = whole.replace(b"(5, 4)", b"(5, 4" + b"0" * 15 + b")")
    for data in (b"", b"\x93NUMPY", whole[:-1], whole[:60], b"abc", huge):
        (tmp_path / "a.npy").write_bytes(data)
        with pytest.raises(InputError, match="a.npy is no whole array of numbers"):
            read_reference_values(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes((tmp_path / "b.npz").read_bytes())
    with pytest.raises(InputError, match="no whole array of numbers"):
        read_reference_values(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"b.npz is a zip archive without data.pkl"):
        read_reference_values(tmp_path / "b.npz")
    with pytest.raises(InputError, match=r"holds a dict; one tensor of rows x width expected"):
        read_reference_values(FIXTURES / "state_zip.bin")


def test_damaged_headers_raise_nothing_else(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.npy").read_bytes()
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[generator.integers(0, 128)] = generator.integers(0, 256)
        (tmp_path / "a.npy").write_bytes(damaged)
        try:
            read_reference_values(tmp_path / "a.npy")
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_bfloat16_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = VALUES.astype(ml_dtypes.bfloat16)
    monkeypatch.setattr("jpt.prompts.interop.read_torch_object", lambda path: rounded)
    found = read_reference_values(tmp_path / "task_prompt")
    np.testing.assert_array_equal(found, rounded.astype(np.float32))
