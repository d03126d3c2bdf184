"""Names of a heat map's rows that stay in sight while its columns are scrolled."""

from __future__ import annotations

import re

GROUND = "row-ground"
NAME = "row-name"


def pin_rows(svg: str, name: str) -> str:
    """Lays a copy of the row names over a heat map, which sticks to the edge of what scrolls."""
    # The copy holds references to the names in the figure itself, so the figure stays whole.
    ground = re.search(rf'<g id="{name}-{GROUND}">\s*<path d="([^"]+)"', svg)
    height = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
    if ground is None or height is None:
        return svg
    edge = max(float(x) for x in re.findall(r"[ML] ([\d.]+)", ground[1]))
    names = re.findall(rf'<g id="({name}-{NAME}-\w+)">', svg)
    # The ground once more, moved to the left: the figure has a little margin there.
    copies = f'<use href="#{name}-{GROUND}" transform="translate(-9 0)"/>'
    copies += "".join(f'<use href="#{each}"/>' for each in (f"{name}-{GROUND}", *names))
    copy = (
        f'<svg class="pinned" aria-hidden="true" viewBox="0 0 {edge:.2f} {height[1]}"'
        f' width="{edge:.2f}" height="{float(height[1]):.0f}">{copies}</svg>'
    )
    figure = svg.replace("<svg ", f'<svg style="margin-left:-{edge:.2f}px" ', 1)
    return f'<div class="map">{copy}{figure}</div>'
