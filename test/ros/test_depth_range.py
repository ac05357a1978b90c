"""depth_node's range and confidence: what is out of them (REP-117), and that it is said."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sensor_msgs.msg import PointCloud2

from helpers.students import BINS, FASTEST, SIZE
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Diagnosis, Peer
from ros_helpers.waiting import await_log
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.thresholds import DepthDiagnosticSettings
from tiekd_ros.nodes.common.conversions import image_to_depth
from tiekd_ros.nodes.common.reporting import ERROR, OK, WARN, Report
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.nodes.depth import report as depth_report
from tiekd_ros.nodes.depth.points import read_cloud
from tiekd_ros.nodes.depth.report import PixelStatistics, add_pixel_report
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.registry import StudentRegistry

NODE = "depth_node"
IMAGE = image_message(3)


def set_parameter(peer: Peer, name: str, value: float) -> None:
    result = peer.set_parameter(NODE, name, value)
    assert result.successful, result.reason


def await_text(peer: Peer, text: str, level: bytes) -> Diagnosis:
    """Show the image until the diagnostics say this."""
    return peer.await_diagnosis(NODE, text, level, IMAGE, camera_info())


@pytest.mark.usefixtures("depth_node")
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


@pytest.mark.usefixtures("depth_node")
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


@pytest.mark.usefixtures("depth_node")
def test_a_range_outside_the_students_is_accepted_and_an_error_until_one_fits(
    peer: Peer, state: StateFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "min_range_m = 12 m leaves nothing of the live student's range (0.1 to 10 m)"
    set_parameter(peer, "min_range_m", 12.0)
    assert text in capfd.readouterr().err
    await_text(peer, text, ERROR)
    registry = StudentRegistry(state.students)
    far = Student.fresh(StudentCard(DepthBins(33, 1.0, 30.0), SIZE, FASTEST))
    peer.announce(registry.add(far).version)
    await_text(peer, "", OK)
    near = registry.live()
    assert near is not None
    peer.announce(near)
    await_text(peer, text, ERROR)
    await_log(capfd, text)


@pytest.mark.usefixtures("depth_node")
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


# The share of pixels that are a distance, and what takes the rest away.


HEIGHT, WIDTH = 480, 640
NAN, INF = math.nan, math.inf


def depth_of(*values: float) -> np.ndarray:
    """Return a depth image of equally many pixels of each of these values, well mixed."""
    mixed = np.random.default_rng(0).permutation(np.resize(values, HEIGHT * WIDTH))
    return mixed.reshape(HEIGHT, WIDTH).astype(np.float32)


def status_of(
    depth: np.ndarray,
    confidence: float | None = None,
    bins: DepthBins | None = BINS,
    thresholds: DepthDiagnosticSettings | None = None,
    **settings: float,
) -> tuple[bytes, str, dict[str, str]]:
    """Return level, text and values of a report on this depth."""
    known, report = PixelStatistics(), Report("node")
    sure = None if confidence is None else np.full(depth.shape, confidence, np.float32)
    known.add(depth, sure, time.monotonic())
    limits = thresholds or DepthDiagnosticSettings()
    add_pixel_report(report, known, DepthSettings(**settings), bins, limits)
    status = report.status("fine")
    return status.level, status.message, {v.key: v.value for v in status.values}


def test_each_kind_of_pixel_has_its_share_of_the_last_seconds() -> None:
    known = PixelStatistics()
    known.add(depth_of(2.0, NAN, -INF, INF), None, 0.0)
    assert known.shares(1.0) == pytest.approx((0.25, 0.25, 0.25, 0.25), abs=0.02)
    known.add(np.ones((3, 2), np.float32), None, 1.0)
    assert sum(known.shares(1.0)) == pytest.approx(1.0)
    known = PixelStatistics()
    known.add(depth_of(NAN), None, 0.0)
    known.add(depth_of(2.0), None, 4.0)
    assert known.shares(4.0).valid == pytest.approx(0.5)
    assert known.shares(6.0).valid == 1.0
    assert all(math.isnan(share) for share in known.shares(60.0))


def test_the_median_confidence_is_the_last_images() -> None:
    known = PixelStatistics()
    assert math.isnan(known.median_confidence())
    known.add(depth_of(2.0), depth_of(0.1, 0.3, 0.8), 0.0)
    assert known.median_confidence() == pytest.approx(0.3)
    known.add(depth_of(2.0), None, 1.0)
    assert math.isnan(known.median_confidence())


def test_depth_without_distances_is_warned_of_with_what_takes_them_away() -> None:
    for depth, settings, text in (
        (NAN, {"min_confidence": 0.7}, "min_confidence = 0.7 (half of all pixels less than 0.38)"),
        (NAN, {}, "most are unknown: see what the camera sees"),
        (-INF, {"min_range_m": 5.0}, "most are nearer than min_range_m (5.00 m): lower it"),
        (-INF, {}, "nearer than the near end of the student's range (0.40 m): distil with"),
        (INF, {"max_range_m": 3.0}, "most are beyond max_range_m (3.00 m): raise it"),
        (INF, {}, "beyond the far end of the student's range (9.70 m): distil with"),
    ):
        level, message, values = status_of(depth_of(depth), 0.38, **settings)
        assert level == WARN
        assert message.startswith("0.0% of depth's pixels are a distance, limit 0.05; ")
        assert text in message
        assert values["valid share"] == "0.000"
    _, message, _ = status_of(depth_of(NAN), NAN, min_confidence=0.1)
    assert "the student does not know its confidence: set min_confidence to 0" in message


def test_the_limits_are_parameters() -> None:
    some = depth_of(2.0, NAN)
    assert status_of(some)[0] == OK
    limits = DepthDiagnosticSettings(valid_share_warn=0.9, valid_share_error=0.8)
    assert status_of(some, thresholds=limits)[0] == ERROR
    off = DepthDiagnosticSettings(valid_share_warn=0.0)
    assert status_of(depth_of(NAN), thresholds=off)[:2] == (OK, "fine")


def test_where_there_is_no_student_or_no_depth_nothing_is_missed() -> None:
    assert status_of(depth_of(NAN), bins=None)[0] == OK
    report = Report("node")
    add_pixel_report(report, PixelStatistics(), DepthSettings(), BINS, DepthDiagnosticSettings())
    assert report.status("fine").message == "fine"


def test_a_range_outside_the_students_is_an_error_before_any_depth() -> None:
    for settings, text in (
        ({"min_range_m": 12.0}, "min_range_m = 12 m leaves nothing of the live student's range"),
        ({"max_range_m": 0.2}, "max_range_m = 0.2 m leaves nothing of the live student's range"),
    ):
        level, message, _ = status_of(depth_of(2.0), **settings)
        assert level == ERROR
        assert text in message
        assert "(0.1 to 10 m)" in message
    for settings in ({"min_range_m": 9.0}, {"max_range_m": 0.5}):
        assert status_of(depth_of(2.0), **settings)[0] == OK


def test_the_worst_finding_comes_first() -> None:
    report = Report("node")
    for level, text in ((WARN, "no subscriber"), (ERROR, "no range"), (WARN, "late")):
        report.find(level, text)
    status = report.status()
    assert (status.level, status.message) == (ERROR, "no range; no subscriber; late")
