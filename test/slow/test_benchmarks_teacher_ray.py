"""Ray Serve beside the plain server: the benchmark runs both, and accounts for every frame."""

from __future__ import annotations

import json

import pytest

from helpers.children import run_benchmark

pytest.importorskip("ray.serve")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_both_servers_label_every_frame_of_the_same_robots(tmp_path):
    arguments = ["--quick", "--only", "waiting", "--robots", "2", "--output", str(tmp_path)]
    done = run_benchmark("teacher_ray.py", *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "teacher_ray.json").read_text())
    (pair,) = results["tables"]["pairs"]
    assert [stretch["server"] for stretch in (*pair["plain"], pair["ray"])] == [
        "plain", "plain", "ray",
    ]  # fmt: skip
    for stretch in (*pair["plain"], pair["ray"]):
        labels = stretch["labels"]
        assert labels["labelled"] == labels["frames"] > 8
        assert stretch["cpu_ms"] > 0
        assert 1 <= stretch["fill"] <= 8
    ratio, account = results["goals"]
    assert ratio["met"] is None  # nothing was promised of it
    assert account["measured"].startswith("0, 0, 0, 0 of ")
