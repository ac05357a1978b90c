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
    snapshots = Snapshots(tmp_path / "snapshots", keep=2)
    assert snapshots.load_latest(network, optimizer) == (RunState(), [])
    assert same(network, pair()[0])
    for number in range(3):
        step(network, optimizer, number)
    state = RunState(step=3, skipped=1, best={"abs_rel": 0.5}, bad_items={"a": "b"}, seconds=1.5)
    snapshots.save(state, network, optimizer)
    again, its_optimizer = pair(seed=1)
    assert snapshots.load_latest(again, its_optimizer) == (state, [])
    for number in range(3, 6):
        step(network, optimizer, number)
        step(again, its_optimizer, number)
    assert same(network, again)


def test_only_the_last_snapshots_stay_and_nothing_that_a_killed_writer_left(tmp_path):
    snapshots = Snapshots(tmp_path, keep=2)
    for number in (1, 2, 10, 100):
        snapshots.save(RunState(step=number), *pair())
    assert snapshots.steps() == [10, 100]
    half = tmp_path / ".writing-123"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    assert snapshots.load_latest(*pair())[0].step == 100
    snapshots.clean()
    assert not half.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_snapshot_is_passed_over_and_replaced_when_its_step_comes_again(tmp_path, name):
    network, optimizer = pair()
    snapshots = Snapshots(tmp_path, keep=3)
    for number in (1, 2):
        snapshots.save(RunState(step=number), network, optimizer)
        step(network, optimizer, number)
    damaged = tmp_path / "00000002" / name
    damaged.write_bytes(damaged.read_bytes()[:-7])
    state, (problem,) = snapshots.load_latest(*pair(1))
    assert state.step == 1
    assert "00000002 is passed over" in problem
    snapshots.save(RunState(step=2), network, optimizer)
    again, its_optimizer = pair(1)
    assert snapshots.load_latest(again, its_optimizer) == (RunState(step=2), [])
    assert same(again, network)
    for number in (1, 2):
        (tmp_path / f"{number:08d}" / name).write_bytes(b"{}")
    with pytest.raises(TrainingError, match=r"no snapshot in .* can be used"):
        snapshots.load_latest(*pair(1))


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


@pytest.mark.parametrize("what", ["1.running_mean", "2.weight", "2.weight:exp_avg"])
def test_what_is_not_finite_or_refused_by_the_disk_is_no_snapshot(tmp_path, monkeypatch, what):
    network, optimizer = pair()
    step(network, optimizer, 0)
    snapshots = Snapshots(tmp_path, keep=2)
    snapshots.save(RunState(step=1), network, optimizer)

    def refuse(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("tiekd_ros.training.run_folder.write_durably", refuse)
        with pytest.raises(TrainingError, match="No space left on device; make room, then conti"):
            snapshots.save(RunState(step=2), network, optimizer)
    moments = optimizer.state[network[2].weight]
    spoilt = moments["exp_avg"] if ":" in what else network.state_dict()[what]
    for value in (float("nan"), float("inf")):
        spoilt.fill_(value)
        with pytest.raises(TrainingError, match=rf"step 2, 1 of \d+ tensors are not .*{what}"):
            snapshots.save(RunState(step=2), network, optimizer)
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
