"""Calibration files that are wrong in any way are refused with their name, never a traceback."""

from __future__ import annotations

import pytest
import yaml

from tiekd_ros.core.errors import DatasetError
from tiekd_ros.datasets.calibration import read_camera_model

GOOD = {
    "image_width": 64,
    "image_height": 48,
    "distortion_model": "plumb_bob",
    "camera_matrix": {"data": [60, 0, 31.5, 0, 61, 23.5, 0, 0, 1]},
    "distortion_coefficients": {"data": [0.1, 0, 0, 0, 0]},
    "rectification_matrix": {"data": [1, 0, 0, 0, 1, 0, 0, 0, 1]},
    "projection_matrix": {"data": [50, 0, 31, 0, 0, 51, 23, 0, 0, 0, 1, 0]},
}


def read(tmp_path, **changes):
    (tmp_path / "camera.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    return read_camera_model(tmp_path / "camera.yaml", (64, 48))


def test_a_whole_calibration_is_read(tmp_path):
    model = read(tmp_path)
    assert (model.d[0], model.k[0], model.p[0]) == (0.1, 60.0, 50.0)
    assert read(tmp_path, projection_matrix=None).p[0] == 60.0


def test_what_is_malformed_is_refused_with_the_files_name(tmp_path):
    for changes in (
        {"projection_matrix": [1, 2, 3]},
        {"projection_matrix": "none"},
        {"projection_matrix": {"rows": 3}},
        {"projection_matrix": {"data": ["a"] * 12}},
        {"projection_matrix": {"data": [float("nan")] * 12}},
        {"distortion_coefficients": {"data": [float("inf")] * 5}},
        {"distortion_coefficients": {"data": None}},
        {"rectification_matrix": {"data": [float("nan")] * 9}},
        {"rectification_matrix": {"data": [1, 2]}},
        {"image_width": float("inf")},
        {"camera_matrix": {"data": [60] * 8}},
    ):
        with pytest.raises(DatasetError, match=r"camera\.yaml"):
            read(tmp_path, **changes)
