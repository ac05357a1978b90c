"""`tiekd frames import --rectify`: the lens's distortion taken out as the nodes take it out."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

from helpers.bags import (
    HEIGHT,
    KEEP_ALL,
    WIDTH,
    K,
    camera_topics,
    image,
    info,
    report,
    run,
    shown,
    stored,
    write_bag,
)
from tiekd_ros.bags import BagError
from tiekd_ros.core.camera import CameraModel, Rectifier
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import decode_image
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, Label

BENT = (-0.3, 0.08, 0.001, -0.001, 0.0)
WIDE = (40.0, 0.0, 31.5, 0.0, 0.0, 40.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0)
"""A projection that shows more than the camera saw."""
YAML = (
    f"image_width: {WIDTH}\nimage_height: {HEIGHT}\ndistortion_model: plumb_bob\n"
    f"camera_matrix: {{data: {list(K)}}}\ndistortion_coefficients: {{data: {list(BENT)}}}\n"
    f"projection_matrix: {{data: {list(WIDE)}}}\n"
)


@pytest.fixture
def state(tmp_path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def bent_topics(count: int = 3, p: tuple[float, ...] = WIDE, model: str = "plumb_bob") -> dict:
    topics = camera_topics(count)
    topics["/cam/camera_info"] = [info(n, d=BENT) for n in range(count)]
    for each in topics["/cam/camera_info"]:
        each.p, each.distortion_model = np.array(p), model
    return topics


def expected(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture rectified, and where the camera did not see it."""
    lens = CameraModel(WIDTH, HEIGHT, "plumb_bob", BENT, K, tuple(np.eye(3).flatten()), WIDE)
    made, invalid_mask = Rectifier().rectified(shown(number), lens)
    assert invalid_mask is not None
    assert 0.1 < invalid_mask.mean() < 0.9
    return made, invalid_mask


def assert_rectified(state: StateFolder, count: int = 3) -> None:
    frames = stored(state)
    assert len(frames) == count
    for number, frame in enumerate(frames):
        assert frame.intrinsics.as_tuple() == (40.0, 40.0, 31.5, 23.5)
        apart = decode_image(frame.jpeg).astype(int) - expected(number)[0]
        assert np.abs(apart).mean() < 25  # JPEG


def test_images_are_rectified_and_labels_know_nothing_of_what_was_not_seen(tmp_path, state):
    said = run(state, write_bag(tmp_path / "bag", bent_topics()), *KEEP_ALL, "--rectify")
    assert "WARN" not in said
    assert "of a rectified image is what the camera did not see: labels are unknown" in said
    assert_rectified(state)
    with FrameStore(state.frames) as store:
        store.put_label(1, Label(np.full((HEIGHT, WIDTH), 2, np.float32), "t", "1"))
        depth = store.load(1).depth
    invalid_mask = expected(0)[1]
    assert np.isnan(depth[invalid_mask]).all()
    assert (depth[~invalid_mask] == 2).all()


def test_without_it_a_warning_says_how_many_images_and_what_would_do(tmp_path, state):
    path = write_bag(tmp_path / "bag", bent_topics(4))
    found = report(state, path, *KEEP_ALL, "--every", 2)
    (warning,) = found["warnings"]
    assert warning.startswith("2 images were logged as a lens with distortion (plumb_bob)")
    assert "px at the border" in warning
    assert "--rectify" in warning
    assert [frame.intrinsics.fx for frame in stored(state)] == [60.0, 60.0]


def test_what_was_imported_as_it_was_stays_so_and_that_is_said(tmp_path, state):
    path = write_bag(tmp_path / "bag", bent_topics())
    run(state, path, *KEEP_ALL)
    before = [frame.jpeg for frame in stored(state)]
    said = run(state, path, *KEEP_ALL, "--rectify")
    assert "an earlier import kept of the 3 that it looked at stays as it is; begin a new" in said
    assert [frame.jpeg for frame in stored(state)] == before
    assert "begin a new log" not in run(state, path, *KEEP_ALL)


def test_distortion_and_missing_calibration_are_said(tmp_path, state):
    bent = {"/cam/image_raw": [image(0)], "/cam/camera_info": [info(0, d=(0.1, 0, 0, 0, 0))]}
    said = run(state, write_bag(tmp_path / "bent", bent))
    assert "WARN: 1 images were logged as a lens with distortion (plumb_bob) shows them" in said
    assert "import them with --rectify" in said
    rect = {"/cam/image_rect": bent["/cam/image_raw"], "/cam/camera_info": bent["/cam/camera_info"]}
    said = run(StateFolder(tmp_path / "b"), write_bag(tmp_path / "rect", rect))
    assert "a lens with" not in said
    assert "WARN" not in said
    none = {"/cam/image_raw": [image(0)], "/cam/camera_info": [info(0, k=(0.0,) * 9)]}
    said = run(StateFolder(tmp_path / "c"), write_bag(tmp_path / "none", none))
    assert "the camera is not calibrated: frames are logged without intrinsics" in said
    assert stored(StateFolder(tmp_path / "c"))[0].intrinsics is None


def test_a_calibration_for_another_shape_is_not_used_and_faint_distortion_no_warning(
    tmp_path, state
):
    topics = camera_topics(1)
    topics["/cam/camera_info"][0].height = 2 * HEIGHT
    found = report(state, write_bag(tmp_path / "bag", topics))
    assert any("camera_info is for images of another shape" in note for note in found["notes"])
    assert stored(state)[0].intrinsics is None
    topics["/cam/camera_info"] = [info(0, d=(0.001, 0, 0, 0, 0))]
    faint = report(StateFolder(tmp_path / "b"), write_bag(tmp_path / "faint", topics))
    assert faint["warnings"] == []


def test_what_is_not_known_cannot_be_taken_out(tmp_path, state):
    path = write_bag(tmp_path / "bag", bent_topics(1, model="thin_prism"))
    (warning,) = report(state, path)["warnings"]
    assert "'thin_prism' is not known" in warning
    other = StateFolder(tmp_path / "other")
    with pytest.raises(BagError, match=r"'thin_prism' is not known.*, or leave out --rectify"):
        run(other, path, "--rectify")
    path = write_bag(tmp_path / "none", {"/image": [image(0)]})
    with pytest.raises(BagError, match=r"--rectify needs .*none for /image.*--camera-info"):
        run(other, path, "--rectify")
    for name in ("images", "depth"):
        (tmp_path / "rgbd" / name).mkdir(parents=True)
    with pytest.raises(InvalidSettingError, match=r"--rectify is for bags"):
        run(other, write_bag(tmp_path / "good", bent_topics(1)), tmp_path / "rgbd", "--rectify")
    assert not other.root.exists()


def test_a_calibration_file_says_what_the_lens_does(tmp_path, state):
    path = write_bag(tmp_path / "bag", {"/image": camera_topics(3)["/cam/image_raw"]})
    (tmp_path / "camera.yaml").write_text(YAML)
    given = ("--camera-info", tmp_path / "camera.yaml")
    run(state, path, *KEEP_ALL, "--rectify", *given)
    assert_rectified(state)
    bent = report(StateFolder(tmp_path / "b"), path, *KEEP_ALL, *given)
    assert bent["warnings"][0].startswith("3 images")


def test_a_topic_that_is_rectified_by_its_name_stays_as_it_is(tmp_path, state):
    topics = bent_topics(1)
    topics["/cam/image_rect"] = topics.pop("/cam/image_raw")
    found = report(state, write_bag(tmp_path / "bag", topics), "--rectify")
    assert found["warnings"] == []
    assert any("/cam/image_rect is rectified already" in note for note in found["notes"])
    (frame,) = stored(state)
    assert frame.intrinsics.fx == 40.0
    assert np.abs(decode_image(frame.jpeg).astype(int) - shown(0)).mean() < 25


def test_a_calibration_that_goes_bad_leaves_its_images_out(tmp_path, state):
    topics = bent_topics(3)
    topics["/cam/camera_info"][1].d[0] = np.nan
    found = report(state, write_bag(tmp_path / "bag", topics), *KEEP_ALL, "--rectify")
    assert (found["kept"], found["left_out"]) == (2, {"unreadable": 1})
    assert any("cannot be rectified" in note for note in found["notes"])
