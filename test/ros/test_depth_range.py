"""depth_node's range and confidence: what is out of them (REP-117), and that it is said."""

from __future__ import annotations

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import PointCloud2

from helpers.students import SIZE
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Diagnosis, Peer
from ros_helpers.waiting import await_log
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import image_to_depth
from tiekd_ros.nodes.depth import report as depth_report
from tiekd_ros.nodes.depth.points import read_cloud
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.registry import StudentRegistry

NODE = "depth_node"
ERROR, OK, WARN = DiagnosticStatus.ERROR, DiagnosticStatus.OK, DiagnosticStatus.WARN
IMAGE = image_message(3)


pytestmark = pytest.mark.usefixtures("depth_node")


def set_parameter(peer: Peer, name: str, value: float) -> None:
    result = peer.set_parameter(NODE, name, value)
    assert result.successful, result.reason


def await_text(peer: Peer, text: str, level: bytes) -> Diagnosis:
    """Show the image until the diagnostics say this."""
    return peer.await_diagnosis(NODE, text, level, IMAGE, camera_info())


def test_what_is_nearer_and_farther_than_the_range_is_infinite_and_no_point(peer: Peer) -> None:
    whole = image_to_depth(peer.depth_of(IMAGE, camera_info()))
    assert np.isfinite(whole).all()
    near, far = (float(np.percentile(whole, percent)) for percent in (30, 70))
    set_parameter(peer, "max_range_m", far)
    set_parameter(peer, "min_range_m", near)
    clouds = peer.listen(PointCloud2, "points")
    peer.depth.clear()
    depth = image_to_depth(peer.depth_of(IMAGE, camera_info()))
    cloud = peer.message_of(IMAGE, clouds, camera_info())
    below, beyond = whole < np.float32(near), whole > np.float32(far)
    assert below.any()
    assert beyond.any()
    expected = np.where(below, -np.inf, np.where(beyond, np.inf, whole))
    np.testing.assert_array_equal(depth, expected.astype(np.float32))
    xyz = read_cloud(cloud).xyz
    assert np.isnan(xyz[below | beyond]).all()
    np.testing.assert_array_equal(xyz[~(below | beyond)][:, 2], whole[~(below | beyond)])
    assert not cloud.is_dense


def test_a_confidence_that_leaves_no_distance_is_warned_of_until_it_is_lowered(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth_report, "_RECENT_S", 0.5)
    peer.depth_of(IMAGE, camera_info())
    assert float(await_text(peer, "publishing depth", OK).values["valid share"]) == 1.0
    set_parameter(peer, "min_confidence", 1.0)
    await_text(peer, "less confidence than min_confidence = 1 ", WARN)
    assert 0 < float(peer.diagnosis(NODE).values["median confidence"]) < 1
    set_parameter(peer, "diagnostics.valid_share_error", 0.01)
    await_text(peer, "less confidence than min_confidence = 1 ", ERROR)
    set_parameter(peer, "min_confidence", 0.0)
    await_text(peer, "publishing depth", OK)


def test_a_range_outside_the_students_is_accepted_and_an_error_until_one_fits(
    peer: Peer, state: StateFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "min_range_m = 12 m leaves nothing of the live student's range (0.1 to 10 m)"
    set_parameter(peer, "min_range_m", 12.0)
    assert text in capfd.readouterr().err
    await_text(peer, text, ERROR)
    registry = StudentRegistry(state.students)
    far = Student.fresh(StudentCard(DepthBins(33, 1.0, 30.0), SIZE))
    peer.announce(registry.add(far).version)
    await_text(peer, "", OK)
    near = registry.live()
    assert near is not None
    peer.announce(near)
    await_text(peer, text, ERROR)
    await_log(capfd, text)


def test_points_and_calibration_of_another_shape_than_the_images_are_not_made_up(
    peer: Peer,
) -> None:
    clouds, wide = peer.listen(PointCloud2, "points"), camera_info(width=192, height=108)
    reason = "there are no points, for camera_info is uncalibrated or of another shape"
    said = peer.await_diagnosis(NODE, reason, ERROR, IMAGE, wide)
    assert "camera_info is for 192 x 108, images are 96 x 72: another shape" in said.message
    info = peer.info_of(IMAGE, wide)
    assert not any([*info.k, *info.p])  # REP-104: uncalibrated
    assert (info.width, info.height) == (96, 72)
    assert not clouds
    peer.message_of(IMAGE, clouds, camera_info())
