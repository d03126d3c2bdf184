"""Import of released prompts: names, tasks, row 0, and nothing half-written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.prompts.store import list_prompts, load_prompt, save_prompt
from jpt.recipes import interop as recipe
from jpt.recipes.interop import describe_import, import_reference, reference_backbone

FIXTURES = Path(__file__).parent.parent / "files" / "fixtures"


def write(path: Path, rows: int = 4, width: int = 768, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    np.save(path, values)
    return path


def test_encoder_prompts_keep_row_0_apart(tmp_path: Path) -> None:
    values = np.load(write(tmp_path / "bert-base" / "movierationales.npy"))
    found = import_reference(tmp_path / "bert-base", tmp_path / "out")["movierationales"]
    stored = load_prompt(tmp_path / "out" / "movierationales.safetensors")
    for prompt in (found, stored):
        np.testing.assert_array_equal(prompt.values, values[1:])
        np.testing.assert_array_equal(prompt.unused_row, values[:1])
        card = prompt.card
        assert (card.backbone, card.task, card.task_type, card.layout, card.first_position) == (
            "bert-base-uncased",
            "movie_rationales",
            "sentiment",
            "encoder",
            1,
        )
        assert card.source == "thunlp/Prompt-Transferability, bert-base/movierationales.npy"


def test_prompts_of_t5_keep_all_rows(tmp_path: Path) -> None:
    values = np.load(write(tmp_path / "t5-small" / "nq_open.npy", width=512))
    found = import_reference(tmp_path / "t5-small" / "nq_open.npy")["nq_open"]
    np.testing.assert_array_equal(found.values, values)
    assert (found.unused_row, found.card.first_position) == (None, None)
    assert (found.card.layout, found.card.task_type) == ("encoder_decoder", "qa")


def test_noise_is_a_baseline_without_type(tmp_path: Path) -> None:
    card = import_reference(write(tmp_path / "roberta-base" / "random.npy"))["random"].card
    assert (card.task, card.task_type, card.init) == ("random", None, "uniform")


def test_unknown_tasks_keep_their_name(tmp_path: Path) -> None:
    write(tmp_path / "roberta-base" / "mine.npy")
    found = import_reference(tmp_path / "roberta-base")
    assert (found["mine"].card.task, found["mine"].card.task_type) == ("mine", None)
    assert "mine: a task without a type" in describe_import(found, "out")[1]


def test_folders_of_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        name: dataclasses.replace(model, width=4)
        for name, model in recipe.REFERENCE_BACKBONES.items()
    }
    monkeypatch.setattr(recipe, "REFERENCE_BACKBONES", small)
    for name in ("IMDBPromptRoberta", "ethicsjustice_trainedPromptRoberta", "IMDBPromptT5"):
        (tmp_path / name).mkdir()
        shutil.copy(FIXTURES / "parameter_zip.bin", tmp_path / name / "task_prompt")
    with pytest.raises(
        InputError, match=r"prompts of 2 backbones \(2 of roberta-base, 1 of t5-base\); choose one"
    ):
        import_reference(tmp_path, tmp_path / "out")
    found = import_reference(tmp_path, tmp_path / "out", "FacebookAI/roberta-base")
    assert {name: prompt.card.task for name, prompt in found.items()} == {
        "IMDBPromptRoberta": "imdb",
        "ethicsjustice_trainedPromptRoberta": "justice",
    }
    assert {prompt.card.backbone for prompt in found.values()} == {"FacebookAI/roberta-base"}
    assert list(list_prompts(tmp_path / "out")) == list(found)
    with pytest.raises(InputError, match="holds no prompt of t5-small; it has roberta-base"):
        import_reference(tmp_path, backbone="t5-small")


KNOWN = [
    ("roberta-base", "roberta-base"),
    ("bert-base", "bert-base-uncased"),
    ("bert-base-uncased", "bert-base-uncased"),
    ("google-t5/t5-small", "google-t5/t5-small"),
    ("/models/bert-base-uncased/", "/models/bert-base-uncased/"),
    ("roberta-large__run_b", "roberta-large"),
    ("RobertaLarge", "roberta-large"),
    ("T5", "t5-base"),
    ("gpt2", None),
    ("", None),
]


@pytest.mark.parametrize(("told", "name"), KNOWN)
def test_names_of_backbones(told: str, name: str | None) -> None:
    found = reference_backbone(told)
    assert (found and found.name) == name


def test_backbone_is_never_guessed(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts" / "sst2.npy")
    with pytest.raises(InputError, match=r"names no known backbone \(prompts\); name it with --ba"):
        import_reference(tmp_path / "prompts", tmp_path / "out")
    with pytest.raises(InputError, match="gpt2 is none .* known: bert-base, roberta-base, roberta"):
        import_reference(file, tmp_path / "out", "gpt2")
    with pytest.raises(InputError, match="is 768 wide, but prompts of roberta-large are 1024 wide"):
        import_reference(file, tmp_path / "out", "roberta-large")
    assert not (tmp_path / "out").exists()
    assert import_reference(file, backbone="roberta-base")["sst2"].card.backbone == "roberta-base"


def test_one_row_is_no_prompt_of_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 1 row, which roberta-base does not read"):
        import_reference(write(tmp_path / "roberta-base" / "sst2.npy", rows=1))


def test_a_broken_file_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "roberta-base" / "imdb.npy")
    (tmp_path / "roberta-base" / "sst2.npy").write_bytes(b"broken")
    with pytest.raises(InputError, match="sst2.npy is no whole array"):
        import_reference(tmp_path / "roberta-base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_in_the_way(tmp_path: Path) -> None:
    source, out = tmp_path / "roberta-base", tmp_path / "out"
    write(source / "imdb.npy")
    import_reference(source, out)
    before = (out / "imdb.safetensors").stat().st_mtime_ns
    write(source / "sst2.npy", seed=1)
    import_reference(source, out)  # the same once more, and one that is new
    assert (out / "imdb.safetensors").stat().st_mtime_ns == before
    assert list(list_prompts(out)) == ["imdb", "sst2"]
    write(source / "sst2.npy", seed=2)
    write(source / "mnli.npy", seed=3)
    with pytest.raises(InputError, match="sst2.safetensors is there and is another prompt than"):
        import_reference(source, out)
    with pytest.raises(InputError, match="imdb.safetensors is there and is another prompt"):
        import_reference(source / "imdb.npy", out, "bert-base")
    assert list(list_prompts(out)) == ["imdb", "sst2"]
    (out / "mnli").mkdir()
    prompt = load_prompt(out / "imdb.safetensors")
    save_prompt(out / "mnli" / "prompt.safetensors", prompt)
    with pytest.raises(InputError, match="out/mnli is a run with a prompt of this name"):
        import_reference(source / "mnli.npy", out)


def test_record_and_text(tmp_path: Path) -> None:
    write(tmp_path / "roberta-base" / "imdb.npy")
    record, text = describe_import(import_reference(tmp_path / "roberta-base"), "out")
    assert record == {
        "out": "out",
        "backbone": "roberta-base",
        "rows": 3,
        "width": 768,
        "prompts": {"imdb": {"task": "imdb", "type": "sentiment"}},
    }
    assert text.startswith("1 prompt of roberta-base, 3 rows x 768, row 0 kept apart: imdb\n")
