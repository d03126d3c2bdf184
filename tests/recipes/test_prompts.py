"""Reading prompts: nearest pieces against plain loops, drift from the true start, whole folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.backbones.registry import Backbone
from jpt.recipes import library as recipe
from jpt.recipes.library import describe_reading, show_prompt, visible
from jpt.testing import SPECIAL_TOKENS, VOCABULARY, write_tiny_backbone
from jpt.tuning.tune import initial_rows
from jpt.types import Prompt, PromptCard
from tests.toy_task import write_task
from tests.typed import type_command

pytestmark = pytest.mark.usefixtures("plain_programs")

WIDTH, LENGTH = 32, 5


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("bert") / "b", "bert"))


def card(backbone: Backbone, **changes: object) -> PromptCard:
    return PromptCard(backbone.name, "mood", seed=3, **changes)


def drawn(rows: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, WIDTH)).astype(np.float32)


def by_loops(row: np.ndarray, table: np.ndarray) -> dict[str, list[str]]:
    """All pieces that stand for text, the nearest first."""
    pieces = [piece for piece in VOCABULARY if piece not in SPECIAL_TOKENS]
    words = {piece: table[VOCABULARY.index(piece)].astype(np.float64) for piece in pieces}
    row = row.astype(np.float64)

    def cosine(piece: str) -> float:
        return row @ words[piece] / np.linalg.norm(row) / np.linalg.norm(words[piece])

    return {
        "cosine": sorted(pieces, key=cosine, reverse=True),
        "product": sorted(pieces, key=lambda piece: row @ words[piece], reverse=True),
    }


@pytest.mark.parametrize("part", [1, 7, 4096])
def test_nearest_pieces_are_those_of_loops(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(recipe, "_TABLE_ROWS", part)
    table = np.asarray(backbone.params["embeddings"]["word"])
    values = drawn()
    values[2] = 3 * table[VOCABULARY.index("film")]
    found = show_prompt(Prompt(values, card(backbone)), backbone=backbone, top=4)
    for place, row in enumerate(values):
        expected = by_loops(row, table)
        assert list(found.by_cosine.pieces[place]) == expected["cosine"][:4]
        assert list(found.by_product.pieces[place]) == expected["product"][:4]
    assert found.by_cosine.pieces[2][0] == "film"
    assert found.by_cosine.values[2, 0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.norms, np.linalg.norm(values, axis=1), rtol=1e-6)
    norms = np.linalg.norm(table[len(SPECIAL_TOKENS) : len(VOCABULARY)], axis=1)
    np.testing.assert_allclose(found.vocabulary, (norms.mean(), norms.min(), norms.max()), 1e-6)
    assert found.pieces == len(norms) == len(VOCABULARY) - len(SPECIAL_TOKENS)


@pytest.mark.parametrize("init", ["random", "vocab", "labels", "text:good film", "prompt"])
def test_drift_is_the_distance_from_the_start(
    backbone: Backbone, tmp_path: Path, init: str
) -> None:
    task = write_task(tmp_path / "mood")
    if init == "prompt":
        jpt.save_prompt(tmp_path / "s.safetensors", Prompt(drawn(seed=9), card(backbone)))
        init = f"prompt:{tmp_path / 's.safetensors'}"
    labels = (VOCABULARY.index("bad"), VOCABULARY.index("good"))
    start = initial_rows(backbone, init, 3, LENGTH, labels)
    moved = start + np.arange(LENGTH, dtype=np.float32)[:, None] * np.eye(1, WIDTH, 4)
    told = dataclasses.replace(card(backbone, init=init), task=str(task))
    found = show_prompt(Prompt(moved.astype(np.float32), told), backbone=backbone)
    np.testing.assert_allclose(found.drift, np.arange(LENGTH), atol=1e-5)
    assert found.start_cosines[0] == pytest.approx(1, abs=1e-6) and found.notes == ()
    if init == "labels":
        assert found.by_cosine.pieces[0][0] == "bad" and found.by_cosine.pieces[1][0] != "bad"


def test_drift_of_a_run_is_from_where_it_started(backbone: Backbone, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mood")
    options = {"steps": 1, "length": LENGTH, "learning_rate": 1e-3, "seed": 5, "init": "labels"}
    result = jpt.tune(backbone, task, batch_size=4, max_tokens=12, **options)
    told = dataclasses.replace(result.last.card, task=str(task))
    found = show_prompt(dataclasses.replace(result.last, card=told), backbone=backbone)
    # One step of Adam moves every number by about the rate.
    np.testing.assert_allclose(found.drift, 1e-3 * np.sqrt(WIDTH), rtol=0.2)


UNKNOWN_STARTS = [
    ({"seed": None}, "the card says no seed"),
    ({"source": "the authors"}, "not tuned from a start known here (the authors)"),
    ({"init": "prompt:/nowhere/a"}, "the start prompt:/nowhere/a cannot be made again"),
    ({"init": "labels", "task": "nothing"}, "the start labels cannot be made again"),
    ({"init": "uniform"}, "the start uniform cannot be made again"),
]


@pytest.mark.parametrize(("changes", "said"), UNKNOWN_STARTS)
def test_starts_that_are_not_known_are_said(backbone: Backbone, changes: dict, said: str) -> None:
    told = dataclasses.replace(card(backbone), **changes)
    found = show_prompt(Prompt(drawn(), told), backbone=backbone)
    assert found.drift is None and said in found.notes[0]
    assert found.record["rows"][0]["drift"] is None


def test_imported_prompts_have_a_row_0(backbone: Backbone) -> None:
    told = card(backbone, source="the authors", first_position=1)
    prompt = Prompt(drawn(), told, drawn(1, seed=4) * 50)
    found = show_prompt(prompt, backbone=backbone)
    rows = found.record["rows"]
    assert [row["row"] for row in rows] == list(range(LENGTH + 1))
    assert rows[0]["norm"] == pytest.approx(np.linalg.norm(prompt.unused_row), rel=1e-6)
    assert "row 0 is read by no model" in found.notes[0]
    text = describe_reading(found)
    # The mean is over the rows that are read.
    assert f"norm of a row: mean {np.linalg.norm(prompt.values, axis=1).mean():.3g} (" in text
    assert f"{LENGTH} rows" in text


@pytest.mark.parametrize("model_type", ["t5", "gpt2"])
def test_other_layouts(tmp_path: Path, model_type: str) -> None:
    model = jpt.load_backbone(write_tiny_backbone(tmp_path / "m", model_type))
    told = PromptCard(model.name, "mood", layout=model.layout, seed=1)
    start = initial_rows(model, "random", 1, LENGTH)
    found = show_prompt(Prompt(start, told), backbone=model)
    assert found.drift.max() == 0


def test_text_fits_80_columns(backbone: Backbone) -> None:
    wide = Prompt(drawn(120) * 1e7, card(backbone, init="text:" + "very " * 40))
    text = describe_reading(show_prompt(wide, backbone=backbone, top=9))
    assert max(map(len, text.splitlines())) <= 80
    assert len(visible("\u200b\n" * 40, 12)) == 12


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*command: object) -> tuple[int, str, str]:
        return type_command(["prompts", *command], monkeypatch, capsys)

    return call


@pytest.fixture
def folder(tmp_path: Path, backbone: Backbone) -> Path:
    place = tmp_path / "prompts"
    place.mkdir()
    whole = {"steps": 9, "score": 0.75, "metric": "accuracy"}
    jpt.save_prompt(place / "good.safetensors", Prompt(drawn(), card(backbone, **whole)))
    return place


def test_show_and_list_in_the_shell(run, folder: Path) -> None:
    code, out, err = run("show", folder / "good.safetensors", "--top", "2", "--json")
    record = json.loads(out)
    assert code == 0 and len(record["rows"]) == LENGTH and "nearest by cosine" in err
    assert len(record["rows"][0]["nearest_by_product"]) == 2
    code, out, _ = run("ls", folder)
    assert code == 0 and out.splitlines()[1].split()[-2] == "0.750"
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run("verify", folder)
    assert code == 0 and "1 prompt, all whole" in out


def test_verify_tells_what_is_broken(run, folder: Path, backbone: Backbone) -> None:
    whole = jpt.load_prompt(folder / "good.safetensors")
    cards = {
        "narrow": whole.card,
        "other": dataclasses.replace(whole.card, layout="decoder"),
        "bare": dataclasses.replace(whole.card, score=None),
        "far": dataclasses.replace(whole.card, backbone="org/model"),
        "long": whole.card,
    }
    for name, told in cards.items():
        values = {"narrow": drawn()[:, :16], "long": drawn(99)}.get(name, drawn())
        jpt.save_prompt(folder / f"{name}.safetensors", Prompt(values, told))
    cut = (folder / "good.safetensors").read_bytes()[:-40]
    (folder / "cut.safetensors").write_bytes(cut)
    code, out, err = run("verify", folder, "--json")
    found = {entry["name"]: entry for entry in json.loads(out)["prompts"]}
    assert code == 2 and "5 of 7 prompts in" in err.splitlines()[-1]
    assert found["good"]["faults"] == found["far"]["faults"] == []
    assert "16 wide, but" in found["narrow"]["faults"][0]
    assert "of the layout decoder, but" in found["other"]["faults"][0]
    assert found["bare"]["faults"] == ["its card lacks score"]
    assert "99 rows, but" in found["long"]["faults"][0]
    assert "cut.safetensors" in found["cut"]["faults"][0]
    assert "not held against org/model" in found["far"]["notes"][0]
    code, out, _ = run("verify", folder, "--backbone", backbone.name)
    assert code == 2 and "7 prompts, 5 broken" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("show", "nowhere.safetensors"), "no such file"),
        (("show", "FOLDER/good.safetensors", "--top", "0"), "top is 0; give a whole number"),
        (("show", "FOLDER/good.safetensors", "--backbone", "builtin/bert-small"), "32 wide"),
        (("ls", "nowhere"), "nowhere"),
        (("verify", "FOLDER", "--backbone", "builtin/bert-tiny"), "did you mean builtin/"),
    ],
)
def test_wrong_input(run, folder: Path, command: tuple[str, ...], said: str) -> None:
    code, _, err = run(*(part.replace("FOLDER", str(folder)) for part in command))
    assert code == 2 and said in err and len(err.splitlines()) == 1
