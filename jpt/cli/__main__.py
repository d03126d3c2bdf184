"""``python -m jpt.cli``, the same as ``jpt``."""

from jpt.cli import main

main()
