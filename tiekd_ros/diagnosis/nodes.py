"""The nodes: running, active, in agreement with each other, and publishing depth."""

from __future__ import annotations

from collections.abc import Iterator

from tiekd_ros.diagnosis.camera import offered, qos_mismatches
from tiekd_ros.diagnosis.facts import (
    COMPANION_NODE,
    DEPTH_NODE,
    ERROR,
    OK,
    WARN,
    Finding,
    RosFacts,
    namespace_of,
)

_START = "start the nodes: tiekd up, or ros2 launch tiekd_ros depth.launch.py"
_LEAST_VALID_SHARE = 0.05
"""A smaller share of pixels with a distance means that something is wrong."""
_SAME_FOR_BOTH = ("state_dir", "rectify", "use_sim_time")


def check_depth_node(ros: RosFacts) -> Iterator[Finding]:
    """Check that depth_node runs and is active."""
    node = ros.own_nodes.get(DEPTH_NODE)
    if node is None:
        where, topic = f"{ros.namespace.rstrip('/')}/{DEPTH_NODE}", ros.topics["depth"]
        what = f"{where} does not run"
        if ros.undiscovered:
            what = f"{where} was not discovered within {ros.duration_s:.0f} s"
        if ros.depth_flows:
            by = ", ".join(sorted(each.node for each in topic.publishers)) or "another program"
            what = f"{what}; {topic.name} comes from {by}"
        level = WARN if ros.depth_flows else ERROR
        yield Finding(level, DEPTH_NODE, what, _other_place(ros))
        return
    yield from _check_node(ros, DEPTH_NODE, ERROR)


def check_companion_node(ros: RosFacts, *, has_student: bool) -> Iterator[Finding]:
    """Check companion_node; without it, and without a student, there will be no depth."""
    if COMPANION_NODE not in ros.own_nodes:
        if has_student:
            yield Finding(OK, COMPANION_NODE, "does not run: nothing is logged or learnt")
        else:
            what = "does not run: nothing is logged, and so no student can be learnt"
            yield Finding(WARN, COMPANION_NODE, what, _START)
        return
    yield from _check_node(ros, COMPANION_NODE, WARN)
    both = [ros.own_nodes.get(DEPTH_NODE), ros.own_nodes[COMPANION_NODE]]
    for name in _SAME_FOR_BOTH:
        values = [None if n is None else n.parameters.get(name) for n in both]
        if None not in values and values[0] != values[1]:
            yield Finding(
                WARN,
                COMPANION_NODE,
                f"{name} is {values[1]!r} here and {values[0]!r} in depth_node",
                f"give both nodes the same {name}",
            )


def check_clock(ros: RosFacts) -> Iterator[Finding]:
    """Check that /clock has a publisher where the nodes need it, and only there."""
    simulated = [n.name for n in ros.own_nodes.values() if n.parameters.get("use_sim_time") is True]
    clock = ros.topics["clock"].publishers
    if simulated and not clock:
        yield Finding(
            WARN,
            "clock",
            f"use_sim_time is on for {' and '.join(simulated)}, and /clock has no "
            "publisher: their time stands still",
            "play the bag with --clock, or start the nodes with use_sim_time:=false",
        )
    elif simulated:
        yield Finding(OK, "clock", f"/clock, from {clock[0].node}")
    elif clock and ros.own_nodes:
        yield Finding(
            WARN,
            "clock",
            f"{clock[0].node} publishes /clock, and the nodes go by the system's clock",
            "start the nodes with use_sim_time:=true",
        )
    else:
        yield Finding(OK, "clock", "the system's")


def check_depth(ros: RosFacts, obstacles: int) -> Iterator[Finding]:
    """Check the depth images, after so many other errors were found."""
    topic = ros.topics["depth"]
    if not topic.count:
        remedy = (
            "fix what is marked above"
            if obstacles
            else "see depth_node's log (the reason is on /diagnostics, too); measure longer with "
            "--seconds 20"
        )
        yield Finding(ERROR, "depth", f"nothing comes on {topic.name}", remedy)
        return
    found = [*_values(ros), *_unserved_subscribers(ros)]
    if len(topic.publishers) > 1:
        names = ", ".join(sorted(each.node for each in topic.publishers))
        what = f"{len(topic.publishers)} publishers of {topic.name} ({names})"
        found.append(Finding(WARN, "depth", what, "stop all but one, or give each a namespace"))
    yield from found or [Finding(OK, "depth", _description(ros))]


def _check_node(ros: RosFacts, kind: str, level: str) -> Iterator[Finding]:
    node, report = ros.own_nodes[kind], ros.report_of(kind)
    found = []
    if ros.nodes.count(node.name) > 1:
        what = f"{ros.nodes.count(node.name)} nodes are called {node.name}"
        found.append(Finding(WARN, kind, what, "end all but one, or give each a namespace"))
    if not node.state:
        what = f"{node.name} is there, but does not answer"
        remedy = "it may be loading; try --seconds 20. Else see its log, and start it again"
        found.append(Finding(WARN if ros.depth_flows else level, kind, what, remedy))
    elif node.state != "active":
        found.append(Finding(level, kind, *_not_active(node.name, node.state, report.message)))
    elif report.level:
        found.append(Finding(WARN, kind, f"reports: {report.message}", "as it says"))
    yield from found or [Finding(OK, kind, f"{node.name} is active: {report.message or 'silent'}")]


def _not_active(name: str, state: str, message: str) -> tuple[str, str]:
    if message.startswith("cannot "):
        return f"{name} is {state}: {message}", "fix that; it tries again by itself"
    steps = {"unconfigured": ("configure", "activate"), "inactive": ("activate",)}.get(state, ())
    if not steps:
        return f"{name} is {state}", "start it again"
    commands = " && ".join(f"ros2 lifecycle set {name} {step}" for step in steps)
    return f"{name} is {state}", f"{commands}; or start it with autostart: true"


def _other_place(ros: RosFacts) -> str:
    spaces = [namespace_of(name) for name in ros.other_depth_nodes]
    if spaces:
        return f"one runs in {spaces[0]}: tiekd doctor --namespace {spaces[0]}"
    domains = ros.domains_in_words
    if not domains:
        return _START
    first = min(ros.other_domains)
    return (
        f"{_START}. If they run: this machine has programs with ROS in {domains}, and this is "
        f"domain {ros.domain}: ROS_DOMAIN_ID={first} tiekd doctor"
    )


def _values(ros: RosFacts) -> Iterator[Finding]:
    topic = ros.topics["depth"]
    last = topic.last or {}
    if last.get("fault"):
        yield Finding(ERROR, "depth", last["fault"], "see who publishes it")
        return
    share = last.get("valid_share", 1.0)
    if share >= _LEAST_VALID_SHARE:
        return
    names = ("min_confidence", "min_range_m", "max_range_m")
    limits = {name: ros.parameter(DEPTH_NODE, name, 0.0) for name in names}
    given = ", ".join(f"{name} {value:g}" for name, value in limits.items() if value)
    yield Finding(
        WARN if share else ERROR,
        "depth",
        f"only {share:.1%} of the pixels on {topic.name} have a distance"
        + (f" ({given})" if given else ""),
        f"loosen {given.split(' ')[0]}" if given else "see what the camera sees, and the student",
    )


def _unserved_subscribers(ros: RosFacts) -> Iterator[Finding]:
    """Find the subscribers that request a higher quality of service than depth has."""
    topic = ros.topics["depth"]
    for each in topic.subscribers:
        requested = (each.reliability, each.durability)
        found = [qos_mismatches(publisher, *requested) for publisher in topic.publishers]
        if not found or [] in found:
            continue
        policy = found[0][0]
        remedy = (
            "let it subscribe volatile: old depth is useless"
            if policy == "durability"
            else "set output_reliability to reliable, or let it subscribe best effort"
        )
        what = f"{each.node} requests more ({policy}) than {topic.name} offers, and gets nothing"
        yield Finding(WARN, "depth", what, remedy)


def _description(ros: RosFacts) -> str:
    topic = ros.topics["depth"]
    text = offered(topic)
    if topic.last:
        last = topic.last
        text += f", {last['width']}x{last['height']} {last['encoding']}, "
        text += f"{last['valid_share']:.0%} of the pixels valid, median {last['median_m']:.2f} m"
    return text
