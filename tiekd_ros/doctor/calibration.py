"""The camera's calibration: whether it is there and can be right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tiekd_ros.doctor.camera import offered, rate
from tiekd_ros.doctor.ends import check_several, check_unheard, check_unpublished
from tiekd_ros.doctor.facts import CAMERA_INFO, DEPTH_NODE, RosFacts
from tiekd_ros.doctor.findings import ERROR, OK, WARN, Finding
from tiekd_ros.doctor.naming import candidates, listed, start_with

_CALIBRATE = "calibrate the camera (camera_calibration), and have its driver publish the result"
_VIEW_DEG = (15.0, 170.0)
"""Horizontal fields of view of cameras for robots."""
_SAME_SHAPE = 0.01


def check_camera_info(ros: RosFacts, asked: str) -> Iterator[Finding]:
    """Look at the topic of the calibration; `asked` as for `check_image`."""
    topic = ros.topics["camera_info"]
    heard = ros.heard.get("camera_info", ())
    needed = bool(ros.parameter(DEPTH_NODE, "rectify", False))
    level = ERROR if needed else WARN
    effect = "no depth, since rectify is on" if needed else "depth comes without it"
    found = []
    if asked and heard and asked not in heard:
        what = f"depth_node listens to {listed(list(heard))}, not to {asked}"
        found.append(Finding(WARN, "camera_info", what, start_with("camera_info_topic", asked)))
    if not topic.publishers:
        unpublished = check_unpublished(
            ros, "camera_info", asked, level, _where_else(ros, topic.name)
        )
        found.append(replace(unpublished, what=f"{unpublished.what} ({effect})"))
    elif topic.type != CAMERA_INFO:
        who = topic.publishers[0].node
        what = f"{who} publishes {topic.name} as {topic.type}, not as {CAMERA_INFO} ({effect})"
        remedy = "name the camera's topic (camera_info_topic)"
        found.append(Finding(level, "camera_info", what, remedy))
    elif topic.last is None:
        what = f"{topic.publishers[0].node} publishes {topic.name}, but nothing arrives ({effect})"
        found.append(Finding(level, "camera_info", what, "see the log of the camera's driver"))
    else:
        found += _content(topic.last, ros, rectify=needed)
    found += check_unheard(ros, "camera_info", CAMERA_INFO, level)
    found += check_several(ros, "camera_info", CAMERA_INFO)
    if not found:
        what = f"{topic.name} ({offered(topic)}): {rate(topic)}, {_words(topic.last)}"
        found = [Finding(OK, "camera_info", what)]
    yield from found


def focal_px(ros: RosFacts) -> tuple[float, int] | None:
    """Return the focal length fx and the width that it is for, of a calibrated camera."""
    last = ros.topics["camera_info"].last
    if last is None or not _is_calibrated(last):
        return None
    width, _ = _described_size(last)
    scale = max(last["binning"][0], 1)
    return last["k"][0] / scale, round(width)


def _where_else(ros: RosFacts, name: str) -> str:
    found = candidates(ros, [CAMERA_INFO], name)
    folder = ros.topics["image"].name.rpartition("/")[0]
    found.sort(key=lambda other: other.rpartition("/")[0] != folder)  # the image's sibling first
    if found:
        return f"there is {listed(found)}: {start_with('camera_info_topic', found[0])}"
    return _CALIBRATE


def _content(last: Mapping[str, Any], ros: RosFacts, *, rectify: bool) -> Iterator[Finding]:
    if not _is_calibrated(last):
        yield Finding(
            ERROR if rectify else WARN,
            "camera_info",
            "camera_info is uncalibrated (K is no camera's): points and labels lack the lens",
            _CALIBRATE,
        )
        return
    yield from _geometry(last)
    yield from _size(last, ros)
    yield from _distortion(last, ros.topics["image"].name, rectify=rectify)


def _geometry(last: Mapping[str, Any]) -> Iterator[Finding]:
    fx, cx, cy = last["k"][0], last["k"][2], last["k"][5]
    width, height = last["width"], last["height"]
    if not width or not height:
        remedy = "have the camera's driver fill in width and height"
        yield Finding(WARN, "camera_info", "camera_info has no size (width, height)", remedy)
        return
    if not (0 < cx < width and 0 < cy < height):
        what = f"the centre ({cx:.0f}, {cy:.0f}) lies outside of the {width} x {height} image"
        yield Finding(WARN, "camera_info", what, _CALIBRATE)
    view = math.degrees(2 * math.atan(width / 2 / fx))
    if not _VIEW_DEG[0] <= view <= _VIEW_DEG[1]:
        what = f"fx = {fx:.0f} px at {width} px is a field of view of {view:.0f} degrees"
        yield Finding(WARN, "camera_info", what, f"see that it is this camera's; {_CALIBRATE}")


def _size(last: Mapping[str, Any], ros: RosFacts) -> Iterator[Finding]:
    image = ros.topics["image"].last
    width, height = _described_size(last)
    if image is None or not width or not height or not image["width"] or not image["height"]:
        return
    size = (image["width"], image["height"])
    if abs(width - size[0]) < 1 and abs(height - size[1]) < 1:
        return
    text = f"camera_info is for {width:g} x {height:g}, images are {size[0]} x {size[1]}"
    if abs(width * size[1] / (height * size[0]) - 1) > _SAME_SHAPE:
        remedy = "calibrate the camera at the size that it sends, or have it send the other"
        yield Finding(ERROR, "camera_info", f"{text}: another shape, so K cannot be right", remedy)
    else:
        remedy = "better: have the camera's driver publish both for one size"
        yield Finding(WARN, "camera_info", f"{text}; K and P are scaled", remedy)


def _distortion(last: Mapping[str, Any], image_topic: str, *, rectify: bool) -> Iterator[Finding]:
    name = image_topic.removesuffix("/compressed").rpartition("/")[2]
    if rectify or name.startswith("image_rect") or not any(last["d"]):
        return
    yield Finding(
        WARN,
        "camera_info",
        f"the lens distorts ({last['distortion_model']}, D is not 0), and the images are not "
        "rectified",
        "set rectify to true for both nodes, or take the rectified topic (image_rect)",
    )


def _is_calibrated(last: Mapping[str, Any]) -> bool:
    k = last["k"]
    return None not in k and k[0] > 0 and k[4] > 0


def _described_size(last: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (width, height) of the images that it is for, by ROI and binning."""
    _, _, width, height = last["roi"]
    if not (width and height):
        width, height = last["width"], last["height"]
    return width / max(last["binning"][0], 1), height / max(last["binning"][1], 1)


def _words(last: Mapping[str, Any] | None) -> str:
    assert last is not None
    fx, fy = last["k"][0], last["k"][4]
    return f"{last['width']}x{last['height']}, fx {fx:.1f}, fy {fy:.1f} px"
