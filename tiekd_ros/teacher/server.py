"""The teacher server: one process, one backend, gRPC."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType

import grpc
from tritonclient.grpc import service_pb2_grpc

from tiekd_ros.settings import setting
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.protocol import message_size_options
from tiekd_ros.teacher.service import ServiceSettings, TeacherService

_THREADS_FOR_HEALTH = 2  # ServerLive and its like answer while every worker is busy
_EXTRA_CALLS = 64  # beyond the queue's own bound, so that ours speaks first


@dataclass(frozen=True)
class ServerSettings(ServiceSettings):
    """Where the server listens, and its limits."""

    host: str = setting(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 lets other machines in: without encryption or password, "
        "so only on a network that you trust",
    )
    port: int = setting(0, "port to listen on; 0 takes any free one", minimum=0, maximum=65535)
    max_message_mb: int = setting(
        64, "largest message of either direction", unit="MiB", minimum=1, maximum=1024
    )
    grace_s: float = setting(
        5.0,
        "time that running requests get when the server stops",
        unit="s",
        minimum=0.0,
        maximum=600.0,
    )


class TeacherServer:
    """Serves one backend until it is stopped."""

    def __init__(self, backend: Backend, settings: ServerSettings | None = None) -> None:
        """Prepare to serve `backend`; `start` opens the port."""
        self.settings = settings or ServerSettings()
        self._service = TeacherService(backend, self.settings)
        self._server: grpc.Server | None = None
        self._stopped = threading.Event()

    def start(self) -> int:
        """Open the port and return its number.

        Raises:
            TeacherServerError: the port is taken or the address is not this machine's.
        """
        settings = self.settings
        threads = settings.workers + settings.max_waiting + _THREADS_FOR_HEALTH
        server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="teacher"),
            options=[
                # Without this a second server on the port takes every other request.
                ("grpc.so_reuseport", 0),
                *message_size_options(settings.max_message_mb),
            ],
            maximum_concurrent_rpcs=threads + _EXTRA_CALLS,
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._service, server)
        address = f"{settings.host}:{settings.port}"
        try:
            port = server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise TeacherServerError(
                f"cannot listen on {address}: another program has the port, or the address is "
                "not this machine's; choose another port, or 0 for any free one"
            )
        server.start()
        self._server = server
        return int(port)

    def stop(self, grace_s: float | None = None) -> None:
        """Take no more requests, give running ones `grace_s` to end, then cut them off."""
        if self._server is not None:
            grace = self.settings.grace_s if grace_s is None else grace_s
            self._server.stop(grace).wait()
            self._server = None
        self._stopped.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has stopped; False if `timeout_s` passed before."""
        return self._stopped.wait(timeout_s)


def serve(
    backend: Backend,
    settings: ServerSettings | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then stop gracefully. For a process's main thread.

    A second SIGINT or SIGTERM during the grace time ends the process at once.

    Args:
        backend: the teacher.
        settings: where to listen.
        on_ready: called with the port once requests are taken.

    Raises:
        TeacherServerError: the port cannot be opened.
    """
    asked = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        asked.set()

    server = TeacherServer(backend, settings)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask_to_stop) for number in signals}
    try:
        port = server.start()
        if on_ready is not None:
            on_ready(port)
        asked.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        server.stop()
