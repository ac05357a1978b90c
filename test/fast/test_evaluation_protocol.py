"""The published evaluation protocols."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.official import REFERENCE, needs_reference
from tiekd_ros.core.errors import BadDepthError, InvalidSettingError
from tiekd_ros.core.images import KB_SIZE, kb_crop
from tiekd_ros.evaluation.protocol import (
    KITTI_PROTOCOL,
    METRIC_NAMES,
    NYU_PROTOCOL,
    TEACHER_METRIC_NAMES,
    crop_mask,
    evaluation_mask,
    flip_averaged,
    mean_score,
    protocol_for,
    score_image,
)
from tiekd_ros.student.bins import DepthBins

SIZE = KB_SIZE


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def test_data_sets_have_their_published_protocol_and_others_the_whole_image():
    bins = DepthBins(8, 0.5, 20.0)
    assert protocol_for("kitti", bins) == KITTI_PROTOCOL
    assert protocol_for("nyu", bins, crop="eigen") == replace(NYU_PROTOCOL, crop="eigen")
    own = protocol_for("rgbd", bins)
    assert (own.min_depth_m, own.max_depth_m, own.crop, own.kb_crop) == (0.5, 20.0, "none", False)


def test_crops_are_the_published_ones():
    for crop, size, wanted in (
        ("garg", SIZE, (143, 348, 43, 1171)),
        ("eigen", SIZE, (117, 320, 43, 1171)),
        ("nyu", (480, 640), (45, 470, 41, 600)),
        ("none", (480, 640), (0, 479, 0, 639)),
    ):
        mask = crop_mask(crop, *size)
        assert bounds(mask) == wanted
        assert mask.sum() == (wanted[1] - wanted[0] + 1) * (wanted[3] - wanted[2] + 1)
    with pytest.raises(InvalidSettingError, match="'garg', 'eigen', 'nyu', 'none', got 'centre'"):
        crop_mask("centre", 10, 10)


def test_only_truth_strictly_inside_range_and_crop_counts():
    truth = np.full(SIZE, np.nan, np.float32)
    truth[200, 100:106] = (0.0, 1e-3, 5.0, 79.9, 80.0, 200.0)
    truth[0, 0] = 5.0  # above the crop
    mask = evaluation_mask(truth, KITTI_PROTOCOL)
    assert np.argwhere(mask).tolist() == [[200, 102], [200, 103]]


def scene() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 70, SIZE).astype(np.float32)
    return truth, (truth * rng.uniform(0.8, 1.3, SIZE)).astype(np.float32)


def test_a_score_is_the_error_inside_the_crop():
    truth, predicted = scene()
    predicted[:143] = 1.0  # outside
    score = score_image(predicted, truth, KITTI_PROTOCOL)
    inside = np.s_[143:349, 43:1172]
    t, p = truth[inside].astype(np.float64), predicted[inside].clip(1e-3, 80).astype(np.float64)
    row = score.as_row()
    assert row["abs_rel"] == pytest.approx(np.mean(np.abs(p - t) / t))
    assert row["log_10"] == pytest.approx(np.mean(np.abs(np.log10(p / t))))
    assert score.valid_pixels == t.size
    assert all(np.isnan(row[name]) for name in TEACHER_METRIC_NAMES)
    assert set(row) == {*METRIC_NAMES, *TEACHER_METRIC_NAMES}


def test_agreement_with_the_teacher_leaves_out_the_upper_rows_on_kitti_only():
    truth, predicted = scene()
    teacher = predicted * np.float32(1.1)
    teacher[:110] = 1.0
    agreement = score_image(predicted, truth, KITTI_PROTOCOL, teacher).teacher
    assert agreement.a1 == 1
    everything = replace(KITTI_PROTOCOL, teacher_top=0)
    assert score_image(predicted, truth, everything, teacher).teacher.a1 < 0.8
    assert NYU_PROTOCOL.teacher_top == 0
    alone = score_image(truth, None, KITTI_PROTOCOL, truth)
    assert (alone.truth, alone.as_row()["abs_rel_T"]) == (None, 0)
    unknown = np.full(SIZE, np.nan, np.float32)
    assert score_image(predicted, None, KITTI_PROTOCOL, unknown).teacher is None


def test_the_mean_is_over_images_without_those_that_have_no_valid_truth():
    truth, predicted = scene()
    sparse = np.where(np.arange(SIZE[1]) % 100 == 0, truth, 0).astype(np.float32)
    good, few, empty = (
        score_image(predicted, t, KITTI_PROTOCOL) for t in (truth, sparse, np.zeros_like(truth))
    )
    assert (empty.truth, empty.valid_pixels) == (None, 0)
    mean = mean_score([good, few, empty])
    assert mean.without_truth == 1
    assert mean.values["rmse"] == pytest.approx((good.truth.rmse + few.truth.rmse) / 2)
    assert np.isnan(mean.values["abs_rel_T"])
    with pytest.raises(BadDepthError, match="no image"):
        mean_score([])


def test_what_cannot_be_compared_is_refused():
    truth, predicted = scene()
    with pytest.raises(BadDepthError, match=r"after its 352x1216 crop"):
        score_image(predicted, np.zeros((375, 1242), np.float32), KITTI_PROTOCOL)
    predicted[300, 300] = np.nan
    with pytest.raises(BadDepthError, match="NaN where the truth"):
        score_image(predicted, truth, KITTI_PROTOCOL)
    with pytest.raises(BadDepthError, match="NaN where the teacher"):
        score_image(predicted, None, KITTI_PROTOCOL, truth)


def test_the_flip_averaged_prediction_is_that_of_image_and_mirror_image():
    image = torch.rand(2, 3, 4, 6)
    ramp = torch.arange(6.0).expand(2, 1, 4, 6)
    assert torch.allclose(flip_averaged(lambda x: ramp, image), torch.full((2, 1, 4, 6), 2.5))
    seen = flip_averaged(lambda x: x[:, :1], image)  # what follows the image stays as it is
    assert torch.allclose(seen, image[:, :1])


@needs_reference
@pytest.mark.parametrize("crop", ["garg", "eigen", "none"])
def test_scores_are_the_published_ones(crop):
    f = np.load(REFERENCE / "metrics_kitti_375x1242.npz")
    truth = np.zeros(f["gt_shape"], np.float32)
    truth[f["gt_png_nz_y"], f["gt_png_nz_x"]] = f["gt_png_nz_val"] / np.float32(256)
    predicted = (f["pred_rows"][:, None] * f["pred_cols"]).clip(1e-3, 80).astype(np.float32)
    wave = 1 + 0.1 * np.sin(np.arange(1216))
    png = (predicted * wave / 80 * 65535).clip(1, 65535).astype(np.uint16)
    teacher = png / 65535 * 80
    score = score_image(predicted, kb_crop(truth), replace(KITTI_PROTOCOL, crop=crop), teacher)
    assert score.valid_pixels == f[f"n_valid_{crop}"]
    row = score.as_row()
    ours = [row[str(name)] for name in f["metric_names"]]
    assert ours == pytest.approx(list(f[f"metrics_{crop}"]), rel=1e-5)
