"""The worlds in another process: the same settings give the same pixels there."""

from __future__ import annotations

import hashlib

from random_world import RandomisedWorld

from helpers.children import TESTS, run_python
from tiekd_ros.worlds import IndoorWorld, WorldSettings

CODE = f"""
import hashlib, sys
sys.path.append({str(TESTS.parent / "benchmarks")!r})
from random_world import RandomisedWorld
from tiekd_ros.worlds import IndoorWorld, WorldSettings
indoor = IndoorWorld(WorldSettings(seed=3)).render(1_800_000_000_123_456_789, 96, 72)
for view in (indoor, RandomisedWorld(7).view(3, 80, 60)):
    data = view.image.tobytes() + view.depth.tobytes() + view.pose.tobytes()
    print(hashlib.sha256(data).hexdigest())
"""


def test_another_process_draws_the_same_views() -> None:
    indoor = IndoorWorld(WorldSettings(seed=3)).render(1_800_000_000_123_456_789, 96, 72)
    here = [
        hashlib.sha256(view.image.tobytes() + view.depth.tobytes() + view.pose.tobytes())
        for view in (indoor, RandomisedWorld(7).view(3, 80, 60))
    ]
    done = run_python("-c", CODE)
    assert done.stdout.split() == [digest.hexdigest() for digest in here], done.stderr
