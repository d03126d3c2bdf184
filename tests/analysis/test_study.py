from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.report.study import commands, order_study, read_study, transfer_pairs, values_at
from tests.analysis.sample_study import (
    INDICATORS,
    ORDERED,
    TASKS,
    write_indicators,
    write_run,
    write_scores,
    write_study,
    write_transfer_facts,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies") / "study")


def test_every_part_is_read(folder: Path) -> None:
    study = read_study(folder)
    assert study.transfer is not None and study.transfer.prompts == (*TASKS, "random")
    assert study.neurons == (4, 4, 6)
    assert study.facts is not None and study.facts.targets["imdb"].rows == 1821
    assert study.facts.random_start == {"seed": "7", "init": "random"}
    assert study.similarities is not None
    overlap = study.similarities.values["neuron_overlap"]
    assert overlap.shape == (4, 4) and overlap[0, 1] == pytest.approx(0.14) and overlap[2, 2] == 1
    assert study.correlations is not None
    assert study.correlations.excluding_in_task["neuron_overlap"].mean_over_targets == 0.6
    assert study.types is not None and study.types.random == 0.4
    assert study.types.similarity["cosine_concat"].n_different == 4


def test_run_is_read(folder: Path) -> None:
    run = read_study(folder).prompts["imdb"]
    assert run.finished and run.metric == "accuracy" and run.score == 0.8125
    assert (run.steps, run.best_step, run.elapsed_s, run.majority) == (40, 40, 12.4, 0.5)
    assert run.curve is not None
    np.testing.assert_array_equal(run.curve.train_loss, [0.7, 0.5])
    np.testing.assert_array_equal(run.curve.score, [0.6, 0.8125])


def test_unfinished_run_is_read_up_to_its_cut_line(tmp_path: Path) -> None:
    write_run(tmp_path / "prompts" / "imdb", "imdb", finished=False)
    run = read_study(tmp_path).prompts["imdb"]
    assert not run.finished and run.metric == "accuracy" and np.isnan(run.score)
    assert run.curve is not None and list(run.curve.steps) == [20, 40]
    assert run.card is not None and run.card.task == "builtin/imdb"


def test_prompt_file_without_a_run_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "imdb")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "run" / "prompt.safetensors").rename(tmp_path / "prompts" / "a.safetensors")
    prompt = read_study(tmp_path).prompts["a"]
    assert prompt.finished and prompt.curve is None and prompt.best_step == 40


def test_order_is_by_type_and_own_pairs_are_the_diagonal(folder: Path) -> None:
    study = read_study(folder)
    layout = order_study(study)
    assert layout.targets == layout.sources == layout.prompts == ORDERED
    assert layout.every == (*ORDERED, "random")
    values = values_at(study.relative, layout.targets, layout.sources)
    np.testing.assert_array_equal(np.diag(values), 1)
    assert layout.prompt_types["random"] == "untrained"


def test_moves_leave_out_own_pairs_and_the_untrained_prompt(folder: Path) -> None:
    study = read_study(folder)
    found = transfer_pairs(study, order_study(study))
    assert len(found) == 12 and all(move.source not in (move.target, "random") for move in found)
    by_pair = {(move.target, move.source): move for move in found}
    assert by_pair["imdb", "sst2"].relative == pytest.approx(0.9)
    assert by_pair["imdb", "sst2"].same_type and not by_pair["imdb", "qnli"].same_type


def test_without_transfer_json_names_tell_own_prompts_and_types(tmp_path: Path) -> None:
    write_scores(tmp_path)
    layout = order_study(read_study(tmp_path))
    assert layout.own == {name: name for name in TASKS}
    assert layout.targets == ORDERED


def test_own_prompt_follows_the_file_not_the_name(tmp_path: Path) -> None:
    write_scores(tmp_path)
    write_transfer_facts(tmp_path, targets={"imdb": {"task": "imdb", "in_task_prompt": "sst2"}})
    assert order_study(read_study(tmp_path)).own == {"imdb": "sst2"}


def test_task_without_a_type_stands_last(tmp_path: Path) -> None:
    text = "target_task,source_prompt,metric,value\nmine,mine,f1,0.5\nimdb,mine,accuracy,0.5\n"
    (tmp_path / "transfer.csv").write_text(text)
    layout = order_study(read_study(tmp_path))
    assert layout.targets == ("imdb", "mine") and layout.target_types["mine"] == "no type"


def test_commands_quote_paths() -> None:
    assert "'my study/prompts'" in commands(Path("my study"))["transfer"]


def test_folder_without_a_study(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="holds no study.*jpt quickstart"):
        read_study(tmp_path)
    with pytest.raises(InputError, match="is not there; give the folder"):
        read_study(tmp_path / "no")
    with pytest.raises(InputError, match="is a file; give the folder"):
        read_study(tmp_path / "a.txt")


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("transfer.json", lambda f: f.write_text("{"), "is not JSON.*line 1"),
    ("transfer.json", lambda f: f.write_text("[]"), r"the whole file is \[\]; an object expected"),
    (
        "transfer.json",
        lambda f: _replace(f, '"majority": 0.5', '"majority": "half"'),
        r"targets.mnli.majority is 'half'; a number expected: make it again with jpt transfer",
    ),
    ("transfer.json", lambda f: _replace(f, '"notes": []', '"notes": [1]'), "a list of texts"),
    ("transfer.json", lambda f: _replace(f, "1821", "true"), "rows is True; a whole number"),
    ("correlation.json", lambda f: f.write_text("{}"), "own_out is None; an object expected"),
    (
        "correlation.json",
        lambda f: f.write_text(json.dumps({"excluding_in_task": {"neuron_overlap": 3}})),
        "own_out.neuron_overlap is 3; an object.*jpt indicators",
    ),
    ("choice.json", lambda f: f.write_text('{"targets": 1}'), "targets is 1; an object.*jpt indic"),
    ("mask.json", lambda f: _replace(f, '"unmasked": 0.8', '"unmasked": "x"'), "unmasked is 'x'"),
    ("mask.json", lambda f: f.write_text('{"layers": [0]}'), "two numbers expected.*jpt mask"),
    ("types.json", lambda f: _replace(f, "0.75", '"x"'), "same_type_mean is 'x'; a number"),
    ("relative.csv", lambda f: f.write_text("a,b\n1,2\n"), "lacks target_task"),
    ("neurons.npz", lambda f: f.write_bytes(b"PK"), "make it with jpt neurons"),
    ("indicators.csv", lambda f: f.write_text("prompt_a,prompt_b,x\n"), "no line; make it again"),
    (
        "indicators.csv",
        lambda f: f.write_text("prompt_a,prompt_b,x\na,b,1\na,b,1\n"),
        "line 3: a and b stand there twice",
    ),
    (
        "indicators.csv",
        lambda f: f.write_text("prompt_a,prompt_b,x\na,b,much\n"),
        "line 2: x is 'much'; a number expected",
    ),
    ("prompts/imdb/result.json", lambda f: f.write_text("nothing"), "is not JSON"),
    ("prompts/imdb/metrics.jsonl", lambda f: f.write_text('{"loss": 1}\n'), "names no step"),
    ("prompts/imdb/metrics.jsonl", lambda f: f.write_text("{a\n"), "line 1 is not JSON"),
    ("prompts/imdb/metrics.jsonl", lambda f: f.write_text('{"step": 1'), "is cut short"),
    ("prompts/imdb/prompt.safetensors", lambda f: f.write_bytes(b"x"), "prompt.safetensors"),
]


@pytest.mark.parametrize(("name", "breaks", "said"), BROKEN)
def test_broken_file_is_named(
    tmp_path: Path, name: str, breaks: Callable[[Path], object], said: str
) -> None:
    write_study(tmp_path)
    breaks(tmp_path / name)
    with pytest.raises(InputError, match=said) as caught:
        read_study(tmp_path)
    assert Path(name).name in str(caught.value) and "\n" not in str(caught.value)


def test_missing_pairs_and_text_columns(tmp_path: Path) -> None:
    (tmp_path / "indicators.csv").write_text("prompt_a,prompt_b,type_a,x\na,b,nli,0.5\n")
    similarities = read_study(tmp_path).similarities
    assert similarities is not None and list(similarities.values) == ["x"]
    np.testing.assert_array_equal(similarities.values["x"], [[np.nan, 0.5], [np.nan, np.nan]])


def test_reference_matrix(reference_folder: Path, tmp_path: Path) -> None:
    source = reference_folder / "reference" / "transfer" / "roberta-base.csv"
    (tmp_path / "transfer.csv").write_bytes(source.read_bytes())
    write_indicators(tmp_path, ("imdb", "sst2"))
    study = read_study(tmp_path)
    layout = order_study(study)
    kinds = [layout.target_types[name] for name in layout.targets]
    assert kinds == ["sentiment"] * 6 + ["nli"] * 4 + ["ethics"] * 2 + ["paraphrase"] * 2
    assert set(study.similarities.values) == set(INDICATORS)
