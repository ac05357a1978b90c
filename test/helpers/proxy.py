"""Faults on demand: a TCP proxy that fails, and a wall clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pytest

from tiekd_ros.core import Closing

_T = TypeVar("_T")
_HOST = "127.0.0.1"
_PIECE = 1 << 20  # bytes read at a time at most
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: no orderly end, what waits is thrown away


@dataclass(frozen=True, eq=False)
class _Fault:
    delay_s: float = 0.0
    swallows: bool = False
    answer_bytes: int | None = None
    ending: Literal["reset", "close", "silence"] = "reset"


class TcpProxy(Closing):
    """Passes bytes on to 127.0.0.1:`target_port`, or breaks the connection as it is told to.

    A fault holds from the moment it is set, on connections that exist and on new ones, until the
    next is set. `target_port` may be changed: new connections then go there.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.accepted = 0
        """Connections that clients have opened so far."""
        self._fault = _Fault()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Where clients connect, as host:port."""
        return f"{_HOST}:{self.port}"

    def pass_on(self) -> None:
        """Work as a network should, from now on."""
        self._set()

    def delay(self, seconds: float) -> None:
        """Hold each piece back this long, in either direction."""
        self._set(delay_s=seconds)

    def swallow(self) -> None:
        """Be a black hole: accept connections and bytes, and answer nothing."""
        self._set(swallows=True)

    def cut(self, answer_bytes: int) -> None:
        """Reset each connection after so many more bytes from the server."""
        self._set(answer_bytes=answer_bytes)

    def truncate(self, answer_bytes: int) -> None:
        """End each connection in good order after so many more bytes from the server."""
        self._set(answer_bytes=answer_bytes, ending="close")

    def stall(self, answer_bytes: int) -> None:
        """Keep each connection open, but fall silent after so many more bytes from the server."""
        self._set(answer_bytes=answer_bytes, ending="silence")

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, as a machine without the server does."""
        self._run(self._close())

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def close(self) -> None:
        """Close everything."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _set(self, **fault: Any) -> None:
        self._fault = _Fault(**fault)
        self._run(self._listen())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(
                self._connect, _HOST, self.port, limit=_PIECE
            )
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connect(self, source: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's reports a cancelled one as an error in some versions.
        task = self._loop.create_task(self._connection(source, back))
        self.accepted += 1
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        """Pass on until one direction ends; where that was not in good order, reset both."""
        writers, pumps, orderly = [to_client], [], False
        try:
            from_server, to_server = await asyncio.open_connection(
                _HOST, self.target_port, limit=_PIECE
            )
            writers.append(to_server)
            pumps = [
                asyncio.ensure_future(self._pump(from_client, to_server, is_answer=False)),
                asyncio.ensure_future(self._pump(from_server, to_client, is_answer=True)),
            ]
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            orderly = all(pump.result() for pump in done)
        except OSError:
            pass  # one side is gone, and so goes the other
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in writers:
                if not orderly:
                    _reset(writer)
                writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> bool:
        counted, passed = self._fault, 0
        while piece := await source.read(_PIECE):
            await asyncio.sleep(self._fault.delay_s)
            fault = self._fault
            if fault is not counted:
                counted, passed = fault, 0
            if fault.swallows:
                continue
            is_last = False
            if is_answer and fault.answer_bytes is not None:
                left = fault.answer_bytes - passed
                is_last = len(piece) >= left and fault.ending != "silence"
                piece = piece[:left]
            passed += len(piece)
            sink.write(piece)
            await sink.drain()
            if is_last:
                return fault.ending == "close"
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


DAY_S = 86_400.0


def let_the_clock_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each reading of the wall clock in this process be a day early or late.

    Except gRPC's: it hands deadlines by the wall clock to its core, which looks at the machine's
    own, so that the two have to agree.
    """
    real, real_ns = time.time, time.time_ns
    days = itertools.cycle((1, -1))

    def is_for_grpc() -> bool:
        caller = sys._getframe(2).f_globals.get("__name__", "")
        return str(caller).partition(".")[0] == "grpc"

    def jumping() -> float:
        return real() if is_for_grpc() else real() + next(days) * DAY_S

    def jumping_ns() -> int:
        return real_ns() if is_for_grpc() else real_ns() + next(days) * int(DAY_S) * 10**9

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", jumping_ns)
