"""The contract between what needs labels (the frame log's labeller) and what gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import DepthMap


class FrameToLabel(Protocol):
    """An image that waits for its label."""

    @property
    def id(self) -> int:
        """Tells frames of one labeller apart."""

    @property
    def stamp_ns(self) -> int:
        """When the image was taken, in nanoseconds."""

    @property
    def frame_id(self) -> str:
        """The camera's coordinate frame (not the frame's id)."""

    @property
    def jpeg(self) -> bytes:
        """The encoded image, JPEG or PNG; may raise BadImageError where it is read now."""

    @property
    def intrinsics(self) -> Intrinsics | None:
        """Of the image, in its pixels."""

    @property
    def invalid_mask_png(self) -> bytes | None:
        """The mask of what the camera did not see, 1-bit PNG; None = it saw all."""


@dataclass(frozen=True, eq=False)
class Label:
    """A teacher's depth of a frame."""

    depth: DepthMap
    """float32 (h, w), metres, NaN = unknown: the frame's view at any size."""
    teacher_name: str
    teacher_version: str
    confidence: npt.NDArray[np.floating] | None = None
    """(h, w) in 0..1, where the teacher gives one."""


@dataclass(frozen=True, eq=False)
class StudentDepth:
    """The live student's depth of a frame: float32 metres (H, W), and the range it knows."""

    depth: DepthMap
    version: str
    min_depth_m: float
    max_depth_m: float


class LabelRejected(TiekdError):  # noqa: N818 (an answer, not an error)
    """This frame will never get a good label."""

    def __init__(
        self, reason: str, detail: str = "", *, teacher: str = "", asked: bool = True
    ) -> None:
        """Say why.

        Args:
            reason: short and fit for counting, such as 'bad_label' or 'too_large'.
            detail: says more to people.
            teacher: name and version of who was asked; one whose every label is rejected is
                suspected.
            asked: False where the frame itself is at fault, and no teacher was asked.
        """
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.teacher = teacher
        self.asked = asked


class TeacherUnavailable(TiekdError):  # noqa: N818 (an answer, not an error)
    """No frame gets a label now; each of them waits."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        """Say what happened.

        Args:
            text: for people.
            retry_after_s: when to ask again, in seconds; None where that is not known.
        """
        super().__init__(text)
        self.retry_after_s = retry_after_s
