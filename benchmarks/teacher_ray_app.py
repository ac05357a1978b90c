"""The application of `teacher_ray.py`: the package's own on Ray Serve, with a benchmark's teacher.

serve run teacher_ray_app:app model=waiting:20,5 grpc_port=8001 http_port=8000 max_batch=8
"""

from __future__ import annotations

from typing import Any

from teacher_load_models import marking, open_model

from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.backends import BackendOptions
from tiekd_ros.teacher.ray_app import RayOptions, RayPlan, TeacherReplica, build
from tiekd_ros.teacher.settings import ServiceSettings


class MarkingReplica(TeacherReplica):
    """A replica whose labels carry their frames' marks."""

    def make_backend(self, kind: str, options: BackendOptions) -> Backend:
        """Return the teacher of `open_model`; `kind` is its text."""
        return marking(open_model(kind, options.device))


def app(args: dict[str, Any]) -> Any:
    """Build it: one replica, without tokens."""
    options = RayOptions(
        insecure=True, grpc_port=int(args["grpc_port"]), http_port=int(args["http_port"])
    )
    service = ServiceSettings(max_batch=int(args["max_batch"]))
    plan = RayPlan(options, args["model"], BackendOptions(device=args["device"]), service)
    return build(plan, MarkingReplica)
