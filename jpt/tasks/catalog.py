"""The paper's tasks, each once, as data.

Classes stand in the paper's order. Where its two code bases differ, the first (1.0) is followed:
its prompts are the ones released. The hub's ids name the parquet form of each data set. No data
set below but imdb shows the labels of its test split, so its validation split is scored and
validation is cut from train; imdb's train split is sorted by class, so both its ends are taken.
"""

from __future__ import annotations

from jpt.tasks.task import HubSource, Task

SENTIMENT_WORDS = {"default": {"negative": "negative", "positive": "positive"}}

NLI_WORDS = {
    "default": {"contradiction": "no", "neutral": "neutral", "entailment": "yes"},
    "t5": {
        "contradiction": "contradiction",
        "neutral": "neutral",
        "entailment": "entailment",
    },
}

PARAPHRASE_WORDS = {"default": {"not_paraphrase": "false", "paraphrase": "true"}}

SST2 = Task(
    name="sst2",
    type="sentiment",
    fields=("text",),
    labels=("negative", "positive"),
    templates={"encoder": ("{text}",)},
    label_words=SENTIMENT_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="sst2",
        splits={"train": "train[:-2000]", "validation": "train[-2000:]", "test": "validation"},
        labels=("negative", "positive"),
        fields={"text": "sentence"},
    ),
)

IMDB = Task(
    name="imdb",
    type="sentiment",
    fields=("text",),
    labels=("negative", "positive"),
    templates={"encoder": ("{text}",)},
    label_words=SENTIMENT_WORDS,
    hub=HubSource(
        path="stanfordnlp/imdb",
        config=None,
        splits={
            "train": "train[1000:-1000]",
            "validation": "train[:1000]+train[-1000:]",
            "test": "test",
        },
        labels=("negative", "positive"),
    ),
)

# Paper 1.0: the hypothesis comes first, and the class numbers run opposite to GLUE's; T5 reads the
# words of its own NLI template. The paper has no decoders.
MNLI = Task(
    name="mnli",
    type="nli",
    fields=("premise", "hypothesis"),
    labels=("contradiction", "neutral", "entailment"),
    templates={
        "encoder": ("{hypothesis}", "{premise}"),
        "encoder_decoder": ("hypothesis: {hypothesis}", "[SEP] sentence: premise: {premise}"),
        "decoder": ("Premise: {premise}", "Hypothesis: {hypothesis}", "Answer:"),
    },
    label_words=NLI_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="mnli",
        splits={
            "train": "train[:-5000]",
            "validation": "train[-5000:]",
            "test": "validation_matched",
        },
        labels=("entailment", "neutral", "contradiction"),
    ),
)

QQP = Task(
    name="qqp",
    type="paraphrase",
    fields=("sentence1", "sentence2"),
    labels=("not_paraphrase", "paraphrase"),
    templates={
        "encoder": ("{sentence1}", "{sentence2}"),
        "encoder_decoder": ("{sentence1}", "<extra_id_0> {sentence2}"),
    },
    label_words=PARAPHRASE_WORDS,
    hub=HubSource(
        path="nyu-mll/glue",
        config="qqp",
        splits={"train": "train[:-5000]", "validation": "train[-5000:]", "test": "validation"},
        labels=("not_paraphrase", "paraphrase"),
        fields={"sentence1": "question1", "sentence2": "question2"},
    ),
)

CATALOG: dict[str, Task] = {task.name: task for task in (SST2, IMDB, MNLI, QQP)}
"""The tasks of the paper by name; the names are those of the folders that hold their rows."""
