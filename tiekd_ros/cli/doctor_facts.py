"""Facts for `tiekd doctor`, collected from ROS, this machine, the state folder and the teacher."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import prepare_environment
from tiekd_ros.diagnosis.facts import (
    BUSY,
    COMPANION_NODE,
    DENIED,
    DEPTH_NODE,
    UNREACHABLE,
    DeviceFacts,
    MachineFacts,
    RosFacts,
    StateFacts,
    StudentFacts,
    TeacherFacts,
)

if TYPE_CHECKING:
    from tiekd_ros.student.checkpoint import StudentCard
    from tiekd_ros.teacher.client import ClientSettings


@dataclass(frozen=True)
class DoctorRequest(Settings):
    """The nodes, topics, state folder and teacher to examine."""

    namespace: str = setting("tiekd", "namespace of the nodes")
    image_topic: str = setting(
        "", "where the camera's images should be; empty = depth_node's, or /camera/image_raw"
    )
    camera_info_topic: str = setting(
        "", "where the camera's calibration should be; empty = depth_node's, or /camera/camera_info"
    )
    depth_topic: str = setting(
        "", "where depth should be; empty = depth_node's, or NAMESPACE/depth"
    )
    state: str = setting("", "state folder; empty = that of the running nodes")
    teacher: str = setting("", "host:port of the teacher to ask; empty = that of the companion")
    seconds: float = setting(
        3.0, "how long to listen to the topics", unit="s", minimum=0.5, maximum=300.0
    )

    def check(self) -> None:
        """Refuse a namespace or a topic that ROS cannot have."""
        for name in ("namespace", "image_topic", "camera_info_topic", "depth_topic"):
            value = getattr(self, name)
            if value.strip("/") and not _NAME.fullmatch(value):
                raise InvalidSettingError(
                    f"{name} must be a ROS name, such as /camera/image_raw: letters, digits, _ "
                    f"and /, no part beginning with a digit; got {value!r}"
                )

    @property
    def full_namespace(self) -> str:
        """The namespace with its slash."""
        return f"/{self.namespace.strip('/')}"


_NAME = re.compile(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*/?", re.ASCII)


@dataclass(frozen=True)
class DoctorFacts:
    """All that the rules are asked about."""

    machine: MachineFacts
    ros: RosFacts | None
    ros_fault: str
    """Why `ros` is None; empty where there is no ROS."""
    state: StateFacts
    teacher: TeacherFacts | None
    """None where it is not known which teacher is meant."""
    frames_needed: tuple[int, int]
    """Labelled frames that a round needs, (for training, held out)."""


def collect(request: DoctorRequest, on_progress: Callable[[str], None]) -> DoctorFacts:
    """Collect facts about ROS, this machine, the state folder and the teacher.

    Arguments as of `examine`.
    """
    environment = dict(os.environ)
    with _probe(request) as wait:
        on_progress("the device")
        import torch  # noqa: F401  (takes seconds, in which the probe works)

        on_progress("ROS")
        ros, fault = wait(lambda what: on_progress(f"ROS: waiting for {what}"))

    def parameter(name: str, otherwise: str, *kinds: str) -> str:
        values = [] if ros is None else [str(ros.parameter(kind, name, "")) for kind in kinds]
        return next(filter(None, values), otherwise)

    device = collect_device(
        parameter("device", "auto", DEPTH_NODE), parameter("runtime", "auto", DEPTH_NODE)
    )
    on_progress("the state folder")
    folder = request.state or parameter("state_dir", "", DEPTH_NODE, COMPANION_NODE)
    state = collect_state(StateFolder.resolve(folder))
    on_progress("the teacher")
    companion = None if ros is None else ros.own_nodes.get(COMPANION_NODE)
    teacher = ask_teacher(None if companion is None else companion.parameters, request.teacher)
    machine = collect_machine(environment, device)
    return DoctorFacts(machine, ros, fault, state, teacher, _frames_needed(ros))


def _frames_needed(ros: RosFacts | None) -> tuple[int, int]:
    """Return the labelled frames that a round needs, by the companion's parameters if it runs."""
    from tiekd_ros.rounds.plan import RoundSettings

    default = RoundSettings()
    needed = (default.min_frames, default.min_held_out)
    if ros is None:
        return needed
    names = ("distill.min_frames", "distill.min_held_out")
    train, held_out = map(ros.parameter, (COMPANION_NODE,) * 2, names, needed)
    return train, held_out


_PROBE_PATIENCE_S = 60.0
"""How much longer than it listens the probe may take until it is killed: its own longest wait, and
more than twice that for a busy machine."""
_NOISE = re.compile(r"^error: |^\[ERROR\] \[[\d.]+\] \[\w+\]: |, at /\S+:\d+$")
"""Around the messages of rcl."""
_ProbeResult = tuple[RosFacts | None, str]
"""The facts, or why there are none (empty where there is no ROS)."""


@contextlib.contextmanager
def _probe(
    request: DoctorRequest,
) -> Iterator[Callable[[Callable[[str], None]], _ProbeResult]]:
    """Run the probe in the background; yields the function that waits for its result.

    That function takes another one, which is called with what the probe waits for.
    """
    if importlib.util.find_spec("rclpy") is None:
        yield lambda on_progress: (None, "")
        return
    prepare_environment()
    command = [sys.executable, "-m", "tiekd_ros.nodes.probe.probe"]
    for name in ("namespace", "seconds", "image_topic", "camera_info_topic", "depth_topic"):
        command += [f"--{name.replace('_', '-')}", str(getattr(request, name))]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        deadline = threading.Timer(request.seconds + _PROBE_PATIENCE_S, child.kill)
        deadline.start()
        try:
            yield lambda on_progress: _await(child, errors, on_progress)
        finally:
            deadline.cancel()
            child.kill()
            child.communicate()


def _await(
    child: subprocess.Popen[str], errors: IO[str], on_progress: Callable[[str], None]
) -> _ProbeResult:
    last: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        if not line.startswith("{"):  # Fast DDS and rcutils may write there, too
            continue
        last = json.loads(line)
        if "waits_for" in last:
            on_progress(last["waits_for"])
    status = child.wait()
    if status == 0 and "waits_for" not in last:
        return RosFacts.from_json(last), ""
    if status == -signal.SIGKILL:
        return None, "ROS did not answer in time: looking at its graph took too long"
    errors.seek(0)
    text = (errors.read().strip().splitlines() or [f"status {status}"])[-1]
    return None, f"ROS cannot be used: {_NOISE.sub('', text)}"


def collect_machine(
    environment: Mapping[str, str], device: DeviceFacts, shared_memory: Path = Path("/dev/shm")
) -> MachineFacts:
    """Return the transports of ROS's messages on this machine.

    Args:
        environment: the user's variables.
        device: that a student would run on.
        shared_memory: its folder.
    """
    wheel, buffer, sizes = "", None, None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        wheel = importlib.metadata.version("ros-rclpy")
    with contextlib.suppress(OSError, ValueError):
        buffer = int(Path("/proc/sys/net/core/rmem_max").read_text())
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(shared_memory)
        sizes = (usage.total, usage.free)
    return MachineFacts(environment, device, wheel, buffer, str(shared_memory), sizes)


_GPU_SIGNS = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu", "/etc/nv_tegra_release")


def collect_device(requested: str, runtime: str) -> DeviceFacts:
    """Return the device that a student would run on.

    Args:
        requested: depth_node's parameter `device`.
        runtime: its parameter `runtime`.
    """
    import torch

    from tiekd_ros.core.devices import choose_device
    from tiekd_ros.student.runtimes.onnx_runtime import execution_providers

    try:
        chosen = choose_device(requested)
    except TiekdError as error:
        return DeviceFacts(requested, runtime, fault=str(error))
    onnxruntime_fault = None if runtime == "torch" else ""
    if runtime != "torch":
        try:
            execution_providers(chosen)
        except TiekdError as error:
            onnxruntime_fault = str(error)
    detail = f"{os.cpu_count()} cores"
    if chosen.type == "cuda":
        detail = torch.cuda.get_device_name(chosen)
    return DeviceFacts(
        requested,
        runtime,
        name=f"{chosen} ({detail})",
        torch=torch.__version__,
        torch_has_cuda=torch.version.cuda is not None,
        onnxruntime_fault=onnxruntime_fault,
        gpu=next((sign for sign in _GPU_SIGNS if Path(sign).exists()), ""),
    )


def collect_state(state: StateFolder) -> StateFacts:
    """Return what is in a state folder; changes nothing."""
    nearest = next(path for path in (state.root, *state.root.parents) if path.exists())
    facts = StateFacts(str(state.root), str(nearest), is_folder=nearest.is_dir())
    if not facts.is_folder:
        return facts
    return replace(
        facts,
        write_fault=_write_fault(nearest),
        free_bytes=shutil.disk_usage(nearest).free,
        holders=tuple(_holders(state)),
        **_frame_counts(state),
        **_students(state),
    )


def _write_fault(folder: Path) -> str:
    """Return why nothing can be written there; empty if it can. Access rights do not tell all."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _holders(state: StateFolder) -> Iterator[str]:
    """Yield the program that holds the folder's lock: kind and process."""
    with (
        contextlib.suppress(FileNotFoundError, PermissionError),
        (state.root / ".companion.lock").open() as file,
    ):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            yield f"companion (process {file.read().strip() or 'unknown'})"


def _frame_counts(state: StateFolder) -> dict[str, Any]:
    from tiekd_ros.framelog import FrameStore

    if not state.frames.exists():
        return {}
    try:
        with FrameStore(state.frames, read_only=True) as store:
            return {"frames": store.stats().frames}
    except TiekdError as error:
        return {"frames_fault": str(error)}


def _students(state: StateFolder) -> dict[str, Any]:
    from tiekd_ros.student.registry import StudentRegistry

    registry, found = StudentRegistry(state.students), dict[str, Any]()
    try:
        found["live"] = registry.live() or ""
        found["versions"] = tuple(registry.versions())
        if found["live"]:
            found["student"] = _student_facts(registry.load(found["live"]).card)
        elif found["versions"]:
            found["student"] = _student_facts(registry.card(found["versions"][-1]))
    except TiekdError as error:
        found["student_fault"] = str(error)
    return found


def _student_facts(card: StudentCard) -> StudentFacts:
    from tiekd_ros.student.checkpoint import StudentStatus

    try:
        created = datetime.fromisoformat(card.created)
        if created.tzinfo is None:
            created = created.replace(tzinfo=timezone.utc)
        age_days = (datetime.now(timezone.utc) - created).total_seconds() / 86400
    except ValueError:
        age_days = None
    return StudentFacts(
        version=card.version,
        status=card.status,
        is_refused=card.status is StudentStatus.REFUSED,
        reason=card.reason,
        architecture=card.architecture,
        input_size=(card.input_size.width, card.input_size.height),
        max_depth_m=card.bins.max_depth_m,
        focal_px=card.focal_px,
        age_days=age_days,
    )


_TEACHER_TIMEOUT_S = 3.0
_TEACHER_GROUP = "teacher."


def ask_teacher(parameters: Mapping[str, Any] | None, address: str) -> TeacherFacts | None:
    """Ask the teacher for its identity, once.

    Args:
        parameters: the companion's; None where none runs.
        address: host:port that the user named; empty = that of the parameters.

    Returns:
        Its answer; None where there is no address to ask at.
    """
    from tiekd_ros.teacher.client import TeacherClient
    from tiekd_ros.teacher.errors import (
        TeacherBusyError,
        TeacherDeniedError,
        TeacherUnreachableError,
    )

    if parameters is None and not address:
        return None
    causes = {
        TeacherBusyError: BUSY,
        TeacherDeniedError: DENIED,
        TeacherUnreachableError: UNREACHABLE,
    }
    try:
        settings = _client_settings(parameters or {}, address)
        if not settings.url:
            return TeacherFacts()
        with TeacherClient(settings) as client:
            identity = client.identity()
    except TiekdError as error:
        cause = next((cause for kind, cause in causes.items() if isinstance(error, kind)), "")
        return TeacherFacts(fault=str(error), cause=cause)
    return TeacherFacts(settings.url, settings.tls, f"{identity.name} {identity.version}")


def _client_settings(parameters: Mapping[str, Any], address: str) -> ClientSettings:
    from tiekd_ros.teacher.client import ClientSettings

    names = {field.name for field in dataclasses.fields(ClientSettings)}
    given = {
        name.removeprefix(_TEACHER_GROUP): value
        for name, value in parameters.items()
        if name.startswith(_TEACHER_GROUP) and name.removeprefix(_TEACHER_GROUP) in names
    }
    settings = ClientSettings.from_mapping({**given, **({"url": address} if address else {})})
    return replace(settings, timeout_s=min(settings.timeout_s, _TEACHER_TIMEOUT_S))
