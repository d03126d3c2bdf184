"""Small functions and branches, room by room, that no test of a larger thing reaches."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import load_backbone
from jpt.data.encode import EncodedSplit
from jpt.data.rows import read_texts
from jpt.distributed import largest
from jpt.errors import InputError
from jpt.prompts.arithmetic import choose_parts
from jpt.recipes.check import run_check
from jpt.recipes.library import short
from jpt.recipes.sweep_ray import NodeNotes, check_address
from jpt.report.findings import UNKNOWN, duration
from jpt.report.report import methods_list
from jpt.tasks.catalog import load_task
from jpt.transfer.projector import mean_norm
from jpt.transfer.warm_start import source_name
from jpt.tuning.bound_task import score_logits
from jpt.tuning.evaluate import prediction_lines
from jpt.tuning.multi_run import SlotSchedule
from jpt.tuning.run_dir import RunFolder
from jpt.types import Prompt, PromptCard


def test_a_lone_process_has_the_largest_number() -> None:
    assert largest(3) == 3


def test_texts_of_a_builtin_task_come_without_its_labels() -> None:
    rows, truth = (read(load_task("builtin/imdb"), "test") for read in (read_texts, jpt.read_rows))
    assert [row["text"] for row in rows] == [row["text"] for row in truth]
    assert {row["label"] for row in rows} == {"negative"} < {row["label"] for row in truth}


def test_parts_of_given_prompts_come_in_the_order_of_the_names() -> None:
    one = Prompt(np.ones((2, 3), np.float32), PromptCard("bert", "sst2"))
    prompts = {name: one for name in "abc"}
    assert list(choose_parts(prompts, ["c", "a"])) == ["c", "a"]
    assert list(choose_parts(prompts, None)) == ["a", "b", "c"]
    with pytest.raises(InputError, match="d"):
        choose_parts(prompts, ["d"])


def test_a_row_of_predictions_has_names_and_log_probabilities() -> None:
    task = load_task("builtin/imdb")
    score = score_logits(np.array([[0.0, 2.0]]), np.array([0]), task.labels, "accuracy")
    split = EncodedSplit(np.zeros(0, np.int32), np.array([0, 0]), np.array([0], np.int32), 0)
    (line,) = prediction_lines(score, split, task)
    assert (line["row"], line["prediction"], line["label"]) == (0, "positive", "negative")
    expected = np.log(np.exp([0, 2]) / np.exp([0, 2]).sum())
    assert list(line["log_probs"].values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_slot_is_empty_after_its_last_run() -> None:
    schedule = SlotSchedule((("long",), ("short", "next")), {"long": 5, "short": 2, "next": 1})
    assert schedule.at(3) == [("long", 3), ("next", 1)]
    assert schedule.at(5) == [("long", 5), None]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {"seed": 1})
    (folder.path / ".lock").touch()
    folder.tidy()
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_mean_norm_is_that_of_the_word_embeddings() -> None:
    backbone = load_backbone("builtin/bert-small")
    words = np.asarray(jax.device_get(backbone.params["embeddings"]["word"]), np.float64)
    assert mean_norm(backbone) == pytest.approx(np.sqrt((words**2).sum(1)).mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("source", "name"),
    [("prompts/imdb.safetensors", "imdb"), ("runs/rt/prompt.safetensors", "rt"), ("runs/rt", "rt")],
)
def test_a_source_is_named_like_its_file_or_run(source: str, name: str) -> None:
    assert source_name(source) == name


def test_durations_and_methods_of_the_report() -> None:
    times = [duration(seconds) for seconds in (74.71, 300, 9000, float("nan"))]
    assert times == ["75 s", "5 min 0 s", "2 h 30 min", UNKNOWN]
    assert methods_list([]) is None and "Su et al." in str(methods_list(["One."]))


def test_numbers_of_a_listing_are_short() -> None:
    values = (0.98765, 12.3456, 123456.0, float("nan"))
    assert [short(value) for value in values] == ["0.988", "12.3", "1e+05", "-"]


def test_notes_of_lost_nodes_come_without_dumps() -> None:
    lines: list[str] = []
    NodeNotes(lines.append).write("A node is lost:\n    [state-dump]\n\n")
    assert lines == ["A node is lost:"]
    check_address(None)  # Ray looks for a cluster itself
    with pytest.raises(InputError, match="HOST:PORT"):
        check_address("head")


@pytest.mark.plain_programs
def test_check_reports_the_installation_and_a_trial_run() -> None:
    record, text = run_check()
    assert record["ok"] and record["jpt"] == jpt.__version__ and jax.__version__ in text
    with pytest.raises(InputError, match="--backbone"):
        run_check(task="builtin/imdb")
