"""Every benchmark script: a short run gives tables, goals and the exit code that they ask for."""

from __future__ import annotations

import importlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import depth_anything
import harness
import numpy as np
import pytest
import torch

from helpers.training import write_rgbd

FEW_SCENES = ("--only", "tiekd", "--scenes", *"111", "--seeds", "1", "--iterations", "2")
TINY = "tiekd 4x257x60x80"


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results_of(script: str, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a script's main in this process; return its exit code and its results file."""
    path = folder / f"{script}.json"
    code = importlib.import_module(script).main([*arguments, "--json", str(path)])
    return code, json.loads(path.read_text())


def test_student_measures_ours_and_judges_only_what_it_measured(tmp_path):
    ours = ("--networks", "efficientnet-lite0", "--size", "64", "96", "--threads", "1")
    code, results = results_of("student", tmp_path, "--quick", "--no-memory", *ours)
    rows = results["tables"]["64x96, threads 1"]["rows"]
    assert {"torch", "eager"} <= {row["runtime"] for row in rows}
    for row in rows:
        assert row["M params"] == pytest.approx(2.47, abs=0.01)
        assert 0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]
        assert row["GMAC"] > 0
    assert all(goal["met"] is None for goal in results["goals"])
    assert code == 0


def test_loss_measures_and_a_missed_goal_gives_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setattr("loss.AGREES", -1.0)
    code, results = results_of("loss", tmp_path, "--quick", "--cases", TINY)
    (row,) = results["tables"]["loss"]
    gradient_mib = 4 * 257 * 60 * 80 * 4 / 2**20
    assert gradient_mib <= row["fused MiB"] < 3 * gradient_mib
    assert row["straightforward MiB"] > 6 * gradient_mib
    assert [goal["met"] for goal in results["goals"]][-1] is False
    assert code == harness.MISSED


def test_an_ablation_makes_a_table_and_is_not_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # there are no real frames
    code, results = results_of("ablation", tmp_path, *FEW_SCENES, "--markdown", "table.md")
    assert code == 0
    runs = results["runs"]
    assert sorted(run["arm"]["name"] for run in runs) == ["both", "both, log bins"]
    assert all(0 < run["test"]["abs_rel"] < 2 for run in runs)
    assert "| TIE-KD, tiekd | both | " in (tmp_path / "table.md").read_text()
    code, again = results_of("ablation", tmp_path, *FEW_SCENES)
    assert (again["runs"], again["tables"]) == (runs, results["tables"])
    with pytest.raises(SystemExit, match="2"):
        results_of("ablation", tmp_path, "--frames", "nowhere")
    assert "there is no folder nowhere" in capsys.readouterr().err


def test_starts_are_compared_on_scenes_and_the_base_is_evaluated(tmp_path):
    scene = write_rgbd(tmp_path / "frames")
    base = str(files("tiekd_ros.student") / "base")
    short = ("--iterations", "2", "--seeds", "1", "--train", "batch_size=2", "--threads", "1")
    short += ("--pixels", "4096", "--starts", f"base,random,{base}", "--splits", "later")
    code, results = results_of("scenes", tmp_path, str(scene), *short)
    assert code == 0
    shipped, random, same = results["runs"]
    assert (shipped["start"], random["start"], same["start"]) == ("base", "random", base)
    assert {**shipped, "start": "", "seconds": 0} == {**same, "start": "", "seconds": 0}
    assert shipped["abs_rel"] != random["abs_rel"]
    assert results["tables"]["ratios"][-1]["base"] == shipped["abs_rel"] / random["abs_rel"]
    again = results_of("scenes", tmp_path, str(scene), *short)[1]
    assert again["runs"] == results["runs"]
    options = ("--frames", str(scene), "--pixels", "4096")
    code, results = results_of("base_student", tmp_path, "evaluate", *options)
    assert {row["depth"] for row in results["tables"]["evaluate"]} == {
        "as it is", "up to scale", "median depth",
    }  # fmt: skip


def test_gate_and_confidence_give_their_tables(tmp_path):
    scene, other = (write_rgbd(tmp_path / name, count=18) for name in ("one", "other"))
    short = ("--seeds", "1", "--iterations", "1", "--pixels", "4096", "--threads", "1")
    _, results = results_of("gate", tmp_path, str(scene), "--worlds", "", *short)
    rows = {row["candidate"]: row for row in results["tables"]["gate"]}
    assert rows["collapse"]["number"] > rows["collapse"]["live"] == 0
    code, results = results_of("confidence", tmp_path, str(scene), str(other), *short)
    assert code == 0
    found = {
        (row["learnt"], row["in"], row["confidence"]) for row in results["tables"]["confidence"]
    }
    assert len(found) == 2 * 2 * 3


def test_a_short_soak_gives_its_table_and_its_goal(tmp_path):
    _, results = results_of("teacher_load", tmp_path, "--soak", "0.05")
    assert results["tables"]["soak"]["labels"]["labelled"] > 0
    assert results["tables"]["soak"]["MiB after warm-up"] > 10
    assert results["goals"][0]["wanted"].startswith("medians of 10 s within 5% of the median, no")


@pytest.mark.timeout(400)
def test_ray_and_the_plain_server_label_every_frame_of_the_same_robots(tmp_path):
    pytest.importorskip("ray.serve")
    _, results = results_of(
        "teacher_ray", tmp_path, "--quick", "--only", "waiting", "--robots", "2"
    )
    stretches = results["tables"]["stretches"]
    assert [stretch["server"] for stretch in stretches] == ["plain", "ray", "plain"]
    for stretch in stretches:
        assert stretch["labelled"] == stretch["frames"] > 8
        assert stretch["CPU ms server"] > 0
        assert 1 <= stretch["fill"] <= 8
    ratio, account = results["goals"]
    assert ratio["met"] is None  # nothing was promised of it
    assert account["measured"].startswith("0, 0, 0, 0 of ")


def test_every_script_explains_itself(capsys):
    pytest.importorskip("rclpy")
    paths = Path(harness.__file__).parent.glob("*.py")
    scripts = [p.stem for p in paths if "\ndef main(" in p.read_text()]
    assert len(scripts) >= 11
    scripts.remove("method_figures")  # which needs matplotlib
    for name in scripts:
        module = importlib.import_module(name)
        with pytest.raises(SystemExit, match="0"):
            module.main(["--help"])
        assert module.__doc__.splitlines()[-1] in capsys.readouterr().out


def test_both_ways_to_do_a_training_step_learn_the_same():
    pytest.importorskip("rclpy")
    import distill

    samples = distill._samples()
    losses: dict[bool, list[float]] = {}
    for plain in (False, True):
        arm = distill._Arm(samples, plain=plain)
        losses[plain] = []
        for _ in range(2):
            images, depth = arm._draw()
            output = arm._network.output(arm._network(images))
            losses[plain].append(arm._loss(output, depth).total.item())
            arm.step()
    assert losses[False] == pytest.approx(losses[True], rel=2e-3)


def test_depth_anything_is_the_small_one_and_its_runtimes_agree():
    if depth_anything.missing_package():
        pytest.skip(depth_anything.missing_package())
    from transformers import DPTImageProcessor

    side = {"height": 518, "width": 518}
    processor = DPTImageProcessor(
        size=side, keep_aspect_ratio=True, ensure_multiple_of=14, do_pad=False
    )
    for size in ((480, 640), (224, 320), (376, 1241)):
        fitted = processor(np.zeros((*size, 3), np.uint8), return_tensors="pt")["pixel_values"]
        assert depth_anything.working_size(*size) == tuple(fitted.shape[2:])
    pytest.importorskip("onnxruntime")
    network = depth_anything.build_network()
    assert sum(p.numel() for p in network.parameters()) == 24_785_089
    image = np.random.default_rng(0).integers(0, 256, (56, 70, 3), np.uint8)
    torch_depth = depth_anything.start_torch((56, 70), "cpu")(image)
    onnx_depth = depth_anything.start_onnxruntime((56, 70), 1)(image)[0]
    np.testing.assert_allclose(onnx_depth, torch_depth.numpy(), rtol=1e-3, atol=1e-4)
