"""From a frame to a label that can be believed: the one road of companion and command line.

An image is made small, sent, and its answer checked by itself (`protocol.check_answer`) and
against what was seen before (`trust`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import (
    DepthMap,
    RgbImage,
    decode_image,
    encode_jpeg,
    mask_depth,
    read_image_size,
)
from tiekd_ros.core.labels import (
    FrameToLabel,
    Label,
    LabelRejected,
    StudentDepth,
    TeacherUnavailable,
)
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    RelativeTeacherError,
    TeacherAnswerError,
    TeacherError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.protocol import (
    AnswerChecks,
    DepthAnswer,
    DepthRequest,
    TeacherIdentity,
    check_answer,
)
from tiekd_ros.teacher.trust import LabelJudge, check_flip

_LOG = logging.getLogger(__name__)
_WORTH_IT = 10
"""Points of JPEG quality by which encoding an image anew, at the size it has, must lower it.

At the frame log's 92, down to 90 saves 4 to 7 % of a camera's bytes, which is not worth decoding,
encoding and a second loss; down to 80 saves 28 to 38 %, to 60 40 to 60 %.
"""
_MIRROR_QUALITY = 95
UNREADABLE = "image_unreadable"
"""Reason of a frame whose image or mask cannot be read."""
_MOST_FAILURES = 3
"""A frame that breaks the teacher this often, and others not, is given up."""

StudentDepthFunction = Callable[[bytes, tuple[int, int]], "StudentDepth | None"]
"""Takes an encoded image and a (height, width); returns the live student's depth, if any."""


@dataclass(frozen=True)
class UploadSettings(Settings):
    """What becomes of an image before it is sent."""

    max_side: int = setting(
        1024,
        "longer side of the image that is sent; more than the teacher's own input is wasted "
        "(Depth Anything: about 700 at 4:3, 920 at 16:9; Depth Pro: 1536); 0 = as it was logged",
        unit="px",
        minimum=0,
        maximum=16384,
    )
    jpeg_quality: int = setting(
        90,
        "JPEG quality of an image that is made smaller; one of the right size is sent as it was "
        "logged, unless this is 10 or more below frames.jpeg_quality",
        minimum=10,
        maximum=100,
    )


class Teacher(Protocol):
    """Answers one request at a time; may be asked from several threads. See `TeacherClient`."""

    @property
    def known_teacher(self) -> TeacherIdentity | None:
        """Who answered last, without asking."""
        ...

    def identity(self) -> TeacherIdentity:
        """Return who the teacher is."""
        ...

    def infer(self, request: DepthRequest) -> DepthAnswer:
        """Return the answer to one image, unchecked."""
        ...

    def close(self) -> None:
        """Give back what it holds; ends calls that are under way, where that can be done."""
        ...


class LocalTeacher:
    """A teacher's backend in this process."""

    def __init__(self, backend: Backend) -> None:
        """Use this backend.

        Raises:
            RelativeTeacherError: its depth is not in metres.
        """
        if not backend.identity.metric:
            raise RelativeTeacherError(
                f"the teacher {backend.identity.name!r} does not give depth in metres; use a "
                "metric one"
            )
        self._backend = backend

    @property
    def known_teacher(self) -> TeacherIdentity:
        """Who labels."""
        return self._backend.identity

    def identity(self) -> TeacherIdentity:
        """Return who labels."""
        return self.known_teacher

    def infer(self, request: DepthRequest) -> DepthAnswer:
        """Ask the backend, as a server would.

        Raises:
            BadImageError: the image cannot be decoded.
            TeacherRefusedError: it will not label this image.
            TeacherFailedError: it broke on this image.
        """
        image = decode_image(request.image, as_stored=True)
        try:
            answer = self._backend.infer(image, replace(request, image=b""))
        except BackendRefusal as error:
            raise TeacherRefusedError(str(error)) from error
        except Exception as error:  # whatever it is, the image may be at fault
            text = f"the teacher broke on an image: {type(error).__name__}: {error}"
            raise TeacherFailedError(text) from error
        depth = np.where(answer.depth == 0, np.float32(np.nan), answer.depth).astype(np.float32)
        return DepthAnswer(depth, answer.confidence, self.identity())

    def close(self) -> None:
        """Nothing is held."""


class TeacherLabelSource:
    """Asks a teacher for labels; `label` is what `framelog.Labeller` calls.

    Args:
        teacher: answers; a `TeacherClient` or a `LocalTeacher`.
        checks: what an answer must look like by itself.
        judge: compares labels with those before.
        upload: how small an image is sent.
        logged_quality: JPEG quality of the frames' images.
        max_side: longer side of the labels that are asked for and kept, pixels; 0 = any.
        student_depth: what labels are compared with, beside each other.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        checks: AnswerChecks | None = None,
        judge: LabelJudge | None = None,
        upload: UploadSettings | None = None,
        logged_quality: int = 92,
        max_side: int = 0,
        student_depth: StudentDepthFunction | None = None,
    ) -> None:
        self.teacher = teacher
        self.judge = judge or LabelJudge()
        self._checks = checks or AnswerChecks()
        self._upload = upload or UploadSettings()
        self._logged_quality = logged_quality
        self._max_side = max_side
        self._student_depth = student_depth
        self._lock = threading.Lock()  # guards all below
        self._labelled = 0
        # By frame: how often the teacher broke on it, and how many labels there were by then.
        self._broke_on: dict[int, tuple[int, int]] = {}
        self._refuses_mirrors: set[TeacherIdentity] = set()

    def label(self, frame: FrameToLabel) -> Label:
        """Return the label of a frame.

        Raises:
            LabelRejected: the image cannot be read, the teacher refused it, broke on it several
                times while it labelled others, or its answer cannot be believed.
            TeacherUnavailable: the teacher is away, busy, not metric or not the pinned one.
            TeacherFailedError: it broke on this frame; another try may succeed.
        """
        try:
            answer, teacher = self._ask(frame)
        except BadImageError as error:
            raise self._rejection(frame, UNREADABLE, error, asked=False) from error
        except TeacherRefusedError as error:
            raise self._rejection(frame, "teacher_refused", error) from error
        except TeacherAnswerError as error:
            raise self._rejection(frame, error.reason, error) from error
        except TeacherFailedError as error:
            if not self._breaks_teacher(frame.id):
                raise
            raise self._rejection(frame, "teacher_broke", error) from error
        except TeacherUnreachableError as error:
            raise TeacherUnavailable(str(error), error.retry_after_s) from error
        except TeacherError as error:
            raise TeacherUnavailable(str(error)) from error
        with self._lock:
            self._labelled += 1
            self._broke_on.pop(frame.id, None)
        return Label(answer.depth, teacher.name, teacher.version, answer.confidence)

    def _ask(self, frame: FrameToLabel) -> tuple[DepthAnswer, TeacherIdentity]:
        image = frame.jpeg
        whole = DepthRequest(
            image, frame.intrinsics, frame.stamp_ns, frame.frame_id, self._max_side
        )
        request = fit_for_upload(whole, self._upload, self._logged_quality)
        answer = self._infer(request)
        depth = mask_depth(answer.depth, frame.invalid_mask_png)
        if not (depth > 0).any():
            raise TeacherAnswerError(
                "nothing is known of the part of the image that the camera saw", "label_unknown"
            )
        teacher = answer.teacher or self.teacher.identity()
        if self.judge.settings.max_flip_difference > 0:
            self._compare_with_mirrored(request, depth, teacher)
        student = None
        if self._student_depth is not None:
            height, width = depth.shape
            student = self._student_depth(image, (height, width))
        self.judge.judge(teacher, depth, student, frame_id=frame.id)
        return replace(answer, depth=depth), teacher

    def _infer(self, request: DepthRequest) -> DepthAnswer:
        answer = self.teacher.infer(request)
        check_answer(answer, *read_image_size(request.image), self._checks)
        # A server that does not know how small the answer may be sends the whole.
        return answer.shrunk(self._max_side)

    def _compare_with_mirrored(
        self, request: DepthRequest, depth: DepthMap, teacher: TeacherIdentity
    ) -> None:
        """Doubt an answer that is not the mirror image of that to the mirrored image.

        A teacher that only knows the pictures it was given refuses each mirrored one, which says
        nothing against its labels: they are judged by the other checks alone.
        """
        try:
            mirrored_depth = self._infer(mirrored(request)).depth
        except TeacherRefusedError as error:
            with self._lock:
                is_known = teacher in self._refuses_mirrors
                self._refuses_mirrors.add(teacher)
            if not is_known:
                _LOG.warning(
                    "the teacher %s %s refuses a mirrored image (%s): labels are taken without "
                    "that check where it does; set trust.max_flip_difference to 0 for this teacher",
                    teacher.name,
                    teacher.version,
                    error,
                )
        else:
            check_flip(depth, mirrored_depth, self.judge.settings)

    def _breaks_teacher(self, frame_id: int) -> bool:
        """Count that the teacher broke on a frame; say whether the frame is what breaks it.

        A teacher that labelled no other frame meanwhile may be broken for all of them.
        """
        with self._lock:
            count, labelled = self._broke_on.get(frame_id, (0, -1))
            if self._labelled > labelled:
                count += 1
            self._broke_on[frame_id] = count, self._labelled
            return count >= _MOST_FAILURES

    def _rejection(
        self, frame: FrameToLabel, reason: str, error: Exception, *, asked: bool = True
    ) -> LabelRejected:
        with self._lock:
            self._broke_on.pop(frame.id, None)
        known = self.teacher.known_teacher
        teacher = "" if known is None else f"{known.name} {known.version}"
        return LabelRejected(reason, str(error), teacher=teacher, asked=asked)


def fit_for_upload(
    request: DepthRequest, settings: UploadSettings, logged_quality: int
) -> DepthRequest:
    """Return the request with its image made small, and the intrinsics of the small image.

    An image of the right size is sent as it is where encoding it anew would save little; of that
    one, only the header is read.

    Args:
        request: its image is a JPEG or PNG.
        settings: how small.
        logged_quality: JPEG quality at which the image was encoded.

    Raises:
        BadImageError: the image cannot be read.
    """
    width, height = read_image_size(request.image)
    scale = settings.max_side / max(height, width) if settings.max_side else 1.0
    if scale >= 1.0:
        if settings.jpeg_quality > logged_quality - _WORTH_IT:
            return request
        data = encode_jpeg(decode_image(request.image, as_stored=True), settings.jpeg_quality)
        return replace(request, image=data) if len(data) < len(request.image) else request
    image = decode_image(request.image, as_stored=True)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: RgbImage = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    intrinsics = request.intrinsics
    if intrinsics is not None:
        intrinsics = intrinsics.scaled(size[0] / width, size[1] / height)
    data = encode_jpeg(small, settings.jpeg_quality)
    return replace(request, image=data, intrinsics=intrinsics)


def mirrored(request: DepthRequest) -> DepthRequest:
    """Return the request as a mirror shows it, left and right exchanged.

    Raises:
        BadImageError: the image cannot be decoded.
    """
    image = decode_image(request.image, as_stored=True)
    intrinsics = request.intrinsics
    if intrinsics is not None:
        fx, fy, cx, cy = intrinsics.as_tuple()
        intrinsics = Intrinsics(fx, fy, image.shape[1] - 1 - cx, cy)
    flipped: RgbImage = cv2.flip(image, 1)
    return replace(request, image=encode_jpeg(flipped, _MIRROR_QUALITY), intrinsics=intrinsics)
