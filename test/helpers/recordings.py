"""An RGB-D folder for the recorded backend, and a check that its labels come back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from helpers.teachers import depth_request, picture, ramp
from tiekd_ros.core.images import DepthMap
from tiekd_ros.teacher.client import TeacherClient

FRAMES = 6
_RELATIVE, _MILLIMETRE = 2.0**-11, 0.001  # of FP16 on the wire, of the folder's files


def write_recording(folder: Path) -> Path:
    """Write `FRAMES` pictures; the depth of number n is (1 + n) times `ramp`."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for index in range(FRAMES):
        name = f"{index:03d}.png"
        cv2.imwrite(str(folder / "images" / name), picture(index)[..., ::-1])
        depth = np.nan_to_num(ramp() * (1 + index) * 1000).astype(np.uint16)
        cv2.imwrite(str(folder / "depth" / name), depth)
    (folder / "K.txt").write_text("60 0 31.5\n0 60 23.5\n0 0 1\n")
    return folder


def assert_labels(client: TeacherClient, requests: int = 4 * FRAMES, at_once: int = 8) -> None:
    """Ask for many labels at once; each has to be that of its own picture."""

    def label(number: int) -> DepthMap:
        return client.infer(depth_request(picture(number % FRAMES))).depth

    with ThreadPoolExecutor(at_once) as pool:
        for number, depth in enumerate(pool.map(label, range(requests))):
            known = ramp() * (1 + number % FRAMES)
            np.testing.assert_allclose(depth, known, rtol=_RELATIVE, atol=_MILLIMETRE)
