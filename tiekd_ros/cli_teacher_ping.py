"""`tiekd teacher ping`: does a teacher answer robots, and which one is it?"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from tiekd_ros.cli_options import AsJson, console, with_settings
from tiekd_ros.teacher.client_settings import ClientSettings

_OPTIONS = (
    "tls", "ca", "cert", "key", "server_name", "token_file", "plaintext_token", "timeout_s",
)  # fmt: skip


@dataclass(frozen=True)
class Pong:
    """What a teacher server says of itself."""

    url: str
    ready: bool
    name: str
    version: str
    metric: bool
    round_trip_ms: float
    """Of one small call, on a connection that is there."""
    connect_ms: float
    """Of the first call: name, TCP, TLS, token."""


@with_settings("client", ClientSettings, "Connection", only=_OPTIONS, timeout_s=5.0)
def teacher_ping(
    url: Annotated[str, typer.Argument(help="The teacher server, as host:port.")],
    client: ClientSettings,
    as_json: AsJson = False,
) -> None:
    """Ask a teacher server, as a robot does, who it is and whether it labels images now.

    Ends with 0 where it does; with 1 where it is not ready, not there, or does not let this robot
    in. Sends no image. For health checks, and for the first look from a new robot.
    """
    pong = ping(replace(client, url=url))
    if as_json:
        console.print_json(data=asdict(pong))
    else:
        _print(pong)
    if not pong.ready:
        raise typer.Exit(1)


def ping(settings: ClientSettings) -> Pong:
    """Ask once, with the deadline of `settings.timeout_s` for each of its two calls.

    Raises:
        InvalidSettingError: token or certificates cannot be used.
        TeacherError: nobody answers, or not as a teacher.
    """
    from tiekd_ros.teacher.credentials import read_credentials
    from tiekd_ros.teacher.errors import TeacherUnreachableError
    from tiekd_ros.teacher.link import TeacherLink, TransientError

    link = TeacherLink(
        settings.url, settings.timeout_s, settings.max_message_mb, read_credentials(settings)
    )
    try:
        started = time.perf_counter()
        teacher = link.identity()
        connected = time.perf_counter()
        ready = link.ready()
        answered = time.perf_counter()
    except TransientError as error:
        raise TeacherUnreachableError(f"no answer from {settings.url} ({error})") from error
    finally:
        link.close()
    return Pong(
        settings.url, ready, teacher.name, teacher.version, teacher.metric,
        round(1e3 * (answered - connected), 2), round(1e3 * (connected - started), 2),
    )  # fmt: skip


def _print(pong: Pong) -> None:
    state = "is ready" if pong.ready else "is NOT ready: stuck, broken or about to end; see its log"
    unit = "metric" if pong.metric else "NOT metric: robots refuse its labels"
    console.print(f"{pong.url} {state}", highlight=False)
    console.print(f"teacher     {pong.name} version {pong.version}, {unit}", highlight=False)
    console.print(
        f"round trip  {pong.round_trip_ms:g} ms (the first, with connecting: {pong.connect_ms:g} "
        "ms)",
        highlight=False,
    )
