"""What the doctor makes of programs that it does not see, and how it knows that they are there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from helpers.children import start_python
from helpers.probed import CAMERA, IMAGE, NODE, node, ros, silent, worst
from tiekd_ros.diagnosis.camera import check_camera_info, check_image
from tiekd_ros.diagnosis.environment import check_ros
from tiekd_ros.diagnosis.facts import CAMERA_INFO, ERROR, OK, WARN
from tiekd_ros.diagnosis.nodes import check_depth_node
from tiekd_ros.nodes.probe.graph import is_kept_to_this_machine, is_off, programs_by_domain

NOWHERE = {"publishers": [], "type": "", "count": 0, "last": None}
DOMAIN = 101
FIRST = 7400 + 250 * DOMAIN


@contextmanager
def ports(*numbers: int) -> Iterator[None]:
    """Hold UDP ports of this machine, in another process."""
    code = (
        "import socket, sys\n"
        "held = [socket.socket(type=socket.SOCK_DGRAM) for _ in sys.argv[1:]]\n"
        "for each, number in zip(held, sys.argv[1:]): each.bind(('127.0.0.1', int(number)))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = start_python("-c", code, *map(str, numbers), stdin=-1)
    try:
        assert child.stdout.readline() == "held\n", child.communicate()
        yield
    finally:
        child.communicate()


@pytest.mark.parametrize(
    ("held", "count"),
    [
        ([FIRST + 10, FIRST + 11], 1),
        ([FIRST + 10, FIRST + 11, FIRST + 14, FIRST + 15], 2),
        ([FIRST], 1),
        ([FIRST, FIRST + 10, FIRST + 11], 1),
        ([FIRST + 10], 0),
        ([FIRST + 11, FIRST + 12], 0),
    ],
)
def test_programs_are_known_by_the_ports_that_they_hold(held, count):
    with ports(*held):
        assert programs_by_domain().get(DOMAIN, 0) == count


def test_ones_own_ports_and_ports_that_anybody_may_be_lent_do_not_count():
    with ExitStack() as stack:
        for number in (FIRST + 10, FIRST + 11):
            own = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            own.bind(("127.0.0.1", number))
        stack.enter_context(ports(FIRST + 250 + 10, FIRST + 250 + 11))
        assert not {DOMAIN, DOMAIN + 1} & set(programs_by_domain())


def test_a_system_that_does_not_tell(tmp_path):
    assert programs_by_domain([tmp_path / "none"]) == {}


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, False),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "localhost"}, True),
        ({"ROS_LOCALHOST_ONLY": "1"}, True),
        ({"ROS_LOCALHOST_ONLY": "0"}, False),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": "10.0.0.1"}, False),
    ],
)
def test_whether_other_machines_count(environment, kept):
    assert is_kept_to_this_machine(environment) is kept


def test_whether_anybody_counts():
    assert is_off({"ROS_AUTOMATIC_DISCOVERY_RANGE": "Off"})
    assert not is_off({})


def test_what_is_not_seen_is_not_said_not_to_be_there():
    unsure = {"nodes": [], "managed": {}, "heard": {}, "unheard": 2, "looked_s": 15.4}
    it = ros({**silent(), "image": NOWHERE}, **unsure)
    assert worst(check_depth_node(it)).what == f"{NODE} was not seen within 15 s"
    finding = worst(check_image(it, ""))
    assert finding.what == "nobody was seen to publish /camera/image_raw within 15 s"
    finding = worst(check_ros({}, it, ""))
    assert finding.level == ERROR
    assert "2 programs with ROS of this domain" in finding.what
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" in finding.remedy
    assert worst(check_ros({}, ros(unheard=1), "")).level == WARN
    assert worst(check_ros({}, ros(), "")).level == OK


def test_the_domains_in_which_programs_run_are_named():
    it = ros({**silent(), "image": NOWHERE}, nodes=[], managed={}, heard={}, elsewhere={5: 2, 0: 1})
    finding = worst(check_depth_node(it))
    assert "in domains 0, 5, and this is domain 7: ROS_DOMAIN_ID=0 tiekd doctor" in finding.remedy
    published = [{"name": "/tiekd/depth", "types": [IMAGE]}]
    it = ros({"image": NOWHERE}, published=published, elsewhere={5: 2})
    assert "(here 7; this machine has programs with ROS in domain 5)" in (
        worst(check_image(it, "")).remedy
    )


@pytest.mark.parametrize("state", ["inactive", ""])
def test_a_topic_that_is_only_guessed_is_no_error(state):
    waiting = node()
    waiting["depth_node"]["state"] = state
    it = ros({"image": NOWHERE, "camera_info": NOWHERE}, heard={}, managed=waiting)
    for finding in (worst(check_image(it, "")), worst(check_camera_info(it, ""))):
        assert finding.level == WARN
        assert "which topic is meant is not known" in finding.what
    assert worst(check_image(it, "/camera/image_raw")).level == ERROR
    assert worst(check_image(ros({"image": NOWHERE}, heard={}), "")).level == ERROR


def test_the_outputs_of_a_node_elsewhere_are_no_cameras():
    published = [
        {"name": "/front/confidence", "types": [IMAGE]},
        {"name": "/front/camera_info", "types": [CAMERA_INFO]},
        {"name": "/front/image", "types": [IMAGE]},
    ]
    more = {"nodes": [CAMERA, "/front/depth_node"], "managed": {}, "published": published}
    it = ros({"image": NOWHERE, "camera_info": NOWHERE}, **more)
    assert "there is /front/image: " in worst(check_image(it, "")).remedy
    assert "/front/camera_info" not in worst(check_camera_info(it, "")).remedy
