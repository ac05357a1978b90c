"""The scene of the demo: the synthetic world, or a folder of images with depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.backends.recorded import RecordedBackend
from tiekd_ros.teacher.backends.synthetic import SyntheticBackend
from tiekd_ros.teacher.protocol import DepthRequest
from tiekd_ros.worlds import IndoorWorld, WorldSettings

_SIZE = (320, 240)  # of the synthetic camera
_WORLD_RATE_HZ = 8.0
_WORLD_TURN_S = 60.0
_LEAST_FRAMES = 12


TrueDepth = Callable[[RgbImage, int], DepthMap | None]
"""Returns the true depth of an image with this stamp (ns), in metres; None where not known."""


@dataclass(frozen=True)
class DemoScene:
    """The camera, the teacher, and the truth to measure by."""

    title: str
    camera: dict[str, object]  # parameters of camera_node
    teacher: list[str]  # arguments of `tiekd teacher serve`
    turn_s: float  # after this time the camera has shown everything
    frames: int  # different frames worth logging, about
    score_every_s: float  # rendering a truth takes processor time that the loop needs
    truth: TrueDepth


def _answers_of(backend: Backend, intrinsics: Intrinsics | None) -> TrueDepth:
    """Return the answers of a teacher backend in this process, as the truth."""

    def truth(image: RgbImage, stamp_ns: int) -> DepthMap | None:
        request = DepthRequest(b"", intrinsics, stamp_ns, "camera")
        try:
            return backend.infer(image, request).depth
        except TiekdError:
            return None

    return truth


def synthetic_scene(seed: int) -> DemoScene:
    """Return the procedural world of this seed."""
    settings = WorldSettings(seed=seed, period_s=_WORLD_TURN_S)
    truth = _answers_of(SyntheticBackend(settings), IndoorWorld.default_intrinsics(*_SIZE))
    camera = {
        "source": "synthetic",
        "seed": seed,
        "period_s": _WORLD_TURN_S,
        "rate_hz": _WORLD_RATE_HZ,
        "width": _SIZE[0],
        "height": _SIZE[1],
    }
    teacher = ["--backend", "synthetic", "--seed", str(seed), "--period", str(_WORLD_TURN_S)]
    return DemoScene(f"synthetic world {seed}", camera, teacher, _WORLD_TURN_S, 120, 0.4, truth)


def folder_scene(path: Path) -> DemoScene:
    """Return an RGB-D folder: `images/`, `depth/`, `K.txt`.

    Raises:
        TiekdError: the folder's layout or a file in it is not as it should be, or it is too small.
    """
    folder = RgbdFolder(path)
    if len(folder) < _LEAST_FRAMES:
        raise TiekdError(
            f"{path} has {len(folder)} frames; the demo needs at least {_LEAST_FRAMES}, to train "
            "on some and to judge by others"
        )
    rate = min(10.0, max(3.0, len(folder) / 10.0))  # small folders: a loop of about ten seconds
    truth = _answers_of(RecordedBackend(path), folder.intrinsics)
    camera = {"source": str(path.absolute()), "rate_hz": rate, "loop": True}
    teacher = ["--backend", "recorded", "--frames", str(path.absolute())]
    title = f"{len(folder)} recorded frames of {path.name}"
    return DemoScene(title, camera, teacher, len(folder) / rate, len(folder), 0.1, truth)
