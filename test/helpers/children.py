"""Child processes of tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
Finished = subprocess.CompletedProcess[str]
PATIENCE_S = 100.0  # far more than anything here takes on a busy machine


def child_environment(**more: str) -> dict[str, str]:
    """Return this process's environment, in which children find `helpers` as well."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def start_python(
    *arguments: str, stdin: int | None = subprocess.DEVNULL, **environment: str
) -> subprocess.Popen[str]:
    """Start Python with these arguments and variables; its outputs are pipes of text."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(**environment),
        text=True,
    )


def run_python(*arguments: str, **environment: str) -> Finished:
    """Run Python with these arguments and variables to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=child_environment(**environment),
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds; an AssertionError where it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
