"""benchmarks/verify_reference.py as a program: what passes, and that nothing slips through."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import verify_reference
from reference.checks import Fixture, FixtureError
from reference.networks import hash_input, load_hash_weights
from reference.training import check_train_step, objective_of

from helpers.children import child_environment
from tiekd_ros.method.paper import losses
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.official import KITTI_BINS

PROJECT = Path(__file__).resolve().parents[2]
REFERENCE = PROJECT.parent / "shared" / "reference"

pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="needs the reference numbers in ../shared/reference"
)

# One small file of most kinds: seconds, not minutes.
QUICK = (
    "tiekd_kitti_range_ends.npz",
    "reskd_5x7_small.npz",
    "ssim_primitive.npz",
    "metrics_nyu_0.npz",
    "metrics_nyu_1.npz",
    "metrics_vectors.npz",
    "train_pipeline_kd.npz",
)


@pytest.fixture
def verify(tmp_path, capsys, monkeypatch):
    """Return a call that checks a folder: exit code, output in one line, report."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("COLUMNS", "300")

    def call(folder: Path) -> tuple[int, str, dict[str, Any]]:
        report = tmp_path / "report.json"
        report.write_text("null")
        code = verify_reference.main([str(folder), "--json", str(report)])
        return code, capsys.readouterr().out.replace("\n", " "), json.loads(report.read_text())

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "reference"
    copy.mkdir()
    for name in QUICK:
        shutil.copyfile(REFERENCE / name, copy / name)
    return copy


def change(path: Path, **arrays: np.ndarray | None) -> None:
    """Write a fixture anew with these arrays, None = without."""
    with np.load(path) as file:
        held = dict(file)
    held |= {key: value for key, value in arrays.items() if value is not None}
    np.savez(path, **{k: v for k, v in held.items() if k not in arrays or arrays[k] is not None})


def test_fixtures_that_agree_pass_under_any_name(folder, verify):
    (folder / "ssim_primitive.npz").rename(folder / "something_else.npz")
    code, shown, report = verify(folder)
    assert code == 0, shown
    assert "all agree" in shown
    assert report["ok"]
    assert set(report["files"]) == {path.name for path in folder.iterdir()}
    assert all(check["ok"] for check in report["checks"])
    gradients = [c for c in report["checks"] if c["quantity"].startswith("grad_logits_total")]
    assert 0 < max(check["deviation"] for check in gradients) < 1e-4


def test_every_kind_of_fault_is_a_miss(folder, verify):
    with np.load(REFERENCE / "tiekd_kitti_range_ends.npz") as file:
        wrong = file["grad_logits_l_depth"].copy()
    wrong.flat[np.abs(wrong).argmax()] *= 1.001
    change(folder / "tiekd_kitti_range_ends.npz", grad_logits_l_depth=wrong)
    change(folder / "reskd_5x7_small.npz", loss_si_f64=None, loss_huber=np.float32(1))
    change(folder / "ssim_primitive.npz", a=None)
    change(folder / "metrics_vectors.npz", empty_gt_raises=np.array(False))
    (folder / "train_pipeline_kd.npz").write_bytes(b"no archive")
    np.savez(folder / "mystery.npz", numbers=np.arange(3))
    (folder / "official_state_dict_vgg.json").write_text('{"state_dict": {}}')
    code, shown, report = verify(folder)
    assert code == 1
    misses = {(c["file"], c["quantity"]) for c in report["checks"] if not c["ok"]}
    assert misses == {
        ("tiekd_kitti_range_ends.npz", "grad_logits_l_depth"),
        ("reskd_5x7_small.npz", "loss_si_f64"),
        ("reskd_5x7_small.npz", "loss_huber"),
        ("ssim_primitive.npz", "the whole file"),
        ("metrics_vectors.npz", "empty_gt_raises"),
        ("train_pipeline_kd.npz", "the whole file"),
        ("mystery.npz", "the whole file"),
        ("official_state_dict_vgg.json", "the whole file"),
    }
    for reason in ("not checked", "missing from the file", "'a' is missing", "unknown kind"):
        assert reason in shown


def test_every_file_but_texts_is_checked_wherever_it_lies(folder, verify, tmp_path):
    for path in folder.iterdir():
        if not path.name.startswith(("metrics_nyu", "ssim", "reskd")):
            path.unlink()
    deep = folder / "more" / "deep"
    deep.mkdir(parents=True)
    (folder / "ssim_primitive.npz").rename(deep / "ssim_primitive.npz")
    for name in ("metrics_nyu_0.npz", "metrics_nyu_1.npz"):
        (folder / name).rename(folder / "more" / name)
    shutil.copy(REFERENCE / "official_state_dict_resnet18.json", folder / "more" / "keys.json")
    (folder / "README.md").write_text("text")
    (deep / "notes.md").write_text("text")
    code, shown, report = verify(folder)
    assert code == 0, shown
    fine = {
        "reskd_5x7_small.npz", "more/deep/ssim_primitive.npz", "more/metrics_nyu_0.npz",
        "more/metrics_nyu_1.npz", "more/keys.json",
    }  # fmt: skip
    assert set(report["files"]) == fine

    np.save(folder / "array.npy", np.arange(3))
    np.savez(deep / "mystery.npz", numbers=np.arange(3))
    (folder / "more" / "settings.json").write_text('{"lr": 0.001}')
    (deep / "list.json").write_text("[1, 2]")
    (folder / "no_suffix").write_bytes(b"")
    (folder / ".hidden.pt").write_bytes(b"x")
    (folder / "elsewhere").symlink_to(tmp_path)
    code, shown, report = verify(folder)
    assert code == 1
    unknown = {
        "array.npy", "more/deep/mystery.npz", "more/settings.json", "more/deep/list.json",
        "no_suffix", ".hidden.pt", "elsewhere",
    }  # fmt: skip
    assert set(report["files"]) == fine | unknown
    notes = {(c["file"], c["quantity"]): c["note"] for c in report["checks"] if not c["ok"]}
    assert sorted(notes) == sorted((name, "the whole file") for name in unknown)
    assert "7 misses" in shown
    for name in ("more/settings.json", "more/deep/list.json"):
        assert notes[name, "the whole file"].startswith("unknown JSON file")


def test_a_folder_without_fixtures_is_a_miss(tmp_path, verify):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "README.md").write_text("nothing here")
    for folder in (tmp_path / "texts", tmp_path / "missing"):
        code, shown, report = verify(folder)
        assert (code, report) == (1, None)
        assert "nothing was checked" in shown


def test_the_config_of_a_training_step_names_its_objective():
    for config, objective in {
        "": "paper",
        "TIE-KD_adabins_r18_KITTI": "paper",
        "TIE-KD_adabins_L_DPM_KITTI": "paper-dpm",
        "Res-KD_depthformer_SI_KITTI": "si",
        "Res-KD_adabins_SSIM_MSE_r18_NYU": "ssim+mse",
        "baseline_mobile2_KITTI": "si",
    }.items():
        assert objective_of(config) == objective
    for unknown in ("Res-KD_adabins_KITTI", "MiDaS_KITTI"):
        with pytest.raises(FixtureError, match="is no published one"):
            objective_of(unknown)


def test_a_step_of_a_regression_student_agrees_with_plain_torch(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    network = build_network("mobilenetv2-regression", KITTI_BINS).train()
    load_hash_weights(network, 8.0)
    key, shape = "train_input/shared/mobilenetv2", (2, 3, 64, 64)
    teacher = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 70 + 2
    depth = network.output(network(hash_input(key, shape))).depth
    loss = losses.ssim_si_loss(depth, teacher)
    loss.backward()
    parameters = dict(network.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    gradients = [np.nan if p.grad is None else float(p.grad.norm()) for p in parameters.values()]
    total = torch.nn.utils.clip_grad_norm_(network.parameters(), 35.0)
    options = {"lr": 4e-5, "betas": (0.95, 0.99), "weight_decay": 0.01}
    torch.optim.AdamW(network.parameters(), **options).step()
    norms = [(n, b) for n, b in network.named_buffers() if re.search(r"running_(mean|var)$", n)]
    np.savez(
        tmp_path / "step.npz",
        config="Res-KD_adabins_SSIM_SI_KITTI",
        out_gain=8.0,
        input_key=key,
        input_shape=shape,
        kd_gt=teacher.numpy(),
        depth_pred=depth.detach().numpy(),
        loss=loss.item(),
        param_names=list(parameters),
        grad_norms=gradients,
        total_grad_norm_before_clip=float(total),
        delta_norms_after_adamw_lr4e5=[
            float((p.detach() - before[name]).double().norm()) for name, p in parameters.items()
        ],
        bn_buffer_names=[name for name, _ in norms],
        bn_buffer_mean=[float(value.double().mean()) for _, value in norms],
        bn_buffer_norm=[float(value.double().norm()) for _, value in norms],
    )
    torch.set_num_threads(threads)
    fixture = Fixture(tmp_path / "step.npz", "step.npz")
    check_train_step(fixture)
    checks = fixture.finish()
    assert len(checks) == 10
    assert [check.quantity for check in checks if not check.ok] == []


@pytest.mark.timeout(400)  # 30 s of computation; a loaded machine takes longer
def test_the_whole_reference_folder_agrees(tmp_path):
    environment = child_environment()
    environment.pop("PYTHONSAFEPATH", None)  # the script's own folder has to be on the path
    script = PROJECT / "benchmarks" / "verify_reference.py"
    command = [sys.executable, script, REFERENCE, "--json", tmp_path / "file"]
    result = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:]
    assert re.search(r"29 files, 445 quantities, .*: all agree", result.stdout)
