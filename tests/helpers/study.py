"""A sample study of four prompts and four tasks, and readers of its page."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from jpt.io.files import make_folder, write_json, write_table
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import write_activations, write_transfer
from jpt.types import Activations, Prompt, PromptCard, TransferMatrix

# Not ordered by type, so that the order of the page is seen to be computed.
TYPES = {"mnli": "nli", "imdb": "sentiment", "qnli": "nli", "sst2": "sentiment"}
TASKS = tuple(TYPES)
ORDERED = ("imdb", "sst2", "mnli", "qnli")
SCORES = np.array(
    [  # mnli  imdb  qnli  sst2  random
        *[[0.80, 0.40, 0.64, 0.36, 0.32], [0.50, 0.90, 0.54, 0.81, 0.45]],
        *[[0.75, 0.50, 0.85, 0.51, 0.49], [0.56, 0.84, 0.49, 0.92, 0.47]],
    ]
)
INDICATORS = (
    *("euclidean_concat", "euclidean_average", "cosine_concat", "cosine_average"),
    *("neuron_overlap", "neuron_overlap_layers_0_2", "neuron_overlap_layers_1_3"),
    "neuron_overlap_all",
)


def write_study(folder: Path, scores: np.ndarray = SCORES) -> Path:
    make_folder(folder)
    write_scores(folder, scores)
    write_transfer_record(folder, scores)
    values = np.random.default_rng(0).normal(size=(4, 4, 6)).astype(np.float32)
    write_activations(folder / "neurons.npz", Activations(TASKS, values))
    for write in (write_indicators, write_correlations, write_types, write_choices, write_masks):
        write(folder)
    for name in TASKS:
        write_run(folder / "prompts" / name, name)
    return folder


def write_scores(folder: Path, scores: np.ndarray = SCORES) -> None:
    metrics = ("accuracy",) * 4
    matrix = TransferMatrix(TASKS, (*TASKS, "random"), scores, metrics)
    write_transfer(folder / "transfer.csv", matrix)


def write_transfer_record(folder: Path, scores: np.ndarray = SCORES, **changes: object) -> None:
    prompts = {name: {"task": f"builtin/{name}", "type": kind} for name, kind in TYPES.items()}
    scored = {"metric": "accuracy", "majority": 0.5, "rows": 1821, "chance": 0.5}
    errors = np.sqrt(scores * (1 - scores) / 1821).tolist()
    of_prompts = [dict(zip((*TASKS, "random"), line, strict=True)) for line in errors]
    record = {
        **{"backbone": "builtin/bert-small", "split": "test", "prompts": prompts, "notes": []},
        "targets": {
            n: {**prompts[n], **scored, "in_task_prompt": n, "standard_errors": line}
            for n, line in zip(TASKS, of_prompts, strict=True)
        },
        "random": {"name": "random", "seed": 7, "init": "random"},
        "versions": {"jpt": "0.1.0", "jax": "0.10.2", "python": "3.11.2"},
        "command": "jpt transfer --prompts study/prompts --out study",
        **{"elapsed_s": 74.21, "device": "1 x cpu"},
    }
    write_json(folder / "transfer.json", {**record, **changes})


def write_indicators(folder: Path, names: tuple[str, ...] = TASKS) -> None:
    rows = [
        (a, b, *(1.0 if a == b else 0.1 * (i + j) + 0.01 * k for k in range(len(INDICATORS))))
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    write_table(folder / "indicators.csv", ("prompt_a", "prompt_b", *INDICATORS), rows)


def write_correlations(folder: Path, overlap=0.6, embedding=0.2, scatter=0.05) -> None:
    def record(mean: float | None) -> dict[str, object]:
        steps = dict(zip(TASKS, (-3, -1, 1, 3), strict=True))
        per_target = {
            name: None if mean is None else mean + scatter * step / 3 * (-1) ** (mean == overlap)
            for name, step in steps.items()
        }
        means = dict.fromkeys(("mean_over_targets", "pooled_relative", "pooled_raw"), mean)
        return {**means, "n_targets": 0 if mean is None else 4, "per_target": per_target}

    part = {n: record(overlap if "overlap" in n else embedding) for n in INDICATORS}
    write_json(folder / "correlation.json", {"including_in_task": part, "excluding_in_task": part})


def write_types(folder: Path) -> None:
    means = {"same_type_mean": 0.75, "different_type_mean": 0.25, "n_same": 2, "n_diff": 4}
    record = {
        "similarity_by_type": dict.fromkeys(INDICATORS, means),
        "relative_transfer": {
            **{"same_type_mean": 0.875, "different_type_mean": 0.5, "random_mean": 0.4},
            "best_other_source": {"imdb": "sst2"},
            "fraction_of_targets_whose_best_other_source_has_same_type": 1.0,
        },
        "relative_by_type": {"sentiment": {"sentiment": 0.9, "nli": 0.56}},
    }
    write_json(folder / "types.json", record)


def write_choices(folder: Path, overlap: float = 0.0, embedding: float = 0.03) -> None:
    best = {"mnli": "qnli", "imdb": "sst2", "qnli": "mnli", "sst2": "imdb"}
    spread = dict(zip(TASKS, (-0.004, 0.004, -0.002, 0.002), strict=True))
    scores = {"best_score": 0.8, "mean_score": 0.7, "sources": 3}
    targets = {t: {"best": [best[t]], **scores} for t in TASKS}
    chosen, rankings = {}, {}
    for name in (*INDICATORS, "same_type"):
        regret = overlap if "overlap" in name else embedding
        each = {t: max(regret + spread[t], 0.0) if regret else 0.0 for t in TASKS}
        chosen[name] = {
            t: {
                **{"sources": ["sst2", "mnli"] if cost else [best[t]], "score": 0.8 - cost},
                **{"regret": cost, "hit": float(not cost), "rank": 1.0},
            }
            for t, cost in each.items()
        }
        rankings[name] = {
            **{"targets": 4, "hits": float(not regret), "regret": regret, "mean_rank": 1.0},
            **{"regret_interval": [regret - 0.004, regret + 0.004]},
            **{"chance_hits": 1 / 3, "chance_rank": 2.0, "chance_regret": 0.1},
            **{"gain": 0.1 - regret, "gain_interval": [0.096 - regret, 0.104 - regret]},
        }
    record = {"targets": targets, "rankings": rankings, "chosen": chosen, "notes": []}
    write_json(folder / "choice.json", record)


def write_masks(folder: Path, in_task=0.6, random=0.9, scatter=0.02) -> None:
    """Mean relative scores under in-task and random masks; tasks scatter around them."""

    def mask(share: float, step: float, samples: int) -> dict[str, object]:
        value = 0.8 * (share + scatter * step)
        runs = [{"source": None, "draw": draw, "value": value} for draw in range(samples)]
        return {"value": value, "std": None, "relative": value / 0.8, "runs": runs}

    targets = {
        name: {
            **{"task": f"builtin/{name}", "type": kind, "prompt": name, "metric": "accuracy"},
            **{"split": "test", "rows": 300, "chance": 0.5, "unmasked": 0.8},
            "standard_error": 0.02,
            "masks": {"in_task": mask(in_task, step, 1), "random": mask(random, -step, 2)},
        }
        for (name, kind), step in zip(TYPES.items(), (-1, -0.5, 0.5, 1), strict=True)
    }
    kinds = {"in_task": in_task, "random": random}
    record = {
        **{"backbone": "builtin/bert-small", "ratio": 0.2, "layers": [0, 3], "split": "test"},
        **{"masked_neurons": 5, "neurons": 24, "targets": targets, "notes": []},
        "relative_by_type": dict.fromkeys(("sentiment", "nli"), kinds),
        **{"other_by_type": None, "in_task_below_random": {"tasks": 4, "of": 4}},
    }
    write_json(folder / "mask.json", record)


def write_run(folder: Path, name: str, finished: bool = True) -> None:
    make_folder(folder)
    task = f"builtin/{name}"
    config = {"backbone": "builtin/bert-small", "task": task, "steps": 40, "seed": 3, "length": 20}
    write_json(folder / "config.json", config)
    lines = [
        {"step": 20, "split": "train", "loss": 0.7},
        {"step": 20, "split": "validation", "accuracy": 0.6, "loss": 0.65, "chance": 0.5},
        {"step": 40, "split": "train", "loss": 0.5},
        {"step": 40, "split": "validation", "accuracy": 0.8125, "loss": 0.45, "chance": 0.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text if finished else text + '{"step": 5')
    if finished:
        card = PromptCard("builtin/bert-small", task, TYPES.get(name), steps=40)
        save_prompt(folder / "prompt.safetensors", Prompt(np.ones((2, 4), np.float32), card))
        validation = {"accuracy": 0.8125, "loss": 0.45, "rows": 300, "chance": 0.5}
        result = {"metric": "accuracy", "steps": 40, "best_step": 40, "elapsed_s": 12.4}
        write_json(folder / "result.json", {**result, "validation": validation})


def band(mean: float | None) -> dict[str, float | None]:
    return {"mean": mean, "low": mean and mean - 0.01, "high": mean and mean + 0.01}


def write_warm_start(folder: Path, **changes: object) -> Path:
    runs = []
    for name, lift in (("vanilla", 0.0), ("imdb", 0.1), ("mnli", -0.1)):
        for seed in (0, 1):
            values = [0.5, 0.6 + lift, 0.7 + lift + seed / 100]
            scores = {"at_start": 0.5, "best": values[-1], "final": values[-1]}
            curve = {"steps": [0, 5, 10], "values": values}
            runs.append({"run": name, "seed": seed, **scores, "curve": curve})
    means = {"imdb": (2.0, 4.0, 0.1), "mnli": (0.5, None, -0.1)}
    kinds = ("convergence_speed_up", "comparable_speed_up", "gain")
    record = {
        **{"task": "sst2", "backbone": "bert", "metric": "accuracy", "seeds": [0, 1]},
        **{"final_split": "test", "runs": runs, "notes": ["so it is"], "device": "1 x cpu"},
        **{"definitions": {"gain": "final less final"}, "settings": {"steps": 10}},
        "comparisons": {n: dict(zip(kinds, map(band, of), strict=True)) for n, of in means.items()},
        **{"sources": {"imdb": {}, "mnli": {}}, "versions": {"jax": "0.10.2"}},
    }
    make_folder(folder)
    (folder / "warm_start.json").write_text(json.dumps({**record, **changes}))
    (folder / "curves.csv").write_text("run,seed,step,value\n")
    return folder


VOID = {"meta", "br", "hr", "img", "input", "link", "area", "base", "col", "source", "wbr"}
LOADING = {"link", "iframe", "img", "object", "embed", "audio", "video", "source", "base", "form"}


class Outline(HTMLParser):
    """The tags, ids, links, texts and tables (by caption) of a page, and its nesting faults."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.ids, self.links = [], [], [], []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.script = ""
        self.figures: list[list[str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._caption = ""
        self.feed(page)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.faults.append(f"<{tag}> has an attribute twice")
        if tag == "p" and "p" in self.open or tag == "a" and "a" in self.open:
            self.faults.append(f"<{tag}> in a <{tag}>")
        if tag in ("div", "ul", "dl", "table", "figure", "p") and self.open[-1:] == ["p"]:
            self.faults.append(f"<{tag}> in a <p>")
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        self.links += [attributes["href"] or ""] if "href" in attributes else []
        if tag == "figure":
            self.figures.append([])
        elif "figure" in self.open:
            self.figures[-1].append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1:]}")
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.script += data
        elif "caption" in self.open:
            self._caption += data
        elif {"td", "th"} & set(self.open):
            self.tables[self._caption][-1][-1] += data


def assert_page_is_sound(page: str, folder: Path) -> Outline:
    outline = Outline(page)
    assert outline.faults == []
    assert len(set(outline.ids)) == len(outline.ids)
    for link in outline.links:
        if link.startswith("#"):
            assert link[1:] in outline.ids, link
        elif not link.startswith("data:image/png;base64,"):
            assert ":" not in link and (folder / unquote(link)).exists(), link
    assert not {tag for tag, _ in outline.tags} & LOADING
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]+\.", page)
    assert_single_script(page, outline)
    return outline


def assert_single_script(page: str, outline: Outline) -> None:
    """Assert that the content security policy allows only the script of the page."""
    digest = base64.b64encode(hashlib.sha256(outline.script.encode()).digest()).decode()
    (policy,) = [a["content"] for _, a in outline.tags if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert re.findall(r"script-src ([^;]+)", policy) == [f"'sha256-{digest}'"]
    assert not any(name.startswith("on") for _, a in outline.tags for name in a)
    assert page.count("<script") == [tag for tag, _ in outline.tags].count("script") == 1
