"""Entry point of ``python -m jpt.cli``."""

from __future__ import annotations

from jpt.cli.app import main

main()
