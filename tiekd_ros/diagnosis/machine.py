"""This machine: the device that the student runs on, and the state folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.facts import ERROR, OK, WARN, Finding, split_remedy
from tiekd_ros.framelog import FrameStore, StoreStats

_LEAST_FREE_MB = 500.0
_MB = 1e6
_GPU_SIGNS = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu", "/etc/nv_tegra_release")
_CPU = "set device to auto or cpu"
_LOCK_KINDS = ("companion",)


def check_device(device: str, runtime: str, running: str) -> Iterator[Finding]:
    """Look what can run a student.

    Args:
        device: depth_node's parameter, `auto` where it is not known.
        runtime: likewise.
        running: what runs one at present, in depth_node's words; empty where it is not known.
    """
    import torch

    from tiekd_ros.core.devices import choose_device
    from tiekd_ros.student.runtimes.onnx_runtime import execution_providers

    try:
        chosen = choose_device(device)
    except TiekdError as error:
        yield Finding(ERROR, "device", *split_remedy(str(error), _CPU))
        return
    parts = [f"torch {torch.__version__} on {_name(chosen)}"]
    if runtime != "torch":
        try:
            execution_providers(chosen)
            parts.append("onnxruntime")
        except TiekdError as error:
            if runtime == "onnxruntime":
                yield Finding(ERROR, "device", *split_remedy(str(error), _CPU))
                return
            parts.append("no onnxruntime for it")
    if running and running != "none":
        parts.append(f"depth_node uses {running}")
    text = ", ".join(parts)
    gpu = next((sign for sign in _GPU_SIGNS if Path(sign).exists()), "")
    if chosen.type == "cpu" and device == "auto" and gpu:
        why = "is built without CUDA" if torch.version.cuda is None else "cannot use it"
        remedy = "install torch for its CUDA (on a Jetson: NVIDIA's), or set device to cpu"
        yield Finding(WARN, "device", f"{text}: there is a GPU ({gpu}), but torch {why}", remedy)
    else:
        yield Finding(OK, "device", text)


def _name(device: object) -> str:
    import torch

    if str(device).startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(str(device))})"
    return f"{device} ({os.cpu_count()} cores)"


def check_state(state: StateFolder, *, nodes_run: bool) -> Iterator[Finding]:
    """Look at the state folder: there, writable, with space, its frame log readable.

    Args:
        state: the folder.
        nodes_run: whether nodes that use it run at present.
    """
    found = list(_folder(state, nodes_run=nodes_run))
    if state.frames.exists():
        try:
            stats = frame_counts(state)
        except TiekdError as error:
            otherwise = "move that file away, or give the nodes another folder (state_dir)"
            found.append(Finding(WARN, "state", *split_remedy(str(error), otherwise)))
            stats = None
    else:
        stats = None
    yield from found or [_fine(state, stats)]


def frame_counts(state: StateFolder) -> StoreStats:
    """Count the frame log; errors as `FrameStore`."""
    with FrameStore(state.frames, read_only=True) as store:
        return store.stats()


def _folder(state: StateFolder, *, nodes_run: bool) -> Iterator[Finding]:
    root = state.root
    another = "give the nodes another one (state_dir; tiekd up --state)"
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir():
        yield Finding(ERROR, "state", f"{there} is no folder, so {root} cannot be one", another)
        return
    fault = _write_fault(there)
    if fault:
        mend = f"chown or chmod {there}, or {another}"
        yield Finding(ERROR, "state", f"{there} is not writable ({fault})", mend)
        return
    free = shutil.disk_usage(there).free / _MB
    if free < _LEAST_FREE_MB:
        what = f"only {free:.0f} MB are free for {root}"
        remedy = f"make room on the disk, lower frames.max_bytes_mb, or {another}"
        yield Finding(WARN, "state", what, remedy)
    if there != root and nodes_run:
        yield Finding(
            WARN,
            "state",
            f"there is no {root} here, though the nodes run",
            "if they belong to another user, name their folder with --state; if they run on "
            "another machine, call the doctor there",
        )


def _write_fault(folder: Path) -> str:
    """Return why nothing can be written there; empty if it can. Access rights do not tell all."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _fine(state: StateFolder, stats: StoreStats | None) -> Finding:
    if not state.root.exists():
        return Finding(OK, "state", f"{state.root} is not there yet; the nodes will make it")
    free = shutil.disk_usage(state.root).free / 1e9
    parts = [f"{state.root}: writable, {free:.0f} GB free"]
    if stats is not None:
        labelled = sum(stats.frames["labelled"].values())
        parts.append(f"{stats.total} frames, {labelled} labelled")
    parts += [f"held by {holder}" for holder in holders(state)]
    return Finding(OK, "state", ", ".join(parts))


def holders(state: StateFolder) -> list[str]:
    """Return who has claimed the folder: kind and process."""
    found = []
    for kind in _LOCK_KINDS:
        try:
            with (state.root / f".{kind}.lock").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    found.append(f"{kind} (process {file.read().strip() or 'unknown'})")
        except OSError:
            continue
    return found
