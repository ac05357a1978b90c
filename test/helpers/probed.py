"""The facts that the doctor's probe would bring, made up: where all is well, and with changes."""

from __future__ import annotations

from typing import Any

from tiekd_ros.diagnosis.facts import CAMERA_INFO, ERROR, IMAGE, OK, WARN, Finding, RosFacts

CAMERA, NODE = "/driver", "/tiekd/depth_node"
INFO = {
    "frame_id": "camera", "stamped": True, "age_s": 0.01, "width": 640, "height": 480,
    "distortion_model": "plumb_bob", "d": [0.0] * 5,
    "k": [500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0],
    "p": [500.0, 0.0, 320.0, 0.0, 0.0, 500.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "binning": [0, 0], "roi": [0, 0, 0, 0],
}  # fmt: skip
VIEW = {
    "frame_id": "camera", "stamped": True, "age_s": 0.01, "width": 640, "height": 480,
    "encoding": "rgb8", "fault": "",
}  # fmt: skip
DEPTH = {**VIEW, "encoding": "32FC1", "known_share": 0.97, "median_m": 2.0}


def end(node: str, kind: str, reliability="reliable", durability="volatile") -> dict[str, str]:
    return {"node": node, "type": kind, "reliability": reliability, "durability": durability}


def topic(name: str, kind: str, by: str, to: str, last: dict[str, Any], **more: Any) -> Any:
    return {
        "name": name, "type": kind, "count": 90, "rate_hz": 30.0, "bytes": 921600, "last": last,
        "publishers": [end(by, kind)], "subscribers": [end(to, kind)], **more,
    }  # fmt: skip


def facts(**more: Any) -> dict[str, Any]:
    """Return the probe's JSON where all is well."""
    return {
        "rmw": "rmw_fastrtps_cpp",
        "domain": 7,
        "looked_s": 4.2,
        "unheard": 0,
        "elsewhere": {},
        "namespace": "/tiekd",
        "nodes": [CAMERA, NODE],
        "published": [
            {"name": "/camera/image_raw", "types": [IMAGE]},
            {"name": "/camera/camera_info", "types": [CAMERA_INFO]},
            {"name": "/tiekd/depth", "types": [IMAGE]},
        ],
        "heard": {"image": ["/camera/image_raw"], "camera_info": ["/camera/camera_info"]},
        "made": ["/tiekd/confidence", "/tiekd/depth", "/tiekd/depth/preview"],
        "topics": {
            "image": topic("/camera/image_raw", IMAGE, CAMERA, NODE, VIEW),
            "camera_info": topic("/camera/camera_info", CAMERA_INFO, CAMERA, NODE, INFO),
            "depth": topic("/tiekd/depth", IMAGE, NODE, "/planner", DEPTH),
            "clock": {**topic("/clock", "", "", "", {}), "publishers": [], "subscribers": []},
        },
        "managed": {"depth_node": {"name": NODE, "state": "active", "parameters": {}}},
        "diagnostics": {NODE: {"level": 0, "message": "publishing depth", "values": {}}},
        **more,
    }


def ros(changes: dict[str, dict[str, Any]] | None = None, **more: Any) -> RosFacts:
    """Return facts with changes of topics by role; those of `last` are merged into it."""
    values = facts(**more)
    for role, change in (changes or {}).items():
        of = values["topics"][role]
        last = change.pop("last", {})
        of.update(change)
        of["last"] = None if last is None else {**of["last"], **last}
    return RosFacts.from_json(values)


def node(**parameters: Any) -> dict[str, Any]:
    return {"depth_node": {"name": NODE, "state": "active", "parameters": parameters}}


def worst(findings: Any) -> Finding:
    """Return the gravest finding; every one has a remedy unless all is well."""
    found = list(findings)
    assert all(bool(each.remedy) == (each.level != OK) for each in found), found
    return max(found, key=lambda each: [OK, WARN, ERROR].index(each.level))


def silent() -> dict[str, dict[str, Any]]:
    return {"depth": {"count": 0, "rate_hz": None, "last": None}}
