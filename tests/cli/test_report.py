from __future__ import annotations

import json
from pathlib import Path

import pytest

from jpt.cli.commands import report
from jpt.errors import InputError
from tests.analysis.sample_study import write_scores, write_transfer_facts


def test_report_prints_where_the_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path)
    write_transfer_facts(tmp_path)
    report(tmp_path, json=True)
    record = json.loads(capsys.readouterr().out)
    page = Path(record["report"])
    assert page == tmp_path / "report.html" and len(record["findings"]) == 3
    text = page.read_text(encoding="utf-8")
    assert all(finding.replace("'", "&#x27;") in text for finding in record["findings"])
    report(tmp_path)
    assert capsys.readouterr().out.endswith(f"written: {page}\n")


def test_report_of_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no study"):
        report(tmp_path)
