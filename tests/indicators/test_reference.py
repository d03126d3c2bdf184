"""Indicators and correlations of the released prompts equal stored figures.

The figures come from plain loops over ordered pairs in float64 (see the reference's README).
"""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jpt.indicators.correlation import correlate, study_indicators
from jpt.indicators.indicators import (
    EMBEDDING_INDICATORS,
    Indicators,
    compute_indicators,
    neuron_similarities,
    read_indicators,
)
from jpt.io.files import read_table
from jpt.recipes.interop import import_reference
from jpt.types import Activations, Prompt

BACKBONES = ("bert-base", "roberta-base", "t5-base")
PAPER_TASKS = (
    "imdb sst2 laptop restaurant movierationales tweetevalsentiment mnli qnli snli"
    " ethicsdeontology ethicsjustice qqp mrpc"
).split()

# A similarity matrix has every value twice, at (a, b) and (b, a). Here both are equal and share a
# rank. In the loops behind the pooled figures they differ randomly in the last digit, and so do the
# ranks. Only euclidean_concat, and cosine_concat without its diagonal, agree to 1e-6; the others
# are compared with the distribution that random tie-breaking of our values gives.
RESAMPLES = 40


class Study:
    def __init__(self, reference: Path, backbone: str, folder: Path) -> None:
        self.reference = reference / "reference"
        self.backbone = backbone
        self.prompts = import_reference(self.reference / "prompts" / backbone, folder / "prompts")
        self.matrix = self.reference / "transfer" / f"{backbone}.csv"
        transfer = self.matrix if self.matrix.exists() else None
        self.study = study_indicators(folder / "prompts", folder, transfer=transfer)
        self.found = read_indicators(folder / "indicators.csv", folder / "prompts")
        self.types = json.loads((folder / "types.json").read_text())
        self.has_row0 = backbone.startswith(("bert", "roberta"))
        figures = json.loads((self.reference / "expected.json").read_text())
        self.expected: dict[str, Any] = figures["backbones"].get(backbone)

    def ours(self, name: str) -> str | None:
        """Return our name of a reference column; in the reference, row 0 is the default."""
        plain = name.removesuffix("_skip0")
        if not self.has_row0:
            return plain if name == plain else None
        return plain if name != plain else f"{plain}_with_row0"


@pytest.fixture(scope="module")
def case(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp
    return cache(lambda backbone: Study(reference_folder, backbone, folder(backbone)))


def assert_pairs(case: Study, found: Indicators, names: dict[str, str]) -> None:
    rows = read_table(case.reference / "indicators" / f"{case.backbone}.csv", ["prompt_a"])
    assert len(rows) == case.expected["n_prompts"] ** 2
    for row in rows:
        for theirs, ours in names.items():
            value = found.value(ours, row["prompt_a"], row["prompt_b"])
            assert value == pytest.approx(float(row[theirs]), rel=1e-6, abs=1e-8), (row, theirs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pairs_and_similarity_by_type(case: Any, backbone: str) -> None:
    one = case(backbone)
    columns = [f"{name}{end}" for name in EMBEDDING_INDICATORS for end in ("", "_skip0")]
    assert_pairs(one, one.found, {name: ours for name in columns if (ours := one.ours(name))})
    one = case(backbone)
    for theirs, means in one.expected["similarity_by_type"].items():
        if ours := one.ours(theirs):
            assert one.types["similarity_by_type"][ours] == pytest.approx(means, abs=1e-6), theirs


def test_pairs_of_t5_without_row_0(case: Any) -> None:
    one = case("t5-base")
    split = {
        name: Prompt(prompt.values[1:], prompt.card, prompt.values[:1])
        for name, prompt in one.prompts.items()
    }
    names = {f"{name}_skip0": name for name in EMBEDDING_INDICATORS}
    assert_pairs(one, compute_indicators(split), names)


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_transfer_by_type(case: Any, backbone: str) -> None:
    one = case(backbone)
    expected = one.expected["relative_transfer"]
    found = one.types["relative_transfer"]
    assert found["best_other_source"] == expected.pop("best_other_source")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for target, means in one.expected["relative_by_type"].items():
        assert one.types["relative_by_type"][target] == pytest.approx(means, abs=1e-6)


@pytest.mark.parametrize("table", ["including_in_task", "excluding_in_task"])
@pytest.mark.parametrize("tasks", ["all", "paper_tasks"])
@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_spearman(case: Any, backbone: str, tasks: str, table: str) -> None:
    one = case(backbone)
    # T5's targets are all of the paper; one of RoBERTa's is not.
    restrict = tasks == "paper_tasks" and backbone == "roberta-base"
    correlation = correlate(one.found, one.matrix, tasks=PAPER_TASKS if restrict else None)
    part = "with_self" if table == "including_in_task" else "without_self"
    for theirs, expected in one.expected["spearman"][f"{tasks}__{part}"].items():
        if not (ours := one.ours(theirs)):
            continue
        found = correlation.record[table][ours]
        assert found["per_target"] == pytest.approx(expected["per_target"], abs=1e-6), theirs
        assert found["n_targets"] == expected["n_targets"]
        assert found["mean_over_targets"] == pytest.approx(expected["mean_over_targets"], abs=1e-6)
        exact = theirs.startswith("euclidean_concat") or (
            theirs.startswith("cosine_concat") and table == "excluding_in_task"
        )
        for pooled in ("pooled_relative", "pooled_raw"):
            if exact:
                assert found[pooled] == pytest.approx(expected[pooled], abs=1e-6)
            else:
                samples = [record[table][ours][pooled] for record in resample(one, restrict)]
                mean, limit = np.mean(samples), 4 * np.std(samples)
                assert abs(expected[pooled] - mean) < limit, (theirs, pooled)
                assert abs(found[pooled] - mean) < limit < 6e-3


@cache
def resample(one: Study, restrict: bool) -> list[dict[str, Any]]:
    """Return correlations with random last digits, so that there are no ties."""
    random, records = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        columns = {
            name: values * (1 + 1e-13 * random.standard_normal(values.shape))
            for name, values in one.found.columns.items()
        }
        found = dataclasses.replace(one.found, columns=columns)
        tasks = PAPER_TASKS if restrict else None
        records.append(correlate(found, one.matrix, tasks=tasks).record)
    return records


@pytest.mark.parametrize(("backbone", "count"), [("roberta-large", 13), ("t5-small", 17)])
def test_backbones_without_stored_figures(case: Any, backbone: str, count: int) -> None:
    one = case(backbone)
    assert one.study.correlation.including_in_task["cosine_average"].n_targets == count
    assert one.types["relative_transfer"]["same_type_mean"] > 0.7
    fewer = correlate(one.found, one.matrix, tasks=PAPER_TASKS[:6])
    assert fewer.excluding_in_task["cosine_average"].n_targets == 6
    means = one.types["similarity_by_type"]
    same = [means[one.ours(name)]["same_type_mean"] for name in EMBEDDING_INDICATORS]
    expected = {
        "roberta-large": [0.0947, 0.4160, 0.4586, 0.0125],
        "t5-small": [0.0023, 0.0198, 0.2698, 0.0467],
    }
    assert same == pytest.approx(expected[backbone], abs=5e-5)


def test_diverged_prompts_are_only_extreme(reference_folder: Path) -> None:
    folder = reference_folder / "reference/prompts/variants/roberta-base__projected_base_emotion"
    for name, matrix in compute_indicators(import_reference(folder)).columns.items():
        assert np.isfinite(matrix).all(), name
        np.testing.assert_array_equal(matrix, matrix.T)


@pytest.fixture(scope="module")
def steps(reference_folder: Path) -> Activations:
    file = reference_folder / "reference" / "neurons" / "t5-xxl-qqp-snli-steps.npz"
    with np.load(file) as arrays:
        names, values = [], []
        for task in ("qqp", "snli"):
            bits = np.unpackbits(arrays[f"{task}_wi0_positive_packed"][:17], axis=1)
            names += [f"{task}_{step}" for step in arrays[f"{task}_steps"][:17]]
            values.append(bits.reshape(17, 24, 10240))
    return Activations(tuple(names), np.concatenate(values).astype(np.float32))


def test_overlap_of_t5_xxl(reference_folder: Path, steps: Activations) -> None:
    figures = json.loads((reference_folder / "reference" / "expected.json").read_text())
    expected = figures["t5_xxl_on_qqp_vs_snli"]
    found, notes = neuron_similarities(steps)
    assert notes == [] and steps.names[:17] == tuple(f"qqp_{step}" for step in expected["steps"])
    pairs = range(17), range(17, 34)
    for ours, theirs in (
        ("neuron_overlap", "on_layers_21_23"),
        ("neuron_overlap_layers_21_23", "on_layers_21_23"),
        ("neuron_overlap_all", "on_all_24_layers"),
    ):
        np.testing.assert_allclose(found[ours][pairs], expected["wi0"][theirs], atol=1e-6)
    for layers, value in expected["wi0_last_common_step_on_by_3_layer_block"].items():
        first, last = layers.split("-")
        column = found[f"neuron_overlap_layers_{first}_{last}"]
        assert column[16, 33] == pytest.approx(value, abs=1e-6), layers
