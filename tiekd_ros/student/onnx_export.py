"""A student as an ONNX graph: exported once, and then used for all students of its kind.

Tracing a network takes 0.3 to 0.5 s and holds Python's lock meanwhile: on a robot, a stutter in
the stream with every new student. So the graph is kept without the weights; another student of
the same kind brings its own, by name.

Shapes: C bins, Hn and Wn the network's input, h and w its raw output.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.student.architecture import DpmNetwork, InputSize, StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.card import StudentCard

IMAGE, ANSWER = "image", "answer"
_OPSET = 17
_PREFIX = "network."  # where `_Graph` holds the network


@dataclass(frozen=True)
class GraphKind:
    """What the graphs of two students must have in common to be the same."""

    architecture: str
    bins: DepthBins
    size: InputSize
    shifted: bool

    @classmethod
    def of(cls, card: StudentCard, network: StudentNetwork) -> GraphKind:
        """Return the kind of a student whose network is folded."""
        shifted = isinstance(network, DpmNetwork) and network.shifted
        return cls(card.architecture, card.bins, card.input_size, shifted)


@dataclass(frozen=True)
class StudentGraph:
    """An ONNX model whose weights are external, and the names of these.

    Input `image`: normalised RGB, float32 (1, Hn, Wn, 3). Output `answer`, float32: the sums
    of 1, d and d^2 over exp(logits - shift) of a DPM, (1, 3, h, w), d as `sums_kernel` has it;
    or the depth of a regression head in metres, (1, 1, h, w).
    """

    model: bytes
    names: tuple[str, ...]


# The exporter by tracing: the other takes ten times as long, and one more package, for the same
# graph. Before torch 2.5 there was no choice.
_CLASSIC: dict[str, Any] = (
    {"dynamo": False} if "dynamo" in signature(torch.onnx.export).parameters else {}
)


class _Graph(nn.Module):
    """The part of a prediction that the graph does."""

    def __init__(self, network: StudentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        raw = self.network(image.permute(0, 3, 1, 2))  # (1, C or 1, h, w)
        if not isinstance(self.network, DpmNetwork):
            return self.network.moments(raw).mean
        kernel = self.network.sums_kernel()[:, :, None, None]
        return nn.functional.conv2d(self.network.weights(raw), kernel)


def export_graph(network: StudentNetwork, size: InputSize) -> StudentGraph:
    """Return the graph of a folded network (`fuse_batch_norms`, `shift_logits`), on the CPU.

    Its weights are not looked at.

    Raises:
        ImportError: the package `onnx` is missing.
        InvalidSettingError: the graph would keep weights of this network.
        Exception: torch cannot export the network, whatever its exporter raises.
    """
    import onnx

    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise InvalidSettingError(
            "a batch norm is left, whose statistics the ONNX graph would keep; set runtime to auto "
            "or torch"
        )
    file: Any = io.BytesIO()  # as good as a path for this exporter, which is typed for the other
    image = torch.zeros(1, size.height, size.width, 3)
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            _Graph(_told_apart(network)).eval(),
            (image,),
            file,
            **_CLASSIC,
            opset_version=_OPSET,
            input_names=[IMAGE],
            output_names=[ANSWER],
        )
    model = onnx.load_from_string(file.getvalue())
    weights = {_PREFIX + name for name, _ in network.named_parameters()}
    names = []
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            names.append(initializer.name)
            _make_external(initializer, onnx.TensorProto.EXTERNAL)
    _check_no_weights_left(model, network, names)
    return StudentGraph(model.SerializeToString(), tuple(names))


def folded_weights(network: StudentNetwork) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights of a folded network by their names in the graph."""
    return {
        _PREFIX + name: np.ascontiguousarray(parameter.detach().numpy())
        for name, parameter in network.named_parameters()
    }


def _told_apart(network: StudentNetwork) -> StudentNetwork:
    """Return a copy in which no two weights are equal: the exporter makes one of equal ones."""
    copied = copy.deepcopy(network)
    for number, parameter in enumerate(copied.parameters(), start=1):
        parameter.data.fill_(number)
    return copied


def _check_no_weights_left(model: Any, network: StudentNetwork, names: list[str]) -> None:
    """Refuse a graph with constants that may be weights: all students would get this one's.

    The exporter has its own constants; none has the shape of a convolution's weights.
    """
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    shapes = {tuple(weight.shape) for weight in network.parameters() if weight.dim() > 1}
    constants = [each for each in model.graph.initializer if each.name not in names]
    for node in model.graph.node:
        constants += [each.t for each in node.attribute if node.op_type == "Constant"]
    for constant in constants:
        if constant.data_type in floats and tuple(constant.dims) in shapes:
            raise InvalidSettingError(
                f"the ONNX graph keeps weights of shape {tuple(constant.dims)} as a constant; "
                "set runtime to auto or torch"
            )


def _make_external(initializer: Any, external: int) -> None:
    """Take the values out of an initializer; the session gets them from memory, by name."""
    length = len(initializer.raw_data)
    initializer.ClearField("raw_data")
    initializer.data_location = external
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(length))):
        entry = initializer.external_data.add()
        entry.key, entry.value = key, value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's talk from the user: none of it is something to act on."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
