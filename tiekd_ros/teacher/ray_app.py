"""The teacher on Ray Serve: replicas over the GPUs of a cluster, behind one gRPC port.

    serve run tiekd_ros.teacher.ray_app:app teacher=huggingface:MODEL token_file=FILE gpus=1
    serve run deploy/ray/serve.yaml

`app` is an application builder: its arguments are `RayOptions`, all options of the backends and
of `ServiceSettings`, on one level. Ray itself is imported only when it is called.

Ray's proxy speaks gRPC with the clients and hands each call to one replica's method of the same
name, as a coroutine. The servicer is the plain server's: it blocks, so it runs in threads, and what
it asks of a gRPC context is answered by `ReplicaCall`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.teacher.backend import BackendSettings
from tiekd_ros.teacher.backends import backend_options, read_backend, value_from_text
from tiekd_ros.teacher.security import REFUSAL, TOKENS_VARIABLE, Tokens, authorization_of
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServiceSettings

__all__ = ["SERVICER", "add_GRPCInferenceServiceServicer_to_server", "app"]

_LOG = logging.getLogger(__name__)

SERVICER = f"{__name__}.add_GRPCInferenceServiceServicer_to_server"
"""The entry of Serve's `grpc_servicer_functions`."""
TEACHER_VARIABLE = "TIEKD_TEACHER"
DEPLOYMENT = "teacher"
"""The deployment's name, under which a Serve config changes its options."""

# Ray's own limit is 2 GiB, for every caller. Its proxies inherit the variable.
_MESSAGE_LIMIT = ("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(64 * 1024 * 1024))
# Threads are made as calls need them; how many calls there are at a time is Ray's to bound.
_MAX_CALLS = 1024
_METHODS = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods


@dataclass(frozen=True)
class RayOptions(Settings):
    """Settings of the replicas and of Ray Serve."""

    teacher: str = setting(
        "",
        "backend:argument, such as huggingface:MODEL, onnx:FILE or recorded:DIR; empty: what the "
        f"environment variable {TEACHER_VARIABLE} says",
    )
    token_file: str = setting(
        "",
        "file of the tokens that let callers in, on every machine with a replica; empty: the "
        "environment variable TIEKD_TEACHER_TOKENS",
    )
    insecure: bool = setting(False, "let everybody in, without a token")
    min_replicas: int = setting(1, "replicas that always run", minimum=1, maximum=1024)
    max_replicas: int = setting(
        1, "replicas under load; at least min_replicas", minimum=1, maximum=1024
    )
    gpus: float = setting(
        0.0, "GPUs of one replica; 0.5 lets two share one", minimum=0.0, maximum=64.0
    )
    cpus: float = setting(1.0, "CPU cores of one replica", minimum=0.0, maximum=1024.0)
    grpc_port: int = setting(
        8001,
        "port of the gRPC ingress, on all addresses, where Serve does not run yet (where it "
        "does, the port that it was started with stays)",
        minimum=1,
        maximum=65535,
    )
    http_port: int = setting(
        8000, "port of Serve's HTTP ingress, on loopback; unused", minimum=1, maximum=65535
    )

    def check(self) -> None:
        """Check the order of the numbers of replicas."""
        if self.max_replicas < self.min_replicas:
            raise InvalidSettingError(
                f"max_replicas must be at least min_replicas = {self.min_replicas}, got "
                f"{self.max_replicas}"
            )


@dataclass(frozen=True)
class RayPlan:
    """The arguments of `app`, read and checked."""

    options: RayOptions
    backend: BackendSettings
    service: ServiceSettings

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> RayPlan:
        """Read the arguments of the command line, which are text, or of a Serve config.

        Raises:
            InvalidSettingError: an unknown name, a bad value, or no teacher.
        """
        groups = (dataclasses.fields(RayOptions), dataclasses.fields(ServiceSettings))
        fields = {field.name: field for group in groups for field in group} | backend_options()
        unknown = sorted(set(args) - set(fields))
        if unknown:
            raise InvalidSettingError(
                f"unknown argument {unknown[0]!r}: known are {', '.join(fields)}"
            )
        values = {
            name: value_from_text(fields[name], value) if isinstance(value, str) else value
            for name, value in args.items()
        }

        def of(names: Iterable[str]) -> dict[str, Any]:
            return {name: values[name] for name in names if name in values}

        options = RayOptions(**of(field.name for field in groups[0]))
        teacher = options.teacher or os.environ.get(TEACHER_VARIABLE, "")
        if not teacher:
            raise InvalidSettingError(
                "no teacher is named: give teacher=huggingface:MODEL (or another backend), or "
                f"set the environment variable {TEACHER_VARIABLE}"
            )
        backend = read_backend(teacher, of(backend_options()))
        return cls(options, backend, ServiceSettings(**of(field.name for field in groups[1])))

    def __post_init__(self) -> None:
        """Check what Ray's queue and a replica's have to agree on.

        Raises:
            InvalidSettingError: a replica could refuse requests that Ray has given to it.
        """
        service, ongoing = self.service, self._ongoing
        if service.max_waiting < ongoing:
            raise InvalidSettingError(
                f"max_waiting must be at least 2 x max_batch x workers = {ongoing} under Ray, "
                f"which gives a replica two batches at a time, got {service.max_waiting}; raise "
                "it, or lower max_batch"
            )

    def deployment_options(self) -> dict[str, Any]:
        """Return the options of Serve's deployment.

        A replica gets two batches at a time, one to label and one to gather; what comes beyond
        waits in Ray's proxies, so that it goes to the replica that is free first.
        """
        options, service = self.options, self.service
        scaling: dict[str, Any] = {"num_replicas": options.min_replicas}
        if options.max_replicas > options.min_replicas:
            scaling = {
                "autoscaling_config": {
                    "min_replicas": options.min_replicas,
                    "max_replicas": options.max_replicas,
                    "target_ongoing_requests": self._ongoing // 2,
                }
            }
        return {
            "name": DEPLOYMENT,
            "ray_actor_options": {"num_cpus": options.cpus, "num_gpus": options.gpus},
            "max_ongoing_requests": self._ongoing,
            "max_queued_requests": service.max_waiting,
            **scaling,
        }

    @property
    def _ongoing(self) -> int:
        return 2 * self.service.max_batch * self.service.workers


# Ray's proxies, which import the servicer's entry from here, send requests on to the replicas
# pickled. tritonclient's messages say that they come from these top-level modules, which do not
# exist: without the names every call would fail with a PicklingError.
sys.modules.setdefault("grpc_service_pb2", service_pb2)
sys.modules.setdefault("model_config_pb2", model_config_pb2)


class CallEndedError(Exception):
    """The servicer ended a call by `abort`; its code and text are in the context."""


class ReplicaCall:
    """A gRPC context for the servicer, made of Ray Serve's, which can do less."""

    def __init__(self, context: Any) -> None:
        """Wrap the `grpc_context` that Ray gave for this call."""
        self._context = context
        self._gone = threading.Event()

    def time_remaining(self) -> float | None:
        """Return None: Ray keeps a call's deadline to itself, and cancels the call after it."""
        return None

    def is_active(self) -> bool:
        """Say whether the caller still waits for the answer."""
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

    A method that the servicer lacks is UNIMPLEMENTED, as in the plain server.
    """

    def __init__(
        self,
        backend: BackendSettings,
        service: ServiceSettings,
        *,
        token_file: str = "",
        insecure: bool = False,
    ) -> None:
        """Load the backend, on the GPU that Ray gave to this replica.

        Args:
            backend: the teacher.
            service: how requests are answered.
            token_file: as for `required_tokens`.
            insecure: as for `required_tokens`.

        Raises:
            TiekdError: the backend cannot start, or there are no tokens.
        """
        self._tokens = required_tokens(token_file, insecure=insecure)
        self._service = TeacherService(backend.build(), service)
        self._threads = ThreadPoolExecutor(_MAX_CALLS, thread_name_prefix="teacher")

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
    tokens = Tokens(token_file)
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


def app(args: dict[str, Any]) -> Any:
    """Build the application; starts Serve with its gRPC ingress where Serve does not run yet.

    Args:
        args: see the module.

    Returns:
        Serve's `Application`.

    Raises:
        InvalidSettingError: a bad argument, no teacher, or no tokens.
    """
    return build(RayPlan.read(args))


def build(plan: RayPlan) -> Any:
    """Build the application of a plan, as `app` does."""
    options = plan.options
    required_tokens(options.token_file, insecure=options.insecure)  # not first in a replica's log
    os.environ.setdefault(*_MESSAGE_LIMIT)
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    serve.start(
        grpc_options=gRPCOptions(port=options.grpc_port, grpc_servicer_functions=[SERVICER]),
        http_options=HTTPOptions(port=options.http_port),
    )
    deployment = serve.deployment(TeacherReplica).options(**plan.deployment_options())
    return deployment.bind(
        plan.backend, plan.service, token_file=options.token_file, insecure=options.insecure
    )
