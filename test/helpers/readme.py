"""The documentation's programs, as a reader copies them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from helpers.children import PATIENCE_S, Finished, child_environment
from helpers.teachers import picture
from tiekd_ros.core.images import encode_png

ROOT = Path(__file__).resolve().parents[2]


def program(page: str, word: str) -> str:
    """Return the one Python program of a page in which `word` stands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (found,) = [text for text in programs if word in text]
    return str(found)


def plain_client() -> str:
    """Return the program that asks a teacher without this package."""
    return program("docs/teacher.md", "InferInput")


def run_client(url: str, folder: Path, text: str = "", **environment: str) -> Finished:
    """Run the plain client, or a changed one, as a reader does who has an image."""
    file, image = folder / "client.py", folder / "image.png"
    file.write_text(text or plain_client())
    image.write_bytes(encode_png(picture()))
    return subprocess.run(
        [sys.executable, str(file), url, str(image)],
        capture_output=True,
        env=child_environment(**environment),
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
