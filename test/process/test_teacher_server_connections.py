"""What the server lets a connection cost, and that its limits go together."""

from __future__ import annotations

from contextlib import ExitStack

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.children import wait_until
from helpers.teachers import StubBackend, serving
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.settings import ServerSettings

SOON_S = 10.0


OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def served_now(channel: grpc.Channel) -> bool:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=SOON_S)
    except grpc.RpcError:
        return False
    return True


def test_strangers_who_stay_and_ask_nothing_lose_their_places():
    with serving(StubBackend(), max_connections=3, max_idle_s=1.0) as url, ExitStack() as opened:

        def connected() -> grpc.Channel:
            return opened.enter_context(grpc.insecure_channel(url, OWN_CONNECTION))

        assert all(served_now(connected()) for _ in range(3))
        late = connected()
        wait_until(lambda: served_now(late))


def test_the_largest_image_fits_into_the_largest_message():
    with pytest.raises(InvalidSettingError, match=r"larger than max_image_mb = 16.*got 16"):
        ServerSettings(max_message_mb=16)
    ServerSettings(max_message_mb=16, max_image_mb=15)
