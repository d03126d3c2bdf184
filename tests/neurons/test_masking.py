"""Masking studies, the command, and masks in the models."""

import csv
import dataclasses
import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.errors import InputError
from jpt.neurons import masking
from jpt.neurons.masking import MaskStudy
from jpt.testing import tiny_batch, tiny_model, write_tiny_backbone
from jpt.tuning import losses
from jpt.tuning.losses import NO_TOKEN, Answer, NeuronMask, neuron_shape
from jpt.types import Activations, Parameters
from tests.helpers.golden import FAST_COMPILE, difference
from tests.helpers.running import raises, type_command
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

QUICK = {"eval_batch_size": 16, "max_tokens": 16, "mesh": "data:1"}
KINDS = ("none", "in_task", "random", "other", "common", "specific")


def write_named_task(folder: Path, name: str, kind: str) -> Path:
    write_task(folder)
    toml = (folder / "task.toml").read_text().replace('"mood"', f'"{name}"')
    (folder / "task.toml").write_text(toml.replace('"sentiment"', f'"{kind}"'))
    return folder


def prompt_of(model: str, task: Path, kind: str, seed: int, layout: str) -> jpt.Prompt:
    values = np.random.default_rng(seed).normal(0, 1, (4, 32)).astype(np.float32)
    return jpt.Prompt(values, jpt.PromptCard(model, str(task), kind, layout))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_tiny_backbone(folder / "bert", "bert")
    (folder / "prompts").mkdir()
    for seed, (name, kind) in enumerate({"calm": "mood", "glad": "mood", "true": "fact"}.items()):
        task = write_named_task(folder / name, name, kind)
        prompt = prompt_of(str(folder / "bert"), task, kind, seed, "encoder")
        jpt.save_prompt(folder / "prompts" / f"{name}.safetensors", prompt)
    return folder


@pytest.fixture(scope="module")
def study(place: Path) -> MaskStudy:
    return jpt.mask_neurons(place / "prompts", out=place / "out", random_draws=2, **QUICK)


def runs_of(study: MaskStudy, task: str, kind: str) -> list[dict]:
    return study.record["targets"][task]["masks"][kind]["runs"]


@pytest.mark.parametrize(
    ("model_type", "layout", "stack"),
    [("bert", "encoder", None), ("t5", "encoder_decoder", "encoder"), ("llama", "decoder", None)],
)
def test_scores_equal_evaluate_with_zeroed_weights(model_type, layout, stack, tmp_path) -> None:
    folder = write_tiny_backbone(tmp_path / model_type, model_type)
    task = write_task(tmp_path / "mood")
    prompt, model = prompt_of(str(folder), task, "x", 3, layout), jpt.load_backbone(folder)
    options = {"ratio": 0.3, "random_draws": 1, "stack": stack}
    found = jpt.mask_neurons(prompt, task, backbone=model, **options, **QUICK)
    activations = jpt.activated_neurons({"mood": prompt}, backbone=model, stack=stack)
    plain = jpt.evaluate(prompt, task, backbone=model, **QUICK)
    assert found.record["targets"]["mood"]["unmasked"] == pytest.approx(plain.value)
    measured = [plain.loss]
    for kind in ("in_task", "random"):
        masked = jpt.choose_neurons(activations, "mood", kind, ratio=0.3).mask == 0
        at = (stack or "decoder") if model_type == "t5" else None
        cut = dataclasses.replace(model, params=without_rows(model.params, masked, at))
        score = jpt.evaluate(prompt, task, backbone=cut, **QUICK)
        run = runs_of(found, "mood", kind)[0]
        assert run["value"] == score.value and run["neurons"] == masked.sum() == round(0.3 * 96)
        assert run["loss"] == pytest.approx(score.loss, rel=1e-5)
        measured.append(score.loss)
    assert np.ptp(measured) > 1e-3, "the masks have an effect"


def test_the_table_has_every_task_and_kind(study, place) -> None:
    with (place / "out" / "mask.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["task", "kind", "source_of_mask", "ratio", "layers", "draw", "metric", "value"]
    assert list(rows[0]) == names
    mine = [row for row in rows if row["task"] == "glad"]
    assert [(row["kind"], row["source_of_mask"], row["draw"]) for row in mine] == [
        *(("none", "", ""), ("in_task", "glad", ""), ("random", "", "0"), ("random", "", "1")),
        *(("other", "calm", ""), ("other", "true", ""), ("common", "", "")),
        ("specific", "glad", ""),
    ]
    assert {row["task"] for row in rows} == {"calm", "glad", "true"} and len(rows) == 24
    assert {row["layers"] for row in rows} == {"0-1"}
    runs = [run for kind in KINDS[1:] for run in runs_of(study, "glad", kind)]
    assert [float(row["value"]) for row in mine[1:]] == [run["value"] for run in runs]
    assert {run["neurons"] for run in runs} == {round(0.2 * 96)}


def test_means_by_type_and_text(study) -> None:
    targets = study.record["targets"]

    def left(task: str, kind: str, source: str | None = None) -> float:
        runs = runs_of(study, task, kind)
        values = [run["value"] for run in runs if source in (None, run["source"])]
        return np.mean(values) / targets[task]["unmasked"]

    by_type = study.record["relative_by_type"]
    for kind in KINDS[1:]:
        assert by_type["mood"][kind] == pytest.approx((left("calm", kind) + left("glad", kind)) / 2)
        assert by_type["fact"][kind] == pytest.approx(left("true", kind))
    other = study.record["other_by_type"]
    same = [left("calm", "other", "glad"), left("glad", "other", "calm")]
    assert other["mood"]["mood"] == pytest.approx(np.mean(same))
    across = [left("calm", "other", "true"), left("glad", "other", "true")]
    assert other["mood"]["fact"] == pytest.approx(np.mean(across)) and other["fact"]["fact"] is None
    random = targets["calm"]["masks"]["random"]
    values = [run["value"] for run in random["runs"]]
    assert random["std"] == pytest.approx(np.std(values, ddof=1))
    text = study.describe()
    assert max(map(len, text.splitlines())) <= 80 and "19 of 96 neurons of layers 0-1" in text
    line = next(line for line in text.splitlines() if line.startswith("glad "))
    target = study.record["targets"]["glad"]
    for value in (target["unmasked"], target["masks"]["in_task"]["value"]):
        assert f"{value:.3f}" in line


def test_a_finished_study_returns_at_once_and_a_stopped_one_is_resumed(
    study, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"prompts": place / "prompts", "out": place / "out", "random_draws": 2, **QUICK}
    with monkeypatch.context() as patch:
        patch.setattr(masking, "resolve_backbone", None)
        assert jpt.mask_neurons(**call).record == study.record
    cells = place / "out" / "mask_cells.jsonl"
    cells.write_text("\n".join(cells.read_text().splitlines()[:-2]) + "\n")
    (place / "out" / "mask.json").unlink()
    scored, score = [], masking._Worker.score

    def count(worker, run, choice):
        scored.append(run.name)
        return score(worker, run, choice)

    monkeypatch.setattr(masking._Worker, "score", count)
    again = jpt.mask_neurons(**call)
    assert scored == ["common", "specific/true"]
    assert {**again.record, "elapsed_s": 0} == {**study.record, "elapsed_s": 0}
    # Another seed samples other neurons and breaks ties in another order.
    scored.clear()
    jpt.mask_neurons(**call, kinds=("random",), seed=1)
    assert sorted(scored) == sorted(["random/0", "random/1"] * 3)


def test_given_activations_and_tasks_with_other_labels(place: Path, tmp_path: Path) -> None:
    values = np.zeros((3, 2, 48), np.float32)
    values[:, 1, :10] = 1
    options = {"neurons": Activations(("calm", "glad", "true"), values), "layers": "1", **QUICK}
    prompts = place / "prompts"
    found = jpt.mask_neurons(prompts, ratio=10 / 48, kinds=("in_task",), **options)
    run = runs_of(found, "calm", "in_task")[0]
    assert run["by_layer"] == [0, 10] and run["fitting"] == 10
    assert found.record["layers"] == [1, 1] and found.record["neurons"] == 48
    # With given activations one prompt can be compared with others.
    one = jpt.mask_neurons(prompts / "calm.safetensors", random_draws=1, **options)
    others = [("calm", "other", "glad"), ("calm", "other", "true")]
    assert [row[:3] for row in one.rows()][-4:-2] == others
    toml = (
        'name = "size"\ntype = "size"\nfields = ["text"]\nlabels = ["film", "fine", "dull"]\n'
        'template = "{text}"\n[label_words]\nfilm = "film"\nfine = "fine"\ndull = "dull"\n'
    )
    words = ("film", "fine", "dull")
    rows = "".join(json.dumps({"text": f"a {word}", "label": word}) + "\n" for word in words)
    task = write_task(tmp_path / "size", toml=toml, train=rows, validation=rows, test=rows)
    prompt = place / "prompts" / "calm.safetensors"
    found = jpt.mask_neurons(prompt, task, random_draws=1, **QUICK).record["targets"]["size"]
    assert (found["prompt"], found["rows"]) == ("calm", 3)


def assert_refused(place: Path, message: str, *arguments: object, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        jpt.mask_neurons(*arguments or (place / "prompts",), **{**QUICK, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "ratio is 0; give a number above 0 and below 1"),
        ({"ratio": 1.0}, "ratio is 1.0; give"),
        ({"ratio": 0.001}, "masks 0 of 96 neurons"),
        ({"layers": "1-2"}, "layers: .* within 0 to 1, got 1-2"),
        ({"kinds": ("in_task", "mine")}, "kinds is 'mine'; expected one of in_task, random"),
        ({"kinds": ()}, "kinds is empty"),
        ({"random_draws": 0}, "random_draws is 0"),
        ({"stack": "encoder"}, "has one stack; omit it"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"data": {"test": []}}, "data: expected a folder for several tasks"),
    ],
)
def test_invalid_options(place, options, message, monkeypatch) -> None:
    monkeypatch.setattr(masking, "activated_neurons", None)
    assert_refused(place, message, **options)


def test_incompatible_inputs(place: Path, tmp_path: Path) -> None:
    prompts = place / "prompts"
    calm = prompts / "calm.safetensors"
    task = write_task(tmp_path / "mood")
    other = Activations(("calm", "glad", "true"), np.ones((3, 12, 3072), np.float32))
    fewer = Activations(("calm",), np.ones((1, 2, 48), np.float32))
    one = {"calm": jpt.load_prompt(calm)}
    twins = dict.fromkeys(("seed-0", "seed-1"), one["calm"])
    for given, options, message in (
        ((), {"neurons": other}, "expected 2 layers of 48 neurons, .* got 12 of 3072"),
        ((), {"neurons": fewer}, "unknown prompt of the activations 'glad'"),
        ((prompts, [task]), {}, r"mood has no in-task prompt \(prompts: calm, glad, true\)"),
        ((one,), {}, "expected 2 or more trained prompts, got 1 of 1"),
        ((calm,), {"kinds": ("other",)}, r"kinds: other needs prompts of 2 .* got 1 \(calm\)"),
        ((calm, "samsum"), {}, "task samsum: masking .* got a generative one"),
        ((calm, [task, task]), {}, "tasks: expected one task for one prompt"),
        ((prompts / "clam.safetensors",), {}, "did you mean calm"),
        ((twins,), {}, r"calm has 2 in-task prompts \(seed-0, seed-1\)"),
    ):
        assert_refused(place, message, *given, **options)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str, command: str = "mask") -> tuple[int, str, str]:
        return type_command([command, *arguments], monkeypatch, capsys)

    return call


def test_the_command_in_the_record_finds_the_study(run, place, tmp_path) -> None:
    prompt, out = place / "prompts" / "calm.safetensors", tmp_path / "out"
    shape = "--max-tokens 16 --eval-batch-size 16 --random-draws 2 --mesh data:1 --json".split()
    code, stdout, stderr = run("--prompt", str(prompt), "--out", str(out), *shape)
    assert code == 0, stderr
    record = json.loads(stdout.splitlines()[-1])
    assert list(record["relative_by_kind"]) == ["in_task", "random"] and "calm" in stderr
    names = ("mask.csv", "mask.json", "mask.svg", "mask_cells.jsonl")
    assert sorted(path.name for path in out.iterdir()) == list(names)
    before = (out / "mask.json").stat().st_mtime_ns
    code, _, stderr = run(*record["command"].split()[2:])
    assert code == 0 and (out / "mask.json").stat().st_mtime_ns == before, stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "a", "--prompts", "b"), "expected one of --prompt and --prompts, got both"),
        ((), "expected one of --prompt and --prompts, got neither"),
        (("--prompts", "b", "--task", "t"), "got --task with --prompts"),
        (("--prompt", "b", "--tasks", "t"), "got --tasks with --prompt"),
        (("--prompt", "none.safetensors", "--ratio", "1.5"), "ratio is 1.5"),
    ],
)
def test_the_command_reports_invalid_input_in_one_line(run, tmp_path, arguments, message) -> None:
    code, out, err = run("--out", str(tmp_path / "out"), *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_jpt_neurons_reports_redundancy(run, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "neurons.npz"
    arguments = ("--prompts", str(place / "prompts"), "--out", str(out), "--json")
    code, stdout, stderr = run(*arguments, command="neurons")
    assert code == 0 and "always on (all 3 prompts)" in stderr
    with np.load(out) as arrays:
        active = arrays["activations"] > 0
    found = json.loads(stdout.splitlines()[-1])["redundancy"]
    assert found["always"] == pytest.approx(active.all(axis=0).mean())
    assert found["by_layer"]["never"] == pytest.approx((~active).all(axis=0).mean(axis=1))


EQUAL = 1e-6
LAYERS, WIDTH = 2, 48
WORDS = Answer(jnp.array([7, 30]))
# Label 0 has the words (7 9 8) and (10), label 1 the word (30 11).
PHRASES = Answer(
    jnp.array([7, 10, 30]),
    jnp.array([[7, 9, 8], [10, NO_TOKEN, NO_TOKEN], [30, 11, NO_TOKEN]]),
    jnp.array([0, 0, 1]),
    2,
)
CASES = [
    ("bert", None, WORDS),
    *((model, None, words) for model in ("gpt2", "llama") for words in (WORDS, PHRASES)),
    *(("t5", stack, words) for stack in ("decoder", "encoder") for words in (WORDS, PHRASES)),
]
every_case = pytest.mark.parametrize(("model_type", "stack", "answer"), CASES)


@cache
def model_of(model_type: str) -> tuple:
    """Return a tiny model with biases other than 0 and strong feed-forward layers."""
    module, params = tiny_model(model_type)
    return module, jax.tree.map(lambda leaf: leaf * 2, params)


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def score(module, params, prompt, answer, mask) -> jax.Array:
    return losses.label_scores(module, params, prompt, tiny_batch(), answer, neuron_mask=mask)


def scores_of(model_type: str, answer: Answer, mask: NeuronMask | None, params=None) -> np.ndarray:
    module, plain = model_of(model_type)
    prompt = jnp.asarray(np.random.default_rng(0).normal(0, 1, (4, 32)), jnp.float32)
    return np.asarray(score(module, plain if params is None else params, prompt, answer, mask))


def without_rows(params: Parameters, masked: np.ndarray, stack: str | None = None) -> Parameters:
    """Return the weights with zero rows of the second matrices at masked neurons [L, F]."""
    changed = jax.tree.map(lambda leaf: leaf, params)
    layers = changed[stack] if stack else changed
    parts = {"layers": jnp.asarray(~masked, jnp.float32)[..., None]}
    if "last_layer" in layers:
        parts = {"layers": parts["layers"][:-1], "last_layer": parts["layers"][-1]}
    for name, part in parts.items():
        second = layers[name]["feed_forward_out"]
        second["kernel"] = second["kernel"] * part
    return changed


@every_case
def test_masks_equal_zero_rows_of_the_second_matrices(model_type: str, stack, answer) -> None:
    ones = NeuronMask(jnp.ones((LAYERS, WIDTH)), stack)
    plain, found = (scores_of(model_type, answer, mask) for mask in (None, ones))
    assert difference(found, plain) < EQUAL
    masked = np.random.default_rng(1).random((LAYERS, WIDTH)) < 0.3
    found = scores_of(model_type, answer, NeuronMask(jnp.asarray(~masked, jnp.float32), stack))
    stack = "decoder" if model_type == "t5" and stack is None else stack
    changed = without_rows(model_of(model_type)[1], masked, stack)
    assert difference(found, scores_of(model_type, answer, None, changed)) < 1e-5
    assert difference(found, scores_of(model_type, answer, None)) > 1e-3
    for layer in range(LAYERS):
        masked = np.arange(LAYERS)[:, None] == np.full(WIDTH, layer)
        found = scores_of(model_type, answer, NeuronMask(jnp.asarray(~masked, jnp.float32), stack))
        changed = without_rows(model_of(model_type)[1], masked, stack)
        assert difference(found, scores_of(model_type, answer, None, changed)) < 1e-5
    if model_type in ("bert", "gpt2"):
        second = changed["last_layer"]["feed_forward_out"]
        second["bias"] = second["bias"] + jnp.arange(second["bias"].size, dtype=jnp.float32)
        assert difference(found, scores_of(model_type, answer, None, changed)) > 1e-3


@pytest.fixture(scope="module")
def backbones() -> dict[str, jpt.Backbone]:
    return {name: jpt.load_backbone(f"builtin/{name}") for name in ("bert-small", "t5-mini")}


def test_neuron_shape_of_each_stack(backbones) -> None:
    config = dataclasses.replace(backbones["t5-mini"].config, layers=3, encoder_layers=7)
    t5 = dataclasses.replace(backbones["t5-mini"], config=config)
    assert neuron_shape(t5) == neuron_shape(t5, "decoder") == (3, config.neurons)
    assert neuron_shape(t5, "encoder") == (7, config.neurons)


@pytest.mark.parametrize(
    ("model", "shape", "stack", "task", "message"),
    [
        ("bert-small", (12, 3072), None, "builtin/imdb", "expected 4 .* 512 .* got 12 x 3072"),
        ("bert-small", (4, 512), "encoder", "builtin/imdb", "builtin/bert-small has one"),
        ("t5-mini", None, None, "samsum", "task samsum: masking .* got a generative one"),
    ],
)
def test_invalid_masks(backbones, model, shape, stack, task, message) -> None:
    mask = NeuronMask(np.ones(shape or neuron_shape(backbones[model]), np.float32), stack)
    raises(losses.check_neuron_mask, mask, backbones[model], jpt.load_task(task), match=message)
