"""Reads a page as a browser would: tags that close, ids and links, what is loaded, figures."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

# Elements that have no end.
VOID = {"meta", "br", "hr", "img", "input", "link", "area", "base", "col", "source", "wbr"}
LOADING = {"link", "iframe", "img", "object", "embed", "audio", "video", "source", "base", "form"}


class Outline(HTMLParser):
    """What stands in a page, and what is wrong with how its tags nest."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "figcaption": []}
        self.figures: list[list[str]] = []
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
        for tag, texts in self.texts.items():
            if tag in self.open:
                texts.append(data)


def assert_page_is_sound(page: str, folder: Path) -> Outline:
    """Asserts that tags nest, ids are single, links lead somewhere, and nothing is loaded."""
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
    assert_only_own_script_runs(page, outline)
    return outline


def assert_only_own_script_runs(page: str, outline: Outline) -> None:
    """Asserts that the policy of the page names the one script that stands in it."""
    (script,) = [tag for tag, _ in outline.tags if tag == "script"] and [
        "".join(outline.texts["script"])
    ]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for _, a in outline.tags if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert re.findall(r"script-src ([^;]+)", policy) == [f"'sha256-{digest}'"]
    assert not any(name.startswith("on") for _, a in outline.tags for name in a)
    assert page.count("<script") == 1
