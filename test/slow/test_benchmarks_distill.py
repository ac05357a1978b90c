"""benchmarks/distill.py: it explains itself, and its plain step is the package's, done plainly."""

from __future__ import annotations

import json

from helpers.children import TESTS, run_benchmark, run_python

COMPARE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
import distill_steps as steps
samples = steps._samples()
losses = {}
for name, plain in (("package", False), ("plain", True)):
    arm = steps._Arm(samples, plain=plain)
    losses[name] = []
    for _ in range(2):
        images, depth = arm._draw()
        losses[name].append(arm._loss(arm._network(images), depth).total.item())
        arm.step()
print(json.dumps(losses))
"""


def test_it_explains_itself():
    told = run_benchmark("distill.py", "--help")
    assert told.returncode == 0
    assert "--rounds" in told.stdout
    assert "decoder first" in told.stdout


def test_both_ways_to_do_a_step_learn_the_same():
    done = run_python("-c", COMPARE, str(TESTS.parent / "benchmarks"))
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout)
    for package, plain in zip(losses["package"], losses["plain"], strict=True):
        assert abs(package - plain) < 2e-3 * plain
