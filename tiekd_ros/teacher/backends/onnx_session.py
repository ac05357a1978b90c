"""An exported depth network in onnxruntime: images in, (B, h, w) out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.teacher.backends.onnx_card import OnnxCard
from tiekd_ros.teacher.errors import BackendError

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_GPU, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class DepthSession:
    """Runs a graph as its card describes it; safe to use from several threads.

    Raises:
        InvalidSettingError: there is no such device.
        BackendError: onnxruntime is missing or cannot load the file, or the card does not fit.
    """

    def __init__(self, path: Path, card: OnnxCard, device: str) -> None:
        """Load the graph at `path`."""
        self._session = _open(path, device)
        self.provider: str = self._session.get_providers()[0]
        inputs = {node.name: node for node in self._session.get_inputs()}
        image = _pick(path, "input.name", card.input.name, [
            node for node in inputs.values() if len(node.shape) == 4
        ])  # fmt: skip
        self._focal = None
        if card.input.focal:
            self._focal = _pick(path, "input.focal", card.input.focal, list(inputs.values()))
        others = sorted(set(inputs) - {image.name, card.input.focal})
        if others:
            raise BackendError(f"{path} has the input {others[0]!r}, which cannot be filled here")
        self._image = image
        self._output = _pick(path, "output.name", card.output.name, self._session.get_outputs())
        self._path = path
        self.batches = not isinstance(image.shape[0], int)
        """Whether the graph leaves the batch's size open."""
        height, width = image.shape[2:] if card.input.layout == "nchw" else image.shape[1:3]
        self.size = (
            _side(path, "height", card.input.height, height),
            _side(path, "width", card.input.width, width),
        )
        """(height, width) of the network's input; 0 where it is open."""

    def run(
        self, pixels: npt.NDArray[np.float32], focals: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Run images in the card's layout, with their focal lengths (B,); returns (B, h, w).

        Raises:
            BackendError: onnxruntime fails, or the output is no depth map.
        """
        if not self.batches and len(pixels) > 1:
            pairs = [(pixels[i : i + 1], focals[i : i + 1]) for i in range(len(pixels))]
            return np.concatenate([self.run(*pair) for pair in pairs])
        feed = {self._image.name: pixels.astype(_type(self._image))}
        if self._focal is not None:
            shape = (len(focals),) + (1,) * (len(self._focal.shape) - 1)
            feed[self._focal.name] = focals.reshape(shape).astype(_type(self._focal))
        try:
            (output,) = self._session.run([self._output.name], feed)
        except Exception as error:  # onnxruntime's errors have no common root
            text = " ".join(str(error).split())[:300]
            raise BackendError(f"{self._path} does not run: {text}") from error
        return self._maps(np.asarray(output, np.float32), len(pixels))

    def _maps(self, output: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
        shape = output.shape
        if output.ndim == 2 and count == 1:
            output = output[None]
        elif output.ndim == 4 and 1 in (shape[1], shape[3]):
            output = output[:, 0] if shape[1] == 1 else output[..., 0]
        if output.ndim != 3 or len(output) != count or min(output.shape) < 1:
            raise BackendError(
                f"{self._path}: the output {self._output.name!r} has the shape {shape} for {count} "
                "images; a depth map is (B, 1, h, w), (B, h, w, 1), (B, h, w) or (h, w)"
            )
        return output


def _open(path: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"the onnx backend needs onnxruntime ({error}): pip install 'tiekd_ros[onnx]'"
        ) from error
    there = onnxruntime.get_available_providers()
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InvalidSettingError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if kind == "cuda" and _GPU not in there:
        raise InvalidSettingError(
            f"device is {device!r}, and this onnxruntime runs on {', '.join(there)}; install "
            "onnxruntime-gpu, or use cpu"
        )
    gpu: list[Any] = [(_GPU, {"device_id": int(index or 0)})]
    providers = [*gpu, _CPU] if kind != "cpu" and _GPU in there else [_CPU]
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "")  # which onnxruntime does not look at itself
    options.intra_op_num_threads = int(threads) if threads.isdigit() else 0  # 0: as many as cores
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common root
        raise BackendError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
    if kind == "cuda" and session.get_providers()[0] != _GPU:
        raise BackendError(f"onnxruntime cannot use {device!r}: see what it printed above")
    return session


def _pick(path: Path, key: str, name: str, nodes: list[Any]) -> Any:
    found = [node for node in nodes if node.name == name] if name else nodes
    if len(found) != 1:
        names = ", ".join(repr(node.name) for node in nodes) or "none"
        raise BackendError(f"{path}: {key} is {name!r}, and the graph has {names}; name one")
    return found[0]


def _side(path: Path, key: str, said: int, graph: Any) -> int:
    if not isinstance(graph, int):
        return said
    if said not in (0, graph):
        raise BackendError(f"{path} takes images of {key} {graph}, its card says {said}")
    return graph


def _type(node: Any) -> Any:
    if node.type not in _TYPES:
        raise BackendError(f"the input {node.name!r} is {node.type}; known are {', '.join(_TYPES)}")
    return _TYPES[node.type]
