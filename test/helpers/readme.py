"""The documentation's programs, as a reader copies them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def program(page: str, word: str) -> str:
    """Return the one Python program of a page in which `word` stands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (found,) = [text for text in programs if word in text]
    return str(found)
