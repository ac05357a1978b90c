"""What holds for all tests."""

from __future__ import annotations

import os
import signal

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
