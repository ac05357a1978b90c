"""The robot's side of the wire: ask a teacher for depth, patiently and within bounds."""

from __future__ import annotations

import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from tiekd_ros.errors import BadImageError, InvalidSettingError
from tiekd_ros.settings import Settings, setting
from tiekd_ros.teacher.checks import AnswerChecks, check_answer
from tiekd_ros.teacher.errors import (
    RelativeTeacherError,
    TeacherRefusedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.image_size import read_image_size
from tiekd_ros.teacher.link import TeacherLink, TransientError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

_T = TypeVar("_T")
_URL = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}")


@dataclass(frozen=True)
class ClientSettings(Settings):
    """Where the teacher is, and how patiently it is asked."""

    url: str = setting(
        "127.0.0.1:8001", "the teacher server, as host:port; empty where there is none"
    )
    timeout_s: float = setting(20.0, "deadline of one try", unit="s", minimum=0.01, maximum=3600.0)
    attempts: int = setting(
        3, "tries a request gets before the teacher counts as unreachable", minimum=1, maximum=100
    )
    backoff_initial_s: float = setting(
        0.2,
        "pause after the first failed try; it doubles with each",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )
    backoff_max_s: float = setting(
        5.0, "longest pause between two tries", unit="s", minimum=0.0, maximum=600.0
    )
    in_flight: int = setting(
        2, "requests on their way at the same time; more callers wait", minimum=1, maximum=64
    )
    max_message_mb: int = setting(
        64, "largest message of either direction", unit="MiB", minimum=1, maximum=1024
    )

    def check(self) -> None:
        """Check the address and the order of the pauses."""
        fits = _URL.fullmatch(self.url) and int(self.url.rpartition(":")[2]) <= 65535
        if self.url and not fits:
            raise InvalidSettingError(
                f"url must be host:port without a scheme, such as 192.168.1.20:8001, got "
                f"{self.url!r}"
            )
        if self.backoff_max_s < self.backoff_initial_s:
            raise InvalidSettingError(
                f"backoff_max_s must be at least backoff_initial_s = {self.backoff_initial_s:g}, "
                f"got {self.backoff_max_s:g}"
            )


class TeacherClient:
    """Asks one teacher server; safe to use from several threads."""

    def __init__(
        self,
        settings: ClientSettings | None = None,
        checks: AnswerChecks | None = None,
        *,
        allow_relative: bool = False,
    ) -> None:
        """Prepare; nothing connects before the first call.

        Args:
            settings: where the teacher is.
            checks: what its answers must look like.
            allow_relative: take answers of a teacher that does not say it is metric; for
                callers that scale them.

        Raises:
            InvalidSettingError: the settings name no teacher.
        """
        self.settings = settings or ClientSettings()
        if not self.settings.url:
            raise InvalidSettingError("url is empty: a client needs the teacher's host:port")
        self._checks = checks or AnswerChecks()
        self._allow_relative = allow_relative
        self._state = threading.Condition()  # guards all that follows
        self._closed = False
        self._in_flight = 0
        self._link: TeacherLink | None = None
        # A replaced link lives on until the calls on it have ended; close() ends those too.
        self._links: weakref.WeakSet[TeacherLink] = weakref.WeakSet()

    def identity(self) -> TeacherIdentity:
        """Return who the teacher is, read once a connection.

        Raises:
            RelativeTeacherError: it does not say that its depth is metric, and
                `allow_relative` is off.
            TeacherUnreachableError: no usable answer, after all tries.
        """
        return self._persist(lambda link: self._accepted(link.identity()))

    def infer(self, request: DepthRequest) -> DepthAnswer:
        """Return the teacher's label of one image, checked.

        Blocks while `in_flight` other requests are on their way, then for at most
        `attempts` tries of `timeout_s` and the pauses between them.

        Raises:
            TeacherRefusedError: the image is unreadable, or the teacher will not label it.
            TeacherAnswerError: the answer cannot be believed (see `check_answer`).
            RelativeTeacherError: the teacher is not metric, and `allow_relative` is off.
            TeacherFailedError: the teacher broke on this request.
            TeacherUnreachableError: no usable answer after all tries, or the client is closed.
        """
        try:
            width, height = read_image_size(request.image)
        except BadImageError as error:
            raise TeacherRefusedError(f"not sent: {error}") from error
        with self._place():
            answer = self._persist(lambda link: self._ask(link, request))
        check_answer(answer, width, height, self._checks)
        return answer

    def close(self) -> None:
        """End all calls at once; later ones raise TeacherUnreachableError."""
        with self._state:
            self._closed = True
            self._link = None
            links = list(self._links)
            self._state.notify_all()
        for link in links:
            link.close()

    def __enter__(self) -> TeacherClient:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client."""
        self.close()

    def _ask(self, link: TeacherLink, request: DepthRequest) -> DepthAnswer:
        known = self._accepted(link.identity())
        answer = link.infer(request)
        if answer.teacher is None:
            return replace(answer, teacher=known)
        self._accepted(answer.teacher)  # another teacher may have taken the server's place
        return answer

    def _accepted(self, identity: TeacherIdentity) -> TeacherIdentity:
        if not identity.metric and not self._allow_relative:
            raise RelativeTeacherError(
                f"the teacher {identity.name!r} at {self.settings.url} does not say that its "
                "depth is in metres (parameter `metric` of its model configuration); use a "
                "metric teacher"
            )
        return identity

    def _persist(self, action: Callable[[TeacherLink], _T]) -> _T:
        """Try `action` on a link until it succeeds, fails for good, or the tries are used up."""
        reason = ""
        started = time.monotonic()
        for attempt in range(self.settings.attempts):
            if attempt > 0:
                self._pause(attempt)
            link = self._current_link()
            try:
                return action(link)
            except TransientError as error:
                reason = str(error)
                if not error.busy:
                    self._drop(link)
            except RelativeTeacherError:
                self._drop(link)  # so that its successor is asked anew
                raise
            del link  # the last user of a dropped link closes it
        self._require_open()
        raise TeacherUnreachableError(
            f"no answer from the teacher at {self.settings.url} in {self.settings.attempts} tries "
            f"and {time.monotonic() - started:.1f} s (last: {reason}); is it running, and can "
            "this machine reach it?"
        )

    def _pause(self, attempt: int) -> None:
        settings = self.settings
        longest = min(settings.backoff_max_s, settings.backoff_initial_s * 2.0 ** (attempt - 1))
        # Jitter keeps robots that lost the same server from coming back in step.
        until = time.monotonic() + longest * random.uniform(0.5, 1.0)
        with self._state:
            while not self._closed and (left := until - time.monotonic()) > 0:
                self._state.wait(left)

    def _current_link(self) -> TeacherLink:
        with self._state:
            self._require_open()
            if self._link is None:
                settings = self.settings
                self._link = TeacherLink(settings.url, settings.timeout_s, settings.max_message_mb)
                self._links.add(self._link)
            return self._link

    def _drop(self, link: TeacherLink) -> None:
        with self._state:
            if self._link is link:
                self._link = None

    def _require_open(self) -> None:
        if self._closed:
            raise TeacherUnreachableError("this teacher client is closed; make a new one")

    @contextmanager
    def _place(self) -> Iterator[None]:
        with self._state:
            while not self._closed and self._in_flight >= self.settings.in_flight:
                self._state.wait()
            self._require_open()
            self._in_flight += 1
        try:
            yield
        finally:
            with self._state:
                self._in_flight -= 1
                self._state.notify_all()
