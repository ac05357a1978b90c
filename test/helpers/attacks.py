"""Hostile messages to a server, by gRPC and as raw bytes."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.teachers import picture
from tiekd_ros.core.images import encode_jpeg

SOON_S = 10.0
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CLIENT_LIMITS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def png_of(width: int, height: int, rows: int | None = None) -> bytes:
    """Return a 1-bit black PNG: small as a file, enormous when decoded."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((width // 8 + 1) * (height if rows is None else rows)), 9)
    ends = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


def jpeg_of_many_scans() -> bytes:
    """Return a JPEG that asks to go over the image a million times."""
    jpeg = encode_jpeg(picture())
    return jpeg[:-2] + b"\xff\xda\x00\x02" * 1000 + jpeg[-2:]


def message(data: bytes) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="depth_teacher")
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data)
    return request


def infer(channel: grpc.Channel, data: bytes, **call):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    return stub.ModelInfer(message(data), timeout=SOON_S, **call)


def refused(channel: grpc.Channel, data: bytes, **call) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        infer(channel, data, **call)
    return raised.value.code().name, raised.value.details()


def raw_refused(channel: grpc.Channel, data: bytes, method: str = METHOD) -> tuple[str, str]:
    """Send bytes in place of a message."""
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(method)(data, timeout=SOON_S)
    return raised.value.code().name, raised.value.details()


def shout(url: str, data: bytes, patience_s: float = SOON_S) -> bytes:
    """Send bytes to the port without speaking gRPC; returns what comes back until it closes."""
    host, _, port = url.rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), SOON_S) as line:
        line.settimeout(patience_s)
        try:
            line.sendall(data)
            while got := line.recv(65536):
                received += got
        except (TimeoutError, ConnectionError):
            pass
    return received


@contextmanager
def channel_to(url: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(url, options=CLIENT_LIMITS) as channel:
        yield channel
