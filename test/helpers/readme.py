"""The README's programs, as a reader copies them."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def program(word: str) -> str:
    """Return the one Python program of the README in which `word` stands."""
    programs = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [text for text in programs if word in text]
    return str(found)
