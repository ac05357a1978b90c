"""A server that is attacked again and again, in a process of its own: its memory stays flat."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np

from helpers.attacks import (
    CLIENT_LIMITS,
    channel_to,
    infer,
    jpeg_of_many_scans,
    png_of,
    refused,
    shout,
)
from helpers.certificates import make_certificates
from helpers.children import PATIENCE_S, child_environment
from tiekd_ros.core.images import encode_png

TOKEN = "the-token-0123456789"
WARM_UP, ROUNDS = 24, 36  # by then malloc has an arena for each thread that decodes
LARGEST_GROWTH = 0.10  # of the resident memory, after the warm-up


SERVER = """
import sys
import numpy as np
from helpers.teachers import METRIC
from tiekd_ros.teacher.protocol import DepthAnswer
from tiekd_ros.teacher.process import serve
from tiekd_ros.teacher.settings import ServerSettings
class Forgetful:  # unlike the stub, which keeps all requests
    identity = METRIC
    def infer(self, image, request):
        return DepthAnswer(np.ones(image.shape[:2], np.float32))
settings = ServerSettings(tls_cert=sys.argv[1], tls_key=sys.argv[2], max_message_mb=20)
serve(Forgetful(), settings, lambda port: print(port, flush=True))
"""


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def attack(url: str, ca: bytes, noise: np.random.Generator) -> None:
    """Do all of it once, and be served in between."""
    header = [("authorization", f"Bearer {TOKEN}")]
    image = encode_png(noise.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    credentials = grpc.ssl_channel_credentials(ca)
    with grpc.secure_channel(url, credentials, options=CLIENT_LIMITS) as channel:
        assert refused(channel, image)[0] == "UNAUTHENTICATED"
        for data in (
            b"garbage", image[:5000], png_of(10_000, 10_000), jpeg_of_many_scans(), bytes(17 << 20),
        ):  # fmt: skip
            assert refused(channel, data, metadata=header)[0] == "INVALID_ARGUMENT"
        assert refused(channel, bytes(21 << 20), metadata=header)[0] == "RESOURCE_EXHAUSTED"
        for _ in range(5):
            infer(channel, image, metadata=header)
    with channel_to(url) as channel:
        assert refused(channel, image)[0] == "UNAVAILABLE"
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(noise.bytes(10_000))):
        assert b"live" not in shout(url, data, patience_s=0.2)


def test_memory_stays_flat(tmp_path):
    certificates = make_certificates(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(certificates.cert), str(certificates.key)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(TIEKD_TEACHER_TOKENS=TOKEN, GRPC_VERBOSITY="NONE"),
        text=True,
    )
    try:
        url = f"127.0.0.1:{int(process.stdout.readline())}"
        noise = np.random.default_rng(0)
        ca = certificates.ca.read_bytes()
        taken = []
        for _ in range(ROUNDS):
            attack(url, ca, noise)
            time.sleep(0.05)
            taken.append(resident_bytes(process.pid))
        assert process.poll() is None
        assert max(taken[WARM_UP:]) < (1 + LARGEST_GROWTH) * max(taken[:WARM_UP]), taken
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
