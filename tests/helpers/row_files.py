"""Rows written to files of each format, and tasks that read them."""

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import Task

SENTIMENT, PAIR = CATALOG["sst2"], CATALOG["mnli"]
GENERATIVE = Task(
    name="trivia",
    type="question_answering",
    fields=("question",),
    labels=(),
    templates={"encoder_decoder": ("{question}",)},
    metric="exact_match",
    answer_field="answers",
    answer_tokens=5,
)

Rows = Sequence[dict[str, Any]]


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_list(rows: Rows) -> bytes:
    return json.dumps(list(rows), indent=1).encode()


def delimited(rows: Rows, delimiter: str = ",", line_end: str = "\n") -> bytes:
    """Not with the csv module, which reads them; cells are quoted only where needed."""

    def cell(value: Any) -> str:
        text = json.dumps(value) if isinstance(value, list) else str(value)
        plain = not set(text) & set(f'{delimiter}"\r\n')
        return text if plain else '"' + text.replace('"', '""') + '"'

    lines = [list(rows[0]), *(row.values() for row in rows)]
    return "".join(delimiter.join(map(cell, line)) + line_end for line in lines).encode()


def parquet(rows: Rows, schema: pyarrow.Schema | None = None) -> bytes:
    data = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(list(rows), schema), data, row_group_size=3
    )
    return data.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": json_lines,
    ".json": json_list,
    ".csv": delimited,
    ".tsv": lambda rows: delimited(rows, "\t", "\r\n"),
    ".parquet": parquet,
}
