"""The student that is live: whether there is one, can be loaded, and fits the camera."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.facts import ERROR, OK, WARN, Finding, split_remedy
from tiekd_ros.diagnosis.machine import frame_counts
from tiekd_ros.rounds.plan import RoundSettings
from tiekd_ros.student import REFUSED, StudentCard, StudentRegistry

_FOCAL_TOLERANCE = 0.05


def check_student(
    state: StateFolder,
    namespace: str,
    running: str,
    focal: tuple[float, int] | None,
    enough: RoundSettings,
) -> Iterator[Finding]:
    """Look at the registry of a state folder.

    Args:
        state: the folder.
        namespace: of the nodes.
        running: the version that depth_node runs; empty where it is not known.
        focal: the camera's focal length fx and the width that it is for, if known.
        enough: what a round needs.
    """
    registry = StudentRegistry(state.students)
    try:
        live = registry.live()
        if live is None:
            yield _none_live(registry, state, namespace, running, enough)
            return
        card = registry.load(live).card
    except TiekdError as error:
        again = f"tiekd students list --state {state.root}, and promote one that is whole"
        yield Finding(ERROR, "student", *split_remedy(str(error), again))
        return
    found = [*_focal(card, focal)]
    if running and running != live:
        found.append(_other_runs(state, running, live))
    yield from found or [Finding(OK, "student", _words(live, card))]


def live_student(state: StateFolder) -> str:
    """Return the live version; empty where none is, or where that cannot be read."""
    try:
        return StudentRegistry(state.students).live() or ""
    except TiekdError:
        return ""


def _none_live(
    registry: StudentRegistry,
    state: StateFolder,
    namespace: str,
    running: str,
    enough: RoundSettings,
) -> Finding:
    if running and running != "none":
        return _other_runs(state, running, "none")
    what = f"no student is live in {state.root}, so there is no depth"
    versions = registry.versions()
    if versions:
        card = registry.card(versions[-1])
        reason = f"{versions[-1]} is {card.status}" + (f": {card.reason}" if card.reason else "")
        what += f" ({reason})"
        if card.status != REFUSED:
            remedy = f"tiekd students promote {versions[-1]} --state {state.root}"
            return Finding(ERROR, "student", what, remedy)
    return Finding(ERROR, "student", what, _way_to_one(state, namespace, enough))


def _way_to_one(state: StateFolder, namespace: str, enough: RoundSettings) -> str:
    service = f"{namespace.rstrip('/')}/distill"
    try:
        frames = frame_counts(state).frames
    except TiekdError:
        frames = {}
    labelled = frames.get("labelled", {})
    train, held_out = labelled.get("train", 0), labelled.get("held_out", 0)
    waiting = sum(frames.get("logged", {}).values())
    if train >= enough.min_frames and held_out >= enough.min_held_out:
        return (
            f"{train} frames are labelled: ros2 service call {service} std_srvs/srv/Trigger (or, "
            f"without a companion, tiekd distill --state {state.root})"
        )
    counts = (
        f"{train} of {enough.min_frames} frames to learn from and {held_out} of "
        f"{enough.min_held_out} to judge by are labelled"
    )
    if waiting > enough.min_frames:
        return f"{counts}, {waiting} wait for the teacher: see that it answers"
    return f"{counts}: drive around with companion and teacher running, then call {service}"


def _other_runs(state: StateFolder, running: str, live: str) -> Finding:
    registry = StudentRegistry(state.students)
    if running == "none":
        return Finding(
            ERROR,
            "student",
            f"{live} is live in {state.root}, but depth_node runs none",
            "start depth_node again with this state_dir, or the companion, which announces it",
        )
    if running not in registry.versions():
        return Finding(
            WARN,
            "student",
            f"depth_node runs {running}, which is not in {state.root}",
            "its state folder is another one: name it with --state",
        )
    return Finding(
        WARN,
        "student",
        f"depth_node runs {running}, and {live} is live in {state.root}",
        "start the companion, which announces what is live, or start depth_node again",
    )


def _focal(card: StudentCard, focal: tuple[float, int] | None) -> Iterator[Finding]:
    if focal is None or card.focal_px is None or not focal[1]:
        return
    here = focal[0] * card.input_size.width / focal[1]
    if abs(here / card.focal_px[0] - 1) > _FOCAL_TOLERANCE:
        yield Finding(
            WARN,
            "student",
            f"student {card.version} was trained for a focal length of {card.focal_px[0]:.0f} px, "
            f"this camera's is {here:.0f} px at its input size: depth is off by that ratio",
            "distil with this camera's frames",
        )


def _words(live: str, card: StudentCard) -> str:
    size = card.input_size
    text = f"{live} is live: {card.architecture}, {size.width}x{size.height}"
    text += f", up to {card.bins.max_depth_m:g} m"
    days = _age_days(card)
    return text if days is None else f"{text}, {days:.1f} days old"


def _age_days(card: StudentCard) -> float | None:
    try:
        created = datetime.fromisoformat(card.created)
    except ValueError:
        return None
    if created.tzinfo is None:
        created = created.replace(tzinfo=timezone.utc)
    return (datetime.now(timezone.utc) - created).total_seconds() / 86400
