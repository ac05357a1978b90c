"""docs/teacher.md's plain client of a teacher, as a reader copies it."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.children import Finished, run_python
from helpers.teachers import picture
from tiekd_ros.core.images import encode_png

PAGE = Path(__file__).resolve().parents[2] / "docs" / "teacher.md"


def plain_client() -> str:
    """Return the program that asks a teacher without this package."""
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [text for text in programs if "InferInput" in text]
    return str(found)


def run_client(url: str, folder: Path, text: str = "", **environment: str) -> Finished:
    """Run the plain client, or a changed one, as a reader does who has an image."""
    image = folder / "image.png"
    image.write_bytes(encode_png(picture()))
    return run_python("-c", text or plain_client(), url, str(image), **environment)
