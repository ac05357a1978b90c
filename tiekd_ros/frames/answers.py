"""What comes back when a teacher is asked, and what the labeller says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tiekd_ros.errors import TiekdError
from tiekd_ros.images import DepthMap

LinkState = Literal["idle", "waiting", "ok", "down"]


class RefusedLabel(TiekdError):  # noqa: N818 (an answer, not an error)
    """Raised by `ask`: this frame will never get a good label."""

    def __init__(
        self, reason: str, detail: str = "", *, teacher: str = "", asked: bool = True
    ) -> None:
        """Say why.

        Args:
            reason: short and fit for counting, such as 'bad_label' or 'too_large'.
            detail: says more to people.
            teacher: name and version of who was asked; one that refuses everything is suspected.
            asked: False where the frame itself is at fault, and no teacher was asked.
        """
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.teacher = teacher
        self.asked = asked


class NotNow(TiekdError):  # noqa: N818 (an answer, not an error)
    """Raised by `ask`: nobody can label anything before `retry_in_s` seconds have passed."""

    def __init__(self, text: str, retry_in_s: float) -> None:
        super().__init__(text)
        self.retry_in_s = retry_in_s


class SuspectTeacherError(TiekdError):
    """A teacher's labels are refused again and again: it is at fault, not the frames."""

    def __init__(self, count: int, refusal: RefusedLabel) -> None:
        """Say so; `count` refusals had no believed label between them."""
        who = f" {refusal.teacher}" if refusal.teacher else ""
        super().__init__(
            f"the teacher{who} is suspect: its last {count} labels were refused (last: {refusal}); "
            "frames wait until one is believed"
        )


@dataclass(frozen=True)
class LabelAnswer:
    """What a teacher said of a frame, checked already."""

    depth: DepthMap
    """float32 (h, w), metres, NaN = unknown: the frame's view at any size."""
    confidence: npt.NDArray[np.floating] | None
    """(h, w) in 0..1, where the teacher gives one."""
    teacher_name: str
    teacher_version: str


@dataclass(frozen=True)
class LabellerSnapshot:
    """The labeller at one moment, for the diagnostics."""

    link: LinkState
    """'idle': nothing to label; 'waiting': asked, no answer yet; 'ok': the last request was
    answered; 'down': it failed, and is tried again in `retry_in_s`."""
    labelled: int
    refused: int
    failed: int
    """Requests and writes that failed; their frames stay logged and are asked for again."""
    in_flight: int
    last_error: str
    retry_in_s: float
    refusals: dict[str, int]
    """Labels refused since the start, by reason."""
    refused_in_a_row: int
    """Answers since the last label that was kept."""
    last_refusal: str
    suspect: bool
    """The link is 'down' since the teacher answers, but nothing that is believed."""
