"""The loss benchmark's script: what it says of memory."""

import json

from helpers.children import run_benchmark


def peak(way: str) -> int:
    done = run_benchmark("loss.py", "--memory", "tiekd 4x257x60x80", way)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_fused_loss_needs_little_more_than_its_gradient():
    gradient = 4 * 257 * 60 * 80 * 4  # bytes
    assert gradient <= peak("fused") < 3 * gradient
    assert peak("straightforward") > 6 * gradient
