"""What holds for all tests."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# A job that a shell starts in the background (CI, nohup) ignores these, and what is ignored stays
# so in every child. The tests send them to programs of their own, which are to end as anywhere.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Before torch is imported: the tests share the machine, and small networks gain no speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Files go to processes as by `--dist loadfile`, also after one of these has died.

    A test may hang where only the end of its process helps: Fast DDS deadlocks now and then when
    an endpoint goes while a participant beside it is lost (Fast-DDS issue 6502). pytest-xdist
    3.8 then gives the next process one file; with one test left of it, it waits for ever for a
    second. And the test that hung would run again at once, and if it passed, not count as failed.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def schedule(self) -> None:
            super().schedule()
            super().schedule()  # a second file for who has one test

        def remove_node(self, node: Any) -> str | None:
            left = {
                file: [name for name, done in tests.items() if not done]
                for file, tests in self.assigned_work.pop(node).items()
            }
            hung = next((names.pop(0) for names in left.values() if names), None)
            self.workqueue.update(
                {f: dict.fromkeys(names, False) for f, names in left.items() if names}
            )
            for other in self.assigned_work:
                self._reschedule(other)
            return hung

    return Scheduling(config, log)
