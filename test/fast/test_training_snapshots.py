"""Snapshots: whole or not there, exact, and only the last few of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.training.run_folder import RunState, Snapshots


def pair(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a small network with a batch norm, and its optimizer."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    return network, torch.optim.AdamW(network.parameters(), lr=1e-2)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    network(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_from_a_snapshot_is_training_without_a_break(tmp_path):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=2)
    for number in range(3):
        step(network, optimizer, number)
    state = RunState(step=3, skipped=1, best={"abs_rel": 0.5}, bad_items={"a": "b"}, seconds=1.5)
    snapshots.save(state, network, optimizer)
    again, its_optimizer = pair(seed=1)
    loaded, problems = snapshots.load_latest(again, its_optimizer)
    assert (loaded, problems) == (state, [])
    for number in range(3, 6):
        step(network, optimizer, number)
        step(again, its_optimizer, number)
    assert same(network, again)


def test_without_a_snapshot_nothing_changes(tmp_path):
    network, optimizer = pair()
    state, problems = Snapshots(tmp_path / "none", 2).load_latest(network, optimizer)
    assert (state, problems) == (RunState(), [])
    assert same(network, pair()[0])


def test_only_the_last_snapshots_stay(tmp_path):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=2)
    for number in (1, 2, 10, 100):
        snapshots.save(RunState(step=number), network, optimizer)
    assert snapshots.steps() == [10, 100]


def test_what_a_killed_writer_left_is_neither_read_nor_kept(tmp_path):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=2)
    snapshots.save(RunState(step=1), network, optimizer)
    half = tmp_path / ".writing-123"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    assert snapshots.load_latest(*pair())[0].step == 1
    snapshots.clean()
    assert not half.exists()


@pytest.mark.parametrize("damage", ["tensors", "values"])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(tmp_path, damage):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=3)
    for number in (1, 2):
        snapshots.save(RunState(step=number), network, optimizer)
        step(network, optimizer, number)
    name = {"tensors": "state.safetensors", "values": "state.json"}[damage]
    path = tmp_path / "00000002" / name
    path.write_bytes(path.read_bytes()[:-7])
    state, problems = snapshots.load_latest(*pair(1))
    assert state.step == 1
    assert len(problems) == 1
    assert "00000002 is passed over" in problems[0]
    (tmp_path / "00000001" / name).write_bytes(b"{}")
    with pytest.raises(TrainingError, match=r"no snapshot in .* can be used"):
        snapshots.load_latest(*pair(1))


def test_a_disk_that_refuses_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=2)
    snapshots.save(RunState(step=1), network, optimizer)

    def refuse(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tiekd_ros.training.run_folder.write_durably", refuse)
    with pytest.raises(TrainingError, match="No space left on device; make room, then continue"):
        snapshots.save(RunState(step=2), network, optimizer)
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_snapshot_is_replaced_when_its_step_comes_again(tmp_path, name):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=3)
    snapshots.save(RunState(step=2), network, optimizer)
    path = tmp_path / "00000002" / name
    path.write_bytes(path.read_bytes()[:-7])
    step(network, optimizer, 0)
    snapshots.save(RunState(step=2), network, optimizer)
    again, its_optimizer = pair(1)
    assert snapshots.load_latest(again, its_optimizer) == (RunState(step=2), [])
    assert same(again, network)


def test_later_snapshots_that_were_passed_over_do_not_crowd_out_new_ones(tmp_path):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=2)
    for number in (100, 200):
        snapshots.save(RunState(step=number), network, optimizer)
    (tmp_path / "00000200" / "state.json").write_bytes(b"{}")
    assert snapshots.load_latest(*pair())[0].step == 100
    snapshots.save(RunState(step=101), network, optimizer)
    assert snapshots.steps() == [100, 101]
    assert snapshots.load_latest(*pair()) == (RunState(step=101), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["1.running_mean", "2.weight", "optimizer"])
def test_what_is_not_finite_is_no_snapshot(tmp_path, what, value):
    network, optimizer = pair()
    step(network, optimizer, 0)
    snapshots = Snapshots(tmp_path, keep=2)
    snapshots.save(RunState(step=1), network, optimizer)
    if what == "optimizer":
        optimizer.state[network[2].weight]["exp_avg"].fill_(value)
        what = "2.weight:exp_avg"
    else:
        network.state_dict()[what].fill_(value)
    with pytest.raises(TrainingError, match=rf"step 2, 1 of \d+ tensors are not .*{what}"):
        snapshots.save(RunState(step=2), network, optimizer)
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
