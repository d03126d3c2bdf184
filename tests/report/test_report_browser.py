"""The page in a real browser: sorting, narrow screens, dark mode."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from jpt.report.figures import contrast
from jpt.report.report import table, value_cell, whole_page, write_report
from tests.helpers.study import write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LIGHT, DARK = 1, 0
NARROW, WIDE = (390, 844), (1280, 900)
MIN_WIDTH = 500  # of a window of this browser; narrower pages go into a frame
FRAME = """<!doctype html>
<iframe src="probed.html" width="{}" height="{}" style="border: 0"></iframe>
<script>addEventListener("message", (message) => {{
    const answer = document.createElement("pre");
    answer.id = "answer";
    answer.textContent = message.data;
    document.body.append(answer);
}});</script>"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")]


def ask(page: str, question: str, folder: Path, size=WIDE, scheme=LIGHT) -> Any:
    """Run a script in the page, added to its security policy, and return the answer."""
    script = f"""addEventListener("load", () => {{
        const answer = document.createElement("pre");
        answer.id = "answer";
        answer.textContent = JSON.stringify((() => {{ {question} }})());
        document.body.append(answer);
        parent.postMessage(answer.textContent, "*");
    }});"""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    probed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    probed = probed.replace("</body>", f"<script>{script}</script></body>", 1)
    (folder / "probed.html").write_text(probed, encoding="utf-8")
    (folder / "framed.html").write_text(FRAME.format(*size), encoding="utf-8")
    shown = "framed.html" if size[0] < MIN_WIDTH else "probed.html"
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--virtual-time-budget=2000", "--enable-logging=stderr", "--dump-dom"),
            *[f"--user-data-dir={folder / 'browser'}", f"--window-size={size[0]},{size[1]}"],
            *[f"--blink-settings=preferredColorScheme={scheme}", (folder / shown).as_uri()],
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    # The console has what the browser refused or failed at.
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, flags=re.S)
    assert found is not None, done.stderr
    return json.loads(unescape(found[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("browser") / "study")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


ROWS = [
    ["b 10", "+0.50", "7,284", value_cell("2 min 5 s", 125)],
    ["b 9", "–", "900", value_cell("99 s", 99)],
    ["a", "−0.25 to 1", "12", value_cell("–", float("nan"))],
    ["c", ".125", "−3", value_cell("1 h 0 min", 3600)],
]
SORT = """
    const rows = () => [...document.querySelectorAll("tbody tr")].map((row) => row.id);
    document.querySelectorAll("tbody tr").forEach((row, index) => { row.id = index; });
    const heads = [...document.querySelectorAll("thead tr:last-child th")];
    const found = heads.map((head) => {
        const states = [];
        for (let click = 0; click < 3; click += 1) {
            head.querySelector("button").click();
            states.push([rows().join(""), head.getAttribute("aria-sort")]);
        }
        return states;
    });
    heads[0].querySelector("button").click();
    heads[1].querySelector("button").click();
    return [found, heads.map((head) => head.getAttribute("aria-sort"))];
"""


def test_tables_sort_by_a_click(tmp_path: Path) -> None:
    shown = table(["name", "rho", "rows", "time"], ROWS, "A table", over=[("", 1), ("all", 3)])
    found, last = ask(whole_page("x", shown), SORT, tmp_path)
    first = ["0123", None]
    # Names sort by numbers in them too; unknown values come last in both directions.
    wanted = [("2103", "3012"), ("2301", "0321"), ("3210", "0123"), ("1032", "3012")]
    for states, (up, down) in zip(found, wanted, strict=True):
        assert states == [[up, "ascending"], [down, "descending"], first]
    assert last == [None, "ascending", None, None]


def test_every_table_of_a_study_can_be_sorted(folder: Path, page: str) -> None:
    question = """
        const all = [...document.querySelectorAll("table")];
        return all.map((table) => [table.tBodies[0].rows.length,
            table.querySelectorAll("thead tr:last-child th button[type=button]").length,
            table.tHead.rows[table.tHead.rows.length - 1].cells.length]);
    """
    found = ask(page, question, folder)
    assert len(found) > 10
    assert all(buttons == columns for rows, buttons, columns in found if rows > 1)


def test_figures_scroll_on_a_phone_and_the_page_does_not(folder: Path, page: str) -> None:
    question = """
        const box = document.querySelector(".scroll:has(> .map)");
        const copy = box.querySelector(".sticky"), cells = box.querySelector("svg[role]");
        const lefts = () => [copy, cells].map((each) => each.getBoundingClientRect().left);
        const before = lefts();
        box.scrollLeft = 150;
        document.querySelectorAll("details").forEach((each) => { each.open = true; });
        const head = document.querySelector("details .scroll tbody th");
        const table = head.closest(".scroll");
        table.scrollLeft = 100;
        return {page: document.documentElement.scrollWidth, before, after: lefts(),
            left: box.getBoundingClientRect().left, moved: table.scrollLeft,
            head: head.getBoundingClientRect().left, table: table.getBoundingClientRect().left};
    """
    found = ask(page, question, folder, NARROW)
    assert found["page"] <= NARROW[0]
    assert found["before"] == pytest.approx([found["left"]] * 2, abs=1)
    assert found["after"] == pytest.approx([found["left"], found["left"] - 150], abs=1)
    assert found["moved"] > 50 and found["head"] == pytest.approx(found["table"], abs=1)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_figures_are_readable_in_light_and_dark_mode(folder: Path, page: str, scheme: int) -> None:
    question = """
        const numbers = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((n) => n / 255);
        const ground = getComputedStyle(document.querySelector("section")).backgroundColor;
        const kinds = new Set();
        // Text in cells has a fixed color.
        for (const text of document.querySelectorAll("svg[role] text")) {
            if (text.style.fill.includes("var")) kinds.add(getComputedStyle(text).fill);
        }
        return {ground: numbers(ground), texts: [...kinds].map(numbers)};
    """
    found = ask(page, question, folder, scheme=scheme)
    assert (sum(found["ground"]) > 1.5) == (scheme == LIGHT)
    assert len(found["texts"]) >= 2
    assert all(contrast(color, found["ground"]) >= 4.5 for color in found["texts"])
