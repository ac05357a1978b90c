"""The facts that the doctor's probe would bring, made up: where all is well, and with changes."""

from __future__ import annotations

from typing import Any

from tiekd_ros.diagnosis.facts import CAMERA_INFO, ERROR, IMAGE, OK, WARN, Finding, RosFacts

CAMERA, NODE = "/driver", "/tiekd/depth_node"
INFO = {
    "frame_id": "camera", "stamped": True, "age_s": 0.01, "width": 640, "height": 480,
    "distortion_model": "plumb_bob", "d": [0.0] * 5,
    "k": [500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0],
    "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    "p": [500.0, 0.0, 320.0, 0.0, 0.0, 500.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "binning": [1, 1], "roi": None,
}  # fmt: skip
PICTURE = {
    "frame_id": "camera", "stamped": True, "age_s": 0.01, "width": 640, "height": 480,
    "encoding": "rgb8", "fault": "",
}  # fmt: skip
DEPTH = {**PICTURE, "encoding": "32FC1", "valid_share": 0.97, "median_m": 2.0}
UNPUBLISHED = {"publishers": [], "type": "", "count": 0, "last": None}
SILENT = {"count": 0, "rate_hz": None, "last": None}


def endpoint(
    node: str, kind: str, reliability: str = "reliable", durability: str = "volatile"
) -> dict[str, str]:
    return {"node": node, "type": kind, "reliability": reliability, "durability": durability}


def topic(name: str, kind: str, by: str, to: str, last: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "type": kind, "count": 90, "rate_hz": 30.0, "bytes": 921600, "last": last,
        "publishers": [endpoint(by, kind)], "subscribers": [endpoint(to, kind)],
    }  # fmt: skip


def ros_json(**more: Any) -> dict[str, Any]:
    """Return the probe's JSON where all is well."""
    return {
        "rmw": "rmw_fastrtps_cpp",
        "domain": 7,
        "duration_s": 4.2,
        "undiscovered": 0,
        "other_domains": {},
        "namespace": "/tiekd",
        "nodes": [CAMERA, NODE],
        "published": {
            "/camera/image_raw": [IMAGE],
            "/camera/camera_info": [CAMERA_INFO],
            "/tiekd/depth": [IMAGE],
        },
        "inputs": {"image": ["/camera/image_raw"], "camera_info": ["/camera/camera_info"]},
        "outputs": ["/tiekd/confidence", "/tiekd/depth", "/tiekd/depth/preview"],
        "topics": {
            "image": topic("/camera/image_raw", IMAGE, CAMERA, NODE, PICTURE),
            "camera_info": topic("/camera/camera_info", CAMERA_INFO, CAMERA, NODE, INFO),
            "depth": topic("/tiekd/depth", IMAGE, NODE, "/planner", DEPTH),
            "clock": {**topic("/clock", "", "", "", {}), "publishers": [], "subscribers": []},
        },
        "own_nodes": depth_node(),
        "reports": {NODE: {"level": 0, "message": "publishing depth", "values": {}}},
        **more,
    }


def ros_facts(changes: dict[str, dict[str, Any]] | None = None, **more: Any) -> RosFacts:
    """Return facts with changes of topics by role; those of `last` are merged into it."""
    values = ros_json(**more)
    for role, change in (changes or {}).items():
        changed = values["topics"][role]
        last = change.get("last", {})
        merged = None if last is None else {**changed["last"], **last}
        changed.update({**change, "last": merged})
    return RosFacts.from_json(values)


def depth_node(state: str = "active", **parameters: Any) -> dict[str, Any]:
    """Return the `own_nodes` of a depth_node alone."""
    return {"depth_node": {"name": NODE, "state": state, "parameters": parameters}}


def worst(findings: Any) -> Finding:
    """Return the gravest finding; every one has a remedy unless all is well."""
    found = list(findings)
    assert all(bool(each.remedy) == (each.level != OK) for each in found), found
    return max(found, key=lambda each: [OK, WARN, ERROR].index(each.level))
