"""`tiekd label`: every image gets one whole map, whatever is killed, refused or missing."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.certificates import make_certificates
from helpers.children import run_python, start_python, wait_until
from helpers.depth_data import KITTI_SIZES, write_kitti, write_nyu
from helpers.stores import EAGER, view
from helpers.students import promote_small
from helpers.teachers import METRIC, RELATIVE, StubBackend, picture, ramp, serving
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.images import encode_depth_png
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import DatasetError, ImageFolder, KittiDataset, ReadOptions
from tiekd_ros.evaluation.label import LabelFolderError, MapFolder
from tiekd_ros.framelog import FrameStore, Observation
from tiekd_ros.teacher.client import TeacherClient
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    RelativeTeacherError,
    TeacherDeniedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.protocol import DepthAnswer, TeacherIdentity

COUNT = 6
HALF_UNIT = 0.5 / 256 + 2e-3  # storage, and FP16 on the wire at 5 m


def depth_of(image) -> np.ndarray:
    """Return depth that only this image has: its mean grey level as a scale."""
    depth = np.tile(np.linspace(1, 5, image.shape[1], dtype=np.float32), (image.shape[0], 1))
    return depth * np.float32(image.mean() / 128)


def answer(image, request):
    return DepthAnswer(depth_of(image))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for index in range(COUNT):
        cv2.imwrite(str(root / "images" / f"f{index}.png"), picture(index)[..., ::-1])
    (root / "K.txt").write_text("60 0 31.5\n0 61 23.5\n0 0 1\n")
    return root


@pytest.fixture
def url():
    """The address of a teacher that answers with `depth_of` the image."""
    with serving(StubBackend(answer)) as url:
        yield url


def label(*arguments: object, status: int = 0) -> dict:
    """Run the command in this process and return its JSON."""
    texts = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, ["label", "--json", *texts], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def maps(root) -> dict[str, np.ndarray]:
    data = ImageFolder(root, ReadOptions(truth=False, teacher=True))
    return {name: data.item(index).teacher for index, name in enumerate(data.names)}


def test_a_server_labels_every_image_once_and_says_who_it_was(folder):
    (folder / "times.txt").write_text("\n".join(f"{index}.5" for index in range(COUNT)))
    seen = []

    def noting(image, request):
        seen.append(image)
        return answer(image, request)

    backend = StubBackend(noting)
    with serving(backend) as url:
        report = label("--data", folder, "--teacher", url, "--in-flight", 1)
        assert report == {"labelled": COUNT, "kept": 0, "failed": {}}
        again = label("--data", folder, "--teacher", url)
    assert again == {"labelled": 0, "kept": COUNT, "failed": {}}
    stamps = [request.stamp_ns for request in backend.requests]
    assert stamps == [index * 10**9 + 5 * 10**8 for index in range(COUNT)]
    assert backend.requests[2].intrinsics.as_tuple() == (60, 61, 31.5, 23.5)
    np.testing.assert_array_equal(seen[2], picture(2))
    for index, depth in enumerate(maps(folder).values()):
        np.testing.assert_allclose(depth, depth_of(picture(index)), atol=2 * HALF_UNIT)
    assert json.loads((folder / "teacher" / "teacher.json").read_text()) == {
        "teacher": "stub",
        "version": "7",
        "units": "uint16 = metres * 256, 0 = unknown",
    }


def test_a_closed_teacher_lets_in_who_has_certificate_and_token(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("TIEKD_TEACHER_TOKEN", raising=False)
    made = make_certificates(tmp_path / "certificates")
    token = tmp_path / "token"
    token.write_text("0123456789abcdef-robot")
    token.chmod(0o600)
    server = {"tls_cert": str(made.cert), "tls_key": str(made.key)}
    own = ("--tls", "--ca", made.ca, "--cert", made.client_cert, "--key", made.client_key)
    with serving(
        StubBackend(answer), token_file=str(token), client_ca=str(made.ca), **server
    ) as url:
        asked = ("--data", folder, "--teacher", url)
        with pytest.raises(TeacherDeniedError, match="does not let this robot in"):
            label(*asked, *own)
        with pytest.raises(TeacherUnreachableError, match="without TLS"):
            label(*asked, "--token-file", token)
        assert label(*asked, *own, "--token-file", token)["labelled"] == COUNT
    with serving(StubBackend(answer), **server) as url:
        asked = ("--data", folder, "--teacher", url)
        with pytest.raises(TeacherDeniedError, match="no TLS connection"):
            label(*asked, "--tls")  # by the authorities of the system
        assert label(*asked, "--ca", made.ca)["kept"] == COUNT


def test_a_backend_in_this_process_labels_too(folder, tmp_path):
    (folder / "depth").mkdir()
    for index in range(COUNT):
        (folder / "depth" / f"f{index}.png").write_bytes(encode_depth_png(depth_of(picture(index))))
    (folder / "meta.yaml").write_text("depth_units_per_m: 256\n")
    for named in ([f"recorded:{folder}"], ["recorded", "--frames", folder]):
        output = tmp_path / f"maps{len(named)}"
        arguments = ["--backend", *named, "--output", output]
        assert label("--data", folder, *arguments)["labelled"] == COUNT
        for index in range(COUNT):
            stored = output / f"f{index}.png"
            assert stored.read_bytes() == (folder / "depth" / f"f{index}.png").read_bytes()


def test_kitti_maps_are_stored_as_published(tmp_path, url):
    write_kitti(tmp_path, len(KITTI_SIZES))
    (tmp_path / "kitti_eigen_test.txt").rename(tmp_path / "kitti_eigen_train.txt")
    label("--data", tmp_path, "--teacher", url)  # what trains, where no split is given
    data = KittiDataset(tmp_path, ReadOptions(subset="train", teacher=True))
    assert len(data) == len(KITTI_SIZES)
    for index in range(len(data)):
        item = data.item(index)
        file = tmp_path / "teacher" / item.name.replace("/", "_")
        stored = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        sent = depth_of(item.image).astype(np.float16).astype(np.float32)
        assert stored.shape == (352, 1216)
        np.testing.assert_array_equal(stored, np.floor(sent / np.float32(80) * 65535))
        np.testing.assert_allclose(item.teacher, sent, atol=80 / 65535 + 1e-4)


def test_an_answer_is_brought_to_what_the_layout_wants_or_is_no_label(tmp_path):
    write_nyu(tmp_path, 1)
    asked = ("--data", tmp_path, "--split", "nyu_test.txt", "--teacher")
    far, small = (
        np.tile(np.linspace(*ends, 160, dtype=np.float32), (120, 1)) for ends in ((20, 50), (1, 5))
    )
    with serving(StubBackend(far)) as url:
        report = label(*asked, url, status=1)
    assert "no depth between 0 and 10 m" in report["failed"]["kitchen_0000/rgb_00040.jpg"]
    with serving(StubBackend(small)) as url:
        label(*asked, url)
    file = tmp_path / "teacher" / "data_nyu_kitchen_0000_rgb_00040.png"
    stored = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert stored.shape == (480, 640)
    assert stored[240, 320] / 65535 * 10 == pytest.approx(3, abs=0.01)


def test_refused_images_are_named_and_the_others_labelled(folder):
    instead = {
        picture(1).tobytes(): BackendRefusal("not this one"),
        picture(2).tobytes(): DepthAnswer(np.full((48, 64), 3.0)),
        picture(3).tobytes(): ValueError("broken"),
    }

    def picky(image, request):
        return instead.get(image.tobytes()) or answer(image, request)

    with serving(StubBackend(picky)) as url:
        asked = ("--data", folder, "--teacher", url, "--in-flight", 1)
        report = label(*asked, status=1)
        assert report["labelled"] == COUNT - 3
        assert "not this one" in report["failed"]["f1"]
        assert "nearly constant" in report["failed"]["f2"]
        assert list(report["failed"]) == ["f1", "f2", "f3"]
        instead.popitem()  # the last one is answered from now on
        assert label(*asked, "--skip-bad")["kept"] == COUNT - 3
    with (
        serving(StubBackend(ValueError("broken"), TeacherIdentity("s", "9", metric=True))) as url,
        pytest.raises(TeacherUnreachableError, match=r"0 images were labelled.*run the same"),
    ):
        label("--data", folder, "--teacher", url, "--output", folder / "more")


def test_an_unreadable_image_ends_the_run_or_is_listed(folder, url):
    (folder / "images" / "f3.png").write_bytes(b"junk")
    with pytest.raises(DatasetError, match=r"f3\.png: 4 bytes are no readable"):
        label("--data", folder, "--teacher", url)
    report = label("--data", folder, "--teacher", url, "--skip-bad")
    assert list(report["failed"]) == ["f3"]
    assert report["labelled"] + report["kept"] == COUNT - 1


def test_a_damaged_map_is_made_anew(folder, url):
    label("--data", folder, "--teacher", url)
    first, second = (folder / "teacher" / f"f{index}.png" for index in (0, 1))
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    second.write_bytes(b"")
    assert label("--data", folder, "--teacher", url)["labelled"] == 2
    assert first.read_bytes() == whole


def test_a_split_of_a_folder_is_labelled_alone_and_one_folder_holds_one_teachers_maps(folder, url):
    def files() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (folder / "teacher").glob("*.png")}

    note = folder / "teacher" / "teacher.json"
    (folder / "some.txt").write_text("f0\nf1\n")
    some = ["--split", folder / "some.txt"]
    mine = ["--data", folder, "--teacher", url]
    assert label(*mine, *some)["labelled"] == 2
    assert set(files()) == {"f0.png", "f1.png"}
    assert label(*mine)["labelled"] == COUNT - 2
    assert label(*mine, *some, "--overwrite")["labelled"] == 2
    before = files()
    other = StubBackend(answer, TeacherIdentity("stub", "8", metric=True))
    with serving(other) as others:
        theirs = ["--data", folder, "--teacher", others]
        with pytest.raises(LabelFolderError, match=r"maps of stub 7 .*not of stub 8.*--overwrite"):
            label(*theirs)
        with pytest.raises(LabelFolderError, match=r"4 maps of .* \(such as f2\.png\).*stub 7"):
            label(*theirs, *some, "--overwrite")
        note.write_text("{")  # whose they are is not known
        with pytest.raises(LabelFolderError, match=r"teacher\.json cannot be read"):
            label(*theirs)
        with pytest.raises(LabelFolderError, match="4 maps"):
            label(*theirs, *some, "--overwrite")
        assert (files(), other.requests) == (before, [])
        assert label(*theirs, "--overwrite")["labelled"] == COUNT
    note.unlink()
    (folder / "teacher" / "f0.png").unlink()
    with pytest.raises(LabelFolderError, match=r"holds files like f1\.png"):
        label(*mine, *some)
    image = (folder / "images" / "f0.png").read_bytes()
    with pytest.raises(LabelFolderError, match="holds files"):  # which may be no labels
        label(*mine, "--output", folder / "images", "--overwrite")
    assert (folder / "images" / "f0.png").read_bytes() == image


def test_a_teacher_that_is_away_is_named_before_anything_is_made(folder, url):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(TeacherUnreachableError, match=address):
        label("--data", folder, "--teacher", address)
    assert not (folder / "teacher").exists()
    output = MapFolder(folder / "teacher", ImageFolder(folder).map_format)
    with output.exclusive(), pytest.raises(LabelFolderError, match="another process is labelling"):
        label("--data", folder, "--teacher", url)


def test_a_teacher_that_changes_on_the_way_ends_the_run(folder):
    def impostor(image, request):
        backend.identity = TeacherIdentity("other", "1", metric=True)
        return answer(image, request)

    backend = StubBackend(impostor)
    with serving(backend) as url, pytest.raises(TiekdError, match="now other 1, it was stub 7"):
        label("--data", folder, "--teacher", url)
    assert list((folder / "teacher").glob("*.png")) == []


def test_what_is_no_metric_teacher_or_not_one_teacher_is_refused(folder):
    with serving(StubBackend(answer, RELATIVE)) as url, pytest.raises(RelativeTeacherError):
        label("--data", folder, "--teacher", url)
    for arguments in ([], ["--teacher", "host:1", "--backend", "synthetic"]):
        with pytest.raises(InvalidSettingError, match="give one teacher"):
            label("--data", folder, *arguments)
    with pytest.raises(InvalidSettingError, match="unknown teacher backend 'magic'"):
        label("--data", folder, "--backend", "magic")


@pytest.fixture
def logged(tmp_path):
    """A function that logs so many views, a second apart, and returns their ids."""

    def log(count: int) -> list[int]:
        with FrameStore(tmp_path / "frames.sqlite3", EAGER) as store:
            return [
                store.add(Observation(view(s), s * 10**9, "cam")).frame_id for s in range(count)
            ]

    return log


def test_the_waiting_frames_of_a_frame_log_are_labelled(tmp_path, logged):
    ids = logged(5)

    def picky(image, request):
        return BackendRefusal("no") if request.stamp_ns == 3 * 10**9 else answer(image, request)

    with serving(StubBackend(picky, METRIC)) as url:
        report = label("--data", tmp_path, "--teacher", url, status=1)
        assert label("--data", tmp_path, "--teacher", url)["labelled"] == 0
    assert (report["labelled"], report["failed"]) == (4, {str(ids[3]): "no"})
    with FrameStore(tmp_path / "frames.sqlite3", EAGER) as store:
        assert store.labelled_ids() == ids[:3] + ids[4:]
        assert store.stats().rejected == {"teacher_refused": 1}
        assert store.stats().teachers == {"stub 7": 4}
    with pytest.raises(InvalidSettingError, match="keeps its labels itself"):
        label("--data", tmp_path, "--backend", "synthetic", "--overwrite")
    with pytest.raises(InvalidSettingError, match="no split files: leave out --split"):
        label("--data", tmp_path, "--backend", "synthetic", "--split", "some.txt")
    with pytest.raises(TiekdError, match="no frame log in"):
        label("--data", tmp_path / "none", "--kind", "frames", "--backend", "synthetic")


def test_a_teacher_gets_the_bytes_that_were_logged_and_labels_of_a_students_size_are_kept(
    tmp_path, monkeypatch, logged
):
    logged(3)
    with FrameStore(tmp_path / "frames.sqlite3", EAGER) as store:
        jpegs = [frame.jpeg for frame in store.unlabelled(9)]
    sent = []
    infer = TeacherClient.infer

    def noting(self, request):
        sent.append(request.image)
        return infer(self, request)

    monkeypatch.setattr(TeacherClient, "infer", noting)
    with serving(StubBackend(lambda image, request: ramp(800, 600))) as url:
        label("--data", tmp_path, "--teacher", url, "--in-flight", 1)
    assert sent == jpegs
    with FrameStore(tmp_path / "frames.sqlite3", EAGER) as store:
        sizes = {store.load(frame_id).depth.shape for frame_id in store.labelled_ids()}
    assert sizes == {(288, 384)}


def test_labels_of_a_frame_log_are_judged_as_the_companion_judges_them(tmp_path, logged):
    ids = logged(10)

    def jumping(image, request):
        return ramp(160, 120) * np.float32(100 if request.stamp_ns == 9 * 10**9 else 1)

    with serving(StubBackend(jumping)) as url:
        report = label("--data", tmp_path, "--teacher", url, "--in-flight", 1, status=1)
    assert report["labelled"] == 9
    assert "a jump beyond trust.max_scale_jump" in report["failed"][str(ids[9])]
    with FrameStore(tmp_path / "frames.sqlite3", EAGER) as store:
        assert store.stats().rejected == {"label_scale_jump": 1}


def test_a_teacher_of_which_nothing_is_believed_costs_few_frames_of_a_frame_log(tmp_path, logged):
    logged(8)
    with (
        serving(StubBackend(np.full((120, 160), 2, np.float32))) as url,
        pytest.raises(TeacherUnreachableError, match=r"stub 7 is suspect.*constant.*0 images"),
    ):
        label("--data", tmp_path, "--teacher", url)
    with FrameStore(tmp_path / "frames.sqlite3", EAGER) as store:
        assert store.stats().rejected == {"label_constant": 5}
        assert len(store.unlabelled(9)) == 3


def test_labels_of_a_frame_log_are_compared_with_the_live_student(tmp_path, logged):
    promote_small(StateFolder(tmp_path))
    logged(9)

    def far_off_at_last(image, request):
        return ramp(160, 120) * np.float32(150 if request.stamp_ns == 8 * 10**9 else 1)

    with serving(StubBackend(far_off_at_last)) as url:
        label("--data", tmp_path, "--teacher", url, "--in-flight", 1, status=1)
    with FrameStore(tmp_path / "frames.sqlite3", EAGER) as store:
        assert store.stats().rejected == {"label_against_student": 1}


def test_a_killed_run_leaves_whole_maps_and_the_next_goes_on(folder):
    for index in range(COUNT, 24):
        cv2.imwrite(str(folder / "images" / f"f{index}.png"), picture(index)[..., ::-1])

    def slow(image, request):
        time.sleep(0.05)
        return answer(image, request)

    backend = StubBackend(slow)
    output = folder / "teacher"
    with serving(backend) as url:
        command = ["-m", "tiekd_ros.cli", "label", "--data", str(folder), "--teacher", url]
        child = start_python(*command)
        wait_until(lambda: len(list(output.glob("f*.png"))) >= 4)
        child.kill()
        child.communicate()
        done = {path.stem: path.read_bytes() for path in output.glob("f*.png")}
        assert 4 <= len(done) < 24
        images = ImageFolder(folder)
        assert all(MapFolder(output, images.map_format).has(f"{name}.png") for name in done)
        finished = run_python(*command)
    assert finished.returncode == 0, finished.stderr
    assert f"{24 - len(done)} images labelled, {len(done)} had a label, 0 failed" in (
        " ".join(finished.stdout.split())
    )
    assert len(backend.requests) <= 24 + 2 * 2
    assert all((output / f"{name}.png").read_bytes() == data for name, data in done.items())
    assert list(output.glob(".writing-*")) == []
    for index, name in enumerate(images.names):
        np.testing.assert_allclose(maps(folder)[name], depth_of(picture(index)), atol=0.01)


def test_a_mistake_is_one_line_and_status_1(folder):
    done = run_python("-m", "tiekd_ros.cli", "label", "--data", str(folder / "none"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: ")
