"""The runtime that is fastest on most CPUs: onnxruntime.

On a GPU it takes its CUDA provider and not TensorRT's: that builds an engine, for minutes, for
every set of weights, and weights change while the robot drives.

Tracing a network takes 0.3 to 0.5 s and holds Python's lock meanwhile: on a robot, a stutter in
the stream with every new student. So the graph is kept without the weights; another student of
the same kind brings its own, by name.

Shapes: C bins, H and W the image, Hn and Wn the network's input, h and w its raw output.
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

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import RgbImage, check_rgb
from tiekd_ros.student.architecture import DpmNetwork, InputSize, StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.preprocessing import normalise_on_cpu, resize_image
from tiekd_ros.student.runtimes.base import (
    Prediction,
    Stopwatch,
    answer_on_cpu,
    fuse_batch_norms,
    in_threads,
    probe_image,
    prove,
    refusal,
    shift_logits,
)

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

    Input `image`: normalised RGB, float32 (1, Hn, Wn, 3). Output `answer`, float32: what the
    network's `answer` gives.
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
        return self.network.answer(self.network(image.permute(0, 3, 1, 2)))


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

    The exporter has its own constants; none has the shape of weights, nor that of weights that it
    has transposed.
    """
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    shapes = {tuple(weight.shape) for weight in network.parameters() if weight.dim() > 1}
    shapes |= {shape[::-1] for shape in shapes}
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


_SMALL = InputSize(64, 64)
_CUDA = "CUDAExecutionProvider"

GraphCache = dict[GraphKind, StudentGraph]


class OnnxRuntime:
    """A student in onnxruntime, on the CPU or with its CUDA provider.

    Args:
        student: weights and card.
        device: cpu, cuda or cuda:N.
        threads: of the network on a CPU.
        graphs: graphs of former students; one of the same kind is used, a new one is added.
        owned: whether the student's network may be changed; otherwise it is copied first.

    Raises:
        InvalidSettingError: onnxruntime is not installed or broken, or cannot use the GPU.
        CheckpointError: the student's answer to a probe image is not finite or lies outside
            its depth range.
        Exception: torch or onnxruntime cannot take the network, whatever they raise.
    """

    def __init__(
        self,
        student: Student,
        device: torch.device | str = "cpu",
        threads: int = 1,
        *,
        graphs: GraphCache | None = None,
        owned: bool = False,
    ) -> None:
        self.card = student.card
        providers = execution_providers(torch.device(device))
        network = student.network if owned else copy.deepcopy(student.network)
        network = fuse_batch_norms(network.eval().cpu())
        shift_logits(network)
        graphs = {} if graphs is None else graphs
        kind = GraphKind.of(self.card, network)
        if kind not in graphs:
            graphs[kind] = export_graph(network, self.card.input_size)
        self._network = network
        self._check_numbers()
        self._open(graphs[kind], providers, threads)
        used = str(self._session.get_providers()[0])
        if torch.device(device).type == "cuda" and used != _CUDA:
            raise InvalidSettingError(  # onnxruntime only warns of it
                f"onnxruntime would run on {used}: its {_CUDA} does not start on {device}; install "
                "the CUDA and cuDNN libraries that onnxruntime-gpu asks for, or set runtime to "
                "auto or torch"
            )
        self.description = f"onnxruntime {used}" + (
            f", {in_threads(threads)}" if used.startswith("CPU") else ""
        )
        prove(self, has_dpm=network.has_dpm)

    def predict(
        self,
        image: RgbImage,
        size: tuple[int, int] | None = None,
        *,
        confidence: bool = True,
    ) -> Prediction:
        """Predict depth for one RGB image, uint8 (H, W, 3); see `Runtime`."""
        watch = Stopwatch()
        check_rgb(image)
        x = normalise_on_cpu(resize_image(image, self.card.input_size))
        watch.lap()
        (answer,) = self._session.run([ANSWER], {IMAGE: x[None]})
        watch.lap()
        with torch.inference_mode():
            moments = self._network.moments_of(torch.from_numpy(answer))
        depth, sure = answer_on_cpu(self.card, moments, size or image.shape[:2], confidence)
        return Prediction(depth, sure, watch.times())

    @torch.inference_mode()
    def _check_numbers(self) -> None:
        """Refuse weights that overflow: what onnxruntime makes of NaN looks like an answer."""
        small = normalise_on_cpu(probe_image(_SMALL))[None]
        mean = self._network.moments(
            self._network(torch.from_numpy(small).permute(0, 3, 1, 2))
        ).mean
        if not bool(mean.isfinite().all()):
            raise refusal(self.card)

    def _open(self, graph: StudentGraph, providers: list[Any], threads: int) -> None:
        import onnxruntime

        weights = folded_weights(self._network)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in graph.names]
        self._values = values  # the session may go on reading them
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; warnings tell what runs where on a GPU
        # Waiting busily for the next layer saves a fifth of the time; between two frames it would
        # take a core from everything else.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_external_initializers(list(graph.names), values)
        self._session = onnxruntime.InferenceSession(graph.model, options, providers=providers)


def execution_providers(device: torch.device) -> list[Any]:
    """Return the providers for a device, as onnxruntime wants them.

    Raises:
        InvalidSettingError: onnxruntime is not installed or broken, or cannot use the device.
    """
    try:
        import onnx  # noqa: F401  (the exporter needs it)
        import onnxruntime
    except Exception as error:  # a broken installation raises whatever it likes
        raise InvalidSettingError(
            "runtime onnxruntime needs the packages onnx and onnxruntime "
            f"({type(error).__name__}: {error}); install tiekd_ros[onnx], or set runtime to auto "
            "or torch"
        ) from error
    cpu = "CPUExecutionProvider"
    if device.type == "cpu":
        return [cpu]
    if _CUDA not in onnxruntime.get_available_providers():
        raise InvalidSettingError(
            f"this onnxruntime cannot use {device}: it has "
            f"{', '.join(onnxruntime.get_available_providers())}; install onnxruntime-gpu, or "
            "set runtime to auto or torch"
        )
    return [(_CUDA, {"device_id": device.index or 0, "use_tf32": "0"}), cpu]
