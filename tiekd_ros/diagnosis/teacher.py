"""The link to the teacher: whether somebody answers, and in metres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.diagnosis.facts import ERROR, OK, WARN, Finding, split_remedy
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherBusyError, TeacherDeniedError, TeacherUnreachableError

_TIMEOUT_S = 3.0
_GROUP = "teacher."


def check_teacher(
    parameters: Mapping[str, Any] | None, address: str, link: str, *, has_student: bool
) -> Iterator[Finding]:
    """Ask the teacher who it is.

    Args:
        parameters: the companion's; None where none runs.
        address: host:port that the user named; empty = that of the parameters.
        link: the companion's own link, in its words.
        has_student: whether a student is live; else the first one waits for this teacher.
    """
    if parameters is None and not address:
        text = "not asked: no companion runs; name it with --teacher HOST:PORT"
        yield Finding(OK, "teacher", text)
        return
    worst = WARN if has_student else ERROR
    try:
        settings = _settings(parameters or {}, address)
        if not settings.url:
            yield _none(worst)
            return
        with TeacherClient(settings) as client:
            identity = client.identity()
    except TiekdError as error:
        what, remedy = _words(error)
        known = f" (the companion's link: {link})" if link else ""
        level = WARN if link == "up" else worst
        yield Finding(level, "teacher", f"{what}{known}", remedy)
        return
    secured = "TLS" if settings.tls else "plain"
    yield Finding(
        OK,
        "teacher",
        f"{identity.name} {identity.version} at {settings.url} ({secured}), metric",
    )


def _none(level: str) -> Finding:
    return Finding(
        level,
        "teacher",
        "no teacher is configured (teacher.url is empty): frames are logged, and none is labelled",
        "start the companion with teacher:=HOST:PORT (tiekd up --teacher HOST:PORT)",
    )


def _settings(parameters: Mapping[str, Any], address: str) -> ClientSettings:
    names = {field.name for field in fields(ClientSettings)}
    given = {
        name.removeprefix(_GROUP): value
        for name, value in parameters.items()
        if name.startswith(_GROUP) and name.removeprefix(_GROUP) in names
    }
    settings = ClientSettings.from_mapping({**given, **({"url": address} if address else {})})
    return replace(settings, attempts=1, timeout_s=min(settings.timeout_s, _TIMEOUT_S))


def _words(error: TiekdError) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, TeacherDeniedError):
        return split_remedy(text, "give the companion the teacher's token and authority")
    if isinstance(error, TeacherBusyError):
        return split_remedy(text, "")[0], "see the teacher's load; frames wait meanwhile"
    if isinstance(error, TeacherUnreachableError):
        return split_remedy(text, "")[0], (
            "start it there (tiekd teacher serve --backend ...), and see teacher.url, teacher.tls "
            "and the firewall"
        )
    return split_remedy(text, "mend the companion's parameters teacher.*, or --teacher")
