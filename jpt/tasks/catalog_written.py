"""The paper's four tasks whose answer the model writes: two of questions, two of summaries.

Its measure for them is BLEU of pieces (see :mod:`jpt.tasks.text_metrics`), the longest answers are
those it trained on, and texts may be three times as long as elsewhere. It ran them on T5 only; the
decoders' templates are ours.
"""

from __future__ import annotations

from jpt.tasks.task import ANSWER_CUE, PARQUET_BRANCH, HubSource, Task

MAX_TOKENS = 384

SUMMARY_CUE = "Summary:"

# Two segments, so that the context is what is cut. Paper: no space behind "question:".
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

# Paper: closed book; the word "context" stands before the question all the same.
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
        form="complete",
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
        form="complete",
    ),
    answer_field="summary",
    answer_tokens=50,
    max_tokens=MAX_TOKENS,
)

WRITTEN: tuple[Task, ...] = (SQUAD, NQ_OPEN, MULTI_NEWS, SAMSUM)
"""The tasks whose answer is written, on encoder-decoders and decoders only."""
