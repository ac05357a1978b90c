"""`tiekd evaluate`: the numbers are those of the protocol, computed anew here."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.children import run_python
from helpers.depth_data import smooth_image, sparse_depth, write_kitti, write_nyu, write_png
from helpers.official import hash_state, shapes_of
from helpers.students import promote_small
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.images import encode_depth_png
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import DatasetError, KittiDataset, NyuDataset, open_dataset
from tiekd_ros.evaluation.evaluate import Predictor, evaluate_student
from tiekd_ros.evaluation.protocol import protocol_for
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import CheckpointError, Student, StudentCard
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.official import KITTI_BINS
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

GARG = (slice(143, 349), slice(43, 1172))  # of 352x1216, as published
TRUTH_ERRORS = ["a1", "a2", "a3", "abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel"]
TEACHER_ERRORS = ["a1_T", "a2_T", "a3_T", "abs_rel_T", "rmse_T", "rmse_log_T", "sq_rel_T"]
CLOSE = 2e-5


def errors(predicted, truth, low, high) -> dict[str, float]:
    """Compute the nine errors over what is known and in range, from their definitions."""
    valid = (truth > low) & (truth < high)
    t = truth[valid].astype(np.float64)
    p = np.clip(predicted[valid].astype(np.float64), low, high)
    ratio, e = np.maximum(p / t, t / p), np.log(p) - np.log(t)
    return {
        "a1": (ratio < 1.25).mean(),
        "a2": (ratio < 1.25**2).mean(),
        "a3": (ratio < 1.25**3).mean(),
        "abs_rel": (abs(p - t) / t).mean(),
        "rmse": ((p - t) ** 2).mean() ** 0.5,
        "log_10": abs(np.log10(p) - np.log10(t)).mean(),
        "rmse_log": (e**2).mean() ** 0.5,
        "silog": 100 * ((e**2).mean() - e.mean() ** 2) ** 0.5,
        "sq_rel": ((p - t) ** 2 / t).mean(),
    }


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def flipped(predict, image) -> np.ndarray:
    mirrored = predict(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
    return (predict(image) + mirrored) / 2


def run(*arguments: object) -> dict:
    """Run the command in this process and return its JSON."""
    texts = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, ["evaluate", "--json", *texts], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def in_whole_image(network, image) -> np.ndarray:
    """Return a published student's depth: clamped, then resized with aligned corners."""
    x = normalise(torch.from_numpy(np.ascontiguousarray(image))[None])
    with torch.inference_mode():
        depth = network.moments(network(x)).mean.clamp(1e-3, network.bins.max_depth_m)
        depth = torch.nn.functional.interpolate(
            depth, image.shape[:2], mode="bilinear", align_corners=True
        )
    return depth[0, 0].numpy()


@pytest.fixture(scope="module")
def fast(tmp_path_factory) -> tuple[Student, StateFolder]:
    """A small fast student, live in a state folder."""
    state = StateFolder(tmp_path_factory.mktemp("state")).create()
    return StudentRegistry(state.students).load(promote_small(state)), state


@pytest.fixture
def asked(tmp_path, fast) -> list[object]:
    """The arguments for the live student on the test's folder."""
    return ["--data", tmp_path, "--student", "live", "--state", fast[1].root]


def test_kitti_is_evaluated_with_kb_and_garg_crop_and_flip(tmp_path, fast, asked):
    student, _ = fast
    write_kitti(tmp_path, 2)
    result = run(*asked)
    data, runtime = KittiDataset(tmp_path), TorchRuntime(student)
    expected = []
    for index in range(2):
        item = data.item(index)
        predicted = flipped(lambda image: runtime.predict(image).depth, item.image)
        expected.append(errors(predicted[GARG], item.truth[GARG], 1e-3, 80.0))
        row = result["rows"][index]
        assert row["name"] == item.name
        assert row["valid_pixels"] == ((item.truth[GARG] > 1e-3) & (item.truth[GARG] < 80)).sum()
        for name in TRUTH_ERRORS:
            assert row[name] == pytest.approx(expected[-1][name], rel=CLOSE)
    assert list(result["mean"]) == TRUTH_ERRORS
    assert result["mean"] == pytest.approx(mean(expected), rel=CLOSE)
    assert result["student"]["weights_sha256"] == student.card.weights_sha256
    assert result["student"]["version"] == "000001"
    assert result["data"] == {
        "kind": "kitti", "items": 2, "without_truth_in_split": 1,
        "path": str(tmp_path), "split": str(tmp_path / "kitti_eigen_test.txt"), "against": "truth",
    }  # fmt: skip
    protocol = result["protocol"]
    assert (protocol["crop"], protocol["kb_crop"], protocol["flip"]) == ("garg", True, True)


def test_nyu_is_evaluated_in_its_window_and_range(tmp_path, fast, asked):
    student, _ = fast
    write_nyu(tmp_path, 2)
    result = run(*asked, "--student", 1, "--no-flip", "--limit", 1)
    item = NyuDataset(tmp_path).item(0)
    window = (slice(45, 471), slice(41, 601))
    predicted = TorchRuntime(student).predict(item.image).depth
    expected = errors(predicted[window], item.truth[window], 1e-3, 10.0)
    assert result["images"] == 1
    assert result["mean"] == pytest.approx(expected, rel=CLOSE)
    whole = run(*asked, "--no-flip", "--limit", 1, "--crop", "none")
    assert whole["mean"] == pytest.approx(errors(predicted, item.truth, 1e-3, 10.0), rel=CLOSE)


def test_agreement_with_the_teacher_counts_rows_from_110_on(tmp_path, fast, asked):
    student, _ = fast
    (written,) = write_kitti(tmp_path, 1)
    units = np.random.default_rng(5).integers(1, 60000, (352, 1216), dtype=np.uint16)
    units[200:210] = 0  # unknown
    write_png(tmp_path / "maps" / written.name.replace("/", "_"), units)
    result = run(*asked, "--against", "both", "--teacher-maps", tmp_path / "maps")
    runtime = TorchRuntime(student)
    image = KittiDataset(tmp_path).item(0).image
    predicted = flipped(lambda image: runtime.predict(image).depth, image)
    teacher = units / 65535 * 80
    expected = errors(predicted[110:], teacher[110:], 1e-6, 80.0)
    assert list(result["mean"]) == TRUTH_ERRORS + TEACHER_ERRORS
    for name in TEACHER_ERRORS:
        assert result["mean"][name] == pytest.approx(expected[name.removesuffix("_T")], rel=1e-4)
    with pytest.raises(DatasetError, match=r"no teacher file.*tiekd label"):
        run(*asked, "--against", "teacher")


def write_folder(root, sizes=((72, 96),), depth_size=None) -> None:
    rng = np.random.default_rng(2)
    for index, (height, width) in enumerate(sizes):
        image = smooth_image(rng, height, width)
        write_png(root / "images" / f"f{index}.png", image[..., ::-1])
        (root / "depth").mkdir(exist_ok=True)
        depth = sparse_depth(rng, *(depth_size or (height, width)), 12.0)
        (root / "depth" / f"f{index}.png").write_bytes(encode_depth_png(depth))
    (root / "meta.yaml").write_text("depth_units_per_m: 256\n")


def test_a_folders_depth_may_have_another_size(tmp_path, fast, asked):
    student, _ = fast
    write_folder(tmp_path, depth_size=(36, 48))
    result = run(*asked, "--no-flip")
    image = cv2.imread(str(tmp_path / "images" / "f0.png"))[..., ::-1]
    predicted = TorchRuntime(student).predict(np.ascontiguousarray(image)).depth
    predicted = cv2.resize(predicted, (48, 36), interpolation=cv2.INTER_LINEAR)
    truth = cv2.imread(str(tmp_path / "depth" / "f0.png"), cv2.IMREAD_UNCHANGED) / 256
    bins = student.card.bins
    expected = errors(predicted, truth, bins.min_depth_m, bins.max_depth_m)
    assert result["mean"] == pytest.approx(expected, rel=CLOSE)


def test_a_split_of_a_folder_is_evaluated_alone(tmp_path, asked):
    write_folder(tmp_path, sizes=((72, 96),) * 3)
    (tmp_path / "test.txt").write_text("f2\nf0\n")
    result = run(*asked, "--split", "test.txt")
    assert [row["name"] for row in result["rows"]] == ["f0", "f2"]
    assert result["data"]["split"] == str(tmp_path / "test.txt")
    with pytest.raises(DatasetError, match=r"no split file other\.txt"):
        run(*asked, "--split", "other.txt")


def test_a_frame_log_is_compared_with_its_labels(tmp_path, fast, labelled):
    asked = ["--student", StudentRegistry(fast[1].students).root / "000001", "--data"]
    result = run(*asked, labelled.root, "--limit", 3)
    assert result["data"]["kind"] == "frames"
    assert result["data"]["against"] == "teacher"
    assert list(result["mean"]) == TEACHER_ERRORS
    assert result["images"] == 3
    for data, wrong, reason in (
        (labelled.root, ["--against", "truth"], "frame log: it has a teacher's depth and no truth"),
        (labelled.root, ["--split", "test.txt"], "has no split files: leave out --split"),
        (tmp_path, ["--kind", "frames"], "there is no frame log in"),
    ):
        with pytest.raises(DatasetError, match=reason):
            run(*asked, data, *wrong)


def test_an_image_without_valid_truth_counts_for_nothing(tmp_path, asked):
    write_folder(tmp_path, sizes=((72, 96), (72, 96)))
    both = run(*asked, "--no-flip")
    empty = np.full((72, 96), np.nan, np.float32)
    (tmp_path / "depth" / "f1.png").write_bytes(encode_depth_png(empty))
    result = run(*asked, "--no-flip")
    assert result["without_valid_truth"] == 1
    assert result["rows"][1]["abs_rel"] is None
    assert result["mean"]["abs_rel"] == both["rows"][0]["abs_rel"]


def test_bad_items_end_the_run_or_are_counted_and_listed(tmp_path, asked):
    write_folder(tmp_path, sizes=((72, 96),) * 3)
    write_png(tmp_path / "depth" / "f1.png", np.ones((72, 96), np.uint8))
    (tmp_path / "depth" / "f2.png").unlink()
    with pytest.raises(DatasetError, match=r"no depth in .* for f2;.*--skip-bad"):
        run(*asked)
    output = tmp_path / "result.json"
    result = run(*asked, "--skip-bad", "--output", output)
    assert result["images"] == 1
    assert set(result["skipped"]) == {"f1", "f2"}
    assert "16 bits" in result["skipped"]["f1"]
    assert json.loads(output.read_text()) == result
    (tmp_path / "depth" / "f0.png").write_bytes(b"junk")
    with pytest.raises(DatasetError, match="no image of the data set can be used"):
        run(*asked, "--skip-bad")
    write_folder(tmp_path)
    with pytest.raises(TiekdError, match=r"cannot write .*nowhere"):
        run(*asked, "--skip-bad", "--output", tmp_path / "nowhere" / "result.json")


def test_what_cannot_be_meant_is_refused(tmp_path, asked):
    write_folder(tmp_path)
    empty = StateFolder(tmp_path / "empty").create()
    for wrong, error, reason in (
        (["--crop", "gark"], InvalidSettingError, "of garg, eigen, nyu, none, got 'gark'"),
        (["--against", "all"], InvalidSettingError, "one of truth, teacher, both, got 'all'"),
        (["--device", "tpu"], InvalidSettingError, "device must be auto, cpu, cuda"),
        (["--crop", "nyu"], DatasetError, "'nyu' is made for depth of 640x480, this is 96x72"),
        (["--student", 9], CheckpointError, "no student '000009'; versions: 000001"),
        (["--state", tmp_path], TiekdError, "is no student's folder, and there is no registry"),
        (["--state", empty.root], TiekdError, r"no student of .*empty is live"),
    ):
        with pytest.raises(error, match=reason):
            run(*asked, *wrong)


def official(architecture: str, size: InputSize, **training) -> Student:
    """Return a student of a published network, of made up weights."""
    bins = DepthBins(count=17, min_depth_m=1e-3, max_depth_m=80.0)
    network = build_network(architecture, bins)
    network.load_state_dict(hash_state(shapes_of(network)))
    card = StudentCard(bins, size, architecture, training=training)
    return Student(card, network.eval())


IMPORTED = {"imported": {"file": "published.pth"}}
KITTI_SIZE, OTHER_SIZE = InputSize(352, 1216), InputSize(64, 96)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenetv2-regression"])
def test_published_students_run_at_the_images_own_size(tmp_path, architecture):
    student = official(architecture, KITTI_SIZE, **IMPORTED)
    write_folder(tmp_path, ((66, 98), (66, 98)))  # no multiple of anything
    data = open_dataset("rgbd", tmp_path)
    protocol = protocol_for("rgbd", student.card.bins)
    result = evaluate_student(data, Predictor(student, "cpu"), protocol)
    expected = []
    for index in range(len(data)):
        item = data.item(index)
        predicted = flipped(lambda image: in_whole_image(student.network, image), item.image)
        expected.append(errors(predicted, item.truth, 1e-3, 80.0))
    assert result.mean == pytest.approx(mean(expected), rel=1e-4)
    assert result.as_dict()["student"]["input"] == "the image's size"


def test_only_students_for_the_published_size_run_on_the_whole_image():
    student = official("resnet18", KITTI_SIZE)
    for size, training, whole in (
        (KITTI_SIZE, IMPORTED, True),
        (KITTI_SIZE, {"recipe": "paper-kitti", "data": "kitti"}, True),
        (InputSize(480, 640), {"recipe": "paper-nyu", "data": "nyu"}, True),
        (OTHER_SIZE, IMPORTED, False),
        (OTHER_SIZE, {"recipe": "tiekd", "data": "kitti"}, False),
        (InputSize(480, 640), {"recipe": "tiekd", "data": "rgbd"}, False),
        (OTHER_SIZE, {}, False),
    ):
        card = replace(student.card, input_size=size, training=training)
        assert Predictor(Student(card, student.network), "cpu").whole_image is whole


def test_a_published_network_trained_for_another_size_runs_as_on_the_robot(tmp_path):
    student = official("resnet18", OTHER_SIZE, recipe="tiekd", data="rgbd")
    write_folder(tmp_path, ((96, 144),))
    data = open_dataset("rgbd", tmp_path)
    predictor = Predictor(student, "cpu", flip=False)
    result = evaluate_student(data, predictor, protocol_for("rgbd", student.card.bins))
    image = data.item(0).image
    on_robot = TorchRuntime(student).predict(image).depth
    np.testing.assert_allclose(predictor.predict(image), on_robot, rtol=1e-5)
    assert not np.allclose(on_robot, in_whole_image(student.network, image), rtol=1e-3)
    assert result.as_dict()["student"]["input"] == [64, 96]


def test_an_imported_checkpoint_is_evaluated_on_kitti(tmp_path, monkeypatch):
    """From a file of the published layout to errors at the published size, 352x1216."""
    write_kitti(tmp_path / "kitti", 1)
    with torch.device("meta"):
        shapes = shapes_of(build_network("resnet18", KITTI_BINS))
    checkpoint = tmp_path / "published.pth"
    torch.save({"meta": {"epoch": 24}, "state_dict": hash_state(shapes)}, checkpoint)
    state = ["--state", str(tmp_path / "state")]
    imported = CliRunner().invoke(
        app, ["students", "import", str(checkpoint), "--arch", "resnet18", *state]
    )
    assert imported.exit_code == 0, imported.output
    answers, predict = [], Predictor.predict
    monkeypatch.setattr(
        Predictor, "predict", lambda self, image: answers.append(predict(self, image)) or answers[0]
    )
    result = run("--data", tmp_path / "kitti", "--student", 1, *state, "--no-flip")
    truth = KittiDataset(tmp_path / "kitti").item(0).truth
    assert answers[0].shape == (352, 1216)
    expected = errors(answers[0][GARG], truth[GARG], 1e-3, 80.0)
    assert result["mean"] == pytest.approx(expected, rel=CLOSE)
    assert result["student"]["architecture"] == "resnet18"


def test_the_table_names_every_error_and_where_it_comes_from(tmp_path, fast, asked):
    write_folder(tmp_path)
    done = run_python("-m", "tiekd_ros.cli", "evaluate", *map(str, asked))
    assert done.returncode == 0, done.stderr
    for text in (*TRUTH_ERRORS, "1 images", "(rgbd)", "flip-averaged", "mobilenetv2-fast"):
        assert text in done.stdout
    assert fast[0].card.weights_sha256[:12] in done.stdout
