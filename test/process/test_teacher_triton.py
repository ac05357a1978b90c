"""deploy/triton: the repository that is written, and model.py in it.

The network, the files and the protocol's messages are real; Triton's own module for Python
models, which exists only inside Triton, is stood in for.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from helpers.attacks import png_of
from helpers.children import run_python
from helpers.onnx_teachers import Brightness, FocalBrightness, export, grey_picture
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.protocol import DepthRequest, TeacherIdentity
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServiceSettings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "triton"
FP16_RELATIVE_ERROR = 2.0**-11


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class Request:
    def __init__(self, inputs: dict[str, Any], parameters: dict[str, Any]) -> None:
        self.inputs = {name: Tensor(name, values) for name, values in inputs.items()}
        self._parameters = parameters

    def parameters(self) -> str:
        return json.dumps(self._parameters)


def request(max_depth_side: int = 0, **inputs: Any) -> Request:
    return Request(inputs, {"stamp_ns": 5, "max_depth_side": max_depth_side})


def encoded(data: bytes) -> Any:
    return np.array([data], dtype=np.object_)


@pytest.fixture
def stand_in(monkeypatch) -> None:
    """Put a stand-in of Triton's module where model.py looks for it."""
    module = ModuleType("triton_python_backend_utils")
    module.TritonError = TritonError
    module.Tensor = Tensor
    module.InferenceResponse = lambda output_tensors, error=None: SimpleNamespace(
        outputs={tensor.name: tensor.as_numpy() for tensor in output_tensors}, error=error
    )
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def written(tmp_path: Path, network: Any = None, **card: Any) -> tuple[Path, Path]:
    """Export a network, make a repository of it, and return both."""
    file = export(tmp_path / "grey.onnx", network or Brightness(), **card)
    done = run_python(str(DEPLOY / "make_repository.py"), str(file), str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    return file, tmp_path / "models" / "depth_teacher"


def module_of(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(folder: Path) -> Any:
    """Load model.py of a repository as Triton does, and make its instance."""
    model = module_of("triton_model", folder / "1" / "model.py").TritonPythonModel()
    model.initialize(
        {
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    return model


def test_the_configuration_is_the_plain_servers(tmp_path):
    file, folder = written(tmp_path)
    text = (folder / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    backend = OnnxSettings(model=str(file)).build()
    service = TeacherService(backend, ServiceSettings())
    try:
        plain = service.ModelConfig(service_pb2.ModelConfigRequest(name="depth_teacher"), None)
    finally:
        service.close()
    assert (config.name, config.backend, config.max_batch_size) == ("depth_teacher", "python", 0)
    assert list(config.input) == list(plain.config.input)
    assert list(config.output) == [plain.config.output[0]]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert TeacherIdentity.from_parameters(parameters) == backend.identity
    assert backend.identity.metric
    maker = module_of("maker", DEPLOY / "make_repository.py")
    config = maker.configuration(TeacherIdentity("grey", "1", metric=True), gpus=2)
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 1, [0, 1])


def test_the_model_answers_what_the_plain_server_does_and_a_bad_image_spoils_no_other(
    tmp_path, stand_in
):
    file, folder = written(tmp_path)
    image = grey_picture()
    data = encode_png(image)
    known = OnnxSettings(model=str(file)).build().infer(image, DepthRequest(data, None, 0, ""))
    assert 1.0 < np.median(known.depth) < 10.0
    good = request(image=encoded(data))
    bad = [request(image=encoded(each)) for each in (b"no image", png_of(10_000, 10_000))]
    small = request(max_depth_side=16, image=encoded(data))
    first, garbage, bomb, second, less = loaded(folder).execute([good, *bad, good, small])
    for answer in (first, second):
        assert answer.error is None
        depth = answer.outputs["depth"]
        assert depth.dtype == np.float16
        np.testing.assert_allclose(depth.astype(np.float32), known.depth, rtol=FP16_RELATIVE_ERROR)
    for refused, message in ((garbage, "neither"), (bomb, "max_pixels")):
        assert refused.error.code == TritonError.INVALID_ARG
        assert message in str(refused.error)
    assert max(less.outputs["depth"].shape) == 16


def test_intrinsics_reach_the_network(tmp_path, stand_in):
    card = {"input": {"focal": "focal"}, "output": {"meaning": "metric"}}
    folder = written(tmp_path, FocalBrightness(), card=card, inputs=("image", "focal"))[1]
    model = loaded(folder)
    image = encoded(encode_png(grey_picture()))
    near, far = model.execute(
        [
            request(image=image, intrinsics=np.array([f, f, 31.5, 23.5], np.float32))
            for f in (50.0, 100.0)
        ]
    )
    ratio = far.outputs["depth"].astype(np.float32) / near.outputs["depth"].astype(np.float32)
    np.testing.assert_allclose(ratio, 2.0, rtol=4 * FP16_RELATIVE_ERROR)
    (without,) = model.execute([request(image=image)])
    assert "needs the camera's focal length" in str(without.error)


def test_a_network_without_a_description_is_refused(tmp_path):
    file = export(tmp_path / "grey.onnx", Brightness())
    file.with_suffix(".yaml").unlink()
    done = run_python(str(DEPLOY / "make_repository.py"), str(file), str(tmp_path / "models"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "grey.yaml is missing" in done.stderr
    assert not (tmp_path / "models").exists()
