"""Pieces of an HTML page; text is escaped wherever it enters, markup is made here alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from urllib.parse import quote

from jpt.analysis.finding import AGREES, CONTRADICTS, UNCLEAR, Finding


class Markup(str):
    """Text that is HTML already and is not escaped again."""


Child = str | Markup | None
_CHIPS = {
    AGREES: "agrees with the paper",
    CONTRADICTS: "speaks against the paper",
    UNCLEAR: "not clear",
}


def element(tag: str, *children: Child, **attributes: str | None) -> Markup:
    """Makes an element."""
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{told}>{join(children)}</{tag}>")


def join(parts: Iterable[Child]) -> Markup:
    """Puts pieces in a row."""
    return Markup("".join(_escaped(part) for part in parts))


def _escaped(part: Child) -> str:
    if part is None:
        return ""
    return part if isinstance(part, Markup) else escape(part)


def table(
    head: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    caption: str,
    numbers_from: int = 1,
    over: Sequence[tuple[str, int]] = (),
    source: Sequence[str] = (),
) -> Markup:
    """Makes a table that scrolls sideways where the screen is narrow, and sorts by its header."""
    lines = []
    if over:
        cells = [element("th", text, colspan=str(n), scope="colgroup") for text, n in over]
        lines.append(element("tr", *cells))
    lines.append(
        element(
            "tr",
            *(
                element("th", cell, scope="col", class_="number" if i >= numbers_from else None)
                for i, cell in enumerate(head)
            ),
        )
    )
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(_cell(cell, i >= numbers_from) for i, cell in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", *lines),
        element("tbody", *body),
    )
    return element("div", scrolling(whole, caption), sources(source, "p"), class_="tabled")


def sources(paths: Sequence[str], tag: str = "span") -> Markup | None:
    """Says which files the numbers stand in, with links to them."""
    if not paths:
        return None
    links = [element("a", path, href=quote(path)) for path in dict.fromkeys(paths)]
    parts = [part for link in links for part in (", ", link)][1:]
    return element(tag, "Numbers: ", *parts, class_="source")


def value_cell(text: str, value: float) -> Markup:
    """Makes a cell whose text does not sort as its number does, such as a duration."""
    return element("td", text, class_="number", data_sort=f"{value}" if value == value else None)


def _cell(cell: Child, number: bool) -> Markup:
    if isinstance(cell, Markup) and cell.startswith("<td"):
        return cell
    return element("td", cell, class_="number" if number else None)


def bar_cell(text: str, share: float, strong: bool = False) -> Markup:
    """Makes a cell of a table with a bar behind its number."""
    kind = "number bar" + (" negative" if share < 0 else "") + (" best" if strong else "")
    return element("td", text, class_=kind, style=f"--share:{100 * min(abs(share), 1):.0f}%")


def scrolling(content: Markup, label: str) -> Markup:
    """Wraps what may be wider than the screen, so that it scrolls and the page does not."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def figure(svg: str, label: str, caption: Child, source: Sequence[str] = ()) -> Markup:
    """Makes a figure with its caption."""
    told = element("figcaption", caption, " " if source else None, sources(source))
    return element("figure", scrolling(Markup(svg), label), told)


def details(summary: str, *content: Child) -> Markup:
    """Makes something that is folded away."""
    return element("details", element("summary", summary), *content)


def section(name: str, title: str, *content: Child) -> Markup:
    """Makes a part of the page."""
    return element("section", element("h2", title), *content, id=name)


def missing(what: str, command: str) -> Markup:
    """Says what the study does not hold, and how to make it."""
    return element("p", f"{what}. To make it: ", element("code", command), class_="missing")


def finding_item(finding: Finding, place: str | None = None) -> Markup:
    """Shows a finding with what it means for the paper."""
    chip = None
    if finding.verdict is not None:
        chip = element("span", _CHIPS[finding.verdict], class_=f"chip {finding.verdict}")
    link = element("a", "numbers", href=f"#{place}", class_="where") if place else None
    return element("li", finding.text, " " if chip else None, chip, " " if link else None, link)


def whole_page(title: str, *content: Child) -> str:
    """Puts the page together: nothing in it is loaded from anywhere."""
    style, script = (
        files("jpt.analysis").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    # The browser is told to load nothing and to run this one script, whatever a name might say.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
    policy += f" form-action 'none'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", *content), element("script", Markup(script)))
    return f'<!doctype html>\n<html lang="en">{head}\n{body}</html>\n'
