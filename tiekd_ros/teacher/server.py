"""The teacher server: one backend behind gRPC, with interceptors, TLS, limits and metrics."""

from __future__ import annotations

import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.metrics import MetricsServer
from tiekd_ros.teacher.security import RequestTimeoutInterceptor, TokenInterceptor, Tokens
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServerSettings
from tiekd_ros.teacher.tls import CertificateWatch, server_credentials

_LOG = logging.getLogger(__name__)
# Beyond requests that wait for the backend: those that are still coming in, and health checks.
_EXTRA_THREADS = 32
_EXTRA_CALLS = 64  # beyond the queue's own bound, so that its refusal comes before gRPC's

# A connection that sends nothing, or whose other end is gone, does not keep its place.
_HANDSHAKE_S = 5.0
# A busy one is opened anew now and then: in between, running calls come to an end.
_MAX_CONNECTION_AGE_S, _MAX_AGE_GRACE_S = 3600.0, 600.0
# For the callers of calls that were cut off to be told of it.
_CUT_OFF_S = 5.0
# One robot's calls at a time; the next wait on the robot.
_CALLS_PER_CONNECTION = 64


class TeacherServer:
    """Serves one backend until it is stopped."""

    def __init__(self, backend: Backend, settings: ServerSettings | None = None) -> None:
        """Prepare to serve `backend`; `start` opens the port."""
        self.settings = settings or ServerSettings()
        self._backend = backend
        self._running: _Running | None = None

    def start(self) -> int:
        """Open the port and return its number.

        Raises:
            TeacherServerError: a port is taken or the address is not this machine's.
            InvalidSettingError: a certificate, key or token file cannot be used, or the server
                would be open to other machines (see `ServerSettings.require_access_control`).
        """
        self._running = _Running(self._backend, self.settings)
        return self._running.port

    @property
    def healthy(self) -> bool:
        """True while requests are answered."""
        return self._running is not None and self._running.service.ready

    def stop(self, grace_s: float | None = None) -> bool:
        """Take no more requests, give running ones `grace_s` to end, then cut them off.

        Returns:
            Whether all is at rest; False where the backend is still at a batch, which cannot be
            interrupted.
        """
        at_rest = True
        if self._running is not None:
            at_rest = self._running.stop(self.settings.grace_s if grace_s is None else grace_s)
            self._running = None
        return at_rest


class _Running:
    """All that exists between start and stop."""

    def __init__(self, backend: Backend, settings: ServerSettings) -> None:
        tokens, credentials = open_secrets(settings)
        if lacking := settings.missing_access_control(bool(tokens)):
            text = "the server has no %s: every machine that reaches %s can use it"
            _LOG.warning(text, lacking, settings.host)
        self.service = TeacherService(backend, settings)
        metrics = self.service.metrics
        self._certificate = CertificateWatch(settings.tls_cert) if settings.tls_cert else None
        if self._certificate is not None:
            metrics.add_gauge(
                "certificate_left_seconds",
                "Until the server's certificate expires; negative once it has.",
                self._certificate.left_s,
            )
        self._timeouts = RequestTimeoutInterceptor(settings.receive_timeout_s)
        interceptors: list[Any] = [self._timeouts]
        if tokens:
            interceptors.insert(0, TokenInterceptor(tokens, metrics.unauthenticated.inc))
        self._metrics_server: MetricsServer | None = None
        self._server = _grpc_server(self.service, settings, interceptors)
        try:
            # First: gRPC gives a port that it has opened back only with the server object.
            if settings.metrics_port:
                self._metrics_server = MetricsServer(
                    metrics.registry, settings.metrics_host, settings.metrics_port
                )
            self.port = _open_port(self._server, settings.address, credentials)
            self._server.start()
        except BaseException:
            self.stop(0.0)
            raise

    def stop(self, grace_s: float) -> bool:
        deadline_s = time.monotonic() + grace_s
        self.service.set_stopping()
        # Calls that are let in end first: the batcher goes on until then. gRPC would cut them off
        # by itself, and they would not be counted.
        if not self._server.stop(grace_s + _CUT_OFF_S).wait(grace_s):
            if cut := self.service.batcher.inside:
                _LOG.warning("%d requests cut off after a grace of %g s", cut, grace_s)
            self._server.stop(None).wait(_CUT_OFF_S)
        at_rest = self.service.close(max(0.0, deadline_s - time.monotonic()))
        self._timeouts.close()
        if self._certificate is not None:
            self._certificate.close()
        if self._metrics_server is not None:
            self._metrics_server.stop()
        return at_rest


def open_secrets(settings: ServerSettings) -> tuple[Tokens, Any]:
    """Read tokens and certificates.

    Returns:
        The tokens, none where the server asks for none, and gRPC's credentials, None without TLS.

    Raises:
        InvalidSettingError: one of the files cannot be used, or the server would be open to
            other machines (see `ServerSettings.require_access_control`).
    """
    tokens = Tokens(settings.token_file)
    settings.require_access_control(bool(tokens))
    if not settings.tls_cert:
        return tokens, None
    files = settings.tls_cert, settings.tls_key, settings.client_ca
    return tokens, server_credentials(*files)


def _grpc_server(
    service: TeacherService, settings: ServerSettings, interceptors: list[Any]
) -> grpc.Server:
    threads = service.batcher.places + _EXTRA_THREADS
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
        ("grpc.max_connection_age_ms", round(_MAX_CONNECTION_AGE_S * 1000)),
        ("grpc.max_connection_age_grace_ms", round(_MAX_AGE_GRACE_S * 1000)),
        ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Robots may ask as often whether the server is still there, also between requests.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


def check_ports(settings: ServerSettings) -> None:
    """Check that the ports are free, before minutes of loading; `TeacherServer.start` takes them.

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


def _open_port(server: Any, address: str, credentials: Any) -> int:
    """Open a gRPC server's port and return its number; without TLS credentials are None."""
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
