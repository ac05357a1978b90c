"""camera_node plays the synthetic world, folders of images, bags, video files and webcams."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image

from helpers.teachers import picture
from ros_helpers.peer import UNCONFIGURED, Peer, refusal, running
from ros_helpers.processes import Processes
from ros_helpers.waiting import PATIENCE_S, await_log, wait_for
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.nodes.camera import node as camera_node
from tiekd_ros.nodes.camera.node import CameraNode, Pace
from tiekd_ros.nodes.common.conversions import image_to_rgb, stamp_ns
from tiekd_ros.nodes.common.settings import CameraSettings
from tiekd_ros.worlds import IndoorWorld, WorldSettings

bags = pytest.importorskip("helpers.bags", reason='bags need rosbags: "tiekd_ros[bags]"')

SOCCER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mcap_soccer"
COUNT = 4
RATE_HZ = 20.0
ONCE = {"loop": False, "stamps": "recorded"}
SECONDS = (100.0, 100.25, 101.0, 101.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "played" / "images"
    images.mkdir(parents=True)
    for number in range(COUNT):
        (images / f"{number}.jpg").write_bytes(encode_jpeg(picture(number)))
    (images.parent / "K.txt").write_text("60 0 31.5\n0 61 23.5\n0 0 1\n")
    return images.parent


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return bags.write_bag(tmp_path / "bag", bags.camera_topics(COUNT))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A film of brighter and brighter grey."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE_HZ, (64, 48))
    for number in range(COUNT):
        writer.write(np.full((48, 64, 3), 40 * (1 + number), np.uint8))
    writer.release()
    return path


@pytest.fixture
def watching(peer: Peer) -> Peer:
    peer.listen_to_camera("image_raw", "camera_info")
    return peer


def play(
    peer: Peer, source: Path, count: int = COUNT, *, calibrated: bool = True, **parameters: Any
) -> None:
    """Play until so many images have come, each with its camera_info where there is one."""
    values = {"source": str(source), "pace": "rate", "rate_hz": RATE_HZ, **ONCE, **parameters}
    with running(CameraNode, peer, until=UNCONFIGURED, **values):
        wait_for(lambda: len(peer.images) >= count, f"{count} images")
        if calibrated:
            wait_for(lambda: len(peer.camera_infos) >= count, f"{count} camera_infos")


# The synthetic world, and folders of images.


def test_a_folder_is_played_round_and_round_with_present_stamps(
    watching: Peer, folder: Path
) -> None:
    play(watching, folder, 2 * COUNT + 1, loop=True, stamps="now", frame_id="head_camera")
    stamp = min(watching.images.keys() & watching.camera_infos)
    assert stamp > 1_700_000_000_000_000_000
    image, info = watching.images[stamp], watching.camera_infos[stamp]
    assert (image.encoding, image.width, image.height) == ("rgb8", 64, 48)
    assert info.header == image.header
    assert info.header.frame_id == "head_camera"
    assert (info.width, info.height) == (64, 48)
    assert list(info.k) == [60.0, 0.0, 31.5, 0.0, 61.0, 23.5, 0.0, 0.0, 1.0]
    assert info.p[5] == 61.0


def test_without_a_matrix_and_times_there_is_no_camera_info_and_stamps_follow_from_the_rate(
    watching: Peer, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "K.txt").unlink()
    values = {"source": str(folder), "rate_hz": RATE_HZ, **ONCE}
    with running(CameraNode, watching, until=UNCONFIGURED, **values):
        await_log(capfd, f"all {COUNT} images played")
        wait_for(lambda: len(watching.images) == COUNT, "all images")
    assert sorted(watching.images) == [0, 50_000_000, 100_000_000, 150_000_000]
    assert not watching.camera_infos


def test_recorded_stamps_are_kept_and_belong_to_their_images(watching: Peer, folder: Path) -> None:
    (folder / "times.txt").write_text("\n".join(map(str, SECONDS)))
    play(watching, folder, loop=True)
    assert sorted(watching.images) == [round(s * 1e9) for s in SECONDS]
    for number, stamp in enumerate(sorted(watching.images)):
        shown = image_to_rgb(watching.images[stamp])
        assert np.abs(shown.astype(int) - picture(number)).mean() < 10  # JPEG


@pytest.mark.parametrize("data", [b"no image", encode_jpeg(picture(1, 128, 96))])
def test_a_file_that_is_no_image_or_of_another_size_is_skipped(
    watching: Peer, folder: Path, data: bytes
) -> None:
    (folder / "images" / "1.jpg").write_bytes(data)
    play(watching, folder, COUNT - 1, loop=True)
    assert sorted(watching.images) == [0, 100_000_000, 150_000_000]


def test_the_synthetic_world_is_shown_as_it_is_at_the_stamp(watching: Peer) -> None:
    world = {"width": 96, "height": 72, "seed": 3, "period_s": 30.0}
    play(watching, Path("synthetic"), 1, stamps="now", **world)
    stamp, shown = next(iter(watching.images.items()))
    view = IndoorWorld(WorldSettings(seed=3, period_s=30.0)).render(stamp, 96, 72)
    assert (image_to_rgb(shown) == view.image).all()


def test_a_bad_setting_is_refused_by_name(peer: Peer) -> None:
    for name, value in (("rate_hz", 0.0), ("stamps", "later"), ("width", 3)):
        assert name in refusal(CameraNode, peer, **{name: value})
    with pytest.raises(InvalidSettingError, match="pace must be one of 'auto', 'recorded', 'rate'"):
        CameraSettings(pace="fast")


# Recordings and webcams.


def test_a_bag_is_played_as_it_was_recorded(watching: Peer, bag: Path) -> None:
    play(watching, bag)
    stamps = [bags.stamp_of(n) for n in range(COUNT)]
    assert sorted(watching.images) == stamps
    for number, stamp in enumerate(stamps):
        message = watching.images[stamp]
        assert message.header.frame_id == "head_camera"
        np.testing.assert_array_equal(image_to_rgb(message), bags.shown(number))
        info = watching.camera_infos[stamp]
        assert info.header == message.header
        assert tuple(info.k) == bags.K
        assert (info.width, info.height) == (bags.WIDTH, bags.HEIGHT)


def test_what_is_played_once_waits_for_a_subscriber_of_the_calibration(
    peer: Peer, bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_node, "_SUBSCRIBERS_S", PATIENCE_S)
    early: list[Image] = []
    camera = SimpleNamespace(namespace=f"{peer.namespace}/late", context=peer.context)
    values = {"source": str(bag), "pace": "rate", "rate_hz": 50.0, **ONCE}
    peer.node.create_subscription(Image, "late/image_raw", early.append, 10)
    with running(CameraNode, camera, until=UNCONFIGURED, **values):
        wait_for(lambda: peer.node.count_publishers("late/image_raw"), "the camera")
        time.sleep(0.5)  # the images have a subscriber, and would be over in 0.1 s
        assert not early
        peer.listen_to_camera("late/image_raw", "late/camera_info")
        wait_for(lambda: len(early) == COUNT, f"{COUNT} images")
        wait_for(lambda: len(peer.camera_infos) == COUNT, f"{COUNT} camera_infos")


@pytest.mark.parametrize(("topic", "rectified"), [("image_rect_color", True), ("image_raw", False)])
def test_rectified_images_get_the_calibration_of_rectified_images(
    watching: Peer, tmp_path: Path, topic: str, rectified: bool
) -> None:
    d = (0.1, -0.2, 0.001, 0.002, 0.03)
    bent = bags.info(0, d=d)
    bent.p[0] = 41.0  # as rectifying leaves it
    topics = {f"/cam/{topic}": [bags.image(0)], "/cam/camera_info": [bent]}
    play(watching, bags.write_bag(tmp_path / "bag", topics), 1)
    (info,) = watching.camera_infos.values()
    assert tuple(info.d) == ((0.0,) * 5 if rectified else d)
    assert (info.k[0] == 41.0) == rectified


def test_its_own_pace_is_that_of_the_recording(watching: Peer, bag: Path) -> None:
    begun = time.monotonic()
    play(watching, bag, pace="auto")  # four images a second apart
    assert time.monotonic() - begun >= (COUNT - 1) * 0.9


@pytest.mark.parametrize("image_first", [True, False])
def test_a_calibration_that_changes_is_right_for_each_image_of_each_loop(
    peer: Peer, tmp_path: Path, image_first: bool
) -> None:
    topics = {
        "/cam/camera_info": [bags.info(n, k=(60.0 + n, *bags.K[1:])) for n in range(COUNT)],
        "/cam/image_raw": [bags.image(n) for n in range(COUNT)],
    }
    path = bags.write_bag(tmp_path / "bag", dict(sorted(topics.items(), reverse=image_first)))
    images: list[Image] = []
    peer.node.create_subscription(Image, "image_raw", images.append, 100)
    infos = peer.listen(CameraInfo, "camera_info")
    values = {"source": str(path), "pace": "rate", "rate_hz": 50.0}
    with running(CameraNode, peer, until=UNCONFIGURED, **values):
        wait_for(lambda: len(images) > 3 * COUNT, "the bag to come round")
    shown = [bags.shown(n).tobytes() for n in range(COUNT)]
    pairs = [
        (shown.index(bytes(image.data)), infos[stamp_ns(image.header)].k[0])
        for image in images
        if stamp_ns(image.header) in infos
    ]
    assert {number for number, _ in pairs} == set(range(COUNT))
    assert [focal for _, focal in pairs] == [60.0 + number for number, _ in pairs]


@pytest.mark.skipif(not SOCCER.is_dir(), reason=f"the real bag is not at {SOCCER}")
def test_the_awkward_real_bag_is_played_round_and_round(
    watching: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(CameraNode, watching, until=UNCONFIGURED, source=str(SOCCER)):
        wait_for(lambda: len(watching.images) > 5, "the bag to come round")
    assert sorted(watching.images)[0] > 1_700_000_000_000_000_000  # present stamps
    assert "of which 12 are not there" in capfd.readouterr().err


def test_a_calibration_file_takes_the_place_of_the_bags(
    watching: Peer, bag: Path, tmp_path: Path
) -> None:
    (tmp_path / "camera.yaml").write_text(
        "image_width: 64\nimage_height: 48\ndistortion_model: equidistant\n"
        "camera_matrix: {data: [50, 0, 30, 0, 50, 20, 0, 0, 1]}\n"
        "distortion_coefficients: {data: [0.1, 0.2, 0.3, 0.4]}\n"
    )
    file = str(tmp_path / "camera.yaml")
    play(watching, bag, camera_info=file)
    info = watching.camera_infos[bags.stamp_of(0)]
    assert (info.k[0], info.p[2], info.distortion_model) == (50.0, 30.0, "equidistant")
    assert list(info.d) == [0.1, 0.2, 0.3, 0.4]


def test_a_video_is_played_with_the_time_since_its_start(watching: Peer, video: Path) -> None:
    play(watching, video, calibrated=False, pace="auto")
    assert sorted(watching.images) == [0, 50_000_000, 100_000_000, 150_000_000]
    for number, stamp in enumerate(sorted(watching.images)):
        assert abs(image_to_rgb(watching.images[stamp]).mean() - 40 * (1 + number)) < 3
    assert not watching.camera_infos


def test_a_video_comes_round_and_may_have_a_calibration(
    watching: Peer, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "K.txt").write_text("60 0 31.5\n0 60 23.5\n0 0 1\n")
    again = {"loop": True, "stamps": "now", "pace": "auto"}
    play(watching, video, 2 * COUNT + 1, camera_info=str(tmp_path / "K.txt"), **again)
    assert next(iter(watching.camera_infos.values())).k[0] == 60.0


def test_as_a_program_it_ends_with_the_last_image(
    watching: Peer, processes: Processes, bag: Path
) -> None:
    node = processes.node(
        "camera_node", source=str(bag), loop=False, stamps="recorded", pace="rate", rate_hz=20.0
    )
    assert node.wait() == 0, node.output
    assert f"all {COUNT} images played" in node.output
    wait_for(lambda: bags.stamp_of(COUNT - 1) in watching.images, "the last image")


def test_a_program_that_cannot_play_says_why_and_ends_with_1(processes: Processes) -> None:
    node = processes.node("camera_node", source="/dev/video77")
    assert node.wait() == 1
    (line,) = [line for line in node.output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: there is no camera /dev/video77: ")


def test_what_cannot_be_played_is_refused_with_the_reason(
    peer: Peer, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "one.png").write_bytes(b"")
    bags.write_bag(tmp_path / "two", {f"/{n}/image": [bags.image(0)] for n in ("a", "b")})
    bags.write_bag(tmp_path / "none", {"/imu": [bags.imu(0)]})
    for source, reason in (
        ("/dev/video77", "there is no camera /dev/video77: (there are|this machine has no)"),
        ("77", "there is no camera /dev/video77"),
        (f"{tmp_path}/gone", f"{tmp_path}/gone does not exist; source is synthetic, a folder of"),
        (f"{tmp_path}/gone.mp4", "gone.mp4 does not exist"),
        (f"{tmp_path}/text.mp4", "text.mp4 holds no video that OpenCV can read"),
        (f"{tmp_path}/one.png", "one.png is a single image; source is"),
        (f"{tmp_path}/two", "images of 2 cameras: .*image_topic"),
        (f"{tmp_path}/none", "none has no images"),
    ):
        assert re.search(reason, refusal(CameraNode, peer, source=source)), source
    (tmp_path / "K.txt").write_text("5000 0 3000\n0 5000 2000\n0 0 1\n")
    for name, reason in (
        ("K.txt", "cannot belong to images of 64x48"),
        ("gone.yaml", "there is no file"),
    ):
        file = str(tmp_path / name)
        assert reason in refusal(CameraNode, peer, source=str(video), camera_info=file)


def test_a_slow_machine_skips_time_and_does_not_catch_up() -> None:
    now = 100.0
    pace = Pace(0.5, lambda: now)
    assert pace.as_recorded(0) == 0.0
    now += 3.0
    assert pace.as_recorded(10**9) == 0.0  # late by more than a period
    assert pace.as_recorded(2 * 10**9) == 1.0  # a second after that one, not before
    now += 1.2
    assert pace.as_recorded(3 * 10**9) == pytest.approx(0.8)  # a little late does not add up
    assert pace.as_recorded(0) == pytest.approx(1.3)  # from the start again: a period later
    assert pace.by_rate() == pytest.approx(1.8)
