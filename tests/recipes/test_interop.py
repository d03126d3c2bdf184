"""DOC"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from jpt.backbones.registry import BUILTIN
from jpt.errors import InputError
from jpt.prompts.store import list_prompts, load_prompt, save_prompt
from jpt.recipes import interop as recipe
from jpt.recipes.interop import (
    describe_import,
    export_peft,
    import_peft,
    import_reference,
    reference_backbone,
)
from jpt.types import Prompt, PromptCard
from tests.prompts.test_interop import write_theirs

# --- import reference

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
    with pytest.raises(InputError, match="sst2.npy: expected a numeric .npy array"):
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


# --- peft

GPT2, T5 = "builtin/gpt2-mini", "builtin/t5-mini"


def prompt_of(backbone: str = GPT2, layout: str = "decoder", rows: int = 6, width: int = 128):
    values = np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)
    card = PromptCard(backbone, "builtin/imdb", "sentiment", layout, seed=1, score=1 / 3)
    return Prompt(values, card)


def theirs(folder: Path, **changes: Any) -> Path:
    """A table of 2 x 4 rows that PEFT tuned on a model 128 wide."""
    table = np.arange(8 * 128, dtype=np.float32).reshape(8, 128)
    fields = {"num_virtual_tokens": 4, "token_dim": 128, **changes}
    return write_theirs(folder, {"prompt_embeddings": table}, **fields)


@pytest.mark.plain_programs
@pytest.mark.parametrize(("backbone", "layout"), [(GPT2, "decoder"), (T5, "encoder_decoder")])
def test_there_and_back_gives_the_same_file(tmp_path: Path, backbone: str, layout: str) -> None:
    save_prompt(tmp_path / "p.safetensors", prompt_of(backbone, layout))
    told = export_peft(tmp_path / "p.safetensors", tmp_path / "adapters" / "a")
    assert told.record["rows"] == 6 and told.record["layout"] == layout
    config = json.loads((tmp_path / "adapters" / "a" / "adapter_config.json").read_text())
    assert (config["num_attention_heads"], config["num_layers"]) == (4, 4)
    assert config["base_model_name_or_path"] == backbone
    import_peft(tmp_path / "adapters" / "a", tmp_path / "new" / "q.safetensors")
    written = (tmp_path / "new" / "q.safetensors").read_bytes()
    assert written == (tmp_path / "p.safetensors").read_bytes()


@pytest.mark.plain_programs
def test_the_same_again_is_no_fault_and_another_is_never_written_over(tmp_path: Path) -> None:
    adapter, file = tmp_path / "a", tmp_path / "q.safetensors"
    for _ in range(2):
        export_peft(prompt_of(), adapter)
        import_peft(adapter, file)
    before = [path.read_bytes() for path in (*sorted(adapter.iterdir()), file)]
    other = Prompt(prompt_of().values + 1, prompt_of().card)
    with pytest.raises(InputError, match="holds another adapter"):
        export_peft(other, adapter)
    with pytest.raises(InputError, match="holds another adapter"):
        export_peft(prompt_of(), adapter, backbone="gpt2")
    export_peft(other, tmp_path / "b")
    with pytest.raises(InputError, match="is another prompt"):
        import_peft(tmp_path / "b", file)
    assert before == [path.read_bytes() for path in (*sorted(adapter.iterdir()), file)]


@pytest.mark.plain_programs
def test_encoders_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bert-small, an encoder: .*\[MASK\] and \[CLS\]"):
        export_peft(prompt_of("builtin/bert-small", "encoder"), tmp_path / "a")
    with pytest.raises(InputError, match="layout encoder_decoder, but builtin/bert-small"):
        import_peft(theirs(tmp_path / "t5"), backbone="builtin/bert-small")


@pytest.mark.plain_programs
def test_sizes_are_held_against_the_backbone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="96 wide, but builtin/gpt2-mini is 128 wide"):
        export_peft(prompt_of(width=96), tmp_path / "a")
    with pytest.raises(InputError, match="129 rows, but builtin/gpt2-mini only 128 positions"):
        export_peft(prompt_of(rows=129), tmp_path / "a")
    with pytest.raises(InputError, match="layout decoder, but builtin/t5-mini"):
        export_peft(prompt_of(), tmp_path / "a", backbone=T5)
    assert not (tmp_path / "a").exists()
    wide = write_theirs(tmp_path / "wide")  # 4 wide
    with pytest.raises(InputError, match="4 wide, but builtin/t5-mini is 128 wide"):
        import_peft(wide, tmp_path / "p.safetensors", backbone=T5)
    assert not (tmp_path / "p.safetensors").exists()


@pytest.mark.plain_programs
def test_a_foreign_adapter_gets_a_card(tmp_path: Path) -> None:
    found = import_peft(theirs(tmp_path / "mood"), backbone=T5)
    card = found.prompt.card
    assert (card.backbone, card.task, card.layout) == (T5, "unknown", "encoder_decoder")
    assert card.source == "peft:mood"
    assert found.notes[0].startswith("the first 4 of 8 rows")
    assert "--task" in found.notes[-1]
    named = import_peft(tmp_path / "mood", backbone=T5, task="builtin/rotten_tomatoes")
    assert (named.prompt.card.task, named.prompt.card.task_type) == (
        "builtin/rotten_tomatoes",
        "sentiment",
    )
    assert len(named.notes) == 1
    other = import_peft(tmp_path / "mood", backbone=T5, task="twitter_complaints")
    assert "twitter_complaints is no task that jpt knows" in other.notes
    assert max(len(line) for line in other.describe().splitlines()) <= 80


@pytest.mark.plain_programs
def test_a_base_model_that_is_not_here_is_named_but_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*names: object, **options: object) -> None:
        raise AssertionError("nobody asked for the network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = import_peft(theirs(tmp_path / "a"))
    assert found.prompt.card.backbone == "google/t5-v1_1-small"
    assert "not held against google/t5-v1_1-small" in found.notes[1]
    elsewhere = theirs(tmp_path / "b", base_model_name_or_path="/home/somebody/models/t5")
    with pytest.raises(InputError, match="models/t5, which is no folder here; name its backbone"):
        import_peft(elsewhere)
    nameless = theirs(tmp_path / "c", base_model_name_or_path=None)
    with pytest.raises(InputError, match="names no base model; name its backbone by --backbone"):
        import_peft(nameless)
    with pytest.raises(InputError, match="no/such/place is no folder here and no hub id"):
        import_peft(nameless, backbone="no/such/place")


@pytest.mark.plain_programs
def test_hub_ids_that_were_asked_for_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch_file(hub_id: str, name: str) -> str:
        asked.append((hub_id, name))
        return str(BUILTIN / "t5-mini" / name)

    def fetch_all(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(theirs(tmp_path / "snapshot-1234"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch_all)
    card = import_peft("somebody/mood-prompt", backbone="somebody/t5").prompt.card
    assert (card.backbone, card.source) == ("somebody/t5", "peft:somebody/mood-prompt")
    # The config alone: no weights are needed to hold a width against them.
    assert asked == [("somebody/mood-prompt", ["adapter_*"]), ("somebody/t5", "config.json")]


@pytest.mark.plain_programs
def test_a_failed_fetch_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(*names: object, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(InputError, match=r"'some/t5' .* could not be fetched .*\(no route\)"):
        import_peft(theirs(tmp_path / "a"), backbone="some/t5")


@pytest.mark.plain_programs
def test_a_backbone_in_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(BUILTIN / "t5-mini" / "config.json", tmp_path / "model")
    folder = theirs(tmp_path / "a", base_model_name_or_path=str(tmp_path / "model"))
    found = import_peft(folder, tmp_path / "p.safetensors", task="sst2")
    assert load_prompt(tmp_path / "p.safetensors").card.backbone == str(tmp_path / "model")
    assert found.notes == found.notes[:1], "its width was held against the folder's"


@pytest.mark.plain_programs
def test_the_name_of_the_out_file_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name of a file, for instance .*prompts.safetensors"):
        import_peft(theirs(tmp_path / "a"), tmp_path / "prompts", backbone=T5)
