"""MkDocs hook: fill the generated tables of a page while it is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs loads a hook by its path, without its neighbours

from tables import render  # type: ignore[import-not-found]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace marks such as ``<!-- methods: draft -->``."""
    return render(markdown)
