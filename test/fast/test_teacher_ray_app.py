"""The arguments of the Ray Serve application, before Ray comes in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from helpers.teachers import METRIC, StubBackend
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher import ray_app
from tiekd_ros.teacher.backends import backend_options
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.backends.synthetic import SyntheticSettings
from tiekd_ros.teacher.batcher import Batcher
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.ray_app import RayOptions, RayPlan
from tiekd_ros.teacher.settings import ServiceSettings

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "ray" / "serve.yaml"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("TIEKD_TEACHER", "TIEKD_TEACHER_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def test_text_of_the_command_line_becomes_what_each_setting_is():
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


def test_the_environment_names_the_teacher_where_no_argument_does(monkeypatch):
    monkeypatch.setenv("TIEKD_TEACHER", "synthetic:7")
    plan = RayPlan.read({})
    assert plan.backend == SyntheticSettings(seed=7)
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


def test_a_replica_has_a_place_for_every_request_that_ray_gives_to_it():
    arguments = {"teacher": "synthetic:0", "max_batch": 8, "workers": 2, "max_waiting": 32}
    plan = RayPlan.read(arguments)
    assert plan.deployment_options()["max_ongoing_requests"] == 32
    metrics = ServiceMetrics(METRIC, 8)
    batcher = Batcher(StubBackend(), plan.service, metrics)  # takes one image at a time
    batcher.close()
    assert batcher.places >= 32


def test_without_tokens_nothing_is_built():
    with pytest.raises(InvalidSettingError, match="this teacher needs tokens"):
        ray_app.app({"teacher": "synthetic:0"})


def test_no_two_groups_of_arguments_have_a_name_in_common():
    groups = (RayOptions, ServiceSettings)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    names += backend_options()
    assert len(names) == len(set(names))


def test_a_replica_gathers_one_batch_while_it_labels_another():
    options = RayPlan.read({"teacher": "synthetic:0", "max_batch": 8, "max_waiting": 64, "gpus": 1})
    assert options.deployment_options() == {
        "name": "teacher",
        "ray_actor_options": {"num_cpus": 1.0, "num_gpus": 1.0},
        "max_ongoing_requests": 16,
        "max_queued_requests": 64,
        "num_replicas": 1,
    }


def test_replicas_follow_the_load_between_two_bounds():
    plan = RayPlan.read({"teacher": "synthetic:0", "max_batch": 8, "max_replicas": 4})
    options = plan.deployment_options()
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {
        "min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8,
    }  # fmt: skip


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
