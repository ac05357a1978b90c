"""What can go wrong between the robot and its teacher, one type per mistake."""

from __future__ import annotations

from tiekd_ros.errors import TiekdError


class TeacherError(TiekdError):
    """Root of the teacher's errors."""


class TeacherUnreachableError(TeacherError):
    """No usable answer came: the server is away, busy, silent or not a teacher; retry later."""


class TeacherFailedError(TeacherUnreachableError):
    """The server broke on this request (gRPC INTERNAL or UNKNOWN).

    Another try may succeed, yet one image may break the teacher every time: bound the tries.
    """


class TeacherRefusedError(TeacherError):
    """The teacher will not label this image; carries the server's text. Do not retry."""


class TeacherAnswerError(TeacherError):
    """The teacher answered, and the answer cannot be believed."""


class RelativeTeacherError(TeacherError):
    """The teacher's output is not in metres, or it does not say that it is."""


class TeacherServerError(TeacherError):
    """The server cannot start."""


class BadRequestError(TeacherError):
    """A request to the server that breaks the protocol (gRPC INVALID_ARGUMENT)."""


class BackendRefusal(TiekdError):  # noqa: N818 - no failure: the backend's considered "no"
    """The backend cannot label this image, an unknown one for example; the text says why."""
