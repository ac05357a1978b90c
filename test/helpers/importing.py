"""`tiekd frames import`, run and read as a user or a script would."""

from __future__ import annotations

import json
from contextlib import closing

from typer.testing import CliRunner

from tiekd_ros.cli.main import app
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog.rows import StoredFrame, StoredFrames

KEEP_ALL = ("--min-interval", "0", "--guard-share", "0")


def run(state: StateFolder, *arguments: object) -> str:
    """Import into a state folder; return what was said."""
    words = ["frames", "import", *map(str, arguments), "--state", str(state.root)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def report(state: StateFolder, *arguments: object) -> dict:
    """Import one recording; return its JSON."""
    (one,) = json.loads(run(state, *arguments, "--json"))
    return one


def stored(state: StateFolder) -> list[StoredFrame]:
    """Return the frames of a state folder."""
    frames = StoredFrames(state.frames)
    with closing(frames):
        return list(frames)
