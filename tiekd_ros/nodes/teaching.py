"""Between the frame log and the teacher: one logged frame in, one checked label out."""

from __future__ import annotations

import logging
from collections import Counter

from tiekd_ros.frames import LabelAnswer, LoggedFrame, RefusedLabel
from tiekd_ros.teacher.client import TeacherClient
from tiekd_ros.teacher.errors import (
    TeacherAnswerError,
    TeacherFailedError,
    TeacherRefusedError,
)
from tiekd_ros.teacher.protocol import DepthRequest

_LOG = logging.getLogger(__name__)
_MOST_FAILURES = 3
"""A frame that breaks the teacher this often is given up: it would block the others for ever."""


class TeacherDesk:
    """Asks a teacher for labels; an `ask` for `tiekd_ros.frames.Labeller`."""

    def __init__(self, client: TeacherClient) -> None:
        self.client = client
        self._failures: Counter[int] = Counter()

    def __call__(self, frame: LoggedFrame) -> LabelAnswer:
        """Return the label of a frame.

        Raises:
            RefusedLabel: the teacher refused the image, broke on it several times, or its
                answer cannot be believed; the log has the details.
            TeacherError: the teacher is out of reach or not metric; ask again later.
        """
        request = DepthRequest(frame.jpeg, frame.intrinsics, frame.stamp_ns, frame.frame_id)
        try:
            answer = self.client.infer(request)
        except TeacherRefusedError as error:
            raise self._refusal(frame, "teacher_refused", error) from error
        except TeacherAnswerError as error:
            raise self._refusal(frame, "answer_not_believed", error) from error
        except TeacherFailedError as error:
            self._failures[frame.id] += 1
            if self._failures[frame.id] < _MOST_FAILURES:
                raise
            raise self._refusal(frame, "teacher_broke", error) from error
        self._failures.pop(frame.id, None)
        teacher = answer.teacher or self.client.identity()
        return LabelAnswer(answer.depth, answer.confidence, teacher.name, teacher.version)

    def _refusal(self, frame: LoggedFrame, reason: str, error: Exception) -> RefusedLabel:
        self._failures.pop(frame.id, None)
        _LOG.warning("frame %d is not used (%s): %s", frame.id, reason, error)
        return RefusedLabel(reason)
