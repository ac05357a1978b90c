"""The one-slot mailbox and the state folder."""

import errno
import fcntl
import logging
import os
import threading

import pytest

from helpers.children import start_python, wait_until
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.mailbox import Mailbox
from tiekd_ros.core.state import StateFolder


def test_the_newest_item_wins_and_is_handed_out_once_also_after_closing():
    box = Mailbox()
    for item in range(5):
        box.put(item)
    assert (box.take(), box.replaced) == (4, 4)
    assert box.take(0.01) is None
    box.put("last")
    box.close()
    assert box.take() == "last"
    assert box.take() is None


def test_a_waiting_taker_is_woken_by_an_item_and_by_closing():
    box, taken = Mailbox(), []

    def take_all():
        while not box.closed:
            taken.append(box.take())

    thread = threading.Thread(target=take_all)
    thread.start()
    box.put("first")
    wait_until(lambda: taken)
    box.close()
    thread.join(10)
    assert not thread.is_alive()
    assert taken == ["first", None]


def test_the_default_state_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert StateFolder.resolve().root == tmp_path / "tiekd"
    assert StateFolder.resolve("").root == tmp_path / "tiekd"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert StateFolder.resolve().root == tmp_path / ".local" / "state" / "tiekd"


def test_a_folder_is_made_absolute_and_may_be_created_twice(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert StateFolder.resolve("~/robot").root == tmp_path / "robot"
    assert StateFolder.resolve("robot").root == tmp_path / "robot"
    state = StateFolder(tmp_path / "a" / "b").create().create()
    assert all(folder.is_dir() for folder in (state.students, state.rounds, state.logs))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TiekdError, match=r"file.*--state"):
        StateFolder(tmp_path / "file" / "state").create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    for name in ("students", "rounds", "logs"):
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o500)
    with pytest.raises(TiekdError, match="not writable"):
        StateFolder(tmp_path).create()


def claim(folder, by="companion"):
    """Claim a folder for a moment."""
    with StateFolder(folder).claimed(by):
        pass


def test_a_claimed_folder_is_refused_to_another_and_free_afterwards(tmp_path):
    with StateFolder(tmp_path).claimed("companion"):
        with pytest.raises(TiekdError, match=rf"another companion \(process {os.getpid()}\)"):
            claim(tmp_path)
        claim(tmp_path, "other")
    claim(tmp_path)


def test_a_folder_is_free_after_its_owner_was_killed(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from tiekd_ros.core.state import StateFolder
with StateFolder(Path({str(tmp_path)!r})).claimed("companion"):
    print("mine", flush=True)
    time.sleep(600)
"""
    owner = start_python("-c", code)
    try:
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(TiekdError, match=f"process {owner.pid}"):
            claim(tmp_path)
    finally:
        owner.kill()
        owner.communicate()
    claim(tmp_path)


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    caplog.set_level(logging.WARNING)
    claim(tmp_path)
    assert "cannot lock (No locks available)" in caplog.text
    assert "put state_dir on a local disk" in caplog.text
