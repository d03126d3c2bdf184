"""``python -m jpt.cli``, the same as ``jpt``."""

from __future__ import annotations

from jpt.cli.app import main

main()
