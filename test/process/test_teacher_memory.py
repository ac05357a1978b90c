"""The memory of the requests that wait: what is counted, what is let go, and who stays outside."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from helpers.children import wait_until
from helpers.strangers import infer, refusal
from helpers.teachers import METRIC, SilentBackend, picture, serving
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.batcher import Batcher
from tiekd_ros.teacher.errors import BusyError
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServiceSettings

SOON_S = 10.0
MIB = 1 << 20


def noise(side: int) -> bytes:
    """Return a PNG that takes as many bytes encoded as decoded."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encode_png(pixels)


def test_what_is_let_go_early_makes_room_and_all_is_given_back_in_the_end():
    batcher = Batcher(SilentBackend(), ServiceSettings(max_waiting_mb=3), ServiceMetrics(METRIC, 8))
    try:
        with batcher.place(2 * MIB) as let_go:
            with pytest.raises(BusyError), batcher.place(2 * MIB):
                pass
            let_go(MIB)
            assert batcher.held_bytes == MIB
            with batcher.place(2 * MIB):
                assert batcher.held_bytes == 3 * MIB
        assert batcher.held_bytes == 0
    finally:
        batcher.close()


def test_an_image_that_waits_is_held_decoded_and_as_its_message_and_no_third_time():
    backend, data = SilentBackend(), noise(400)
    server = TeacherServer(backend)
    url = f"127.0.0.1:{server.start()}"
    batcher = server._running.service.batcher
    asking = threading.Thread(target=infer, args=(url, data))
    try:
        asking.start()
        assert backend.asked.wait(SOON_S)
        decoded = 400 * 400 * 3
        assert decoded + len(data) <= batcher.held_bytes < decoded + len(data) + 1000
        backend.released.set()
        asking.join(SOON_S)
        assert backend.requests[0].image == b""
        wait_until(lambda: batcher.held_bytes == 0, SOON_S)
    finally:
        backend.released.set()
        server.stop(0.0)


def test_images_that_are_small_when_decoded_and_large_as_they_came_fill_the_memory_too():
    backend = SilentBackend()
    padded = encode_png(picture()) + bytes(3 * MIB)  # 9 kB of pixels
    with serving(backend, max_batch=1, max_waiting_mb=6) as url:
        asking = threading.Thread(target=infer, args=(url, padded))
        asking.start()
        assert backend.asked.wait(SOON_S)
        status, text = refusal(url, padded)
        assert status == "RESOURCE_EXHAUSTED"
        assert "max_waiting_mb" in text
        backend.released.set()
        asking.join(SOON_S)
        infer(url, padded)
