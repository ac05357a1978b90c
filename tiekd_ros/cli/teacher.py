"""`tiekd teacher`: the teacher's side, which runs without ROS."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

import typer

from tiekd_ros.cli.options import (
    AsJson,
    check_choice,
    console,
    with_connection,
    with_given_settings,
    with_settings,
)
from tiekd_ros.core.devices import half_the_cores
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.teacher.backends import BACKENDS, backend_options, read_backend
from tiekd_ros.teacher.settings import ClientSettings, ServerSettings


@dataclass(frozen=True)
class Pong:
    """A teacher server's answer to `tiekd teacher ping`."""

    url: str
    ready: bool
    name: str
    version: str
    metric: bool
    round_trip_ms: float
    """Of one small call, on a connection that is there."""
    connect_ms: float
    """Of the first call: name, TCP, TLS, token."""


@with_connection(timeout_s=5.0)
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
        TeacherError: there is no answer, or none of a teacher.
    """
    from tiekd_ros.teacher.client import TeacherClient

    with TeacherClient(settings, allow_relative=True) as client:
        started = time.perf_counter()
        teacher = client.identity()
        connected = time.perf_counter()
        ready = client.ready()
        answered = time.perf_counter()
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


_LOG = logging.getLogger(__name__)

teacher = typer.Typer(help="The teacher's side: runs without ROS.", no_args_is_help=True)
teacher.command("ping")(teacher_ping)


@teacher.command("serve")
@with_settings("server", ServerSettings, "Server", port=8001)
@with_given_settings("options", list(backend_options().values()), "Teacher")
def teacher_serve(
    backend: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(BACKENDS)}; or with its most important option, as in "
            "huggingface:MODEL."
        ),
    ],
    options: dict[str, Any],
    server: ServerSettings,
    log_format: Annotated[str, typer.Option(help="text, or json: one object a line.")] = "text",
    log_level: Annotated[
        str, typer.Option(help="debug logs every request, info refused ones.")
    ] = "info",
    give_way: Annotated[
        bool, typer.Option("--give-way", help="Leave busy cores to others: for a robot.")
    ] = False,
) -> None:
    """Answer depth requests (Open Inference Protocol v2 over gRPC) until Ctrl-C.

    For example: tiekd teacher serve --backend huggingface:ORG/NAME

    Logs go to standard error. After SIGTERM or Ctrl-C it ends with 0, also where a batch outlasts
    --grace. Under systemd (Type=notify) it says when it takes requests.
    """
    # Before gRPC is imported, which logs each connection that fails; ours says it better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # the same, for each damaged image
    try:
        from tiekd_ros.teacher.process import FORMATS, LEVELS, configure_logs, serve
        from tiekd_ros.teacher.server import check_ports, open_secrets
    except ModuleNotFoundError as error:
        raise TiekdError(
            f"the teacher server needs the package {error.name}: pip install 'tiekd_ros[teacher]'"
        ) from error
    check_choice("--log-format", log_format, FORMATS)
    check_choice("--log-level", log_level, LEVELS)
    configure_logs(log_format, log_level)
    if give_way:
        _give_way()

    teacher_settings = read_backend(backend, options)
    # Before minutes of loading.
    open_secrets(server)
    check_ports(server)
    _LOG.info("loading the teacher %s", backend)

    def listens(port: int) -> None:
        text = f"teacher {backend} listens on {replace(server, port=port).address}"
        show = _LOG.info if log_format == "json" else partial(console.print, highlight=False)
        show(text)

    serve(teacher_settings.build(), server, listens)


def _give_way() -> None:
    from tiekd_ros.rounds.limits import lower_priority

    lower_priority("batch")
    # Before torch or onnxruntime is imported: the other half is for who answers the robot.
    os.environ.setdefault("OMP_NUM_THREADS", str(half_the_cores()))
