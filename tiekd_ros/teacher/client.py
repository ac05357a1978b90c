"""The robot's side of the wire: ask a teacher for depth, patiently and within bounds."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, TypeVar

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import BadImageError, InvalidSettingError
from tiekd_ros.core.images import read_image_size
from tiekd_ros.teacher.checks import AnswerChecks, check_answer
from tiekd_ros.teacher.credentials import read_credentials
from tiekd_ros.teacher.errors import (
    CircuitOpenError,
    RelativeTeacherError,
    TeacherBusyError,
    TeacherDeniedError,
    TeacherError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
    WrongTeacherError,
)
from tiekd_ros.teacher.link import TeacherLink, Traffic, TransientError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity
from tiekd_ros.teacher.settings import ClientSettings

CircuitState = Literal["closed", "open", "half-open"]
_MOST_DOUBLINGS = 30  # beyond, the power of two says nothing: the cap has been met


class CircuitBreaker:
    """Counts calls without an answer; safe to use from several threads.

    Closed: calls are made. After `break_after` failures in a row it opens: calls are turned away
    until a jittered, growing time has passed. Then it is half-open: one call, the probe, is
    let through; its answer closes the circuit, its failure opens it for longer.

    Args:
        break_after: failures in a row that open it.
        initial_s: longest time to the first probe.
        max_s: longest time between two probes.
    """

    def __init__(self, break_after: int, initial_s: float, max_s: float) -> None:
        self._break_after = break_after
        self._initial_s = initial_s
        self._max_s = max_s
        self._lock = threading.Lock()  # guards all below
        self._failures = 0  # in a row
        self._openings = 0  # since it was closed last
        self._probe_at: float | None = None  # monotonic; None while closed
        self._probing = False
        self._reason = ""

    def enter(self) -> bool:
        """Ask for leave to call; returns whether the call is the probe.

        The caller must report with `succeed`, `fail` or, where the call said nothing, `leave`.

        Raises:
            CircuitOpenError: not now; says when.
        """
        with self._lock:
            if self._probe_at is None:
                return False
            left_s = self._probe_at - time.monotonic()
            if left_s > 0 or self._probing:
                raise CircuitOpenError(
                    f"the teacher is not asked, since it did not answer {self._failures} requests "
                    f"in a row (last: {self._reason})",
                    # A probe under way may end any moment.
                    left_s if left_s > 0 else min(self._initial_s, self._max_s),
                )
            self._probing = True
            return True

    def succeed(self) -> None:
        """Note that somebody answered, whatever the answer was."""
        with self._lock:
            self._failures = self._openings = 0
            self._probe_at = None
            self._probing = False

    def fail(self, reason: str, *, probe: bool) -> float | None:
        """Note that nobody answered.

        Args:
            reason: for the message of calls that are turned away.
            probe: what `enter` returned for this call.

        Returns:
            Seconds to the next probe; None while calls are still made.
        """
        with self._lock:
            self._failures += 1
            self._reason = reason
            if probe:
                self._probing = False
            is_late = self._probe_at is not None and not probe  # began before it opened
            if self._failures >= self._break_after and not is_late:
                self._open()
            if self._probe_at is None:
                return None
            return max(0.0, self._probe_at - time.monotonic())

    def leave(self, *, probe: bool) -> None:
        """Note that a call ended without saying anything about the teacher."""
        if probe:
            with self._lock:
                self._probing = False

    def state(self) -> tuple[CircuitState, float]:
        """Return how it stands, and the seconds to the next probe."""
        with self._lock:
            if self._probe_at is None:
                return "closed", 0.0
            left_s = self._probe_at - time.monotonic()
            return ("open", left_s) if left_s > 0 and not self._probing else ("half-open", 0.0)

    def _open(self) -> None:
        doubled = self._initial_s * 2.0 ** min(self._openings, _MOST_DOUBLINGS)
        self._openings += 1
        # Jitter keeps robots that lost the same server from coming back in step.
        wait_s = min(doubled, self._max_s) * random.uniform(0.5, 1.0)
        self._probe_at = time.monotonic() + wait_s


__all__ = ["ClientSettings", "TeacherClient"]

_T = TypeVar("_T")


class TeacherClient(Closing):
    """Asks one teacher server; safe to use from several threads."""

    def __init__(
        self,
        settings: ClientSettings | None = None,
        checks: AnswerChecks | None = None,
        *,
        allow_relative: bool = False,
        require_credentials: bool = True,
    ) -> None:
        """Prepare; nothing connects before the first call.

        Args:
            settings: where the teacher is.
            checks: what its answers must look like.
            allow_relative: take answers of a teacher that does not say it is metric; for
                callers that scale them.
            require_credentials: refuse to begin without usable token and certificates. Else
                calls raise TeacherDeniedError until they can be used (see `obstacle`).

        Raises:
            InvalidSettingError: the settings name no teacher; or, where they are required, a
                token or certificate cannot be used, or the token would travel for everybody to
                read.
        """
        self.settings = settings or ClientSettings()
        if not self.settings.url:
            raise InvalidSettingError("url is empty: a client needs the teacher's host:port")
        if require_credentials:  # each connection reads them anew; they may be exchanged
            read_credentials(self.settings)
        self.traffic = Traffic()
        self.breaker = CircuitBreaker(
            self.settings.break_after, self.settings.break_initial_s, self.settings.break_max_s
        )
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
            WrongTeacherError: it is not the one that the settings pin.
            TeacherUnreachableError: no usable answer, after all tries.
        """
        return self._persist(lambda link: self._accepted(link.identity()))

    def obstacle(self) -> str:
        """Return what keeps token and certificates from being used now; empty = nothing."""
        try:
            read_credentials(self.settings)
        except InvalidSettingError as error:
            return str(error)
        return ""

    @property
    def known_teacher(self) -> TeacherIdentity | None:
        """Who answered last on this connection; asks nobody."""
        with self._state:
            return None if self._link is None else self._link.known

    def infer(self, request: DepthRequest) -> DepthAnswer:
        """Return the teacher's label of one image, checked.

        Blocks while `in_flight` other requests are on their way, then for at most
        `attempts` tries of `timeout_s` and the pauses between them.

        Raises:
            TeacherRefusedError: the image is unreadable, or the teacher will not label it.
            TeacherAnswerError: the answer cannot be believed (see `check_answer`).
            RelativeTeacherError: the teacher is not metric, and `allow_relative` is off.
            WrongTeacherError: it is not the one that the settings pin.
            TeacherFailedError: the teacher broke on this request.
            TeacherDeniedError: token or certificates do not do.
            TeacherBusyError: the teacher is full, after all tries.
            CircuitOpenError: nobody answered lately, and it is not yet time to probe.
            TeacherUnreachableError: no usable answer after all tries, or the client is closed.
                It says in `retry_in_s` when to come back, once the circuit is open.
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
        pin = self.settings.pin
        if pin and pin not in (identity.name, f"{identity.name} {identity.version}"):
            raise WrongTeacherError(
                f"the teacher at {self.settings.url} is {identity.name!r} version "
                f"{identity.version!r}, and teacher.pin is {pin!r}: its labels are not taken; "
                "start the pinned one, or change teacher.pin"
            )
        return identity

    def _persist(self, action: Callable[[TeacherLink], _T]) -> _T:
        """Try `action`, once where it is the probe of an open circuit; tell the breaker."""
        probe = self.breaker.enter()
        try:
            result = self._try(action, 1 if probe else self.settings.attempts)
        except (TeacherFailedError, TeacherBusyError):
            self.breaker.succeed()  # no good answer, but somebody is there
            raise
        except TeacherUnreachableError as error:
            error.retry_in_s = self.breaker.fail(str(error), probe=probe)
            raise
        except TeacherError:
            self.breaker.succeed()
            raise
        except BaseException:
            self.breaker.leave(probe=probe)
            raise
        self.breaker.succeed()
        return result

    def _try(self, action: Callable[[TeacherLink], _T], attempts: int) -> _T:
        """Try `action` on a link until it succeeds, fails for good, or the tries are used up."""
        reason, is_busy = "", False
        started = time.monotonic()
        for attempt in range(attempts):
            if attempt > 0:
                self._pause(attempt)
            link = self._current_link()
            try:
                return action(link)
            except TransientError as error:
                reason, is_busy = str(error), error.busy
                if not error.busy:
                    self._drop(link)
            except (RelativeTeacherError, WrongTeacherError, TeacherDeniedError):
                self._drop(link)  # so that its successor is asked anew, with new credentials
                raise
            del link  # the last user of a dropped link closes it
        self._require_open()
        secured = "with" if self.settings.tls else "without"
        text = (
            f"no answer from the teacher at {self.settings.url} ({secured} TLS) in {attempts} "
            f"{'try' if attempts == 1 else 'tries'} and {time.monotonic() - started:.1f} s (last: "
            f"{reason})"
        )
        if is_busy:
            raise TeacherBusyError(f"{text}; it has too much to do")
        raise TeacherUnreachableError(f"{text}; is it running, and can this machine reach it?")

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
                self._link = self._new_link()
                self._links.add(self._link)
            return self._link

    def _new_link(self) -> TeacherLink:
        settings = self.settings
        try:
            credentials = read_credentials(settings)
        except InvalidSettingError as error:  # they were good when the client was made
            raise TeacherDeniedError(str(error)) from error
        return TeacherLink(
            settings.url, settings.timeout_s, settings.max_message_mb, credentials, self.traffic
        )

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
