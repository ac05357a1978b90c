"""The application of `teacher_ray.py`: the package's own on Ray Serve, with a benchmark's teacher.

serve run teacher_ray_app:app model=waiting:20,5 grpc_port=8001 http_port=8000 max_batch=8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from teacher_load_models import marking, open_model

from tiekd_ros.core.settings import setting
from tiekd_ros.teacher.backend import Backend, BackendSettings
from tiekd_ros.teacher.ray_app import RayOptions, RayPlan, build
from tiekd_ros.teacher.settings import ServiceSettings


@dataclass(frozen=True)
class MarkedModel(BackendSettings):
    """A teacher of `open_model` whose labels carry their frames' marks."""

    ARGUMENT = "model"

    model: str = setting("", "the text that `open_model` reads")
    device: str = setting("cpu", "device of torch")

    def build(self) -> Backend:
        """Load it."""
        return marking(open_model(self.model, self.device))


def app(args: dict[str, Any]) -> Any:
    """Build it: one replica, without tokens."""
    options = RayOptions(
        insecure=True, grpc_port=int(args["grpc_port"]), http_port=int(args["http_port"])
    )
    service = ServiceSettings(max_batch=int(args["max_batch"]))
    return build(RayPlan(options, MarkedModel(args["model"], args["device"]), service))
