"""Checks of the evaluation: crops, masks, errors against truth and teacher, means."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reference.checks import EXACT, Fixture, FixtureError, Tolerance
from tiekd_ros.core.images import kb_crop
from tiekd_ros.evaluation.protocol import (
    KITTI_PROTOCOL,
    METRIC_NAMES,
    NYU_PROTOCOL,
    TEACHER_METRIC_NAMES,
    ImageScore,
    Protocol,
    evaluation_mask,
    mean_score,
    score_image,
)
from tiekd_ros.method.metrics import depth_errors, valid_pixels

_RELATIVE = 1e-5
_TIE = 1e-6  # a ratio this near to a threshold may fall on either side of it in float32
_KITTI_CROPS = {name: name for name in ("garg", "eigen", "none")}
_NYU_CROPS = {"eigen": "nyu", "none": "none"}  # what the published names mean on NYU
_NAMES = (*METRIC_NAMES, *TEACHER_METRIC_NAMES)


class _Images:
    """Truth, prediction and teacher of one file."""

    def __init__(self, fixture: Fixture) -> None:
        rows, columns = fixture.take("pred_rows"), fixture.take("pred_cols")
        match = re.match(r"metrics_(kitti|nyu)", fixture.path.name)
        # Whose name tells nothing is of KITTI where the truth has yet to be cropped.
        cropped = len(rows) != fixture.take("gt_shape")[0]
        self.is_kitti = match[1] == "kitti" if match else cropped
        self.protocol = KITTI_PROTOCOL if self.is_kitti else NYU_PROTOCOL
        self.truth = self._read_truth(fixture)
        low, high = np.float32(self.protocol.min_depth_m), np.float32(self.protocol.max_depth_m)
        self.predicted = (rows[:, None] * columns[None, :]).clip(low, high)
        self.teacher = self._make_teacher()
        if self.truth.shape != self.predicted.shape:
            raise FixtureError(
                f"the truth is {self.truth.shape} and the prediction {self.predicted.shape}"
            )

    def _read_truth(self, fixture: Fixture) -> np.ndarray:
        raw = np.zeros(tuple(int(n) for n in fixture.take("gt_shape")), np.uint16)
        at = fixture.take("gt_png_nz_y"), fixture.take("gt_png_nz_x")
        raw[at] = fixture.take("gt_png_nz_val")
        metres = raw.astype(np.float32) / np.float32(256 if self.is_kitti else 1000)
        return kb_crop(metres) if self.protocol.kb_crop else metres

    def _make_teacher(self) -> np.ndarray:
        wave = 1 + 0.1 * np.sin(np.arange(self.predicted.shape[1]))
        if not self.is_kitti:
            low, high = self.protocol.min_depth_m, self.protocol.max_depth_m
            return (self.predicted * wave).clip(low, high).astype(np.float32)
        png = (self.predicted * wave / 80 * 65535).clip(1, 65535).astype(np.uint16)
        return (png / 65535 * 80).astype(np.float32)

    def score(self, protocol: Protocol) -> ImageScore:
        return score_image(self.predicted, self.truth, protocol, self.teacher)


def check_image(fixture: Fixture) -> None:
    """Check a file of one image's evaluation."""
    images = _Images(fixture)
    fixture.ignore("teacher_png_rows_scale_note")
    names = [str(name) for name in fixture.take("metric_names")]
    found = set(fixture.keys("metrics_"))
    for crop, name in (_KITTI_CROPS if images.is_kitti else _NYU_CROPS).items():
        if crop not in found and not images.is_kitti and crop != "eigen":
            continue
        protocol = replace(images.protocol, crop=name)
        score = images.score(protocol)
        where = evaluation_mask(images.truth, protocol)
        teacher_rows = slice(protocol.teacher_top, None)
        pairs = (
            (images.predicted[where], images.truth[where]),
            (images.predicted[teacher_rows], images.teacher[teacher_rows]),
        )
        _compare_metrics(fixture, f"metrics_{crop}", names, score.as_row(), pairs)
        fixture.compare(f"n_valid_{crop}", score.valid_pixels, EXACT)
        if f"mask_bounds_{crop}" in fixture or images.is_kitti:
            bounds = [[at.min(), at.max()] for at in np.nonzero(where)]
            fixture.compare(f"mask_bounds_{crop}", bounds, EXACT)
    if images.is_kitti or "eval_mask_without_crop_raises" in fixture:
        plain = replace(images.protocol, crop="none")
        ours = images.score(plain).truth is not None
        note = "as published: raises; here: no crop, all valid pixels"
        fixture.compare("eval_mask_without_crop_raises", ours, EXACT, note)


def _compare_metrics(
    fixture: Fixture,
    key: str,
    names: Sequence[str],
    ours: dict[str, float],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Compare an array of metrics with these names in a few lines, by how float32 touches them.

    `pairs` are prediction and truth of the valid pixels; then those of the teacher.
    """
    if key not in fixture:
        return fixture.fail(key, "missing from the file")
    reference = fixture.take(key)
    unknown = [name for name in names if name not in _NAMES]
    if unknown or reference.shape != (len(names),):
        problem = f"unknown metrics {unknown}" if unknown else f"shape {reference.shape}"
        return fixture.fail(key, problem)
    theirs = dict(zip(names, reference, strict=True))
    shares = [name for name in names if re.fullmatch(r"a[123](_T)?", name)]
    errors = [name for name in names if name not in shares and name != "silog"]
    _compare_errors(fixture, f"{key}: errors", ours, theirs, errors)
    # Shares of pixels below a threshold: float32 decides about those right at it.
    tied = {name: _tied_share(*pairs[name.endswith("_T")], int(name[1])) for name in shares}
    clear = [name for name in shares if tied[name] == 0]
    if clear:
        a, b = ([values[name] for name in clear] for values in (ours, theirs))
        fixture.compare_values(f"{key}: {', '.join(clear)}", a, b, Tolerance(1e-9, "share"))
    for name in [name for name in shares if tied[name] > 0]:
        tolerance = Tolerance(tied[name] + 1e-9, "share")
        note = f"{tied[name]:.0%} of the pixels are right at the threshold"
        fixture.compare_values(f"{key}: {name}", ours[name], theirs[name], tolerance, note)
    if "silog" in names:
        tolerance = _silog_tolerance(*pairs[0], theirs["silog"])
        fixture.compare_values(f"{key}: silog", ours["silog"], theirs["silog"], tolerance)


def _compare_errors(
    fixture: Fixture,
    label: str,
    ours: dict[str, float],
    theirs: dict[str, float],
    names: Sequence[str],
) -> None:
    """Compare each error relative to its own size, and the zeros absolutely."""
    scale = [abs(theirs[name]) or 1.0 for name in names]
    a, b = (np.array([values[name] for name in names]) / scale for values in (ours, theirs))
    fixture.compare_values(label, a, b, Tolerance(_RELATIVE, "rel"))


def _tied_share(predicted: np.ndarray, truth: np.ndarray, power: int) -> float:
    """Return the share of pixels whose ratio is at the threshold 1.25^power."""
    p, t = predicted.astype(np.float64), truth.astype(np.float64)
    tied = np.abs(np.maximum(p / t, t / p) / 1.25**power - 1) < _TIE
    return float(tied.mean()) if tied.size else 0.0


def _silog_tolerance(predicted: np.ndarray, truth: np.ndarray, reference: float) -> Tolerance:
    """Return what float32 leaves of 100 sqrt(mean(e^2) - mean(e)^2) when the two nearly cancel."""
    if predicted.size == 0:
        return EXACT
    e = np.log(predicted.astype(np.float64)) - np.log(truth.astype(np.float64))
    noise = 100**2 * 4 * float(np.finfo(np.float32).eps) * float(np.mean(e**2))
    by_noise = np.sqrt(reference**2 + noise) - reference
    return Tolerance(float(max(_RELATIVE * reference, by_noise, 1e-9)), "abs")


def check_vectors(fixture: Fixture) -> None:
    """Check a file of metrics of plain vectors, and of means over images of sibling files."""
    low, high = KITTI_PROTOCOL.min_depth_m, KITTI_PROTOCOL.max_depth_m
    names = [str(name) for name in fixture.take("names")]
    cases = [key for key in fixture.keys("gt_") if key.isdecimal()]
    if not cases:
        raise FixtureError("there is no case gt_0")
    for case in sorted(cases, key=int):
        truth, predicted = fixture.take(f"gt_{case}"), fixture.take(f"pred_{case}")
        valid = valid_pixels(truth, low, high)
        p, t = predicted[valid].astype(np.float64), truth[valid].astype(np.float64)
        score = ImageScore(depth_errors(p, t) if t.size else None, None, t.size)
        _compare_metrics(fixture, f"metrics_{case}", names, score.as_row(), [(p, t)])
    empty = score_image(np.ones((480, 640)), np.zeros((480, 640)), NYU_PROTOCOL)
    ours = empty.truth is None and mean_score([empty]).without_truth == 1
    note = "as published: raises; here: a row of NaN that is counted"
    fixture.compare("empty_gt_raises", ours, EXACT, note)
    for key in fixture.keys("aggregate_"):
        if key != "names":
            _check_mean(fixture, key)


def _check_mean(fixture: Fixture, key: str) -> None:
    """Check a mean over NYU images, such as `nyu01_plus_nan_row`: files metrics_nyu_0 and _1."""
    match = re.fullmatch(r"nyu([0-9]+)(_plus_nan_row)?", key)
    if match is None:
        return  # reported as not checked
    label = f"aggregate_{key}"
    names = [str(name) for name in fixture.take("aggregate_names")]
    theirs = dict(zip(names, fixture.take(label), strict=True))
    nothing = [ImageScore(None, None, 0)] if match[2] else []
    means = [mean_score([*some, *nothing]).values for some in _sibling_sets(fixture, match[1])]
    if not means:
        return fixture.fail(label, f"needs the {len(match[1])} files metrics_nyu_* beside it")
    nearest = min(means, key=lambda mean: max(abs(mean[name] - theirs[name]) for name in names))
    _compare_errors(fixture, label, nearest, theirs, names)


def _sibling_sets(fixture: Fixture, digits: str) -> list[tuple[ImageScore, ...]]:
    """Return the sets of NYU images that a mean may be over, those of its own numbers first."""
    paths = sorted(fixture.path.parent.glob("metrics_nyu*.npz"))
    named = [[p for p in paths if re.match(rf"metrics_nyu_{d}(?![0-9])", p.name)] for d in digits]
    if all(len(found) == 1 for found in named):
        sets = [tuple(found[0] for found in named)]
    else:
        sets = list(itertools.islice(itertools.combinations(paths, len(digits)), 100))
    scores = {}
    for path in {path for chosen in sets for path in chosen}:
        images = _Images(Fixture(path, path.name))
        scores[path] = images.score(images.protocol)
    return [tuple(scores[path] for path in chosen) for chosen in sets]
