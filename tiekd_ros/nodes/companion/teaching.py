"""Between the frame log and the teacher: one logged frame in, one checked label out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from tiekd_ros.core.errors import BadImageError
from tiekd_ros.framelog import FrameLogSettings, LabelAnswer, LoggedFrame, NotNow, RefusedLabel
from tiekd_ros.framelog.labels import mask_invalid
from tiekd_ros.teacher.client import TeacherClient
from tiekd_ros.teacher.errors import (
    TeacherAnswerError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge, StudentView, check_flip
from tiekd_ros.teacher.upload import UploadSettings, fit_for_upload, mirrored

_LOG = logging.getLogger(__name__)
_MOST_FAILURES = 3
"""A frame that breaks the teacher this often, and others not, is given up."""

SeenByStudent = Callable[[bytes, tuple[int, int]], StudentView | None]
"""Takes an encoded image and a (height, width); returns what the live student sees, if any."""


class TeacherDesk:
    """Asks a teacher for labels; an `ask` for `tiekd_ros.framelog.Labeller`.

    Args:
        client: asks the teacher, and checks each answer by itself.
        judge: compares labels with those before.
        upload: how small an image is sent.
        logged_quality: JPEG quality of the logged images.
        max_side: longer side of the labels that are asked for and kept, pixels; 0 = any.
        student: what labels are compared with, beside each other.
    """

    def __init__(
        self,
        client: TeacherClient,
        judge: LabelJudge | None = None,
        *,
        upload: UploadSettings | None = None,
        logged_quality: int = FrameLogSettings.jpeg_quality,
        max_side: int = 0,
        student: SeenByStudent | None = None,
    ) -> None:
        self.client = client
        self.judge = judge or LabelJudge()
        self._upload = upload or UploadSettings()
        self._logged_quality = logged_quality
        self._max_side = max_side
        self._student = student
        self._lock = threading.Lock()  # guards all below
        self._labelled = 0
        # By frame: how often the teacher broke on it, and how many labels there were by then.
        self._broke_on: dict[int, tuple[int, int]] = {}
        self._refuses_mirrors: set[TeacherIdentity] = set()

    def __call__(self, frame: LoggedFrame) -> LabelAnswer:
        """Return the label of a frame.

        Raises:
            RefusedLabel: the image cannot be read, the teacher refused it, broke on it several
                times while it labelled others, or its answer cannot be believed.
            NotNow: the teacher does not answer; says when to ask again.
            TeacherError: it is busy, broke, is not metric or not the pinned one; ask again later.
        """
        try:
            answer = self._ask(frame)
        except BadImageError as error:
            raise self._refusal(frame, "image_unreadable", error, asked=False) from error
        except TeacherRefusedError as error:
            raise self._refusal(frame, "teacher_refused", error) from error
        except TeacherAnswerError as error:
            raise self._refusal(frame, error.reason, error) from error
        except TeacherFailedError as error:
            if not self._breaks_it(frame.id):
                raise
            raise self._refusal(frame, "teacher_broke", error) from error
        except TeacherUnreachableError as error:
            if error.retry_in_s is None:
                raise
            raise NotNow(str(error), error.retry_in_s) from error
        with self._lock:
            self._labelled += 1
            self._broke_on.pop(frame.id, None)
        teacher = answer.teacher or self.client.identity()
        return LabelAnswer(answer.depth, answer.confidence, teacher.name, teacher.version)

    def _ask(self, frame: LoggedFrame) -> DepthAnswer:
        whole = DepthRequest(
            frame.jpeg, frame.intrinsics, frame.stamp_ns, frame.frame_id, self._max_side
        )
        request = fit_for_upload(whole, self._upload, self._logged_quality)
        # A server that does not know how small the answer may be sends the whole.
        answer = _of_what_was_seen(frame, self.client.infer(request).shrunk(self._max_side))
        teacher = answer.teacher or self.client.identity()
        if self.judge.settings.max_flip_difference > 0:
            self._compare_with_mirrored(request, answer, teacher)
        seen = None
        if self._student is not None:
            height, width = answer.depth.shape
            seen = self._student(frame.jpeg, (height, width))
        self.judge.judge(teacher, answer.depth, seen, frame_id=frame.id)
        return answer

    def _compare_with_mirrored(
        self, request: DepthRequest, answer: DepthAnswer, teacher: TeacherIdentity
    ) -> None:
        """Doubt an answer that is not the mirror image of that to the mirrored image.

        A teacher that only knows the pictures it was given refuses each mirrored one, which says
        nothing against its labels: they are judged by the other checks alone.
        """
        try:
            other = self.client.infer(mirrored(request)).shrunk(self._max_side)
        except TeacherRefusedError as error:
            self._say_unjudged(teacher, error)
        else:
            check_flip(answer.depth, other.depth, self.judge.settings)

    def _say_unjudged(self, teacher: TeacherIdentity, error: TeacherRefusedError) -> None:
        with self._lock:
            is_known = teacher in self._refuses_mirrors
            self._refuses_mirrors.add(teacher)
        if not is_known:
            _LOG.warning(
                "the teacher %s %s refuses a mirrored image (%s): labels are taken without that "
                "check where it does; set trust.max_flip_difference to 0 for this teacher",
                teacher.name,
                teacher.version,
                error,
            )

    def _breaks_it(self, frame_id: int) -> bool:
        """Count that the teacher broke on a frame; say whether the frame is what breaks it.

        A teacher that labelled no other frame meanwhile may be broken for all of them.
        """
        with self._lock:
            count, labelled = self._broke_on.get(frame_id, (0, -1))
            if self._labelled > labelled:
                count += 1
            self._broke_on[frame_id] = count, self._labelled
            return count >= _MOST_FAILURES

    def _refusal(
        self, frame: LoggedFrame, reason: str, error: Exception, *, asked: bool = True
    ) -> RefusedLabel:
        with self._lock:
            self._broke_on.pop(frame.id, None)
        _LOG.warning("frame %d gets no label (%s): %s", frame.id, reason, error)
        known = self.client.known_teacher
        teacher = "" if known is None else f"{known.name} {known.version}"
        return RefusedLabel(reason, str(error), teacher=teacher, asked=asked)


def _of_what_was_seen(frame: LoggedFrame, answer: DepthAnswer) -> DepthAnswer:
    """Return an answer that knows nothing of what the camera did not see, as it will be kept."""
    depth = mask_invalid(answer.depth, frame.invalid_mask_png)
    if not (depth > 0).any():
        raise TeacherAnswerError(
            "nothing is known of the part of the image that the camera saw", "label_unknown"
        )
    return replace(answer, depth=depth)
