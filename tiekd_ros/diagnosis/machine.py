"""All but the ROS graph: ROS itself, transports, device, state folder, student and teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tiekd_ros.core.supervisor import TRANSPORTS
from tiekd_ros.diagnosis.facts import (
    BUSY,
    DENIED,
    DEPTH_NODE,
    ERROR,
    OK,
    UNREACHABLE,
    WARN,
    DeviceFacts,
    Finding,
    MachineFacts,
    RosFacts,
    StateFacts,
    StudentFacts,
    TeacherFacts,
    split_remedy,
)

_MB = 1e6

# ROS and its transports.

_TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
_RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
_DISTRIBUTIONS = {"3": "Humble", "7": "Jazzy", "9": "Kilted"}
"""By rclpy's major version."""
_LEAST_SHARED_MB = 32.0
_LOSS_SHARE = 0.8
"""Images that come less often than this share of the camera_info get lost on the way."""
_ENOUGH_MESSAGES = 10


def check_ros(machine: MachineFacts, ros: RosFacts | None, fault: str) -> Iterator[Finding]:
    """Check that ROS is there and discovers all programs of this machine.

    Args:
        machine: with the user's environment.
        ros: the probe's facts; None where it could not run.
        fault: why it could not; empty where there is no ROS.
    """
    if ros is None:
        remedy = (
            "see ROS_DOMAIN_ID and RMW_IMPLEMENTATION, and whether ROS works at all: "
            "python -m tiekd_ros.nodes.probe.probe"
            if fault
            else "source your installation (source /opt/ros/$ROS_DISTRO/setup.bash), or install "
            'the wheels: pip install "tiekd_ros[ros]"'
        )
        yield Finding(ERROR, "ros", fault or "there is no ROS 2 (no module rclpy)", remedy)
        return
    discovery = _discovery(machine.environment)
    where = f"{_distribution(machine)}, {ros.rmw}, domain {ros.domain}, {discovery}"
    if machine.environment.get(_RANGE, "").upper() == "OFF":
        remedy = f"set {_RANGE} to LOCALHOST or SUBNET for all of them"
        yield Finding(ERROR, "ros", f"{where}: nodes do not find each other", remedy)
    elif ros.undiscovered:
        enough = ros.depth_flows or (DEPTH_NODE in ros.own_nodes and ros.topics["image"].publishers)
        count = ros.undiscovered
        programs = "a program" if count == 1 else f"{count} programs"
        yield Finding(
            WARN if enough else ERROR,
            "ros",
            f"{where}: this machine has {programs} with ROS of this domain that could not be "
            f"discovered within {ros.duration_s:.0f} s",
            f"look again, for the machine may be busy; if it stays so, give all shells the same "
            f"{_RANGE}, and compare their RMW_IMPLEMENTATION, ROS_SECURITY_* and FASTDDS_* with "
            "this one's",
        )
    else:
        yield Finding(OK, "ros", where)


def _distribution(machine: MachineFacts) -> str:
    """Name the distribution of ROS: that which was sourced, or that of the wheels."""
    sourced, version = machine.environment.get("ROS_DISTRO"), machine.rclpy_wheel
    if sourced:
        return sourced.capitalize()
    if not version:
        return "ROS of an unknown distribution (ROS_DISTRO is not set)"
    name = _DISTRIBUTIONS.get(version.partition(".")[0], "ROS")
    return f"{name} as wheels (rclpy {version})"


def _discovery(environment: Mapping[str, str]) -> str:
    if environment.get("ROS_LOCALHOST_ONLY") == "1":
        return "this machine only (ROS_LOCALHOST_ONLY)"
    text = f"discovery {environment.get(_RANGE, 'SUBNET').upper()}"
    for name, variable in (("peers", "ROS_STATIC_PEERS"), ("server", "ROS_DISCOVERY_SERVER")):
        if environment.get(variable):
            text += f", {name} {environment[variable]}"
    return text


def check_transports(machine: MachineFacts, ros: RosFacts | None) -> Iterator[Finding]:
    """Check whether large images get lost on their way."""
    size = machine.receive_buffer_bytes
    buffer = "unknown" if size is None else f"{size / 1024:.0f} KiB"
    text = f"{_transports(machine.environment, ros)}, net.core.rmem_max {buffer}"
    folder = machine.shared_memory
    if machine.shared_memory_bytes is None:
        what = f"{text}; there is no {folder}, so all goes over the network stack"
        yield Finding(WARN, "transports", what, "mount it (in a container: --ipc=host)")
        return
    total, free = (size / _MB for size in machine.shared_memory_bytes)
    text += f", {folder} {total:.0f} MB, {free:.0f} free"
    if free < _LEAST_SHARED_MB:
        remedy = f"remove what is stale in {folder}; in a container: --shm-size=512m"
        yield Finding(WARN, "transports", text, remedy)
        return
    loss = "" if ros is None else _loss(ros)
    if ros is None or not loss:
        yield Finding(OK, "transports", text)
        return
    remedy = (
        f"start the camera's driver, too, with {_TRANSPORTS}='{TRANSPORTS}'"
        if "fastrtps" in ros.rmw
        else "raise the socket buffers: sudo sysctl -w net.core.rmem_max=33554432"
    )
    yield Finding(WARN, "transports", f"{loss}; {text}", remedy)


def _transports(environment: Mapping[str, str], ros: RosFacts | None) -> str:
    if ros is not None and "fastrtps" not in ros.rmw:
        return ros.rmw
    found = environment.get(_TRANSPORTS)
    if found:
        return f"{_TRANSPORTS} {found}"
    return f"{_TRANSPORTS} not set here (launch files and tiekd up set {TRANSPORTS.split('?')[0]})"


def _loss(ros: RosFacts) -> str:
    """Return that images get lost, for the small camera_info of the same node comes more often."""
    image, info = ros.topics["image"], ros.topics["camera_info"]
    same = {each.node for each in image.publishers} == {each.node for each in info.publishers}
    if not same or image.rate_hz is None or info.rate_hz is None:
        return ""
    if info.count < _ENOUGH_MESSAGES or image.rate_hz > _LOSS_SHARE * info.rate_hz:
        return ""
    return (
        f"images ({image.bytes / 1e3:.0f} kB) come at {image.rate_hz:.1f} Hz, camera_info at "
        f"{info.rate_hz:.1f} Hz: images get lost on the way"
    )


# The device.

_NO_DEVICE_REMEDY = "set device to auto or cpu"


def check_device(device: DeviceFacts, running: str) -> Iterator[Finding]:
    """Check that the device can run a student.

    `running` is depth_node's runtime at present, in its words; empty where it is not known.
    """
    if device.fault:
        yield Finding(ERROR, "device", *split_remedy(device.fault, _NO_DEVICE_REMEDY))
        return
    parts = [f"torch {device.torch} on {device.name}"]
    if device.onnxruntime_fault == "":
        parts.append("onnxruntime")
    elif device.onnxruntime_fault and device.runtime == "onnxruntime":
        yield Finding(ERROR, "device", *split_remedy(device.onnxruntime_fault, _NO_DEVICE_REMEDY))
        return
    elif device.onnxruntime_fault:
        parts.append("no onnxruntime for it")
    if running and running != "none":
        parts.append(f"depth_node uses {running}")
    text = ", ".join(parts)
    if device.name.startswith("cpu") and device.requested == "auto" and device.gpu:
        why = "cannot use it" if device.torch_has_cuda else "is built without CUDA"
        what = f"{text}: there is a GPU ({device.gpu}), but torch {why}"
        remedy = "install torch for its CUDA (on a Jetson: NVIDIA's), or set device to cpu"
        yield Finding(WARN, "device", what, remedy)
    else:
        yield Finding(OK, "device", text)


# The state folder.

_LEAST_FREE_MB = 500.0
_OTHER_FOLDER = "give the nodes another one (state_dir; tiekd up --state)"


def check_state(state: StateFacts, *, nodes_run: bool) -> Iterator[Finding]:
    """Check that the state folder is there and writable, with space, its frame log readable."""
    found = [Finding(*each) for each in _folder_faults(state, nodes_run)]
    if state.frames_fault:
        otherwise = "move that file away, or give the nodes another folder (state_dir)"
        found.append(Finding(WARN, "state", *split_remedy(state.frames_fault, otherwise)))
    if found:
        yield from found
    elif state.nearest != state.root:
        yield Finding(OK, "state", f"{state.root} is not there yet; the nodes will make it")
    else:
        parts = [f"{state.root}: writable, {state.free_bytes / 1e9:.0f} GB free"]
        if state.frames:
            total = sum(sum(by_split.values()) for by_split in state.frames.values())
            labelled = sum(state.frames.get("labelled", {}).values())
            parts.append(f"{total} frames, {labelled} labelled")
        parts += [f"held by {holder}" for holder in state.holders]
        yield Finding(OK, "state", ", ".join(parts))


def _folder_faults(state: StateFacts, nodes_run: bool) -> Iterator[tuple[str, str, str, str]]:
    root, nearest = state.root, state.nearest
    if not state.is_folder:
        what = f"{nearest} is no folder, so {root} cannot be one"
        yield ERROR, "state", what, _OTHER_FOLDER
        return
    if state.write_fault:
        remedy = f"chown or chmod {nearest}, or {_OTHER_FOLDER}"
        yield ERROR, "state", f"{nearest} is not writable ({state.write_fault})", remedy
        return
    free_mb = state.free_bytes / _MB
    if free_mb < _LEAST_FREE_MB:
        remedy = f"make room on the disk, lower frames.max_bytes_mb, or {_OTHER_FOLDER}"
        yield WARN, "state", f"only {free_mb:.0f} MB are free for {root}", remedy
    if nearest != root and nodes_run:
        yield (
            WARN,
            "state",
            f"there is no {root} here, though the nodes run",
            "if they belong to another user, name their folder with --state; if they run on "
            "another machine, call the doctor there",
        )


# The student.

_FOCAL_TOLERANCE = 0.05
"""So much off the focal length that a student learnt depth for, its scale is off as much."""


def check_student(
    state: StateFacts,
    *,
    namespace: str,
    running: str,
    focal_px: tuple[float, float] | None,
    frames_needed: tuple[int, int],
) -> Iterator[Finding]:
    """Check that a student is live, runs, and fits the camera.

    Args:
        state: the state folder with the registry.
        namespace: of the nodes.
        running: the version that depth_node runs; `none`, or empty where it is not known.
        focal_px: the camera's focal length fx and the width that it is for, if known.
        frames_needed: labelled frames that a round needs, (for training, held out).
    """
    if state.student_fault:
        otherwise = f"tiekd students list --state {state.root}, and promote one that is whole"
        yield Finding(ERROR, "student", *split_remedy(state.student_fault, otherwise))
    elif state.live:
        yield from _live_student(state, running, focal_px)
    elif running not in ("", "none"):
        yield _other_version(state, running)
    else:
        yield _no_student(state, namespace, frames_needed)


def _live_student(
    state: StateFacts, running: str, focal_px: tuple[float, float] | None
) -> Iterator[Finding]:
    card = state.student
    assert card is not None
    found = list(_other_lens(card, focal_px))
    if running and running != state.live:
        found.append(_other_version(state, running))
    width, height = card.input_size
    text = f"{state.live} is live: {card.architecture}, {width}x{height}"
    text += f", up to {card.max_depth_m:g} m"
    if card.age_days is not None:
        text += f", {card.age_days:.1f} days old"
    yield from found or [Finding(OK, "student", text)]


def _no_student(state: StateFacts, namespace: str, frames_needed: tuple[int, int]) -> Finding:
    what = f"no student is live in {state.root}, so there is no depth"
    card = state.student
    if card is not None:
        what += f" ({card.version} is {card.status}{f': {card.reason}' if card.reason else ''})"
        if not card.is_refused:
            remedy = f"tiekd students promote {card.version} --state {state.root}"
            return Finding(ERROR, "student", what, remedy)
    service = f"{namespace.rstrip('/')}/distill"
    labelled = state.frames.get("labelled", {})
    train, held_out = labelled.get("train", 0), labelled.get("held_out", 0)
    waiting = sum(state.frames.get("logged", {}).values())
    counts = (
        f"{train} of {frames_needed[0]} frames to learn from and {held_out} of "
        f"{frames_needed[1]} to judge by are labelled"
    )
    if train >= frames_needed[0] and held_out >= frames_needed[1]:
        remedy = (
            f"{train} frames are labelled: ros2 service call {service} std_srvs/srv/Trigger (or, "
            f"without a companion, tiekd distill --state {state.root})"
        )
    elif waiting > frames_needed[0]:
        remedy = f"{counts}, {waiting} wait for the teacher: see that it answers"
    else:
        remedy = (
            f"{counts}: drive around with companion and teacher running; the first labels bring "
            f"depth by themselves. Where they do not, call {service}"
        )
    return Finding(ERROR, "student", what, remedy)


def _other_version(state: StateFacts, running: str) -> Finding:
    live = state.live or "none"
    if running == "none":
        what = f"{live} is live in {state.root}, but depth_node runs none"
        remedy = "start depth_node again with this state_dir, or the companion, which announces it"
        return Finding(ERROR, "student", what, remedy)
    if running not in state.versions:
        what = f"depth_node runs {running}, which is not in {state.root}"
        remedy = "its state folder is another one: name it with --state"
        return Finding(WARN, "student", what, remedy)
    what = f"depth_node runs {running}, and {live} is live in {state.root}"
    remedy = "start the companion, which announces what is live, or start depth_node again"
    return Finding(WARN, "student", what, remedy)


def _other_lens(card: StudentFacts, focal_px: tuple[float, float] | None) -> Iterator[Finding]:
    if focal_px is None or card.focal_px is None or not focal_px[1]:
        return
    here = focal_px[0] * card.input_size[0] / focal_px[1]
    yield from check_focal_length(f"student {card.version}", card.focal_px[0], here)


def check_focal_length(student: str, trained_px: float, here_px: float) -> Iterator[Finding]:
    """Check that a student sees through a lens like that which it learnt depth for.

    Args:
        student: its name, in words.
        trained_px: the focal length that it was trained for, at its input size.
        here_px: this camera's, at the same size.
    """
    if abs(here_px / trained_px - 1) > _FOCAL_TOLERANCE:
        yield Finding(
            WARN,
            "student",
            f"{student} was trained for a focal length of {trained_px:.0f} px, this camera's is "
            f"{here_px:.0f} px at its input size: depth is off by that ratio",
            "distil with this camera's frames",
        )


# The teacher.

_REMEDIES = {
    DENIED: "give the companion the teacher's token and authority",
    BUSY: "see the teacher's load; frames wait meanwhile",
    UNREACHABLE: (
        "start it there (tiekd teacher serve --backend ...), and see teacher.url, teacher.tls and "
        "the firewall"
    ),
}


def check_teacher(
    teacher: TeacherFacts | None, link: str, *, has_student: bool
) -> Iterator[Finding]:
    """Check that the teacher answers this robot, in metres.

    Args:
        teacher: its answer; None where it is not known which one is meant.
        link: the companion's own (`LabellerSnapshot.link`); "ok" where it was answered last.
        has_student: whether a student is live; else the first one waits for this teacher.
    """
    worst = WARN if has_student else ERROR
    if teacher is None:
        text = "not asked: no companion runs; name it with --teacher HOST:PORT"
        yield Finding(OK, "teacher", text)
    elif teacher.fault:
        what, remedy = split_remedy(
            teacher.fault, "correct the companion's parameters teacher.*, or --teacher"
        )
        if teacher.cause in (BUSY, UNREACHABLE):
            remedy = _REMEDIES[teacher.cause]
        elif teacher.cause == DENIED:
            remedy = split_remedy(teacher.fault, _REMEDIES[DENIED])[1]
        known = f" (the companion's link: {link})" if link else ""
        yield Finding(WARN if link == "ok" else worst, "teacher", f"{what}{known}", remedy)
    elif not teacher.url:
        yield Finding(
            worst,
            "teacher",
            "no teacher is configured (teacher.url is empty): frames are logged, and none is "
            "labelled",
            "start the companion with teacher:=HOST:PORT (tiekd up --teacher HOST:PORT)",
        )
    else:
        secured = "TLS" if teacher.tls else "plain"
        yield Finding(OK, "teacher", f"{teacher.identity} at {teacher.url} ({secured}), metric")
