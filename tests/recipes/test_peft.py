"""Prompts to PEFT and back: backbones held against them, cards, and nothing written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from jpt.backbones.registry import BUILTIN
from jpt.errors import InputError
from jpt.prompts.store import load_prompt, save_prompt
from jpt.recipes.interop import export_peft, import_peft
from jpt.types import Prompt, PromptCard
from tests.prompts.test_peft_files import write_theirs

pytestmark = pytest.mark.usefixtures("plain_programs")

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


def test_encoders_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bert-small, an encoder: .*\[MASK\] and \[CLS\]"):
        export_peft(prompt_of("builtin/bert-small", "encoder"), tmp_path / "a")
    with pytest.raises(InputError, match="layout encoder_decoder, but builtin/bert-small"):
        import_peft(theirs(tmp_path / "t5"), backbone="builtin/bert-small")


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


def test_a_failed_fetch_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(*names: object, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(InputError, match=r"'some/t5' .* could not be fetched .*\(no route\)"):
        import_peft(theirs(tmp_path / "a"), backbone="some/t5")


def test_a_backbone_in_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(BUILTIN / "t5-mini" / "config.json", tmp_path / "model")
    folder = theirs(tmp_path / "a", base_model_name_or_path=str(tmp_path / "model"))
    found = import_peft(folder, tmp_path / "p.safetensors", task="sst2")
    assert load_prompt(tmp_path / "p.safetensors").card.backbone == str(tmp_path / "model")
    assert found.notes == found.notes[:1], "its width was held against the folder's"


def test_the_name_of_the_out_file_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name of a file, for instance .*prompts.safetensors"):
        import_peft(theirs(tmp_path / "a"), tmp_path / "prompts", backbone=T5)
