"""Cores (hardware threads of one count as one) and torch's device, by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from helpers.children import run_python
from tiekd_ros.core import devices
from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import InvalidSettingError

SMT = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Four cores of two hardware threads each; called with the CPUs that a process may use."""
    for cpu, siblings in SMT.items():
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(devices, "_CPUS", tmp_path)

    def allow(cpus: set[int]) -> Path:
        monkeypatch.setattr("os.sched_getaffinity", lambda process: cpus)
        return tmp_path

    return allow


def test_only_cores_that_the_process_may_use_count_and_each_once(machine):
    for cpus, whole, half in (
        (set(SMT), 4, 2),
        ({0, 1, 2, 3}, 4, 2),
        ({0, 4}, 1, 1),  # one core
        ({1, 2, 5}, 2, 1),
        ({7}, 1, 1),
    ):
        folder = machine(cpus)
        assert (devices.cores(), devices.half_the_cores()) == (whole, half)
    machine({0, 4, 5})
    for told in folder.rglob("thread_siblings_list"):
        told.unlink()
    assert devices.cores() == 3  # where nothing is known, each CPU counts


def test_a_process_tied_to_one_cpu_takes_one_thread_everywhere():
    code = """
import json, os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
import torch
from tiekd_ros.core.devices import cores
from tiekd_ros.rounds.limits import default_threads
from tiekd_ros.student.runtimes.choosing import RuntimeFactory
factory = RuntimeFactory(torch.device("cpu"), "torch")
threads = [default_threads(inference=yes) for yes in (True, False)]
print(json.dumps([cores(), *threads, factory.threads, torch.get_num_threads()]))
"""
    done = run_python("-c", code, str(max(os.sched_getaffinity(0))))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 1, 1, 1, 1]


def test_a_device_that_does_not_exist_is_refused_by_name():
    for name in ("gpu", "tpu:0", "", "meta", "cuda:x", "cpu;"):
        with pytest.raises(InvalidSettingError, match="device must be auto, cpu, cuda or cuda:N"):
            choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_cuda_device_is_refused_with_the_way_out():
    with pytest.raises(InvalidSettingError, match="set device to auto or cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
