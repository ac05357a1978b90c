"""A teacher behind a server or in this process: one view in, one checked depth map out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tiekd_ros.camera import Intrinsics
from tiekd_ros.images import RgbImage, encode_png
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.checks import AnswerChecks, check_answer
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import RelativeTeacherError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity


@dataclass(frozen=True, eq=False)
class View:
    """What a teacher gets to see: uint8 RGB (H, W, 3), intrinsics in its pixels, stamp."""

    image: RgbImage
    intrinsics: Intrinsics | None
    stamp_ns: int
    frame_id: str = ""


class Teacher(Protocol):
    """Labels one view at a time; may be asked from several threads."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who labels."""
        ...

    def label(self, view: View) -> DepthAnswer:
        """Return checked depth, metres, NaN = unknown.

        Raises:
            TeacherError: see `TeacherClient.infer`.
            BackendRefusal: the teacher will not label this image.
        """
        ...

    def close(self) -> None:
        """Give back what it holds; ends calls that are under way, where that can be done."""
        ...


class ServerTeacher:
    """A teacher server.

    Raises:
        TeacherUnreachableError: nobody answers at this address.
        RelativeTeacherError: its depth is not in metres.
    """

    def __init__(self, settings: ClientSettings, checks: AnswerChecks) -> None:
        """Connect, and learn who the teacher is."""
        self._client = TeacherClient(settings, checks)
        try:
            self.identity = self._client.identity()
        except BaseException:
            self._client.close()
            raise

    def label(self, view: View) -> DepthAnswer:
        """Ask the server; the picture travels without loss."""
        data = encode_png(view.image)
        return self._client.infer(DepthRequest(data, view.intrinsics, view.stamp_ns, view.frame_id))

    def close(self) -> None:
        """End all calls."""
        self._client.close()


class LocalTeacher:
    """A backend in this process.

    Raises:
        RelativeTeacherError: its depth is not in metres.
    """

    def __init__(self, backend: Backend, checks: AnswerChecks) -> None:
        """Use `backend`, and check its answers as those of a server."""
        if not backend.identity.metric:
            raise RelativeTeacherError(
                f"the teacher {backend.identity.name!r} does not give depth in metres; use a "
                "metric one"
            )
        self.identity = backend.identity
        self._backend = backend
        self._checks = checks

    def label(self, view: View) -> DepthAnswer:
        """Ask the backend."""
        request = DepthRequest(b"", view.intrinsics, view.stamp_ns, view.frame_id)
        answer = self._backend.infer(view.image, request)
        depth = np.where(answer.depth == 0, np.float32(np.nan), answer.depth).astype(np.float32)
        answer = DepthAnswer(depth, answer.confidence, self.identity)
        check_answer(answer, view.image.shape[1], view.image.shape[0], self._checks)
        return answer

    def close(self) -> None:
        """Nothing is held."""
