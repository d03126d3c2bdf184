"""Prompt files, folders of prompts, prompt banks, and the prompt of each task."""

import dataclasses
import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io.tensors import read_header, write_safetensors
from jpt.prompts.store import (
    check_prompt,
    list_prompts,
    load_prompt,
    save_prompt,
    stack_prompts,
    unstack_prompts,
)
from jpt.results.prompt_table import match_in_task_prompts
from jpt.types import Prompt, PromptCard

CARDS = [PromptCard("bert", task) for task in ("sst2", "imdb", "mnli")]


def prompt(number: int, rows: int = 4, width: int = 3) -> Prompt:
    return Prompt(np.full((rows, width), number, np.float32), CARDS[number])


def test_there_and_back() -> None:
    prompts = {card.task: prompt(number) for number, card in enumerate(CARDS)}
    bank = stack_prompts(prompts)
    assert (bank.shape, bank.dtype) == ((3, 4, 3), np.float32)
    assert bank[:, 0, 0].tolist() == [0, 1, 2]
    back = unstack_prompts(bank, CARDS)
    bank[:] = 7
    assert [found.card for found in back] == CARDS
    for found, wanted in zip(back, prompts.values(), strict=True):
        np.testing.assert_array_equal(found.values, wanted.values)


@pytest.mark.parametrize("rows, width, size", [(5, 3, "5 x 3"), (4, 2, "4 x 2")])
def test_mixed_shapes(rows: int, width: int, size: str) -> None:
    prompts = {"first": prompt(0), "second": prompt(1), "third": prompt(2, rows, width)}
    with pytest.raises(
        InputError, match=f"third: expected shape 4 x 3, that of prompt first, got {size}"
    ):
        stack_prompts(prompts)


def test_wrong_banks() -> None:
    with pytest.raises(InputError, match="expected at least 1 prompt to stack"):
        stack_prompts({})
    with pytest.raises(InputError, match="expected 3 cards, one per prompt, got 2"):
        unstack_prompts(np.zeros((3, 4, 3), np.float32), CARDS[:2])
    with pytest.raises(InputError, match="got shape 4 x 3"):
        unstack_prompts(np.zeros((4, 3), np.float32), CARDS)


CARD = PromptCard("builtin/bert-small", "builtin/mood")
VALUES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def write(path: Path, card: object = None, **tensors: np.ndarray) -> Path:
    table = {"backbone": "bert", "task": "sst2"} if card is None else card
    text = table if isinstance(table, str) else json.dumps(table)
    write_safetensors(path, tensors, {"card": text})
    return path


def test_saved_is_loaded(tmp_path: Path) -> None:
    card = PromptCard("bert-base", "imdb", init="text:gut und schlecht ä", seed=0, steps=300)
    card = dataclasses.replace(card, score=0.8125, metric="accuracy", source="imported")
    card = dataclasses.replace(card, jpt_version="0.0.1", first_position=1)
    unused = np.full((1, 3), 1e10, np.float32)
    save_prompt(tmp_path / "a.safetensors", Prompt(VALUES, card, unused))
    found = load_prompt(tmp_path / "a.safetensors")
    assert found.card == card and found.card.layout == "encoder"
    assert found.values.dtype == np.float32 and found.values.flags.writeable
    np.testing.assert_array_equal(found.values, VALUES)
    np.testing.assert_array_equal(found.unused_row, unused)


def test_the_form_on_disk(tmp_path: Path) -> None:
    save_prompt(tmp_path / "a.safetensors", Prompt(VALUES, CARD))
    tensors, metadata = read_header(tmp_path / "a.safetensors")
    assert {name: (tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()} == {
        "prompt": ((5, 3), "float32")
    }
    assert list(metadata) == ["card"]
    card = json.loads(metadata["card"])
    assert card.pop("jpt_version")
    names = {"backbone": CARD.backbone, "task": CARD.task}
    assert card == {**names, "layout": "encoder", "init": "random"}


def test_equal_prompts_are_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        save_prompt(tmp_path / name, Prompt(VALUES.copy(), CARD, np.ones((1, 3), np.float32)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numbers_of_numpy_in_the_card(tmp_path: Path) -> None:
    card = dataclasses.replace(CARD, steps=np.int64(3), score=np.float32(0.5))
    save_prompt(tmp_path / "a", Prompt(VALUES, card))
    found = load_prompt(tmp_path / "a").card
    assert (found.steps, found.score) == (3, 0.5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32(tmp_path: Path, dtype: type) -> None:
    found = load_prompt(write(tmp_path / "a.safetensors", prompt=VALUES.astype(dtype)))
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values, VALUES.astype(dtype).astype(np.float32))
    assert (found.card.backbone, found.card.layout, found.card.seed) == ("bert", "encoder", None)


def test_folder_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no prompt.safetensors \(an unfinished run\?\)"):
        load_prompt(tmp_path)
    save_prompt(tmp_path / "prompt.safetensors", Prompt(VALUES, CARD))
    assert load_prompt(str(tmp_path)).card.task == "builtin/mood"


NAN, INF = VALUES.copy(), VALUES.copy()
NAN[3, 1], INF[0, 0], INF[4, 2] = np.nan, np.inf, -np.inf
WRONG = {
    "no tensor prompt": ({"soft": VALUES}, "expected a tensor 'prompt', got soft"),
    "no tensor": ({}, "expected a tensor 'prompt', got nothing"),
    "one axis": ({"prompt": VALUES[0]}, r"expected a prompt of shape \[P, D\], got \[3\]"),
    "three axes": ({"prompt": VALUES[None]}, r"got \[1, 5, 3\]"),
    "no rows": ({"prompt": VALUES[:0]}, r"got \[0, 3\]"),
    "float64": ({"prompt": VALUES.astype("f8")}, "float32, float16 or bfloat16 .* got float64"),
    "numbers": ({"prompt": VALUES.astype("i4")}, "got int32"),
    "NaN": ({"prompt": NAN}, r"'prompt', got NaN .* in 1 of 5 rows \(first: row 3\)"),
    "infinite": ({"prompt": INF}, r"'prompt', got NaN or infinity in 2 of 5 rows \(first: row 0\)"),
    "unused row of two": (
        {"prompt": VALUES, "unused_row": VALUES[:2]},
        r"unused_row of shape \[1, 3\], got \[2, 3\]",
    ),
    "unused row too wide": (
        {"prompt": VALUES, "unused_row": np.ones((1, 4), "f4")},
        r"unused_row of shape \[1, 3\], got \[1, 4\]",
    ),
    "unused row NaN": ({"prompt": VALUES, "unused_row": NAN[3:4]}, "'unused_row', got NaN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors(tmp_path: Path, name: str) -> None:
    tensors, message = WRONG[name]
    path = write(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(InputError, match=f"a.safetensors.*{message}"):
        load_prompt(path)


WRONG_CARDS = [
    ("{", "is not JSON"),
    ("[1]", "expected a JSON object, got list"),
    ("null", "expected a JSON object, got NoneType"),
    ({"task": "sst2"}, "has no backbone"),
    ({"backbone": "bert", "task": ""}, "has no task"),
    ({"backbone": 3, "task": "sst2"}, "expected backbone to be a string, got 3"),
    ({"layout": "front"}, "layout to be one of encoder, encoder_decoder, decoder, got 'front'"),
    ({"layout": []}, "one of encoder, encoder_decoder"),
    ({"seed": -1}, "seed to be an integer of at least 0, got -1"),
    ({"steps": 1.5}, "steps to be an integer of at least 0, got 1.5"),
    ({"first_position": True}, "first_position to be an integer .* got True"),
    ({"score": "high"}, "score to be a number from -1 to 1, got 'high'"),
    ({"score": 5.0}, "score to be a number from -1 to 1, got 5.0"),
]


@pytest.mark.parametrize("card, message", WRONG_CARDS)
def test_wrong_card(tmp_path: Path, card: object, message: str) -> None:
    if isinstance(card, dict) and not {"backbone", "task"} & card.keys():
        card = {"backbone": "bert", "task": "a", **card}
    path = write(tmp_path / "a.safetensors", card, prompt=VALUES)
    with pytest.raises(InputError, match=f"card of .*a.safetensors.*{message}"):
        load_prompt(path)


def test_missing_card(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"prompt": VALUES})
    with pytest.raises(InputError, match="a.safetensors has no prompt card"):
        load_prompt(tmp_path / "a.safetensors")


def test_card_of_a_later_version(tmp_path: Path) -> None:
    card = {"backbone": "bert", "task": "sst2", "mood": {"new": 1}}
    found = load_prompt(write(tmp_path / "a", card, prompt=VALUES)).card
    assert found == PromptCard("bert", "sst2")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_file(tmp_path: Path, kept: int) -> None:
    save_prompt(tmp_path / "a.safetensors", Prompt(VALUES, CARD))
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:kept])
    with pytest.raises(InputError, match="a.safetensors is not a complete safetensors file"):
        load_prompt(tmp_path / "a.safetensors")


def test_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_prompt(tmp_path / "sst2.safetensors")
    save_prompt(tmp_path / "sst2.safetensors", Prompt(VALUES, CARD))
    with pytest.raises(InputError, match="'sst.safetensors'; did you mean sst2.safetensors"):
        load_prompt(tmp_path / "sst.safetensors")


@pytest.mark.parametrize(
    "prompt, message",
    [
        (Prompt(NAN, CARD), "finite values in 'prompt'"),
        (Prompt(VALUES[0], CARD), r"shape \[P, D\]"),
        (Prompt(VALUES, CARD, np.ones((1, 2), np.float32)), "expected unused_row of shape"),
        (Prompt(VALUES, dataclasses.replace(CARD, score=float("nan"))), "finite score .* got nan"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(
    tmp_path: Path, prompt: Prompt, message: str
) -> None:
    save_prompt(tmp_path / "a.safetensors", Prompt(VALUES, CARD))
    with pytest.raises(InputError, match=message):
        save_prompt(tmp_path / "a.safetensors", prompt)
    np.testing.assert_array_equal(load_prompt(tmp_path / "a.safetensors").values, VALUES)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_list_of_files_and_runs(tmp_path: Path) -> None:
    prompt = Prompt(VALUES, CARD)
    (tmp_path / "mnli").mkdir()
    (tmp_path / "unfinished").mkdir()
    save_prompt(tmp_path / "mnli" / "prompt.safetensors", prompt)
    save_prompt(tmp_path / "sst2.safetensors", prompt)
    save_prompt(tmp_path / "a.b.safetensors", prompt)
    save_prompt(tmp_path / ".hidden.safetensors", prompt)
    (tmp_path / "notes.txt").touch()
    assert list_prompts(tmp_path) == {
        "a.b": tmp_path / "a.b.safetensors",
        "mnli": tmp_path / "mnli" / "prompt.safetensors",
        "sst2": tmp_path / "sst2.safetensors",
    }
    (tmp_path / "sst2").mkdir()
    save_prompt(tmp_path / "sst2" / "prompt.safetensors", prompt)
    with pytest.raises(InputError, match="two prompts named sst2"):
        list_prompts(tmp_path)


def test_list_of_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no prompts: .* among 0 entries"):
        list_prompts(tmp_path)
    with pytest.raises(InputError, match="cannot read .*nowhere"):
        list_prompts(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="config.json is a file; give the folder"):
        list_prompts(tmp_path / "config.json")
    save_prompt(tmp_path / "prompt.safetensors", Prompt(VALUES, CARD))
    with pytest.raises(InputError, match="expected a folder of prompts, got a run folder"):
        list_prompts(tmp_path)


def test_check_prompt() -> None:
    prompt = Prompt(VALUES, CARD)
    check_prompt(prompt, "builtin/bert-small", 3, "encoder")
    check_prompt(prompt, "other", 3, "encoder", True)
    wrong = [
        (
            ("builtin/bert-small", 4, "encoder"),
            r"width 4 for .* got width 3 \(tuned on builtin/bert-s",
        ),
        (("other", 4, "encoder", True), "width 4 for other, got width 3"),
        (("other", 3, "encoder"), "tuned on other, got one tuned on builtin/bert-small"),
        (("other", 3, "decoder", True), "layout decoder for other, got layout encoder"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            check_prompt(prompt, *arguments)


@pytest.mark.parametrize(
    ("targets", "tasks", "expected"),
    [
        # The card counts, and the name only if no card names the target.
        (["imdb"], {"imdb": "sst2", "other": "builtin/imdb"}, {"imdb": "other"}),
        (["ethicsjustice"], {"ethicsjustice": "justice", "sst2": "sst2"}, None),
        # Of several, the one of that name.
        (["imdb"], {"imdb": "imdb", "imdb_seed_1": "imdb"}, {"imdb": "imdb"}),
    ],
)
def test_in_task_prompts_are_matched(
    targets: list[str], tasks: dict, expected: dict | None
) -> None:
    cards = {name: PromptCard("bert", task) for name, task in tasks.items()}
    found, notes = match_in_task_prompts(targets, cards)
    assert found == (expected or {targets[0]: targets[0]}) and notes == []


@pytest.mark.parametrize(
    ("targets", "names", "expected", "note"),
    [
        (["imdb"], ("seed_0", "seed_1"), {}, r"imdb has 2 .*\(seed_0, seed_1\)"),
        (["imdb", "mnli"], ("a",), {"imdb": "a"}, "mnli has no .*: relative performance is not"),
    ],
)
def test_targets_without_one_in_task_prompt_are_noted(
    targets: list[str], names: tuple[str, ...], expected: dict, note: str
) -> None:
    found, notes = match_in_task_prompts(targets, {n: PromptCard("bert", "imdb") for n in names})
    assert found == expected
    assert len(notes) == 1 and re.match(note, notes[0])
