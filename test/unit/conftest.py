"""Fixtures that several files use."""

from __future__ import annotations

import shutil

import pytest

from helpers.frames import filled_state
from tiekd_ros.state import StateFolder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> StateFolder:
    """A state folder whose frame log is labelled; not to be changed: copy it, as `state` does."""
    return filled_state(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def state(labelled, tmp_path) -> StateFolder:
    """A state folder with labelled frames, no student and no round."""
    state = StateFolder(tmp_path / "state").create()
    shutil.copy(labelled.frames, state.frames)
    return state
