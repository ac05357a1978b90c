"""What holds for all tests."""

from __future__ import annotations

import os

# Before torch is imported: the tests share the machine, and small networks gain no speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")
