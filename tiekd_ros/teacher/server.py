"""The teacher server: one process, one backend, gRPC.

The protocol is one datagram of `KEY=VALUE` lines to the socket that $NOTIFY_SOCKET names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import grpc
from tritonclient.grpc import service_pb2_grpc

from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.metrics import MetricsServer
from tiekd_ros.teacher.security import Reception, TokenInterceptor, Tokens
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServerSettings
from tiekd_ros.teacher.tls import CertificateWatch, server_credentials


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


class Systemd:
    """The service manager that started this process, if one did."""

    def __init__(self) -> None:
        """Read from the environment where it listens, and how often it wants to hear."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        # A name that begins with @ stands for one in Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s()
        """Time within which it wants `alive` again; None = it does not watch."""

    def ready(self, status: str) -> None:
        """Tell that the service has started; `status` is what `systemctl status` shows."""
        self._tell(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def alive(self) -> None:
        """Tell that the service works."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the service is about to end."""
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        # A service goes on where its manager does not listen.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line,
        ):
            line.connect(self._address)
            line.sendall(text.encode())


def _watchdog_s() -> float | None:
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


_ENDING = (signal.SIGINT, signal.SIGTERM)


def end_process() -> NoReturn:
    """End without Python's own end, which aborts where a thread is within the backend's C++."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Asked:
    """Whether the process has been asked to stop.

    A pipe, as a signal's handler interrupts the very thread that waits: of an Event it might wait
    for the lock that this thread holds.
    """

    def __init__(self) -> None:
        """Open the pipe, until `close`."""
        self._reader, self._writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)

    def note(self) -> None:
        """Wake who waits, now and from now on."""
        os.write(self._writer, b"!")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it was asked; False if `timeout_s` passed before."""
        return bool(self._poll.poll(None if timeout_s is None else timeout_s * 1000))

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Give what says whether a SIGINT or SIGTERM has come; the second ends the process.

    The second is the kernel's to act on: an exception would only reach this thread, and the
    process would still wait for the threads of those calls. Afterwards both signals do what they
    did before.
    """
    asked = Asked()

    def ask(number: int, frame: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_DFL)
        asked.note()

    before = {number: signal.signal(number, ask) for number in _ENDING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.close()


__all__ = ["ServerSettings", "TeacherServer", "open_secrets", "serve"]

_LOG = logging.getLogger(__name__)
# Beside those that wait for the backend: requests that are still coming in, and health checks.
_THREADS_BESIDE = 32
_EXTRA_CALLS = 64  # beyond the queue's own bound, so that ours speaks first

# Whoever connects and says nothing, or is gone without a word, does not keep its place.
_HANDSHAKE_S = 5.0
# Also whoever is busy connects anew now and then: in between, running calls come to an end.
_OLDEST_CONNECTION_S, _OLDEST_GRACE_S = 3600.0, 600.0
# For the callers of calls that were cut off to hear of it.
_FAREWELL_S = 5.0
# One robot's calls at a time; the next wait on the robot.
_CALLS_OF_ONE = 64


class TeacherServer:
    """Serves one backend until it is stopped."""

    def __init__(self, backend: Backend, settings: ServerSettings | None = None) -> None:
        """Prepare to serve `backend`; `start` opens the port."""
        self.settings = settings or ServerSettings()
        self._backend = backend
        self._running: _Running | None = None
        self._stopped = threading.Event()

    def start(self) -> int:
        """Open the port and return its number.

        Raises:
            TeacherServerError: a port is taken or the address is not this machine's.
            InvalidSettingError: a certificate, key or token file cannot be used, or the server
                would let strangers in (see `ServerSettings.require_closed_door`).
        """
        self._running = _Running(self._backend, self.settings)
        return self._running.port

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        return self._running is not None and self._running.service.ready

    def stop(self, grace_s: float | None = None) -> bool:
        """Take no more requests, give running ones `grace_s` to end, then cut them off.

        Returns:
            Whether all is at rest; False where the backend is still at a batch, which nobody can
            interrupt.
        """
        at_rest = True
        if self._running is not None:
            at_rest = self._running.stop(self.settings.grace_s if grace_s is None else grace_s)
            self._running = None
        self._stopped.set()
        return at_rest

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has stopped; False if `timeout_s` passed before."""
        return self._stopped.wait(timeout_s)


class _Running:
    """All that exists between start and stop."""

    def __init__(self, backend: Backend, settings: ServerSettings) -> None:
        tokens, credentials = open_secrets(settings)
        if lacking := settings.lacks(bool(tokens)):
            _LOG.warning(
                "the server has no %s: whoever reaches %s can use it", lacking, settings.host
            )
        self.service = TeacherService(backend, settings)
        self._reception = Reception(settings.receive_timeout_s)
        self._door = TokenInterceptor(tokens)
        self._metrics: MetricsServer | None = None
        self._certificate = CertificateWatch(settings.tls_cert) if settings.tls_cert else None
        interceptors = [self._door, self._reception] if tokens else [self._reception]
        self._server = _grpc_server(self.service, settings, interceptors)
        try:
            # First: gRPC gives a port that it has opened back only with the server object.
            if settings.metrics_port:
                self._metrics = MetricsServer(
                    self.service,
                    settings.metrics_host,
                    settings.metrics_port,
                    lambda: self._door.refused,
                    None if self._certificate is None else self._certificate.left_s,
                )
            self.port = open_port(self._server, settings.address, credentials)
            self._server.start()
        except BaseException:
            self.stop(0.0)
            raise

    def stop(self, grace_s: float) -> bool:
        until = time.monotonic() + grace_s
        self.service.retire()
        # Calls that are let in end first: the batcher goes on until then. gRPC would cut them off
        # by itself, and nobody could count them.
        if not self._server.stop(grace_s + _FAREWELL_S).wait(grace_s):
            if cut := self.service.batcher.inside:
                _LOG.warning("%d requests cut off after a grace of %g s", cut, grace_s)
            self._server.stop(None).wait(_FAREWELL_S)
        at_rest = self.service.close(max(0.0, until - time.monotonic()))
        self._reception.close()
        if self._certificate is not None:
            self._certificate.close()
        if self._metrics is not None:
            self._metrics.stop()
        return at_rest


def open_secrets(settings: ServerSettings) -> tuple[Tokens, Any]:
    """Read tokens and certificates.

    Returns:
        The tokens, none where the server asks for none, and gRPC's credentials, None without TLS.

    Raises:
        InvalidSettingError: one of the files cannot be used, or the server would let strangers in
            (see `ServerSettings.require_closed_door`).
    """
    tokens = Tokens.load(settings.token_file)
    settings.require_closed_door(bool(tokens))
    if not settings.tls_cert:
        return tokens, None
    files = settings.tls_cert, settings.tls_key, settings.client_ca
    return tokens, server_credentials(*files)


def _grpc_server(
    service: TeacherService, settings: ServerSettings, interceptors: list[Any]
) -> grpc.Server:
    threads = service.batcher.places + _THREADS_BESIDE
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="teacher"),
        interceptors=interceptors,
        options=_options(settings),
        maximum_concurrent_rpcs=threads + _EXTRA_CALLS,
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    return server


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        # Without this a second server on the port takes every other request.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_mb << 20),
        # An answer is as large as its image lets it be: max_pixels bounds it.
        ("grpc.max_send_message_length", -1),
        # Only uncompressed messages: the limit of a message's size holds before unpacking, and a
        # megabyte can unfold to a gigabyte. Images are compressed already.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", round(_HANDSHAKE_S * 1000)),
        ("grpc.max_connection_idle_ms", round(settings.max_idle_s * 1000)),
        ("grpc.max_connection_age_ms", round(_OLDEST_CONNECTION_S * 1000)),
        ("grpc.max_connection_age_grace_ms", round(_OLDEST_GRACE_S * 1000)),
        ("grpc.max_concurrent_streams", _CALLS_OF_ONE),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Robots may ask as often whether the server is still there, also between requests.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


def serve(
    backend: Backend,
    settings: ServerSettings | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then stop gracefully. For a process's main thread.

    A second SIGINT or SIGTERM ends the process at once, whatever still runs. Where the backend is
    still at a batch after the grace, the process ends here with status 0. systemd, where it
    started the process, is told when requests are taken, that the server works, and when it ends.

    Args:
        backend: the teacher.
        settings: where to listen.
        on_ready: called with the port once requests are taken.

    Raises:
        TeacherServerError: the port cannot be opened.
        InvalidSettingError: as `TeacherServer.start`.
    """
    server, systemd = TeacherServer(backend, settings), Systemd()
    look_s = None if systemd.watchdog_s is None else systemd.watchdog_s / 3
    with asked_to_stop() as asked:
        try:
            port = server.start()
            if on_ready is not None:
                on_ready(port)
            systemd.ready(f"teacher {backend.identity.name} on port {port}")
            _LOG.info("serving", extra={"facts": {"teacher": backend.identity.name, "port": port}})
            while not asked.wait(look_s):
                if server.healthy:
                    systemd.alive()
            _LOG.info(
                "stopping; running requests are finished first, for %g s at most; a second Ctrl-C "
                "or SIGTERM ends them",
                server.settings.grace_s,
            )
        finally:
            systemd.stopping()
            at_rest = server.stop()
        if not at_rest:
            end_process()
