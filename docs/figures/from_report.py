"""Extract the first figure of a report as an SVG file for the README.

python docs/figures/from_report.py jpt-quickstart/report.html docs/figures/quickstart-transfer.svg
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
FIGURE = re.compile(r'<svg[^>]*? (role="img"[^>]*)>(.*?)</svg>', re.DOTALL)


def first_figure(page: str) -> str:
    """Return the first figure with the page's colors and font inlined.

    Args:
        page: HTML of ``jpt report``.

    Returns:
        SVG document on a white background.

    Example:
        >>> page = '<p><svg role="img"><a style="fill: var(--ink, #1b1f24)"/></svg></p>'
        >>> first_figure(page).strip()[-32:]
        '<a style="fill: #1b1f24"/></svg>'
    """
    found = FIGURE.search(page)
    if found is None:
        raise ValueError("the page has no figure")
    attributes, body = found.groups()
    body = re.sub(r"var\(--[\w-]+, *([^()]+)\)", r"\1", body).replace("var(--font)", FONT)
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{background}{body}</svg>\n'


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(first_figure(source.read_text(encoding="utf-8")), encoding="utf-8")
