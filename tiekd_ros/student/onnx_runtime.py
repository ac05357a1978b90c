"""The runtime that is fastest on most CPUs: onnxruntime.

On a GPU it takes its CUDA provider and not TensorRT's: that builds an engine, for minutes, for
every set of weights, and weights change while the robot drives.

Shapes: H and W the image, Hn and Wn the network's input, h and w its raw output.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.images import RgbImage, check_rgb
from tiekd_ros.student.architecture import DpmNetwork, InputSize, Moments
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.folding import fuse_batch_norms, shift_logits
from tiekd_ros.student.onnx_export import (
    ANSWER,
    IMAGE,
    GraphKind,
    StudentGraph,
    export_graph,
    folded_weights,
)
from tiekd_ros.student.preprocessing import normalise_on_cpu, resize_image
from tiekd_ros.student.runtime import (
    Prediction,
    Stopwatch,
    answer_on_cpu,
    in_threads,
    probe_image,
    prove,
    refusal,
)

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
            raise _no_start(device, used)
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
        moments = self._moments(torch.from_numpy(answer))
        depth, sure = answer_on_cpu(self.card, moments, size or image.shape[:2], confidence)
        return Prediction(depth, sure, watch.times())

    @torch.inference_mode()
    def _moments(self, answer: torch.Tensor) -> Moments:
        if isinstance(self._network, DpmNetwork):
            return self._network.moments_of(answer)
        return Moments(answer, torch.full_like(answer, torch.nan))

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


def _no_start(device: torch.device | str, used: str) -> InvalidSettingError:
    """Return the error for a GPU that onnxruntime leaves aside, which it only warns of."""
    return InvalidSettingError(
        f"onnxruntime would run on {used}: its {_CUDA} does not start on {device}; install the "
        "CUDA and cuDNN libraries that onnxruntime-gpu asks for, or set runtime to auto or torch"
    )


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
