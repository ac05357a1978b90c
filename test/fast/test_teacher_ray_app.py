"""The teacher on Ray Serve without Ray: arguments, and a replica's calls."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from tritonclient.grpc import service_pb2

from helpers.attacks import message
from helpers.children import PATIENCE_S, run_python, wait_until
from helpers.teachers import METRIC, SilentBackend, StubBackend, depth_request, ramp, secret
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import RgbImage
from tiekd_ros.teacher import ray_app
from tiekd_ros.teacher.backends import backend_options
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.backends.synthetic import SyntheticSettings
from tiekd_ros.teacher.batcher import Batcher
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, read_answer
from tiekd_ros.teacher.ray_app import RayOptions, RayPlan, TeacherReplica
from tiekd_ros.teacher.settings import ServiceSettings

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "ray" / "serve.yaml"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("TIEKD_TEACHER", "TIEKD_TEACHER_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def test_text_of_the_command_line_becomes_what_each_setting_is(monkeypatch):
    plan = RayPlan.read(
        {
            "teacher": "huggingface:/models/large",
            "gpus": "0.5",
            "insecure": "True",
            "max_batch": "16",
            "dtype": "bfloat16",
            "batch_delay_ms": "2",
        }
    )
    assert plan.backend == HuggingFaceSettings(model="/models/large", dtype="bfloat16")
    assert (plan.options.gpus, plan.options.insecure) == (0.5, True)
    assert (plan.service.max_batch, plan.service.batch_delay_ms) == (16, 2.0)
    monkeypatch.setenv("TIEKD_TEACHER", "synthetic:7")  # where no argument names one
    assert RayPlan.read({}).backend == SyntheticSettings(seed=7)
    assert RayPlan.read({"teacher": "synthetic:3"}).backend.seed == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "no teacher is named: give teacher=huggingface:MODEL"),
        ({"teacher": "oracle:x"}, "unknown teacher backend 'oracle'"),
        ({"teacher": "synthetic:0", "gpu": "1"}, "unknown argument 'gpu': known are .*gpus"),
        ({"teacher": "synthetic:0", "gpus": "many"}, "gpus must be float, got 'many'"),
        ({"teacher": "synthetic:0", "insecure": "perhaps"}, "insecure must be bool, got 'perhaps'"),
        ({"teacher": "synthetic:0", "insecure": 1}, "insecure must be bool, got 1"),
        ({"teacher": "synthetic:0", "max_batch": "0"}, "max_batch must be between 1 and"),
        (
            {"teacher": "synthetic:0", "min_replicas": 4, "max_replicas": 2},
            "max_replicas must be at least min_replicas = 4, got 2",
        ),
        (
            {"teacher": "synthetic:0", "max_batch": 8, "max_waiting": 15},
            "max_waiting must be at least 2 x max_batch x workers = 16 under Ray.*got 15",
        ),
        (
            {"teacher": "synthetic:0", "max_batch": 2, "workers": 3, "max_waiting": 0},
            "max_batch x workers = 12 under Ray",
        ),
        ({"teacher": "synthetic:3", "seed": "4"}, "synthetic:3 and seed=4 .* say different things"),
        ({"teacher": "onnx:x.onnx", "dtype": "float16"}, "dtype .* says nothing to the backend"),
        ({"teacher": "recorded"}, "needs a folder of frames"),
    ],
)
def test_a_bad_argument_is_refused_by_name(args, message):
    with pytest.raises(InvalidSettingError, match=message):
        RayPlan.read(args)


def test_no_two_groups_of_arguments_have_a_name_in_common():
    groups = (RayOptions, ServiceSettings)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    names += backend_options()
    assert len(names) == len(set(names))


def test_a_replica_gathers_one_batch_while_it_labels_another_and_replicas_follow_the_load():
    arguments = {"teacher": "synthetic:0", "max_batch": 8, "max_waiting": 64, "gpus": 1}
    assert RayPlan.read(arguments).deployment_options() == {
        "name": "teacher",
        "ray_actor_options": {"num_cpus": 1.0, "num_gpus": 1.0},
        "max_ongoing_requests": 16,
        "max_queued_requests": 64,
        "num_replicas": 1,
    }
    options = RayPlan.read({**arguments, "max_replicas": 4}).deployment_options()
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {
        "min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8,
    }  # fmt: skip
    full = RayPlan.read({**arguments, "workers": 2, "max_waiting": 32})
    assert full.deployment_options()["max_ongoing_requests"] == 32
    batcher = Batcher(StubBackend(), full.service, ServiceMetrics(METRIC, 8))  # one at a time
    batcher.close()
    assert batcher.places >= 32


def test_the_ready_config_names_what_there_is():
    config = yaml.safe_load(CONFIG.read_text())
    assert config["grpc_options"]["grpc_servicer_functions"] == [ray_app.SERVICER]
    module, _, function = ray_app.SERVICER.rpartition(".")
    assert (module, callable(getattr(ray_app, function))) == (ray_app.__name__, True)
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, getattr(ray_app, name)) == (ray_app.__name__, ray_app.app)
    plan = RayPlan.read(application["args"])
    assert isinstance(plan.backend, HuggingFaceSettings)
    assert plan.options.token_file
    assert not plan.options.insecure


TOKEN, OTHER_TOKEN = "0123456789abcdef", "another-valid-token-12"


@dataclass
class Made:
    """Settings of a backend that is there already."""

    backend: Any

    def build(self):
        return self.backend


class Context:
    """What Ray gives to a replica as `grpc_context`, as far as it is used."""

    def __init__(self, token: str = "") -> None:
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.code: grpc.StatusCode | None = None
        self.details = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def infer_message(model: str = "depth_teacher") -> service_pb2.ModelInferRequest:
    request = message(depth_request().image)
    request.model_name = model
    return request


def call(replica: TeacherReplica, method: str, request: Any = None, token: str = "") -> Any:
    """Return the answer of a call and the context that Ray would send it with."""
    context = Context(token)
    if request is None:
        kind = f"{method}Request"
        request = infer_message() if method == "ModelInfer" else getattr(service_pb2, kind)()
    return asyncio.run(getattr(replica, method)(request, grpc_context=context)), context


@pytest.fixture
def replica_of():
    """Return a function that makes a replica of a given backend."""

    def make(backend, token_file: str = "", insecure: bool = True, **service) -> TeacherReplica:
        return TeacherReplica(
            Made(backend), ServiceSettings(**service), token_file=token_file, insecure=insecure
        )

    return make


@pytest.fixture
def token_file(tmp_path):
    return secret(tmp_path / "tokens", OTHER_TOKEN, TOKEN)


def test_a_call_is_answered_as_by_the_plain_server(replica_of):
    replica = replica_of(StubBackend(), depth_type="FP32")
    answer, context = call(replica, "ModelInfer")
    np.testing.assert_array_equal(read_answer(answer).depth, ramp())
    assert context.code is None
    request = service_pb2.ModelReadyRequest(name="depth_teacher")
    assert call(replica, "ModelReady", request)[0].ready
    for name in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name:
        assert getattr(TeacherReplica, name).__name__ == name


def test_a_refusal_stands_in_the_context_and_raises_nothing(replica_of, monkeypatch):
    backend = StubBackend()
    replica = replica_of(backend)
    status = grpc.StatusCode
    for model, answer, code, text in (
        ("oracle", None, status.NOT_FOUND, "unknown model 'oracle'"),
        ("depth_teacher", BackendRefusal("not this"), status.FAILED_PRECONDITION, "not this"),
        ("depth_teacher", RuntimeError("broken"), status.INTERNAL, "broke on this image"),
    ):
        backend.answer = answer
        reply, context = call(replica, "ModelInfer", infer_message(model))
        assert (context.code, reply) == (code, service_pb2.ModelInferResponse())
        assert text in context.details
    assert call(replica, "RepositoryModelLoad")[1].code is status.UNIMPLEMENTED

    def breaks(request, call):
        raise ValueError("/secret/path")

    monkeypatch.setattr(replica._service, "ServerLive", breaks)
    context = call(replica, "ServerLive")[1]
    assert context.code is status.INTERNAL
    assert "secret" not in context.details


def test_without_one_of_the_tokens_nothing_is_answered(replica_of, token_file):
    backend = StubBackend()
    for insecure in (False, True):  # tokens count even then
        replica = replica_of(backend, token_file, insecure=insecure)
        for method in ("ServerLive", "ModelConfig", "ModelInfer", "RepositoryIndex"):
            for token in ("", "wrong", TOKEN[:-1], TOKEN + "0"):
                reply, context = call(replica, method, token=token)
                assert context.code is grpc.StatusCode.UNAUTHENTICATED
                assert reply == type(reply)()
        assert backend.requests == []
        for token in (TOKEN, OTHER_TOKEN):
            live, context = call(replica, "ServerLive", token=token)
            assert (live.live, context.code) == (True, None)


def test_without_tokens_no_replica_starts_and_nothing_is_built(replica_of, monkeypatch):
    with pytest.raises(InvalidSettingError, match="this teacher needs tokens"):
        ray_app.app({"teacher": "synthetic:0"})
    with pytest.raises(InvalidSettingError, match=r"token_file=FILE .* insecure=true"):
        replica_of(StubBackend(), insecure=False)
    monkeypatch.setenv("TIEKD_TEACHER_TOKENS", TOKEN)
    replica_of(StubBackend(), insecure=False)


def test_an_image_whose_caller_is_gone_never_reaches_the_backend(replica_of):
    backend = SilentBackend()
    replica = replica_of(backend, max_batch=1)

    async def calls() -> None:
        first = asyncio.create_task(replica.ModelInfer(infer_message(), Context()))
        await asyncio.to_thread(backend.asked.wait)
        second = asyncio.create_task(replica.ModelInfer(infer_message(), Context()))
        await asyncio.to_thread(wait_until, lambda: replica._service.batcher.waiting)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        backend.released.set()
        await first

    asyncio.run(calls())
    wait_until(lambda: not replica._service.batcher.inside)
    assert len(backend.requests) == 1


def test_many_calls_at_once_share_batches(replica_of):
    class Batches(StubBackend):
        sizes: list[int] = []  # noqa: RUF012
        gate = threading.Event()

        def infer_batch(
            self, images: list[RgbImage], requests: list[DepthRequest]
        ) -> list[DepthAnswer]:
            self.sizes.append(len(images))
            self.gate.wait(PATIENCE_S)
            return [DepthAnswer(ramp()) for _ in images]

    backend = Batches()
    replica = replica_of(backend, max_batch=4)

    async def calls() -> list[object]:
        tasks = [
            asyncio.create_task(replica.ModelInfer(infer_message(), Context())) for _ in range(9)
        ]
        await asyncio.to_thread(wait_until, lambda: replica._service.batcher.inside == 9)
        backend.gate.set()
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(calls())) == 9
    alone = len(backend.requests)  # what was left over went through by itself
    assert sum(backend.sizes) + alone == 9
    assert max(backend.sizes) == 4


def test_a_backend_that_breaks_on_every_image_is_not_healthy_until_it_labels_one(replica_of):
    backend = StubBackend(RuntimeError("CUDA error"))
    replica = replica_of(backend)
    for _ in range(5):
        replica.check_health()
        call(replica, "ModelInfer")
    with pytest.raises(RuntimeError, match="breaks on every image"):
        replica.check_health()
    backend.answer = ramp()
    call(replica, "ModelInfer")
    replica.check_health()


def test_requests_can_be_pickled_wherever_the_shim_was_imported():
    code = """
import pickle
from tiekd_ros.teacher import ray_app
from tritonclient.grpc import service_pb2
request = service_pb2.ModelInferRequest(model_name="depth_teacher")
assert pickle.loads(pickle.dumps(request)) == request
config = service_pb2.ModelConfigResponse()
config.config.name = "depth_teacher"
assert pickle.loads(pickle.dumps(config.config)).name == "depth_teacher"
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
