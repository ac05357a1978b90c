"""A snapshot of the running nodes as pictures in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tiekd_ros.errors import TiekdError
from tiekd_ros.images import RgbImage, encode_depth_png, encode_png
from tiekd_ros.nodes.conversions import image_to_depth, image_to_rgb, stamp_ns
from tiekd_ros.nodes.points import read_cloud
from tiekd_ros.nodes.preview import read_range, with_scale
from tiekd_ros.nodes.snapshot import Snapshot
from tiekd_ros.report.point_view import draw_points

_MM_PER_M = 1000.0


def write_snapshot(snapshot: Snapshot, folder: Path) -> list[Path]:
    """Write `image.png`, `depth_mm.png`, `preview.png`, `points.png` and `snapshot.json`.

    `depth_mm.png` has 16 bits: millimetres, 0 = no depth below 65.535 m. `points.png` shows the
    cloud from beside the camera and from above; `preview.png` has the depths of its colours below.
    What is missing in the snapshot is not written.

    Returns:
        The files.

    Raises:
        TiekdError: the folder cannot be written to.
        BadImageError: a message cannot be read.
    """
    files = {
        f"{name}.png": write(snapshot)
        for part, (name, write) in _PICTURES.items()
        if part in snapshot.messages
    }
    files["snapshot.json"] = (json.dumps(_facts(snapshot), indent=1) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise TiekdError(f"cannot write to {folder}: {error.strerror or error}") from error
    return [folder / name for name in files]


def _depth(snapshot: Snapshot) -> bytes:
    return encode_depth_png(image_to_depth(snapshot.messages["depth"]), _MM_PER_M)


def _preview(snapshot: Snapshot) -> bytes:
    picture = image_to_rgb(snapshot.messages["preview"])
    shown = read_range(snapshot.diagnostics.get("preview shows", ""))
    return encode_png(picture if shown is None else with_scale(picture, *shown))


def _points(snapshot: Snapshot) -> bytes:
    cloud = read_cloud(snapshot.messages["points"])
    rgb: RgbImage = np.full(cloud.xyz.shape, 90, np.uint8) if cloud.rgb is None else cloud.rgb
    return encode_png(draw_points(cloud.xyz, rgb))


_PICTURES: dict[str, tuple[str, Callable[[Snapshot], bytes]]] = {
    "image": ("image", lambda s: encode_png(image_to_rgb(s.messages["image"]))),
    "depth": ("depth_mm", _depth),
    "preview": ("preview", _preview),
    "points": ("points", _points),
}


def _facts(snapshot: Snapshot) -> dict[str, object]:
    """Return what the pictures do not tell, fit for JSON."""
    message = snapshot.messages["depth"]
    depth = image_to_depth(message)
    known = depth[np.isfinite(depth)]
    facts: dict[str, object] = {
        "stamp_ns": stamp_ns(message.header),
        "frame_id": message.header.frame_id,
        "topics": dict(snapshot.topics),
        "missing": dict(snapshot.missing),
        "size": [message.width, message.height],
        "encoding": message.encoding,
        "share_with_depth": round(known.size / max(depth.size, 1), 4),
        "depth_m": {
            name: round(float(np.percentile(known, percent)), 3) if known.size else None
            for name, percent in (("p1", 1), ("median", 50), ("p99", 99))
        },
        "student": snapshot.diagnostics.get("student"),
        "preview_shows": snapshot.diagnostics.get("preview shows"),
    }
    if "camera_info" in snapshot.messages:
        facts["k"] = [float(v) for v in snapshot.messages["camera_info"].k]
    return facts
