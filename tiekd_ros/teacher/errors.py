"""What can go wrong between the robot and its teacher, one type per mistake."""

from __future__ import annotations

from tiekd_ros.core.errors import TiekdError


class TeacherError(TiekdError):
    """Root of the teacher's errors."""


class TeacherUnreachableError(TeacherError):
    """No usable answer came: the server is away, busy, silent or not a teacher; retry later."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        """Say what happened.

        Args:
            text: for people.
            retry_after_s: when the next try has a chance, in seconds; None where that is not
                known.
        """
        super().__init__(text)
        self.retry_after_s = retry_after_s


class TeacherBusyError(TeacherUnreachableError):
    """The server answers that it is full (gRPC RESOURCE_EXHAUSTED)."""


class TeacherDeniedError(TeacherUnreachableError):
    """Token or certificate do not do, the robot's or the server's; the text says which.

    No try at once helps, but they may be exchanged while both run.
    """


class TeacherFailedError(TeacherUnreachableError):
    """The server broke on this request (gRPC INTERNAL or UNKNOWN).

    Another try may succeed, yet one image may break the teacher every time: bound the tries.
    """


class TeacherRefusedError(TeacherError):
    """The teacher will not label this image; carries the server's text. Do not retry."""


class TeacherAnswerError(TeacherError):
    """The teacher answered, and the answer cannot be believed."""

    def __init__(self, text: str, reason: str = "answer_broken") -> None:
        """Say what is wrong with it.

        Args:
            text: for people, with the values that were met.
            reason: a word for counting, such as "label_constant"; "answer_broken" where the
                answer breaks the protocol.
        """
        super().__init__(text)
        self.reason = reason


class WrongTeacherError(TeacherError):
    """Another teacher answers than the one that the settings pin (`teacher.pin`)."""


class RelativeTeacherError(TeacherError):
    """The teacher's output is not in metres, or it does not say that it is."""


class TeacherServerError(TeacherError):
    """The server cannot start."""


class BackendError(TeacherError):
    """A backend cannot start: its model is missing, unfit or not understood."""


class BadRequestError(TeacherError):
    """A request to the server that breaks the protocol (gRPC INVALID_ARGUMENT)."""


class BusyError(TeacherError):
    """The server has no place for a request now (gRPC RESOURCE_EXHAUSTED)."""


class LateError(BusyError):
    """A request's deadline passed before its turn came (gRPC DEADLINE_EXCEEDED)."""


class CallerGoneError(BusyError):
    """The caller does not wait for the answer any more (gRPC CANCELLED)."""


class StoppingError(BusyError):
    """The server is about to end and takes nothing new (gRPC UNAVAILABLE)."""


class BackendRefusal(TiekdError):  # noqa: N818 - no failure: the backend's considered "no"
    """The backend cannot label this image, an unknown one for example; the text says why."""
