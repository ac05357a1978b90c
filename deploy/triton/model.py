"""An exported teacher in NVIDIA Triton's Python backend: the same wire, served by Triton.

`make_repository.py` puts this file into the model repository. Triton's Python needs this package
and onnxruntime (README.md). One image at a time goes through each instance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import decode_image
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.protocol import DepthRequest
from tiekd_ros.teacher.service import admit_image
from tiekd_ros.teacher.settings import ServiceSettings


class TritonPythonModel:
    """One instance: Triton makes it, and calls `execute` for each request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network that lies beside this file, on the instance's device."""
        folder = Path(args["model_repository"]) / args["model_version"]
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        (network,) = folder.glob("*.onnx")
        self._backend = OnnxSettings(model=str(network), device=device).build()
        self._limits = ServiceSettings()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that cannot be answered spoils none of the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            depth = self._depth(request)
        except TiekdError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=refusal)
        with np.errstate(over="ignore"):
            tensor = pb_utils.Tensor("depth", depth.astype(np.float16))
        return pb_utils.InferenceResponse(output_tensors=[tensor])

    def _depth(self, request: Any) -> Any:
        data = bytes(pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[0])
        given = pb_utils.get_input_tensor_by_name(request, "intrinsics")
        intrinsics = None if given is None else Intrinsics(*given.as_numpy().tolist())
        admit_image(data, self._limits)  # before it is decoded
        image = decode_image(data, as_stored=True)
        answer = self._backend.infer(image, DepthRequest(data, intrinsics, 0, ""))
        side = json.loads(request.parameters() or "{}").get("max_depth_side", 0)
        return answer.shrunk(side if isinstance(side, int) else 0).depth
