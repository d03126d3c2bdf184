"""PEFT adapter folders and prompt files of the paper's authors."""

import dataclasses
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jpt.errors import InputError
from jpt.io.tensors import read_header
from jpt.prompts.interop import (
    find_reference_files,
    peft_task_type,
    read_adapter,
    read_reference_values,
    write_adapter,
)
from jpt.prompts.store import load_prompt
from jpt.types import Prompt, PromptCard

VALUES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
CARD = PromptCard("gpt2", "sst2", layout="decoder", seed=2, score=0.1 + 0.2, jpt_version="0.0.1")

# As PEFT 0.21 saves it.
CONFIG: dict[str, Any] = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM"}
CONFIG |= {"base_model_name_or_path": "google/t5-v1_1-small", "inference_mode": True}
CONFIG |= {"num_attention_heads": 6, "num_layers": 8, "num_transformer_submodules": 2}
CONFIG |= {"num_virtual_tokens": 5, "token_dim": 4, "prompt_tuning_init": "RANDOM"}
CONFIG |= {"peft_version": "0.21.2", "prompt_tuning_init_text": None, "revision": None}
CONFIG |= dict.fromkeys(("auto_mapping", "modules_to_save"))
CONFIG |= dict.fromkeys(("tokenizer_kwargs", "tokenizer_name_or_path"))
TABLE = np.concatenate([VALUES, VALUES + 1])


def write_theirs(
    folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any
) -> Path:
    """Write a folder as PEFT saves it, with changes of its config."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "README.md").write_text("a model card")
    save_file(
        {"prompt_embeddings": TABLE} if tensors is None else tensors,
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def assert_refused(folder: Path, *needles: str) -> None:
    with pytest.raises(InputError) as error:
        read_adapter(folder)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    for needle in needles:
        assert needle in message, (needle, message)


def test_written_folder_has_what_peft_needs(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_adapter(folder, Prompt(VALUES, CARD), heads=12, layers=3)
    names = {file.name for file in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "PROMPT_TUNING" and config["task_type"] == "CAUSAL_LM"
    assert (config["num_virtual_tokens"], config["token_dim"]) == (5, 4)
    assert config["num_transformer_submodules"] == 1
    assert (config["num_attention_heads"], config["num_layers"]) == (12, 3)
    assert config["base_model_name_or_path"] == "gpt2"
    assert config.keys() <= CONFIG.keys(), "PEFT warns about unknown fields"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors.keys() == {"prompt_embeddings"}
    assert tensors["prompt_embeddings"].dtype == np.float32
    assert np.array_equal(tensors["prompt_embeddings"], VALUES)
    metadata = read_header(folder / "adapter_model.safetensors")[1]
    assert metadata["format"] == "pt"  # needed by transformers and older PEFTs


def test_a_prompt_comes_back_bit_for_bit_with_its_card(tmp_path: Path) -> None:
    values = VALUES * np.float32(1e-30)  # no step may round
    write_adapter(tmp_path / "one", Prompt(values, CARD))
    write_adapter(tmp_path / "two", Prompt(values, CARD))
    found = read_adapter(tmp_path / "one" / "adapter_model.safetensors")
    assert found.values.tobytes() == values.tobytes()
    assert found.card == CARD and found.layout == "decoder" and found.table_rows == 5
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_peft_cannot_express_is_refused_and_nothing_written(tmp_path: Path) -> None:
    encoder = Prompt(VALUES, PromptCard("roberta-base", "sst2"))
    with pytest.raises(InputError, match=r"roberta-base, an encoder: .*\[MASK\] and \[CLS\]"):
        write_adapter(tmp_path / "a", encoder)
    broken = VALUES.copy()
    broken[1, 2] = np.nan
    with pytest.raises(InputError, match="first: row 1"):
        write_adapter(tmp_path / "a", Prompt(broken, CARD))
    with pytest.raises(InputError, match="finite score"):
        write_adapter(tmp_path / "a", Prompt(VALUES, dataclasses.replace(CARD, score=np.nan)))
    assert not list(tmp_path.iterdir())
    assert peft_task_type(PromptCard("t5-small", "t", layout="encoder_decoder")) == "SEQ_2_SEQ_LM"


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        write_adapter(tmp_path / "a", Prompt(VALUES, CARD))
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["thesis.txt"]


def test_the_first_half_of_a_table_of_t5_is_read(tmp_path: Path) -> None:
    for copies in (2, None):  # PEFT's own default is 2, written out or not
        found = read_adapter(write_theirs(tmp_path / "t5", num_transformer_submodules=copies))
        assert np.array_equal(found.values, VALUES) and found.table_rows == 10
        assert (found.layout, found.card, found.init) == ("encoder_decoder", None, "random")
        assert found.base_model == "google/t5-v1_1-small"
    single = {"prompt_embeddings": VALUES}
    found = read_adapter(write_theirs(tmp_path / "t5", single, num_transformer_submodules=1))
    assert np.array_equal(found.values, VALUES) and found.table_rows == 5


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32(tmp_path: Path, kind: np.dtype) -> None:
    values = VALUES.astype(kind)
    options = {"task_type": "CAUSAL_LM", "num_transformer_submodules": None}
    found = read_adapter(write_theirs(tmp_path, {"prompt_embeddings": values}, **options)).values
    assert found.dtype == np.float32 and np.array_equal(found, values.astype(np.float32))


INITS = [
    ({"prompt_tuning_init": "SAMPLE_VOCAB"}, "vocab"),
    ({"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "is it good"}, "text:is it good"),
    ({"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": None}, "random"),
    ({"prompt_tuning_init": ["?"]}, "random"),
]


@pytest.mark.parametrize(("changes", "init"), INITS)
def test_init_is_translated(tmp_path: Path, changes: dict[str, Any], init: str) -> None:
    assert read_adapter(write_theirs(tmp_path / "a", **changes)).init == init


CONFIGS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"peft_type": "PREFIX_TUNING"}, ("peft_type PROMPT_TUNING, got PREFIX", "every layer")),
    ({"peft_type": "P_TUNING"}, ("P_TUNING", "trained network")),
    ({"peft_type": "LORA"}, ("LORA", "weight updates")),
    ({"peft_type": "MULTITASK_PROMPT_TUNING"}, ("matrix for each task",)),
    ({"peft_type": "IA3"}, ("IA3", "no soft prompt")),
    ({"peft_type": None}, ("None",)),
    ({"peft_type": {"a": 1}}, ("unknown",)),
    ({"task_type": "SEQ_CLS"}, ("CAUSAL_LM or SEQ_2_SEQ_LM", "head", "got SEQ_CLS")),
    ({"task_type": None}, ("task_type", "got None")),
    ({"task_type": "CAUSAL_LM"}, ("expected num_transformer_submodules 1 for", "got 2")),
    ({"num_transformer_submodules": 3}, ("submodules 1 or 2 for", "got 3")),
    ({"num_transformer_submodules": True}, ("got True",)),
    ({"num_virtual_tokens": 0}, ("num_virtual_tokens", "got 0")),
    ({"num_virtual_tokens": "5"}, ("got '5'",)),
    ({"num_virtual_tokens": 6}, ("shape [2 x 6, 4]", "got [10, 4]")),
    ({"token_dim": 8}, ("shape [2 x 5, 8]", "got [10, 4]")),
]


@pytest.mark.parametrize(("changes", "needles"), CONFIGS)
def test_wrong_configs_are_refused(
    tmp_path: Path, changes: dict[str, Any], needles: tuple[str, ...]
) -> None:
    assert_refused(write_theirs(tmp_path / "a", **changes), *needles)


NAN = TABLE.copy()
NAN[7, 0] = np.inf
HEAD = {"prompt_embeddings": TABLE, "base_model.score.weight": VALUES}
TENSORS: list[tuple[dict[str, np.ndarray], tuple[str, ...]]] = [
    ({"base_model.lora_A.weight": TABLE}, ("expected a tensor 'prompt_embeddings'", "lora_A")),
    ({}, ("got nothing",)),
    (HEAD, ("base_model.score.weight", "further trained weights")),
    ({"prompt_embeddings": TABLE[:, 0].copy()}, ("[10]",)),
    ({"prompt_embeddings": TABLE[None]}, ("[1, 10, 4]",)),
    ({"prompt_embeddings": TABLE.astype(np.int32)}, ("int32",)),
    ({"prompt_embeddings": NAN}, ("first: row 7", "NaN or infinity")),
]


@pytest.mark.parametrize(("tensors", "needles"), TENSORS)
def test_wrong_tensors_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], needles: tuple[str, ...]
) -> None:
    assert_refused(write_theirs(tmp_path / "a", tensors), *needles)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("adapter_model.safetensors", lambda data: data[:-9], "not a complete safetensors file"),
        ("adapter_model.safetensors", None, "adapter_model.safetensors or adapter_model.bin"),
        ("adapter_config.json", lambda data: b"{", "not JSON"),
        ("adapter_config.json", lambda data: b"[1]", "expected a JSON object, got list"),
    ],
)
def test_damaged_folders_are_refused(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, said: str
) -> None:
    file = write_theirs(tmp_path) / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    assert_refused(tmp_path, said)


def test_other_paths_are_refused_with_a_hint(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none", "no such file")
    assert_refused(tmp_path, "no adapter_config.json", "save_pretrained")
    write_theirs(tmp_path / "second")
    assert_refused(tmp_path, "below it: second")
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", "is a file")


def test_older_files_are_read_without_running_what_they_hold(tmp_path: Path) -> None:
    folder, marker = write_theirs(tmp_path / "a"), tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {marker}",)

    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"prompt_embeddings": Evil()}))
    assert_refused(folder, "adapter_model.bin")
    assert not marker.exists()


def test_an_adapter_given_as_a_prompt_names_the_command(tmp_path: Path) -> None:
    folder = write_theirs(tmp_path / "a")
    with pytest.raises(InputError, match=f"jpt import peft {folder} --out FILE"):
        load_prompt(folder / "adapter_model.safetensors")


FIXTURES = Path(__file__).parents[1] / "io" / "fixtures"


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


def test_current_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t5-base" / "sst2.npy")
    monkeypatch.chdir(tmp_path / "t5-base")
    assert described(Path(".")) == [("sst2", "sst2", "t5-base")]


def test_paths_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected NAME.npy or NAME/task_prompt among 0 entries"):
        find_reference_files(tmp_path)
    with pytest.raises(InputError, match=r"cannot read .*/none: there is no such file"):
        find_reference_files(tmp_path / "none")
    write(tmp_path / "a.npy")
    (tmp_path / "a").mkdir()
    shutil.copy(FIXTURES / "parameter_zip.bin", tmp_path / "a" / "task_prompt")
    with pytest.raises(InputError, match="two prompts named a; rename one"):
        find_reference_files(tmp_path)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_other_precisions_are_cast(tmp_path: Path, dtype: str) -> None:
    values = np.abs(VALUES * 10).astype(dtype)
    found = read_reference_values(write(tmp_path / "a.npy", np.asfortranarray(values)))
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_torch_files_are_read_without_torch(form: str) -> None:
    expected = read_header(FIXTURES / "expected.safetensors")[0]["plain"].read()
    found = read_reference_values(FIXTURES / f"parameter_{form}.bin")
    np.testing.assert_array_equal(found, expected)


BROKEN, LARGE = VALUES.copy(), VALUES.astype(np.float64)
BROKEN[3, 1], LARGE[0, 0] = np.nan, 1e300
WRONG = {
    "one axis": (VALUES[0], r"numbers of shape \[P, D\], got float32 of shape \[4\]"),
    "three axes": (VALUES[None], r"of shape \[1, 5, 4\]"),
    "no rows": (VALUES[:0], r"of shape \[0, 4\]"),
    "complex": (VALUES.astype(complex), "got complex128"),
    "yes and no": (VALUES > 0, "got bool"),
    "whole numbers": (VALUES.astype("i4"), "got int32"),
    "bytes": (VALUES.astype("u1"), "got uint8"),
    "text": (np.array([["a"]]), "got <U1"),
    "NaN": (BROKEN, r"got NaN or overflow in 1 of 5 rows \(first: row 3\)"),
    "beyond float32": (LARGE, r"got NaN or overflow in 1 of 5 rows \(first: row 0\)"),
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
    with pytest.raises(InputError, match="a.npy: expected a numeric .npy array"):
        read_reference_values(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.npy").read_bytes()
    np.savez(tmp_path / "b.npz", a=VALUES)
    huge = whole.replace(b"(5, 4)", b"(5, 4" + b"0" * 15 + b")")
    archive = (tmp_path / "b.npz").read_bytes()
    for data in (b"", b"\x93NUMPY", whole[:-1], whole[:60], b"abc", huge, archive):
        (tmp_path / "a.npy").write_bytes(data)
        with pytest.raises(InputError, match="a.npy: expected a numeric .npy array"):
            read_reference_values(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"b.npz is a zip archive without data.pkl"):
        read_reference_values(tmp_path / "b.npz")
    with pytest.raises(InputError, match="expected one tensor, got a dict"):
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
