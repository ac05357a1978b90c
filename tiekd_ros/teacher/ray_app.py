"""The teacher on Ray Serve: replicas over the GPUs of a cluster, behind one gRPC port.

    serve run tiekd_ros.teacher.ray_app:app teacher=huggingface:MODEL token_file=FILE gpus=1
    serve run deploy/ray/serve.yaml

`app` is an application builder: its arguments are `RayOptions`, all fields of `BackendOptions`
and of `ServiceSettings`, on one level. Imports ray only when it is called.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.teacher.backends import BackendOptions, named_option, parse_backend, unused_options
from tiekd_ros.teacher.ray_replica import SERVICER, TeacherReplica, required_tokens
from tiekd_ros.teacher.settings import ServiceSettings

TEACHER_VARIABLE = "TIEKD_TEACHER"
DEPLOYMENT = "teacher"
"""The deployment's name, under which a Serve config changes its options."""

_S = TypeVar("_S", bound=Settings)
# Ray's own limit is 2 GiB, for whoever can reach the port. Its proxies inherit the variable.
_MESSAGE_LIMIT = ("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(64 * 1024 * 1024))
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class RayOptions(Settings):
    """How the teacher is spread over a Ray cluster."""

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
class Plan:
    """The arguments of `app`, read and checked."""

    options: RayOptions
    kind: str
    backend: BackendOptions
    service: ServiceSettings

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> Plan:
        """Read the arguments of the command line, which are text, or of a Serve config.

        Raises:
            InvalidSettingError: an unknown name, a bad value, or no teacher.
        """
        groups = (RayOptions, BackendOptions, ServiceSettings)
        known = [field.name for group in groups for field in dataclasses.fields(group)]
        unknown = sorted(set(args) - set(known))
        if unknown:
            raise InvalidSettingError(
                f"unknown argument {unknown[0]!r}: known are {', '.join(known)}"
            )
        options = _changed(RayOptions(), args)
        teacher = options.teacher or os.environ.get(TEACHER_VARIABLE, "")
        if not teacher:
            raise InvalidSettingError(
                "no teacher is named: give teacher=huggingface:MODEL (or another backend), or "
                f"set the environment variable {TEACHER_VARIABLE}"
            )
        kind, named = parse_backend(teacher)
        backend = _changed(named, args)
        _require_one_meaning(teacher, kind, named, backend)
        return cls(options, kind, backend, _changed(ServiceSettings(), args))

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


def app(args: dict[str, Any]) -> Any:
    """Build the application; starts Serve with its gRPC ingress where Serve does not run yet.

    Args:
        args: see the module.

    Returns:
        Serve's `Application`.

    Raises:
        InvalidSettingError: a bad argument, no teacher, or no tokens.
    """
    return build(Plan.read(args))


def build(plan: Plan, replica: type[TeacherReplica] = TeacherReplica) -> Any:
    """Build the application of a plan, as `app` does.

    Args:
        plan: what to build.
        replica: what answers in it.
    """
    options = plan.options
    required_tokens(options.token_file, insecure=options.insecure)  # not first in a replica's log
    os.environ.setdefault(*_MESSAGE_LIMIT)
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    serve.start(
        grpc_options=gRPCOptions(port=options.grpc_port, grpc_servicer_functions=[SERVICER]),
        http_options=HTTPOptions(port=options.http_port),
    )
    deployment = serve.deployment(replica).options(**plan.deployment_options())
    return deployment.bind(
        plan.kind,
        plan.backend.as_dict(),
        plan.service.as_dict(),
        token_file=options.token_file,
        insecure=options.insecure,
    )


def _require_one_meaning(
    teacher: str, kind: str, named: BackendOptions, chosen: BackendOptions
) -> None:
    """Refuse an argument that says something else than the teacher's own, or nothing to it."""
    name = named_option(teacher)
    if name is not None and getattr(chosen, name) != getattr(named, name):
        raise InvalidSettingError(
            f"teacher={teacher} and {name}={getattr(chosen, name)} say different things; give one"
        )
    if unused := unused_options(kind, chosen):
        raise InvalidSettingError(f"{unused[0]} says nothing to the teacher {kind}; leave it out")


def _changed(settings: _S, args: Mapping[str, Any]) -> _S:
    """Return a copy with those of the arguments that belong to it; text becomes its type."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if field.name in args:
            value = args[field.name]
            changes[field.name] = (
                _typed(field.name, value, type(field.default)) if isinstance(value, str) else value
            )
    return dataclasses.replace(settings, **changes)


def _typed(name: str, text: str, kind: type[Any]) -> Any:
    if kind is str:
        return text
    try:
        return _TRUTHS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise InvalidSettingError(f"{name} must be {kind.__name__}, got {text!r}") from None
