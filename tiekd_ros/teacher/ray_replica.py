"""One replica of the teacher under Ray Serve: the plain server's servicer, called by Ray.

Ray's proxy speaks gRPC with the clients and hands each call to one replica's method of the same
name, as a coroutine. The servicer blocks, so it runs in threads; what it asks of a gRPC context
is answered by `ReplicaCall`. Does not import ray: a replica is an ordinary object.

Ray imports `add_GRPCInferenceServiceServicer_to_server` by name in each of its proxies, and sends
requests on to the replicas pickled. tritonclient's messages were generated as top-level modules
and say that they come from `grpc_service_pb2` and `model_config_pb2`, which nobody can import, so
that every call would fail with a PicklingError. `register_messages`, called when this module is
imported, gives them these names.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.backends import BackendOptions, create_backend
from tiekd_ros.teacher.security import REFUSAL, TOKENS_VARIABLE, Tokens, authorization_of
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServiceSettings

__all__ = ["SERVICER", "add_GRPCInferenceServiceServicer_to_server", "register_messages"]

SERVICER = f"{__name__}.add_GRPCInferenceServiceServicer_to_server"
"""What stands in Serve's `grpc_servicer_functions`."""


def register_messages() -> None:
    """Let this process pickle and unpickle the protocol's messages."""
    sys.modules.setdefault("grpc_service_pb2", service_pb2)
    sys.modules.setdefault("model_config_pb2", model_config_pb2)


register_messages()


_LOG = logging.getLogger(__name__)
# Threads are made as calls need them; how many calls there are at a time is Ray's to bound.
_MOST_CALLS = 1024
_METHODS = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods

register_messages()  # Ray is about to unpickle requests for this replica


class CallEndedError(Exception):
    """The servicer ended a call by `abort`; its code and text are in the context."""


class ReplicaCall:
    """What the servicer asks of a gRPC context, answered with Ray Serve's, which can do less."""

    def __init__(self, context: Any) -> None:
        """Wrap the `grpc_context` that Ray gave for this call."""
        self._context = context
        self._gone = threading.Event()

    def time_remaining(self) -> float | None:
        """Return None: Ray keeps a call's deadline to itself, and cancels the call after it."""
        return None

    def is_active(self) -> bool:
        """Say whether somebody still waits for the answer."""
        return not self._gone.is_set()

    def give_up(self) -> None:
        """Note that Ray has cancelled the call: its caller is gone, or its deadline is past."""
        self._gone.set()

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return the caller's headers."""
        return [(key, value) for key, value in self._context.invocation_metadata()]

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status that the caller gets."""
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        """Set the text that goes with the status."""
        self._context.set_details(details)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status, by raising CallEndedError."""
        self.set_code(code)
        self.set_details(details)
        raise CallEndedError(details)


class TeacherReplica:
    """One backend and the servicer in front of it; has each method of the protocol by its name.

    What the servicer lacks is UNIMPLEMENTED, as in the plain server.
    """

    def __init__(
        self,
        kind: str,
        backend: Mapping[str, Any],
        service: Mapping[str, Any],
        *,
        token_file: str = "",
        insecure: bool = False,
    ) -> None:
        """Load the backend, on the GPU that Ray gave to this replica.

        Args:
            kind: the backend's name.
            backend: fields of `BackendOptions`.
            service: fields of `ServiceSettings`.
            token_file: as for `required_tokens`.
            insecure: as for `required_tokens`.

        Raises:
            TiekdError: the backend cannot start, or there are no tokens.
        """
        self._tokens = required_tokens(token_file, insecure=insecure)
        self._service = TeacherService(
            self.make_backend(kind, BackendOptions(**backend)), ServiceSettings(**service)
        )
        self._threads = ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="teacher")

    def make_backend(self, kind: str, options: BackendOptions) -> Backend:
        """Return what labels; a replica of another kind may bring its own."""
        return create_backend(kind, options)

    def check_health(self) -> None:
        """Raise where the backend is stuck or broken; Ray asks often, and starts it anew then."""
        if not self._service.ready:
            raise RuntimeError("the backend hangs, or breaks on every image")

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        """Answer one call of a method of the protocol.

        An exception would make Ray log a traceback for each refused request; so the status goes
        into the context, and an empty message is returned, which the caller never sees.
        """
        call = ReplicaCall(context)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._admit, method, request, call)
        except asyncio.CancelledError:
            call.give_up()
            raise
        except (CallEndedError, NotImplementedError):
            pass
        except Exception:
            _LOG.exception("the teacher broke on a call of %s; the replica goes on", method)
            call.set_code(grpc.StatusCode.INTERNAL)
            call.set_details("the server broke on this request; its log says how")
        return _ANSWERS[method]()

    def _admit(self, method: str, request: Any, call: ReplicaCall) -> Any:
        if self._tokens and not self._tokens.accept(authorization_of(call.invocation_metadata())):
            call.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)
        return getattr(self._service, method)(request, call)


def required_tokens(token_file: str, *, insecure: bool) -> Tokens:
    """Return the tokens that let callers in.

    Args:
        token_file: where they stand; "" = in the environment variable TIEKD_TEACHER_TOKENS.
        insecure: do without, where there are none.

    Raises:
        InvalidSettingError: there are none, or they cannot be used.
    """
    tokens = Tokens.load(token_file)
    if not tokens and not insecure:
        raise InvalidSettingError(
            "Ray Serve listens on all of this machine's addresses, so this teacher needs tokens: "
            f"give token_file=FILE or the environment variable {TOKENS_VARIABLE}; or say "
            "insecure=true, on a network that you trust"
        )
    return tokens


def _add_method(name: str) -> None:
    async def method(self: TeacherReplica, request: Any, grpc_context: Any) -> Any:
        return await self.answer(name, request, grpc_context)

    method.__name__ = name
    method.__qualname__ = f"{TeacherReplica.__name__}.{name}"
    setattr(TeacherReplica, name, method)


_ANSWERS = {method.name: getattr(service_pb2, method.output_type.name) for method in _METHODS}
for _name in _ANSWERS:
    _add_method(_name)
