"""The hub: the slices that are asked for, on a local data set, and what is said without network."""

import dataclasses
import json
from pathlib import Path

import pytest

from jpt.data.hub import describe_hub_split, read_hub_rows
from jpt.data.sources import read_rows
from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import HubSource


@pytest.fixture
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_slices_fields_and_class_numbers(tmp_path: Path, quiet_cache: None) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("train", "test"):
        rows = [{"sentence": f"{name} {i}", "label": i % 2, "idx": i} for i in range(10)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    hub = HubSource(
        path=str(folder),
        config=None,
        splits={"train": "train[2:-2]", "validation": "train[:2]+train[-2:]", "test": "test"},
        labels=("negative", "positive"),
        fields={"text": "sentence"},
    )
    task = dataclasses.replace(CATALOG["sst2"], hub=hub)
    texts = {s: [row["text"] for row in read_rows(task, s)] for s in hub.splits}
    assert texts["train"] == [f"train {i}" for i in range(2, 8)]
    assert texts["validation"] == ["train 0", "train 1", "train 8", "train 9"]
    assert texts["test"] == [f"test {i}" for i in range(10)]
    assert [row["label"] for row in read_rows(task, "train")][:2] == ["negative", "positive"]


def test_without_network_a_folder_is_asked_for(quiet_cache: None) -> None:
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    with pytest.raises(InputError, match="nyu-mll/glue qqp .*test.jsonl .*--data DIR") as caught:
        list(read_hub_rows(CATALOG["qqp"], "test"))
    assert "sentence1, sentence2, label" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == before


def test_parts_of_the_hub_have_a_short_name() -> None:
    assert describe_hub_split(CATALOG["mnli"].hub, "test") == "nyu-mll/glue mnli validation_matched"
    assert describe_hub_split(CATALOG["imdb"].hub, "test") == "stanfordnlp/imdb test"
