"""Prompts of the paper's authors, and prompts to PEFT and back."""

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
from jpt.recipes.interop import describe_import, export_peft, import_peft, import_reference
from jpt.types import Prompt, PromptCard
from tests.helpers.running import raises
from tests.prompts.test_interop import write_theirs

pytestmark = pytest.mark.plain_programs

FIXTURES = Path(__file__).parent.parent / "io" / "fixtures"


def write(path: Path, rows: int = 4, width: int = 768, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    np.save(path, values)
    return path


def test_only_encoder_prompts_have_an_unused_row(tmp_path: Path) -> None:
    values = np.load(write(tmp_path / "bert-base" / "movierationales.npy"))
    found = import_reference(tmp_path / "bert-base", tmp_path / "out")["movierationales"]
    stored = load_prompt(tmp_path / "out" / "movierationales.safetensors")
    for prompt in (found, stored):
        np.testing.assert_array_equal(prompt.values, values[1:])
        np.testing.assert_array_equal(prompt.unused_row, values[:1])
        card = prompt.card
        assert (card.backbone, card.task) == ("bert-base-uncased", "movie_rationales")
        assert (card.task_type, card.layout, card.first_position) == ("sentiment", "encoder", 1)
        assert card.source == "thunlp/Prompt-Transferability, bert-base/movierationales.npy"
    values = np.load(write(tmp_path / "t5-small" / "nq_open.npy", width=512))
    found = import_reference(tmp_path / "t5-small" / "nq_open.npy")["nq_open"]
    np.testing.assert_array_equal(found.values, values)
    assert (found.unused_row, found.card.first_position) == (None, None)
    assert (found.card.layout, found.card.task_type) == ("encoder_decoder", "qa")


def test_random_prompts_and_unknown_tasks(tmp_path: Path) -> None:
    card = import_reference(write(tmp_path / "roberta-base" / "random.npy"))["random"].card
    assert (card.task, card.task_type, card.init) == ("random", None, "uniform")
    write(tmp_path / "roberta-base" / "mine.npy")
    found = import_reference(tmp_path / "roberta-base")
    assert (found["mine"].card.task, found["mine"].card.task_type) == ("mine", None)
    assert "mine, random: unknown task type" in describe_import(found, "out")[1]


def test_folders_of_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = recipe.REFERENCE_BACKBONES.items()
    small = {name: dataclasses.replace(model, width=4) for name, model in models}
    monkeypatch.setattr(recipe, "REFERENCE_BACKBONES", small)
    for name in ("IMDBPromptRoberta", "ethicsjustice_trainedPromptRoberta", "IMDBPromptT5"):
        (tmp_path / name).mkdir()
        shutil.copy(FIXTURES / "parameter_zip.bin", tmp_path / name / "task_prompt")
    raises(import_reference, tmp_path, tmp_path / "out", match=r"2 of roberta-base, 1 of t5-base")
    found = import_reference(tmp_path, tmp_path / "out", "FacebookAI/roberta-base")
    tasks = {"IMDBPromptRoberta": "imdb", "ethicsjustice_trainedPromptRoberta": "justice"}
    assert {name: prompt.card.task for name, prompt in found.items()} == tasks
    assert {prompt.card.backbone for prompt in found.values()} == {"FacebookAI/roberta-base"}
    assert list(list_prompts(tmp_path / "out")) == list(found)
    with pytest.raises(InputError, match="of t5-small, only of roberta-base"):
        import_reference(tmp_path, backbone="t5-small")


ALIASES = {"bert-base": "bert-base-uncased", "T5": "t5-base", "gpt2": None, "": None}
ALIASES |= {"roberta-large__run_b": "roberta-large", "RobertaLarge": "roberta-large"}
SAME = ("roberta-base", "bert-base-uncased", "google-t5/t5-small", "/models/bert-base-uncased/")


@pytest.mark.parametrize(("text", "name"), [*ALIASES.items(), *zip(SAME, SAME, strict=True)])
def test_names_of_backbones(text: str, name: str | None) -> None:
    found = recipe.reference_backbone(text)
    assert (found and found.name) == name


def test_backbone_is_never_guessed(tmp_path: Path) -> None:
    file, out = write(tmp_path / "prompts" / "sst2.npy"), tmp_path / "out"
    raises(import_reference, file.parent, out, match=r"unknown .* \(prompts\); give --backbone")
    with pytest.raises(InputError, match="gpt2; known: bert-base, roberta-base, roberta"):
        import_reference(file, out, "gpt2")
    with pytest.raises(InputError, match="width 1024 for roberta-large, got 768"):
        import_reference(file, out, "roberta-large")
    assert not out.exists()
    assert import_reference(file, backbone="roberta-base")["sst2"].card.backbone == "roberta-base"


def test_broken_prompts_write_nothing(tmp_path: Path) -> None:
    file, out = write(tmp_path / "roberta-base" / "sst2.npy", rows=1), tmp_path / "out"
    raises(import_reference, file, match="got 1, which roberta-base does not read")
    write(tmp_path / "roberta-base" / "imdb.npy")
    file.write_bytes(b"broken")
    raises(import_reference, file.parent, out, match="sst2.npy: expected a numeric .npy array")
    assert not out.exists()


def test_existing_prompts_are_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "roberta-base", tmp_path / "out"
    write(source / "imdb.npy")
    import_reference(source, out)
    before = (out / "imdb.safetensors").stat().st_mtime_ns
    write(source / "sst2.npy", seed=1)
    import_reference(source, out)  # the same one, and a new one
    assert (out / "imdb.safetensors").stat().st_mtime_ns == before
    assert list(list_prompts(out)) == ["imdb", "sst2"]
    write(source / "sst2.npy", seed=2)
    write(source / "mnli.npy", seed=3)
    raises(import_reference, source, out, match="sst2.safetensors exists and differs")
    with pytest.raises(InputError, match="imdb.* exists and differs"):
        import_reference(source / "imdb.npy", out, "bert-base")
    assert list(list_prompts(out)) == ["imdb", "sst2"]
    (out / "mnli").mkdir()
    prompt = load_prompt(out / "imdb.safetensors")
    save_prompt(out / "mnli" / "prompt.safetensors", prompt)
    raises(import_reference, source / "mnli.npy", out, match="out/mnli is a run folder")


def test_record_and_text(tmp_path: Path) -> None:
    write(tmp_path / "roberta-base" / "imdb.npy")
    record, text = describe_import(import_reference(tmp_path / "roberta-base"), "out")
    prompts = {"imdb": {"task": "imdb", "type": "sentiment"}}
    fields = {"out": "out", "backbone": "roberta-base", "rows": 3, "width": 768}
    assert record == {**fields, "prompts": prompts}
    start = "1 prompt of roberta-base, 3 rows x 768, row 0 stored separately: imdb\n"
    assert text.startswith(start)


GPT2, T5 = "builtin/gpt2-mini", "builtin/t5-mini"


def prompt_of(backbone: str = GPT2, layout: str = "decoder", rows: int = 6, width: int = 128):
    values = np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)
    card = PromptCard(backbone, "builtin/imdb", "sentiment", layout, seed=1, score=1 / 3)
    return Prompt(values, card)


def theirs(folder: Path, **changes: Any) -> Path:
    table = np.arange(8 * 128, dtype=np.float32).reshape(8, 128)
    fields = {"num_virtual_tokens": 4, "token_dim": 128, **changes}
    return write_theirs(folder, {"prompt_embeddings": table}, **fields)


@pytest.mark.parametrize(("backbone", "layout"), [(GPT2, "decoder"), (T5, "encoder_decoder")])
def test_export_and_import_give_the_same_file(tmp_path: Path, backbone: str, layout: str) -> None:
    save_prompt(tmp_path / "p.safetensors", prompt_of(backbone, layout))
    exported = export_peft(tmp_path / "p.safetensors", tmp_path / "adapters" / "a")
    assert exported.record["rows"] == 6 and exported.record["layout"] == layout
    config = json.loads((tmp_path / "adapters" / "a" / "adapter_config.json").read_text())
    assert (config["num_attention_heads"], config["num_layers"]) == (4, 4)
    assert config["base_model_name_or_path"] == backbone
    import_peft(tmp_path / "adapters" / "a", tmp_path / "new" / "q.safetensors")
    imported = (tmp_path / "new" / "q.safetensors").read_bytes()
    assert imported == (tmp_path / "p.safetensors").read_bytes()


def test_equal_files_are_accepted_and_others_never_replaced(tmp_path: Path) -> None:
    adapter, file = tmp_path / "a", tmp_path / "q.safetensors"
    for _ in range(2):
        export_peft(prompt_of(), adapter)
        import_peft(adapter, file)
    before = [path.read_bytes() for path in (*sorted(adapter.iterdir()), file)]
    other = Prompt(prompt_of().values + 1, prompt_of().card)
    raises(export_peft, other, adapter, match="has another adapter")
    raises(export_peft, prompt_of(), adapter, backbone="gpt2", match="has another adapter")
    export_peft(other, tmp_path / "b")
    raises(import_peft, tmp_path / "b", file, match="has another prompt")
    assert before == [path.read_bytes() for path in (*sorted(adapter.iterdir()), file)]


def test_encoders_and_invalid_file_names_are_refused(tmp_path: Path) -> None:
    bert = "builtin/bert-small"
    with pytest.raises(InputError, match=r"bert-small, an encoder: .*\[MASK\] and \[CLS\]"):
        export_peft(prompt_of(bert, "encoder"), tmp_path)
    with pytest.raises(InputError, match="layout encoder_decoder, but builtin/bert"):
        import_peft(theirs(tmp_path / "t5"), backbone=bert)
    with pytest.raises(InputError, match="file name, .*prompts.safetensors"):
        import_peft(tmp_path / "t5", tmp_path / "prompts", backbone=T5)


def test_sizes_are_compared_with_the_backbone(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with pytest.raises(InputError, match="width 96, but builtin/gpt2-mini has width 128"):
        export_peft(prompt_of(width=96), out)
    with pytest.raises(InputError, match="129 rows, but builtin/gpt2-mini has 128 positions"):
        export_peft(prompt_of(rows=129), out)
    raises(export_peft, prompt_of(), out, backbone=T5, match="layout decoder, but builtin/t5-mini")
    assert not out.exists()
    file = tmp_path / "p.safetensors"
    wide = write_theirs(tmp_path / "wide")  # 4 wide
    with pytest.raises(InputError, match="width 4, but builtin/t5-mini has width 128"):
        import_peft(wide, file, backbone=T5)
    assert not file.exists()


def test_a_foreign_adapter_gets_a_card(tmp_path: Path) -> None:
    found = import_peft(theirs(tmp_path / "mood"), backbone=T5)
    card = found.prompt.card
    assert (card.backbone, card.task, card.layout) == (T5, "unknown", "encoder_decoder")
    assert card.source == "peft:mood"
    assert found.notes[0].startswith("imported the first 4 of 8 rows")
    assert "--task" in found.notes[-1]
    named = import_peft(tmp_path / "mood", backbone=T5, task="builtin/rotten_tomatoes")
    card = named.prompt.card
    assert (card.task, card.task_type) == ("builtin/rotten_tomatoes", "sentiment")
    assert len(named.notes) == 1
    other = import_peft(tmp_path / "mood", backbone=T5, task="twitter_complaints")
    assert "unknown task twitter_complaints" in other.notes
    assert max(len(line) for line in other.describe().splitlines()) <= 80


def test_a_remote_base_model_is_not_fetched_unasked(tmp_path, monkeypatch):
    def fetch(*names: object, **options: object) -> None:
        raise AssertionError("nobody asked for the network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = import_peft(theirs(tmp_path / "a"))
    assert found.prompt.card.backbone == "google/t5-v1_1-small"
    assert "width not checked: google/t5-v1_1-small" in found.notes[1]
    elsewhere = theirs(tmp_path / "b", base_model_name_or_path="/home/somebody/models/t5")
    raises(import_peft, elsewhere, match="models/t5, which is not a folder; give its backbone")
    nameless = theirs(tmp_path / "c", base_model_name_or_path=None)
    raises(import_peft, nameless, match="no base model; give its backbone with --backbone")
    with pytest.raises(InputError, match="no/such/place is neither .* nor a hub id"):
        import_peft(nameless, backbone="no/such/place")


def test_requested_hub_ids_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # Only the config: checking a width needs no weights.
    assert asked == [("somebody/mood-prompt", ["adapter_*"]), ("somebody/t5", "config.json")]

    def fetch(*names: object, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    match = r"'some/t5' .* could not be fetched .*\(no route\)"
    raises(import_peft, theirs(tmp_path / "a"), backbone="some/t5", match=match)


def test_a_backbone_in_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(BUILTIN / "t5-mini" / "config.json", tmp_path / "model")
    folder = theirs(tmp_path / "a", base_model_name_or_path=str(tmp_path / "model"))
    found = import_peft(folder, tmp_path / "p.safetensors", task="sst2")
    assert load_prompt(tmp_path / "p.safetensors").card.backbone == str(tmp_path / "model")
    assert found.notes == found.notes[:1], "its width was checked"
