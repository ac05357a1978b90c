"""Write a model repository for NVIDIA Triton from an exported teacher.

python deploy/triton/make_repository.py NETWORK.onnx REPOSITORY [--gpus N]

Reads NETWORK.yaml beside the network (docs/teacher_backends.md), tries both on the CPU, and
writes REPOSITORY/depth_teacher: the network, its description, model.py and config.pbtxt, which
names the teacher as `tiekd teacher serve` would. Robots ask it as they ask that server.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.protocol import MODEL_NAME, TeacherIdentity

HERE = Path(__file__).resolve().parent
VERSION = "1"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", type=Path, metavar="NETWORK.onnx")
    parser.add_argument("repository", type=Path, metavar="REPOSITORY")
    parser.add_argument("--gpus", type=int, default=0, help="one instance on each; 0: on the CPU")
    given = parser.parse_args(arguments)
    try:
        folder = make_repository(given.network, given.repository, given.gpus)
    except (TiekdError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    print(f"{folder} is ready: tritonserver --model-repository {given.repository.resolve()}")
    return 0


def make_repository(network: Path, repository: Path, gpus: int = 0) -> Path:
    """Write the model into a repository and return its folder.

    Args:
        network: the .onnx file; its .yaml and its weights, where they lie beside it, go with it.
        repository: folder of models; made where it is missing.
        gpus: GPUs 0 to N - 1 get one instance each; 0 = one on the CPU.

    Raises:
        TiekdError: the network or its description is missing or does not work.
        OSError: the repository cannot be written.
    """
    identity = OnnxSettings(model=str(network), device="cpu").build().identity
    model = repository / MODEL_NAME
    version = model / VERSION
    version.mkdir(parents=True, exist_ok=True)
    beside = network.parent  # large networks keep their weights in files of such names
    weights = [*beside.glob(f"{network.name}[._]*"), *beside.glob(f"{network.stem}.data")]
    for part in (network, network.with_suffix(".yaml"), *weights, HERE / "model.py"):
        shutil.copy(part, version)
    text = text_format.MessageToString(configuration(identity, gpus))
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    return model


def configuration(identity: TeacherIdentity, gpus: int) -> pb.ModelConfig:
    """Return Triton's configuration of the model; clients read the teacher's name from it."""
    config = pb.ModelConfig(
        name=MODEL_NAME,
        backend="python",
        max_batch_size=0,
        input=[
            pb.ModelInput(name="image", data_type=pb.TYPE_STRING, dims=[1]),
            pb.ModelInput(name="intrinsics", data_type=pb.TYPE_FP32, dims=[4], optional=True),
        ],
        output=[pb.ModelOutput(name="depth", data_type=pb.TYPE_FP16, dims=[-1, -1])],
    )
    group = pb.ModelInstanceGroup
    if gpus:
        config.instance_group.add(kind=group.KIND_GPU, count=1, gpus=range(gpus))
    else:
        config.instance_group.add(kind=group.KIND_CPU, count=1)
    for key, text in identity.as_parameters().items():
        config.parameters[key].string_value = text
    return config


if __name__ == "__main__":
    sys.exit(main())
