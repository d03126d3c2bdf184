"""The version of jpt, alone in its file so that nothing is imported to read it."""

from __future__ import annotations

__version__ = "0.1.0"
