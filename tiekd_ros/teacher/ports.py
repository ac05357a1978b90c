"""The server's ports: looked at before the model is loaded, and opened after."""

from __future__ import annotations

import socket
from typing import Any

from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.server_settings import ServerSettings


def check_ports(settings: ServerSettings) -> None:
    """See early that the ports are free, before minutes of loading; `open_port` takes them.

    Raises:
        TeacherServerError: one is taken, or its address is not this machine's.
    """
    wanted = {"": (settings.host, settings.port)}
    if settings.metrics_port:
        wanted["metrics on "] = (settings.metrics_host, settings.metrics_port)
    for what, (host, port) in wanted.items():
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                # As gRPC does: what is left of connections of a server before is no obstacle.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except (OSError, UnicodeError) as error:
            raise TeacherServerError(_taken(f"{what}{host}:{port}")) from error


def _taken(address: str) -> str:
    return (
        f"cannot listen on {address}: another program has the port, or the address is "
        "not this machine's; choose another port, or 0 for any free one"
    )


def open_port(server: Any, address: str, credentials: Any) -> int:
    """Open a gRPC server's port and return its number.

    Args:
        server: gRPC's server.
        address: host:port, port 0 for any free one.
        credentials: gRPC's; None without TLS.

    Raises:
        TeacherServerError: it is taken, or the address is not this machine's.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise TeacherServerError(_taken(address))
    return int(port)
