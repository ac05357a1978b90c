"""The comparison of students: a short run gives tables and goals; the other network is real."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from helpers.children import run_benchmark

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WITHOUT_TRANSFORMERS = importlib.util.find_spec("transformers") is None
needs_transformers = pytest.mark.skipif(
    WITHOUT_TRANSFORMERS, reason="transformers is not installed: pip install '.[bench]'"
)


@pytest.fixture
def depth_anything(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "depth_anything", raising=False)
    return importlib.import_module("depth_anything")


@pytest.mark.slow
def test_a_short_run_measures_ours_and_judges_only_what_it_measured(tmp_path):
    ours = ("--networks", "mobilenetv2-fast", "--size", "64", "96", "--threads", "1")
    done = run_benchmark("student.py", "--quick", *ours, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "student.json").read_text())
    rows = results["tables"]["64x96, threads 1"]["rows"]
    assert {"torch", "eager"} <= {row["runtime"] for row in rows}
    for row in rows:
        assert row["parameters_m"] == pytest.approx(1.92, abs=0.01)
        assert 0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]
        assert row["peak_mib"] > 0
        assert row["gmac"] > 0
    assert all(goal["met"] is None for goal in results["goals"])


def test_an_unknown_network_is_refused():
    refused = run_benchmark("student.py", "--networks", "resnet18")
    assert refused.returncode == 2
    assert "invalid choice: 'resnet18'" in refused.stderr


@needs_transformers
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (224, 320), (376, 1241)])
def test_the_working_size_is_the_image_processors(depth_anything, size):
    from transformers import DPTImageProcessor

    side = {"height": 518, "width": 518}
    processor = DPTImageProcessor(
        size=side, keep_aspect_ratio=True, ensure_multiple_of=14, do_pad=False
    )
    image = np.zeros((*size, 3), np.uint8)
    fitted = processor(image, return_tensors="pt")["pixel_values"].shape[2:]
    assert depth_anything.working_size(*size) == tuple(fitted)


@needs_transformers
def test_the_network_is_the_small_one_and_runtimes_agree(depth_anything):
    pytest.importorskip("onnxruntime")
    network = depth_anything.build_network()
    assert sum(p.numel() for p in network.parameters()) == 24_785_089
    image = np.random.default_rng(0).integers(0, 256, (56, 70, 3), np.uint8)
    torch_depth = depth_anything.start_torch((56, 70), "cpu")(image)
    onnx_depth = depth_anything.start_onnxruntime((56, 70), 1)(image)[0]
    np.testing.assert_allclose(onnx_depth, torch_depth.numpy(), rtol=1e-3, atol=1e-4)
