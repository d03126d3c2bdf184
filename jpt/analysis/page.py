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
    """Makes an element.

    Args:
        tag: its name.
        *children: what stands in it: text, which is escaped, or markup; None is left out.
        **attributes: ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``; None is
            left out.

    Returns:
        The markup.

    Example:
        >>> element("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{told}>{join(children)}</{tag}>")


def join(parts: Iterable[Child]) -> Markup:
    """Puts pieces in a row.

    Args:
        parts: text or markup; None is left out.

    Returns:
        The markup.

    Example:
        >>> join([element("b", "x"), " & ", None])
        '<b>x</b> &amp; '
    """
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
    """Makes a table that scrolls sideways where the screen is narrow, and sorts by its header.

    Args:
        head: the header.
        rows: the cells; the first of a row is its header. A cell that is a ``<td>`` stays one.
        caption: what the table is, for those who hear it.
        numbers_from: from which column on numbers stand, aligned on the right.
        over: a line above the header: texts and how many columns each spans.
        source: the files that its numbers stand in, relative to the page.

    Returns:
        The markup.

    Example:
        >>> "<td class=\\"number\\">1</td>" in table(["name", "n"], [["a", "1"]], "Counts")
        True
    """
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
    """Says which files the numbers stand in, with links to them.

    Args:
        paths: relative to the page.
        tag: the element to make.

    Returns:
        The markup; None without any file.

    Example:
        >>> sources(["a b.csv"])
        '<span class="source">Numbers: <a href="a%20b.csv">a b.csv</a></span>'
    """
    if not paths:
        return None
    links = [element("a", path, href=quote(path)) for path in dict.fromkeys(paths)]
    parts = [part for link in links for part in (", ", link)][1:]
    return element(tag, "Numbers: ", *parts, class_="source")


def value_cell(text: str, value: float) -> Markup:
    """Makes a cell whose text does not sort as its number does, such as a duration.

    Args:
        text: what is read.
        value: what it sorts by; NaN for not known.

    Returns:
        The cell.

    Example:
        >>> value_cell("2 min 5 s", 125.0)
        '<td class="number" data-sort="125.0">2 min 5 s</td>'
    """
    return element("td", text, class_="number", data_sort=f"{value}" if value == value else None)


def _cell(cell: Child, number: bool) -> Markup:
    if isinstance(cell, Markup) and cell.startswith("<td"):
        return cell
    return element("td", cell, class_="number" if number else None)


def bar_cell(text: str, share: float, strong: bool = False) -> Markup:
    """Makes a cell of a table with a bar behind its number.

    Args:
        text: the number.
        share: length of the bar from -1 to 1; a negative one has another color.
        strong: whether it is the best of its column.

    Returns:
        The cell.

    Example:
        >>> bar_cell("+0.50", 0.5)
        '<td class="number bar" style="--share:50%">+0.50</td>'
    """
    kind = "number bar" + (" negative" if share < 0 else "") + (" best" if strong else "")
    return element("td", text, class_=kind, style=f"--share:{100 * min(abs(share), 1):.0f}%")


def scrolling(content: Markup, label: str) -> Markup:
    """Wraps what may be wider than the screen, so that it scrolls and the page does not.

    Args:
        content: a table or a figure.
        label: what it is.

    Returns:
        The markup; it can be scrolled by the keyboard.

    Example:
        >>> scrolling(element("b", "x"), "A table")
        '<div class="scroll" role="region" aria-label="A table" tabindex="0"><b>x</b></div>'
    """
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def figure(svg: str, label: str, caption: Child, source: Sequence[str] = ()) -> Markup:
    """Makes a figure with its caption.

    Args:
        svg: of `jpt.analysis.plots.to_svg`.
        label: what it is, for those who scroll by keyboard.
        caption: shown below.
        source: the files that its numbers stand in, relative to the page.

    Returns:
        The markup.

    Example:
        >>> "<figcaption>Seen.</figcaption>" in figure("<svg></svg>", "A map", "Seen.")
        True
    """
    told = element("figcaption", caption, " " if source else None, sources(source))
    return element("figure", scrolling(Markup(svg), label), told)


def details(summary: str, *content: Child) -> Markup:
    """Makes something that is folded away.

    Args:
        summary: what is in it.
        *content: the pieces.

    Returns:
        The markup.

    Example:
        >>> details("Numbers", "1")
        '<details><summary>Numbers</summary>1</details>'
    """
    return element("details", element("summary", summary), *content)


def section(name: str, title: str, *content: Child) -> Markup:
    """Makes a part of the page.

    Args:
        name: for links to it.
        title: its headline.
        *content: the pieces.

    Returns:
        The markup.

    Example:
        >>> section("notes", "Notes").startswith('<section id="notes"')
        True
    """
    return element("section", element("h2", title), *content, id=name)


def missing(what: str, command: str) -> Markup:
    """Says what the study does not hold, and how to make it.

    Args:
        what: the file or what would stand in it.
        command: the line to type.

    Returns:
        The markup.

    Example:
        >>> missing("No matrix yet", "jpt transfer")
        '<p class="missing">No matrix yet. To make it: <code>jpt transfer</code></p>'
    """
    return element("p", f"{what}. To make it: ", element("code", command), class_="missing")


def finding_item(finding: Finding, place: str | None = None) -> Markup:
    """Shows a finding with what it means for the paper.

    Args:
        finding: of `jpt.analysis.findings`.
        place: name of the part of the page that has its numbers, for a link to it.

    Returns:
        The markup.

    Example:
        >>> finding_item(Finding("types", "Types matter.", "agrees")).count("agrees with the paper")
        1
    """
    chip = None
    if finding.verdict is not None:
        chip = element("span", _CHIPS[finding.verdict], class_=f"chip {finding.verdict}")
    link = element("a", "numbers", href=f"#{place}", class_="where") if place else None
    return element("li", finding.text, " " if chip else None, chip, " " if link else None, link)


def whole_page(title: str, *content: Child) -> str:
    """Puts the page together: nothing in it is loaded from anywhere.

    Args:
        title: of the page.
        *content: the pieces.

    Returns:
        The HTML.

    Example:
        >>> whole_page("A study", element("p", "Found.")).startswith("<!doctype html>")
        True
    """
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
