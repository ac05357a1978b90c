"""Stand-ins for tests of whatever uses a teacher: a stub backend behind a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, RgbImage, encode_jpeg
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServerSettings

WIDTH, HEIGHT = 64, 48
METRIC = TeacherIdentity("stub", "7", metric=True)
RELATIVE = TeacherIdentity("stub", "7", metric=False)
INTRINSICS = Intrinsics(60.0, 61.0, 31.5, 23.5)

Answer: TypeAlias = "DepthMap | DepthAnswer | Exception"


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> RgbImage:
    """Return a picture of coloured blocks, another one for each seed, uint8 (H, W, 3).

    Width is rounded down to a multiple of 8, height to one of 6.
    """
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((height // 6, width // 8, 1), np.uint8))


def ramp(width: int = WIDTH, height: int = HEIGHT) -> DepthMap:
    """Return depth from 1 m at the left to 5 m at the right, the first pixel unknown."""
    depth = np.tile(np.linspace(1, 5, width, dtype=np.float32), (height, 1))
    depth[0, 0] = np.nan
    return depth


def depth_request(image: RgbImage | None = None, stamp_ns: int = 5) -> DepthRequest:
    """Return a request for one picture."""
    data = encode_jpeg(picture() if image is None else image)
    return DepthRequest(data, INTRINSICS, stamp_ns, "camera")


def infer_patiently(client: TeacherClient, request: DepthRequest) -> DepthAnswer:
    """Ask until there is an answer, without the pauses that a robot makes."""
    while True:
        try:
            return client.infer(request)
        except TeacherUnreachableError:
            time.sleep(0.02)


class StubBackend:
    """Gives the answer it was given: depth, an exception to raise, or a function of the call."""

    def __init__(
        self,
        answer: Answer | Callable[[RgbImage, DepthRequest], Answer] | None = None,
        identity: TeacherIdentity = METRIC,
    ) -> None:
        self.identity = identity
        self.answer = ramp() if answer is None else answer
        self.requests: list[DepthRequest] = []

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Note the request and answer."""
        self.requests.append(request)
        answer = self.answer(image, request) if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, DepthAnswer) else DepthAnswer(answer)


class SilentBackend(StubBackend):
    """Says nothing until it is released; `asked` is set once it has been asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.released = threading.Event()

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Wait, then answer."""
        self.asked.set()
        self.released.wait(10)
        return super().infer(image, request)


@contextmanager
def serving(backend: Backend, **settings: Any) -> Iterator[str]:
    """Serve a backend on a free port of 127.0.0.1; yields host:port.

    Args:
        backend: the teacher.
        settings: fields of `ServerSettings`.
    """
    server = TeacherServer(backend, ServerSettings(**settings))
    port = server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        if isinstance(backend, SilentBackend):
            backend.released.set()
        server.stop(0.0)


@contextmanager
def client_of(backend: Backend, **settings: Any) -> Iterator[TeacherClient]:
    """Serve a backend as `serving` does; yields a client of it."""
    with serving(backend, **settings) as url, TeacherClient(ClientSettings(url=url)) as client:
        yield client


@contextmanager
def serving_expired(cert: Path, key: Path) -> Iterator[str]:
    """Serve a stub with a certificate that has expired since the start; yields host:port."""
    pair = (key.read_bytes(), cert.read_bytes())
    service = TeacherService(StubBackend(), ServerSettings())
    try:
        with foreign_server(service, grpc.ssl_server_credentials([pair])) as url:
            yield url
    finally:
        service.close()


@contextmanager
def foreign_server(
    servicer: service_pb2_grpc.GRPCInferenceServiceServicer,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[str]:
    """Serve any servicer on a free port of 127.0.0.1; yields host:port."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    with listening(server, credentials) as url:
        yield url


@contextmanager
def listening(
    server: grpc.Server, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Start a server on a free port of 127.0.0.1, and end it; yields host:port."""
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0.0).wait()


def secret(path: Path, *lines: str) -> str:
    """Write a file of tokens that only its owner can read; returns its path."""
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return str(path)
