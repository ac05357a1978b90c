"""camera_node plays a folder of images, or the synthetic world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.teachers import picture
from ros_helpers.peer import UNCONFIGURED, Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.nodes.camera.node import CameraNode, CameraSourceError
from tiekd_ros.nodes.common.conversions import image_to_rgb, stamp_ns
from tiekd_ros.worlds import IndoorWorld, WorldSettings

COUNT = 3
RATE_HZ = 20.0
SECONDS = (100.0, 100.25, 101.0)
STAMPS_NS = [round(s * 1e9) for s in SECONDS]
K = "60 0 31.5\n0 61 23.5\n0 0 1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "played" / "images"
    images.mkdir(parents=True)
    for number in range(COUNT):
        (images / f"{number}.jpg").write_bytes(encode_jpeg(picture(number)))
    (tmp_path / "played" / "K.txt").write_text(K)
    return tmp_path / "played"


@pytest.fixture
def watching(peer: Peer) -> Peer:
    peer.listen_to_camera("image_raw", "camera_info")
    return peer


def test_a_folder_is_played_round_and_round_with_present_stamps(
    watching: Peer, folder: Path
) -> None:
    with running(CameraNode, watching, until=UNCONFIGURED, source=str(folder), rate_hz=RATE_HZ):
        wait_for(lambda: len(watching.images) > 2 * COUNT, "the folder to come round")
        stamps = sorted(watching.images)
        assert stamps[0] > 1_700_000_000_000_000_000
        last = watching.images[stamps[-1]]
        assert (last.encoding, last.width, last.height) == ("rgb8", 64, 48)
        assert last.header.frame_id == "camera_optical_frame"


def test_camera_info_holds_the_folders_matrix_and_the_images_stamp(
    watching: Peer, folder: Path
) -> None:
    parameters = {"source": str(folder), "rate_hz": RATE_HZ, "frame_id": "head_camera"}
    with running(CameraNode, watching, until=UNCONFIGURED, **parameters):
        stamp = wait_for(
            lambda: next(iter(set(watching.images) & set(watching.camera_infos)), None),
            "an image and its camera_info",
        )
    info = watching.camera_infos[stamp]
    assert info.header == watching.images[stamp].header
    assert info.header.frame_id == "head_camera"
    assert (info.width, info.height) == (64, 48)
    assert list(info.k) == [60.0, 0.0, 31.5, 0.0, 61.0, 23.5, 0.0, 0.0, 1.0]
    assert info.p[5] == 61.0


def test_without_a_matrix_there_is_no_camera_info(watching: Peer, folder: Path) -> None:
    (folder / "K.txt").unlink()
    with running(CameraNode, watching, until=UNCONFIGURED, source=str(folder), rate_hz=RATE_HZ):
        wait_for(lambda: len(watching.images) > COUNT, "images")
    assert not watching.camera_infos


def test_recorded_stamps_are_kept_and_belong_to_their_images(watching: Peer, folder: Path) -> None:
    (folder / "times.txt").write_text("\n".join(map(str, SECONDS)))
    parameters = {"source": str(folder), "rate_hz": RATE_HZ, "stamps": "recorded"}
    with running(CameraNode, watching, until=UNCONFIGURED, **parameters):
        wait_for(lambda: len(watching.images) == COUNT, "all images")
    assert sorted(watching.images) == STAMPS_NS
    for number, stamp in enumerate(STAMPS_NS):
        shown = image_to_rgb(watching.images[stamp])
        assert np.abs(shown.astype(int) - picture(number)).mean() < 10  # JPEG


def test_without_recorded_stamps_they_follow_from_the_rate(watching: Peer, folder: Path) -> None:
    parameters = {"source": str(folder), "rate_hz": RATE_HZ, "stamps": "recorded"}
    with running(CameraNode, watching, until=UNCONFIGURED, **parameters):
        wait_for(lambda: len(watching.images) == COUNT, "all images")
    assert sorted(watching.images) == [0, 50_000_000, 100_000_000]


def test_not_looped_it_ends_with_the_last_image(
    watching: Peer, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = ""

    def ended() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return f"all {COUNT} images played" in said

    parameters = {"source": str(folder), "rate_hz": RATE_HZ, "loop": False, "stamps": "recorded"}
    with running(CameraNode, watching, until=UNCONFIGURED, **parameters):
        wait_for(ended, "the end of the folder")
        last = round((COUNT - 1) * 1e9 / RATE_HZ)
        wait_for(lambda: last in watching.images, "the last image")


@pytest.mark.parametrize("fault", ["no image", "another size"])
def test_a_bad_file_is_passed_over(watching: Peer, folder: Path, fault: str) -> None:
    data = b"no image" if fault == "no image" else encode_jpeg(picture(1, 128, 96))
    (folder / "images" / "1.jpg").write_bytes(data)
    parameters = {"source": str(folder), "rate_hz": RATE_HZ, "stamps": "recorded"}
    with running(CameraNode, watching, until=UNCONFIGURED, **parameters):
        wait_for(lambda: len(watching.images) == COUNT - 1, "the good images")
    assert sorted(watching.images) == [0, 100_000_000]


def test_the_synthetic_world_is_shown_as_it_is_at_the_stamp(watching: Peer) -> None:
    parameters = {"width": 96, "height": 72, "seed": 3, "period_s": 30.0, "rate_hz": RATE_HZ}
    with running(CameraNode, watching, until=UNCONFIGURED, **parameters):
        stamp = wait_for(lambda: next(iter(watching.images), None), "an image")
    world = IndoorWorld(WorldSettings(seed=3, period_s=30.0))
    shown = watching.images[stamp]
    assert stamp == stamp_ns(shown.header)
    assert (image_to_rgb(shown) == world.render(stamp, 96, 72).image).all()


def test_a_folder_that_is_missing_is_refused_by_name(peer: Peer, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with (
        pytest.raises(CameraSourceError, match=f"{missing} does not exist; source is synthetic,"),
        running(CameraNode, peer, until=UNCONFIGURED, source=str(missing)),
    ):
        pass


@pytest.mark.parametrize(("name", "value"), [("rate_hz", 0.0), ("stamps", "later"), ("width", 3)])
def test_a_bad_setting_is_refused_by_name(peer: Peer, name: str, value: object) -> None:
    with (
        pytest.raises(InvalidSettingError, match=name),
        running(CameraNode, peer, until=UNCONFIGURED, **{name: value}),
    ):
        pass
