"""`tiekd doctor` and its look at ROS, a process of its own, with a robot where all is well.

More in test/slow/ros/test_doctor.py; its rules in test/fast/test_diagnosis_*.py.
"""

from __future__ import annotations

import json
import os
import re

from typer.testing import CliRunner

from helpers.children import run_python
from helpers.students import promote_small
from ros_helpers.doctor import depth_node, examined, only
from ros_helpers.drivers import camera
from tiekd_ros.cli.__main__ import app
from tiekd_ros.diagnosis.facts import ERROR, OK
from tiekd_ros.nodes.probe.graph import programs_by_domain


def test_where_depth_flows_it_finds_nothing_wrong_and_exits_with_0(state, namespace):
    promote_small(state)
    command = ["doctor", "--namespace", namespace, "--seconds", "1", "--json"]
    with camera(namespace), depth_node(namespace, state):
        done = CliRunner().invoke(app, command)
    result = json.loads(done.stdout)
    findings = {each["check"]: each for each in result["findings"]}
    assert {each["level"] for each in findings.values()} <= {"ok", "warn"}, findings
    assert done.exit_code == 0
    assert result["depth_flows"]
    assert result["depth_hz"] > 0
    for check, texts in (
        ("image", (f"{namespace}/image", "96x72 rgb8")),
        ("camera_info", ("fx 60.0",)),
        ("student", ("000001 is live",)),
        ("state", (str(state.root),)),  # the running node's own
        ("depth", ("32FC1",)),
    ):
        assert findings[check]["level"] == OK
        assert all(text in findings[check]["what"] for text in texts), findings[check]


def test_programs_of_another_domain_are_named_and_the_exit_status_is_1(namespace, monkeypatch):
    own = int(os.environ["ROS_DOMAIN_ID"])
    used = {own, *programs_by_domain()}
    with camera(namespace):
        monkeypatch.setenv("ROS_DOMAIN_ID", str(next(n for n in range(1, 101) if n not in used)))
        command = ["doctor", "--namespace", namespace, "--seconds", "0.5", "--json"]
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    for finding in json.loads(done.stdout)["findings"]:
        if finding["check"] in ("depth_node", "image"):
            assert finding["level"] == ERROR
            assert re.search(rf"\bdomains? .*\b{own}\b", finding["remedy"]), finding


def test_no_node_is_waited_for_where_none_runs(namespace):
    code = (
        "from tiekd_ros.nodes.probe import probe\n"
        "probe._DISCOVERY_S = probe._REPORT_S = probe._PATIENCE_S = probe._LONGEST_S = 1e4\n"
        f"raise SystemExit(probe.main(['--namespace', {namespace!r}, '--seconds', '0.5']))"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["own_nodes"], facts["inputs"]["image"], facts["outputs"]) == ({}, [], [])


def test_a_ros_that_cannot_be_used_is_told(state, namespace, monkeypatch):
    promote_small(state)
    for variable, value in (("RMW_IMPLEMENTATION", "rmw_of_no_one"), ("ROS_DOMAIN_ID", "many")):
        with monkeypatch.context() as context:
            context.setenv(variable, value)
            result = examined(namespace, state=str(state.root))
        finding = only(result, "ros", ERROR)
        assert variable in finding.what or value in finding.what
        assert variable in finding.remedy
        only(result, "student", OK)
