"""Prompts shown, listed, pulled and pushed; tasks and backbones listed."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.backbones.registry import Backbone, backbone_names
from jpt.prompts.store import load_seed_prompts
from jpt.recipes import library as recipe
from jpt.recipes.library import LibraryPrompt, check_names, read_index, show_prompt
from jpt.recipes.listing import describe_task, list_backbones, list_tasks
from jpt.tasks.catalog import load_task, task_names
from jpt.testing import SPECIAL_TOKENS, VOCABULARY, write_tiny_backbone
from jpt.tuning.tune import initial_rows
from jpt.types import Prompt, PromptCard
from tests.helpers.fake_hub import READER, TOKEN, FakeHub, create, fake_hub
from tests.helpers.running import raises
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

REPO = "me/prompts"
FILES = {
    "film.safetensors": "film/prompt.safetensors",  # of a run
    "mood.safetensors": "mood.safetensors",
    "news/seed-0/prompt.safetensors": "news/seed-0/prompt.safetensors",
    "news/seed-2/prompt.safetensors": "news/seed-2/prompt.safetensors",
}
NAMES = ("film", "mood", "news/seed-0", "news/seed-2")
PAGES = {".gitattributes", "README.md", "prompts.json"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage has its own protocol
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        close_session()
        yield server
        close_session()


@pytest.fixture
def prompts_run(run):
    return lambda *command: run("prompts", *command)


def write(path: Path, seed: int = 0, task: str = "builtin/imdb", **changes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(0, 1, (4, 128)).astype(np.float32)
    fields = {"seed": seed, "steps": 9, "score": 0.75, "metric": "accuracy", **changes}
    jpt.save_prompt(path, Prompt(values, PromptCard("builtin/bert-small", task, **fields)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study = tmp_path / "study"
    for seed, file in enumerate(FILES.values()):
        write(study / file, seed)
    for run_folder in ("film", "news/seed-0", "news/seed-2"):
        (study / run_folder / "config.json").write_text("{}")
        (study / run_folder / "last.safetensors").write_bytes(b"not for others")
    return study


def local(folder: Path) -> dict[str, bytes]:
    return {path: (folder / file).read_bytes() for path, file in FILES.items()}


def commits(hub: FakeHub, name: str = REPO) -> list[str]:
    return [commit.message for commit in hub.repositories[name].commits[1:]]


def fetched(hub: FakeHub) -> set[str]:
    paths = [path.split("/", 5)[-1] for method, path in hub.asked if "/resolve/" in path]
    hub.asked.clear()
    return set(paths)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("outside_of_git", [False, True])
def test_round_trip_is_bit_for_bit(hub, folder, tmp_path, outside_of_git):
    hub.outside_of_git = outside_of_git
    pushed = jpt.push_prompts(folder, REPO, message="four of them")
    assert commits(hub) == ["four of them"] and not hub.repositories[REPO].private
    assert {p: d for p, d in hub.files(REPO).items() if p not in PAGES} == local(folder)
    assert (pushed.new, pushed.replaced, pushed.kept, pushed.committed) == (NAMES, (), (), True)
    hub.asked.clear()
    pulled = jpt.pull_prompts(REPO, tmp_path / "out")
    assert fetched(hub) == set(FILES) and pulled.new == NAMES
    assert pulled.commit == pushed.commit == hub.repositories[REPO].commits[-1].oid
    assert {path: (tmp_path / "out" / path).read_bytes() for path in FILES} == local(folder)
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(found) == len(FILES) + 1
    origins = json.loads((tmp_path / "out" / "hub.json").read_text())
    assert origins["news/seed-2"]["commit"] == pushed.commit and set(origins) == set(NAMES)
    # What other commands read, and what another push would send.
    assert list(load_seed_prompts(tmp_path / "out")["news"]) == [0, 2]
    assert not jpt.push_prompts(tmp_path / "out", REPO).committed


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_nothing_changed_makes_no_commit(hub: FakeHub, folder: Path, prompts_run: Callable) -> None:
    code, out, err = prompts_run("push", folder, REPO)
    assert (code, err) == (0, "") and "4 prompts in http" in out and out.count("\n") == 1
    code, out, _ = prompts_run("push", folder, REPO, "--private")
    assert code == 2, "the repository is public"
    code, out, err = prompts_run("push", folder, REPO, "--json")
    record = json.loads(out)
    assert not record["committed"] and record["unchanged"] == list(NAMES)
    assert "nothing changed: me/prompts has these 4 prompts" in err and len(commits(hub)) == 1
    write(folder / "mood.safetensors", 77)
    code, out, _ = prompts_run("push", folder, REPO)
    assert code == 0 and "1 replaced, 3 unchanged" in out
    assert len(commits(hub)) == 2 and hub.files(REPO)["mood.safetensors"] in local(folder).values()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("outside_of_git", [False, True])
def test_other_prompts_of_the_repository_are_kept(hub, folder, tmp_path, outside_of_git):
    hub.outside_of_git = outside_of_git
    jpt.push_prompts(folder, REPO)
    write(tmp_path / "mine" / "poem.safetensors", 5, task="builtin/mnli")
    hub.asked.clear()
    pushed = jpt.push_prompts(tmp_path / "mine", REPO)
    # Where the hub lists the same digest as the index, nothing is downloaded again.
    others = set() if outside_of_git else set(FILES)
    assert fetched(hub) == others | {"prompts.json", "README.md"}
    assert pushed.kept == NAMES and pushed.new == ("poem",) and len(commits(hub)) == 2
    files = hub.files(REPO)
    assert local(folder).items() <= files.items()
    index = {entry["name"]: entry for entry in json.loads(files["prompts.json"])["prompts"]}
    assert list(index) == [*NAMES, "poem"]
    for name, entry in index.items():
        prompt = Path(tmp_path / "check.safetensors")
        prompt.write_bytes(files[entry["file"]])
        norms = np.linalg.norm(jpt.load_prompt(prompt).values.astype(np.float64), axis=1)
        wanted = {"mean": norms.mean(), "min": norms.min(), "max": norms.max()}
        assert entry["norm"] == pytest.approx(wanted, abs=1e-12)
        assert entry["card"]["score"] == 0.75 and entry["name"] == name
    page = files["README.md"].decode()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 6 and "| poem | builtin/bert-small | builtin/mnli | 0.750 accuracy" in page


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_other_files_of_the_repository_are_kept(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    other = {
        **{"README.md": b"# Mine", "weights.safetensors": b"no prompt"},
        **{"pytorch_model.bin": b"\x80pickle", "prompts.json": b"nonsense"},
        **{".hidden.safetensors": b"?", "../up.safetensors": b"?", "a/b.safetensors": b"?"},
    }
    hub.put(REPO, other)
    pushed = jpt.push_prompts(folder, REPO)
    assert hub.files(REPO)["README.md"] == b"# Mine" and pushed.kept == ()
    assert len(pushed.notes) == 2 and "weights.safetensors is not a complete" in pushed.notes[0]
    assert len(json.loads(hub.files(REPO)["prompts.json"])["prompts"]) == 4
    hub.asked.clear()
    with pytest.raises(jpt.InputError, match=r"weights.safetensors is not a complete .*--only"):
        jpt.pull_prompts(REPO, tmp_path / "out")
    assert fetched(hub) == {*FILES, "weights.safetensors"} and not (tmp_path / "out").exists()
    pulled = jpt.pull_prompts(REPO, tmp_path / "out", only=["news", "mood"])
    assert fetched(hub) == set(FILES) - {"film.safetensors"}
    assert pulled.new == ("mood", "news/seed-0", "news/seed-2")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_private_and_branches(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    first = jpt.push_prompts(folder, REPO, private=True)
    assert hub.repositories[REPO].private
    write(folder / "mood.safetensors", 88)
    second = jpt.push_prompts(folder, REPO, private=True, revision="trial")
    assert hub.files(REPO) != hub.files(REPO, "trial") and second.replaced == ("mood",)
    assert hub.files(REPO, "trial")["mood.safetensors"] == local(folder)["mood.safetensors"]
    for revision, commit in (("trial", second.commit), (None, first.commit), (first.commit,) * 2):
        pulled = jpt.pull_prompts(REPO, tmp_path / "out", revision=revision, overwrite=True)
        assert pulled.commit == commit
        mood = (tmp_path / "out" / "mood.safetensors").read_bytes()
        assert (mood == local(folder)["mood.safetensors"]) == (revision == "trial")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_differing_files_are_not_replaced(hub, folder, prompts_run):
    out = folder.parent / "out"
    jpt.push_prompts(folder, REPO)
    jpt.pull_prompts(REPO, out)
    write(out / "mood.safetensors", 99)
    (out / "film.safetensors").unlink()
    mine = (out / "mood.safetensors").read_bytes()
    code, _, err = prompts_run("pull", REPO, "--out", out)
    assert code == 2 and "out has mood with other content" in err and err.count("\n") == 1
    assert (out / "mood.safetensors").read_bytes() == mine
    assert not (out / "film.safetensors").exists(), "nothing is written if one is refused"
    code, stdout, _ = prompts_run("pull", REPO, "--out", out, "--overwrite")
    assert code == 0 and "4 prompts of me/prompts at" in stdout
    assert stdout.endswith(f"in {out}: 1 new, 1 replaced, 2 unchanged\n")
    code, _, err = prompts_run("pull", REPO, "--out", folder)
    assert code == 2 and "film/prompt.safetensors is a prompt of the same name" in err


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_damaged_downloads_are_refused(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    jpt.push_prompts(folder, REPO)
    data = bytearray(hub.files(REPO)["mood.safetensors"])
    data[-1] ^= 1  # as valid a prompt as before
    hub.damage["mood.safetensors"] = bytes(data)
    with pytest.raises(jpt.InputError, match="mood.safetensors of me/prompts is corrupted"):
        jpt.pull_prompts(REPO, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_concurrent_commits_are_refused(hub: FakeHub, folder: Path) -> None:
    jpt.push_prompts(folder, REPO)
    write(folder / "mood.safetensors", 66)
    hub.before_commit = lambda: hub.put(REPO, {"other.txt": b"first"})
    raises(jpt.push_prompts, folder, REPO, match="changed at the same time")
    assert hub.files(REPO)["mood.safetensors"] != local(folder)["mood.safetensors"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_files_ignored_by_the_hub_are_reported(hub: FakeHub, folder: Path) -> None:
    hub.ignored = {"mood.safetensors"}
    raises(jpt.push_prompts, folder, REPO, match="lacks mood.safetensors: check .* .gitignore")


def cut(folder: Path) -> None:
    (folder / "cut.safetensors").write_bytes((folder / "mood.safetensors").read_bytes()[:-40])


BROKEN = [
    (cut, "1 of 5 prompts in"),
    (lambda path: write(path / "unscored.safetensors", score=None), "its card lacks score"),
    (lambda path: (path / "news" / "seed-3").mkdir(), "an unfinished run"),
    (lambda path: write(path / "Mood.safetensors"), "two prompts of one name, Mood and mood"),
    (lambda path: write(path / "a:b.safetensors"), "name 'a:b' is not a valid file name"),
    (lambda path: write(path / "news.safetensors"), "two prompts named news"),
]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_broken_folders_are_refused_at_once(hub, folder, prompts_run, damage, message):
    damage(folder)
    code, out, err = prompts_run("push", folder, REPO)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert hub.asked == []


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_names_that_clash_with_the_repository_s(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    jpt.push_prompts(folder, REPO)
    write(tmp_path / "mine" / "news.safetensors")
    raises(jpt.push_prompts, tmp_path / "mine", REPO, match="one name, news/seed-0 and news")
    assert len(commits(hub)) == 1


WRONG = [
    (("push", "FOLDER", "you/prompts"), {}, "refuses (403: You don't have the rights"),
    (("push", "FOLDER", REPO), {"HF_TOKEN": READER}, "refuses (403: You don't have the rights"),
    (("push", "FOLDER", REPO), {"HF_TOKEN": ""}, "no token is set: set"),
    (("push", "FOLDER", REPO), {"HF_TOKEN": "old"}, "refuses (401: Invalid credentials"),
    (("push", "FOLDER", "me/open", "--private"), {}, "is public, but private was requested"),
    (("push", "FOLDER", "prompts"), {}, "'prompts' has no owner; give OWNER/NAME"),
    (("push", "FOLDER", REPO, "--message", " "), {}, "the message is empty"),
    (("push", "nowhere", REPO), {}, "cannot read nowhere"),
    (("push", "EMPTY", REPO), {}, "holds no prompts"),
    (("pull", "me/nothing", "--out", "OUT"), {}, "no such repository, or hides it from you"),
    (("pull", "me/hidden", "--out", "OUT"), {"HF_TOKEN": READER}, "no such repository"),
    (("pull", "me/hidden", "--out", "OUT"), {"HF_TOKEN": ""}, "no token is set: set"),
    (("pull", "me/open", "--out", "OUT"), {"HF_TOKEN": "old"}, "refuses (401: Invalid"),
    (("pull", "me/open", "--out", "OUT", "--revision", "x"), {}, "it has no revision 'x'"),
    (("pull", "me/open", "--out", "OUT"), {}, "me/open has no prompts"),
    (("pull", "me/o pen", "--out", "OUT"), {}, "'me/o pen' is not the name of a hub repository"),
    (("pull", "a/b/c", "--out", "OUT"), {}, "'a/b/c' is not the name of a hub repository"),
    (("pull", "me/full", "--out", "OUT", "--only", "moood"), {}, "did you mean mood?"),
    (("pull", "me/full", "--out", "OUT", "--only", ","), {}, "only is empty"),
    (("pull", REPO, "--out", "OUT"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "answer as a hub"),
    (("pull", REPO, "--out", "OUT"), {"HF_ENDPOINT": "nonsense"}, "the network, and HF_ENDPOINT"),
]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(("command", "changes", "message"), WRONG)
def test_wrong_input_is_one_line(hub, folder, prompts_run, monkeypatch, command, changes, message):
    out, empty = folder.parent / "out", folder.parent / "empty"
    empty.mkdir()
    hub.repositories |= {"me/open": create(False), "me/hidden": create(True)}
    hub.put("me/full", local(folder))
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    paths = {"FOLDER": folder, "OUT": out, "EMPTY": empty}
    code, stdout, err = prompts_run(*(paths.get(word, word) for word in command))
    assert (code, stdout) == (2, "") and message in err and err.count("\n") == 1
    assert not out.exists() and not commits(hub, "me/open")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("command", [("push", "FOLDER", REPO), ("pull", REPO, "--out", "OUT")])
def test_nothing_is_requested_offline(hub, folder, prompts_run, monkeypatch, command):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = prompts_run(*(str(folder) if word == "FOLDER" else word for word in command))
    assert code == 2 and "HF_HUB_OFFLINE is set" in err and err.count("\n") == 1
    assert hub.asked == []


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_seeds_are_listed_like_other_prompts(folder: Path, prompts_run: Callable) -> None:
    code, out, _ = prompts_run("ls", folder, "--json")
    assert code == 0 and [each["name"] for each in json.loads(out)["prompts"]] == list(NAMES)
    (folder / "news" / "seed-0" / "prompt.safetensors").unlink()
    code, out, err = prompts_run("verify", folder)
    assert code == 2 and "broken: " in out and "1 of 4 prompts" in err and "news/seed-0" in err


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_page_and_index_take_no_invalid_entries() -> None:
    card = PromptCard("/home/me/models/big", "tasks/a|b\n# <b>`", score=0.5, metric="f1")
    entry = LibraryPrompt("x|y `z` <i>", "0", card, 4, 8, (1.0, 1.0, 1.0))
    page = recipe.write_readme("me/prompts", [entry]).decode()
    row = page.splitlines()[-1]
    assert row.count("|") == 6 and not set("<`") & set(row) and "| big | a&#124;b # &lt;b>" in row
    assert "/home/me" not in page and "base_model" not in page and page.count("\n# ") == 1
    assert [line for line in page.splitlines() if line.count("```")] == ["```", "```"]
    entry = LibraryPrompt("a", "0", PromptCard("bert", "sst2"), 4, 8, (1.0, 1.0, 1.0))
    right = json.loads(recipe.write_index([entry]))["prompts"][0]
    wrong = [{**right, key: None} for key in ("norm", "card", "rows")]
    wrong += [{**right, "norm": {"mean": float("inf"), "min": 0, "max": 0}}, 3, None, []]
    assert read_index(json.dumps({"prompts": [*wrong, right]}).encode()) == {"a": entry}
    for nonsense in ([], {"prompts": 3}, {"prompts": wrong}, None):
        assert read_index(json.dumps(nonsense).encode()) == {}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(
    "names", [["a/seed-0", "A"], ["a/seed-0", "A/seed-1"], ["é", "É"], ["a\nb"], [".a"], ["a/b"]]
)
def test_names_that_are_invalid_on_some_system(names: list[str]) -> None:
    check_names(["a", "b/seed-0", "b/seed-1"], "me/prompts")
    raises(check_names, names, "me/prompts", match="rename|valid file name")


WIDTH, LENGTH = 32, 5


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("bert") / "b", "bert"))


def card(backbone: Backbone, **changes: object) -> PromptCard:
    return PromptCard(backbone.name, "mood", seed=3, **changes)


def noise(rows: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, WIDTH)).astype(np.float32)


def by_loops(row: np.ndarray, table: np.ndarray) -> dict[str, list[str]]:
    tokens = [token for token in VOCABULARY if token not in SPECIAL_TOKENS]
    words = {token: table[VOCABULARY.index(token)].astype(np.float64) for token in tokens}
    row = row.astype(np.float64)

    def cosine(token: str) -> float:
        return row @ words[token] / np.linalg.norm(row) / np.linalg.norm(words[token])

    return {
        "cosine": sorted(tokens, key=cosine, reverse=True),
        "product": sorted(tokens, key=lambda token: row @ words[token], reverse=True),
    }


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("part", [1, 7, 4096])
def test_nearest_tokens_are_those_of_loops(backbone, monkeypatch, part):
    monkeypatch.setattr(recipe, "_TABLE_ROWS", part)
    table = np.asarray(backbone.params["embeddings"]["word"])
    values = noise()
    values[2] = 3 * table[VOCABULARY.index("film")]
    found = show_prompt(Prompt(values, card(backbone)), backbone=backbone, top=4)
    for number, row in enumerate(values):
        expected = by_loops(row, table)
        assert list(found.by_cosine.tokens[number]) == expected["cosine"][:4]
        assert list(found.by_product.tokens[number]) == expected["product"][:4]
    assert found.by_cosine.tokens[2][0] == "film"
    assert found.by_cosine.values[2, 0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.norms, np.linalg.norm(values, axis=1), rtol=1e-6)
    norms = np.linalg.norm(table[len(SPECIAL_TOKENS) : len(VOCABULARY)], axis=1)
    np.testing.assert_allclose(found.vocabulary, (norms.mean(), norms.min(), norms.max()), 1e-6)
    assert found.compared == len(norms) == len(VOCABULARY) - len(SPECIAL_TOKENS)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("init", ["random", "vocab", "labels", "text:good film", "prompt"])
def test_drift_is_the_distance_from_the_start(backbone, tmp_path, init):
    task = write_task(tmp_path / "mood")
    if init == "prompt":
        jpt.save_prompt(tmp_path / "s.safetensors", Prompt(noise(seed=9), card(backbone)))
        init = f"prompt:{tmp_path / 's.safetensors'}"
    labels = (VOCABULARY.index("bad"), VOCABULARY.index("good"))
    start = initial_rows(backbone, init, 3, LENGTH, labels)
    moved = start + np.arange(LENGTH, dtype=np.float32)[:, None] * np.eye(1, WIDTH, 4)
    changed = dataclasses.replace(card(backbone, init=init), task=str(task))
    found = show_prompt(Prompt(moved.astype(np.float32), changed), backbone=backbone)
    np.testing.assert_allclose(found.drift, np.arange(LENGTH), atol=1e-5)
    assert found.start_cosines[0] == pytest.approx(1, abs=1e-6) and found.notes == ()
    if init == "labels":
        assert found.by_cosine.tokens[0][0] == "bad" and found.by_cosine.tokens[1][0] != "bad"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_drift_of_a_run(backbone: Backbone, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mood")
    options = {"steps": 1, "length": LENGTH, "learning_rate": 1e-3, "seed": 5, "init": "labels"}
    result = jpt.tune(backbone, task, batch_size=4, max_tokens=12, **options)
    changed = dataclasses.replace(result.last.card, task=str(task))
    found = show_prompt(dataclasses.replace(result.last, card=changed), backbone=backbone)
    # One step of Adam moves every number by about the learning rate.
    np.testing.assert_allclose(found.drift, 1e-3 * np.sqrt(WIDTH), rtol=0.2)


UNKNOWN_STARTS = [
    ({"seed": None}, "the card has no seed"),
    ({"source": "the authors"}, "unknown initialisation (the authors)"),
    ({"init": "prompt:/nowhere/a"}, "cannot repeat the initialisation prompt:/nowhere/a"),
    ({"init": "labels", "task": "nothing"}, "cannot repeat the initialisation labels"),
    ({"init": "uniform"}, "cannot repeat the initialisation uniform"),
]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(("changes", "note"), UNKNOWN_STARTS)
def test_unknown_starts_are_reported(backbone: Backbone, changes: dict, note: str) -> None:
    changed = dataclasses.replace(card(backbone), **changes)
    found = show_prompt(Prompt(noise(), changed), backbone=backbone)
    assert found.drift is None and note in found.notes[0]
    assert found.record["rows"][0]["drift"] is None


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_text_of_imported_and_long_prompts(backbone: Backbone) -> None:
    changed = card(backbone, source="the authors", first_position=1)
    prompt = Prompt(noise(), changed, noise(1, seed=4) * 50)
    found = show_prompt(prompt, backbone=backbone)
    rows = found.record["rows"]
    assert [row["row"] for row in rows] == list(range(LENGTH + 1))
    assert rows[0]["norm"] == pytest.approx(np.linalg.norm(prompt.unused_row), rel=1e-6)
    assert "row 0 is unused" in found.notes[0]
    text = recipe.describe_reading(found)
    # The mean excludes the unused row.
    assert f"prompt token norm: mean {np.linalg.norm(prompt.values, axis=1).mean():.3g} (" in text
    assert f"{LENGTH} rows" in text
    wide = Prompt(noise(120) * 1e7, card(backbone, init="text:" + "very " * 40))
    text = recipe.describe_reading(show_prompt(wide, backbone=backbone, top=9))
    assert max(map(len, text.splitlines())) <= 80
    assert len(recipe.visible("\u200b\n" * 40, 12)) == 12


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("model_type", ["t5", "gpt2"])
def test_other_layouts(tmp_path: Path, model_type: str) -> None:
    model = jpt.load_backbone(write_tiny_backbone(tmp_path / "m", model_type))
    changed = PromptCard(model.name, "mood", layout=model.layout, seed=1)
    start = initial_rows(model, "random", 1, LENGTH)
    found = show_prompt(Prompt(start, changed), backbone=model)
    assert found.drift.max() == 0


@pytest.fixture
def prompts_folder(tmp_path: Path, backbone: Backbone) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    complete = card(backbone, steps=9, score=0.75, metric="accuracy")
    jpt.save_prompt(folder / "good.safetensors", Prompt(noise(), complete))
    return folder


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_show_and_list_in_the_shell(prompts_run, prompts_folder: Path) -> None:
    file = prompts_folder / "good.safetensors"
    code, out, err = prompts_run("show", file, "--top", "2", "--json")
    record = json.loads(out)
    assert code == 0 and len(record["rows"]) == LENGTH and "nearest by cosine" in err
    assert len(record["rows"][0]["nearest_by_product"]) == 2
    code, out, _ = prompts_run("ls", prompts_folder)
    assert code == 0 and out.splitlines()[1].split()[-2] == "0.750"
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = prompts_run("verify", prompts_folder)
    assert code == 0 and "1 prompt, all valid" in out


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_verify_lists_all_faults(prompts_run, prompts_folder: Path, backbone: Backbone) -> None:
    whole = jpt.load_prompt(prompts_folder / "good.safetensors")
    cards = {
        **{"narrow": whole.card, "other": dataclasses.replace(whole.card, layout="decoder")},
        "bare": dataclasses.replace(whole.card, score=None),
        **{"far": dataclasses.replace(whole.card, backbone="org/model"), "long": whole.card},
    }
    for name, changed in cards.items():
        values = {"narrow": noise()[:, :16], "long": noise(99)}.get(name, noise())
        jpt.save_prompt(prompts_folder / f"{name}.safetensors", Prompt(values, changed))
    cut = (prompts_folder / "good.safetensors").read_bytes()[:-40]
    (prompts_folder / "cut.safetensors").write_bytes(cut)
    code, out, err = prompts_run("verify", prompts_folder, "--json")
    found = {entry["name"]: entry for entry in json.loads(out)["prompts"]}
    assert code == 2 and "5 of 7 prompts in" in err.splitlines()[-1]
    assert found["good"]["faults"] == found["far"]["faults"] == []
    assert "width 16, but" in found["narrow"]["faults"][0]
    assert "layout decoder, but" in found["other"]["faults"][0]
    assert found["bare"]["faults"] == ["its card lacks score"]
    assert "99 rows, but" in found["long"]["faults"][0]
    assert "cut.safetensors" in found["cut"]["faults"][0]
    assert "sizes not checked: org/model" in found["far"]["notes"][0]
    code, out, _ = prompts_run("verify", prompts_folder, "--backbone", backbone.name)
    assert code == 2 and "7 prompts, 5 broken" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("show", "nowhere.safetensors"), "no such file"),
        (("show", "FOLDER/good.safetensors", "--top", "0"), "top is 0; give a whole number"),
        (("show", "FOLDER/good.safetensors", "--backbone", "builtin/bert-small"), "width 32"),
        (("ls", "nowhere"), "nowhere"),
        (("verify", "FOLDER", "--backbone", "builtin/bert-tiny"), "did you mean builtin/"),
    ],
)
def test_wrong_input(prompts_run, prompts_folder, command, message):
    code, _, err = prompts_run(*(part.replace("FOLDER", str(prompts_folder)) for part in command))
    assert code == 2 and message in err and len(err.splitlines()) == 1


WIDEST = 80


def assert_fits(text: str) -> None:
    assert max(map(len, text.splitlines())) <= WIDEST


def test_every_task_is_listed_with_its_label_words() -> None:
    record, text = list_tasks()
    assert_fits(text)
    names = [line.split()[0] for line in text.splitlines()]
    assert set(task_names()) <= set(names)
    assert [task["name"] for task in record["tasks"]] == list(task_names())
    row = names.index("laptop")
    both = " ".join(text.splitlines()[row].split() + text.splitlines()[row + 1].split())
    assert both == "laptop sentiment accuracy negative, moderate, positive, conflict"


def test_every_backbone_is_listed() -> None:
    record, text = list_backbones()
    assert_fits(text)
    assert [line.split()[0] for line in text.splitlines()[1:5]] == backbone_names()
    assert record["backbones"][0]["vocabulary"] == 8192


@pytest.mark.parametrize("name", task_names())
def test_a_task_is_shown_in_full(name: str) -> None:
    task, (_, text) = load_task(name), describe_task(name, None, None, None)
    assert_fits(text)
    assert text.startswith(f"{name} ({task.type}), metric {task.metric}\n")
    joined = " ".join(text.split())
    for segments in task.templates.values():
        assert " ".join(" | ".join(segments).split()) in joined


def test_long_rows_are_wrapped(tmp_path: Path) -> None:
    row = "the film was good and bright and not dull " * 5
    folder = write_task(tmp_path / "mood", train=f'{{"text": "{row}", "label": "good"}}\n' * 4)
    _, text = describe_task(folder, "builtin/bert-small", None, None)
    assert_fits(text)
    joined = " ".join(text.split())
    assert f"row 0 [good] {row.strip()}" in joined and "[CLS] the film was good" in joined
