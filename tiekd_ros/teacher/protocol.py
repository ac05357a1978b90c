"""The teacher's wire protocol: Open Inference Protocol v2 over gRPC, model `depth_teacher`.

Inputs: `image` BYTES [1] (one encoded JPEG or PNG, whose rows and columns count as they are
stored: an EXIF orientation turns nothing); `intrinsics` FP32 [4] (fx, fy, cx, cy in pixels of
that image; may be left out). Request parameters: `stamp_ns` (int64), `frame_id`,
and `max_depth_side` (int64, pixels) where a smaller depth map will do; a server that does not
know it sends the whole.
Outputs: `depth` FP16 or FP32 [H, W] in metres, NaN = unknown; `confidence` FP16 [H, W], 0..1,
where the backend has it. The model's configuration carries the parameters `teacher`,
`teacher_version` and `metric`; so does every answer, that a client may notice a change.

H and W are rows and columns of the depth map, which may have another resolution than the
image, but shows the same view.

Protocol: https://github.com/kserve/open-inference-protocol (inference_grpc.md). In
`raw_input_contents` every BYTES element follows its length, 4 bytes, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadIntrinsicsError
from tiekd_ros.core.images import DepthMap, shrink_map
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.teacher.errors import BadRequestError, TeacherAnswerError

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2


@dataclass(frozen=True)
class AnswerChecks(Settings):
    """Thresholds of `check_answer`."""

    min_known_share: float = setting(
        0.05,
        "least share of pixels with known depth; LiDAR-sparse labels need less, about 0.001",
        minimum=0.0,
        maximum=1.0,
    )
    max_depth_m: float = setting(
        1000.0, "largest depth that is believed", unit="m", minimum=1.0, maximum=100000.0
    )
    min_relative_spread: float = setting(
        0.002,
        "least spread of depth, (95th - 5th percentile) / median: below it the map is taken "
        "for a constant that a broken teacher sends",
        minimum=0.0,
        maximum=1.0,
    )
    aspect_tolerance: float = setting(
        0.02,
        "largest relative difference between the aspect ratios of depth map and image",
        minimum=0.0,
        maximum=0.5,
    )


def check_answer(
    answer: DepthAnswer,
    image_width: int,
    image_height: int,
    checks: AnswerChecks | None = None,
) -> None:
    """Refuse an answer that cannot be a depth map of an image of this size.

    Raises:
        TeacherAnswerError: wrong rank or aspect ratio, negative or implausibly large depth,
            too little known, nearly constant, or a confidence that is none; the text says
            what was met.
    """
    checks = checks or AnswerChecks()
    depth = answer.depth
    _check_shape(depth, image_width, image_height, checks)
    _check_values(depth, checks)
    if answer.confidence is not None:
        _check_confidence(answer.confidence, depth.shape)


def _check_shape(
    depth: npt.NDArray[np.float32], image_width: int, image_height: int, checks: AnswerChecks
) -> None:
    if depth.ndim != 2 or depth.size == 0:
        raise TeacherAnswerError(
            f"a depth map has the shape (H, W), got {depth.shape}", "label_shape"
        )
    height, width = depth.shape
    aspect = (width * image_height) / (height * image_width)
    if abs(aspect - 1.0) > checks.aspect_tolerance:
        raise TeacherAnswerError(
            f"the depth map is {width}x{height} for an image of {image_width}x{image_height}: "
            "the aspect ratios differ, so it does not show the same view",
            "label_shape",
        )


def _check_values(depth: npt.NDArray[np.float32], checks: AnswerChecks) -> None:
    known = depth[~np.isnan(depth)]
    if known.size and float(known.min()) < 0:
        raise TeacherAnswerError(
            f"depth goes down to {float(known.min()):.6g} m; it must be positive, and NaN where "
            "it is unknown",
            "label_range",
        )
    if known.size and float(known.max()) > checks.max_depth_m:
        raise TeacherAnswerError(
            f"depth goes up to {float(known.max()):.6g} m, beyond max_depth_m = "
            f"{checks.max_depth_m:g}; it must be in metres, and NaN where it is unknown",
            "label_range",
        )
    known = known[known > 0]
    share = known.size / depth.size
    if known.size == 0 or share < checks.min_known_share:
        raise TeacherAnswerError(
            f"only {share:.2%} of the depth map is known, less than min_known_share = "
            f"{checks.min_known_share:.2%}",
            "label_unknown",
        )
    low, middle, high = np.percentile(known, (5, 50, 95))
    if (high - low) / middle < checks.min_relative_spread:
        raise TeacherAnswerError(
            f"the depth map is nearly constant (5th to 95th percentile {low:.6g} to {high:.6g} m)"
            ": no view of a room looks like this; is the teacher broken?",
            "label_constant",
        )


def _check_confidence(confidence: npt.NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if confidence.shape != shape:
        raise TeacherAnswerError(
            f"confidence has the shape {confidence.shape}, its depth map {shape}; they must agree",
            "label_confidence",
        )
    if bool(((confidence < 0) | (confidence > 1)).any()):
        raise TeacherAnswerError(
            f"confidence ranges from {np.nanmin(confidence):.6g} to {np.nanmax(confidence):.6g}; "
            "it must lie between 0 and 1",
            "label_confidence",
        )


MODEL_NAME = "depth_teacher"
FLOAT_TYPES: Mapping[str, type[np.floating[Any]]] = {"FP16": np.float16, "FP32": np.float32}

_INPUTS = ("image", "intrinsics")
_OUTPUTS = ("depth", "confidence")


@dataclass(frozen=True)
class TeacherIdentity:
    """A teacher's name and version, and whether its depth is in metres."""

    name: str
    version: str
    metric: bool

    def as_parameters(self) -> dict[str, str]:
        """Return the protocol's parameters that name the teacher."""
        return {
            "teacher": self.name,
            "teacher_version": self.version,
            "metric": "true" if self.metric else "false",
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> TeacherIdentity | None:
        """Read the parameters back; None where they name no teacher.

        A teacher that does not say that it is metric is not taken for metric.
        """
        name = parameters.get("teacher", "")
        if not name:
            return None
        metric = parameters.get("metric", "").lower() == "true"
        return cls(name, parameters.get("teacher_version", ""), metric)


@dataclass(frozen=True)
class DepthRequest:
    """One image to label.

    `image` is one encoded JPEG or PNG; `intrinsics` are in pixels of that image; `stamp_ns` is
    when it was taken, `frame_id` the camera's coordinate frame; `max_depth_side` is the longest
    side of the depth map that is wanted, in pixels, 0 = whatever the teacher makes.
    """

    image: bytes
    intrinsics: Intrinsics | None
    stamp_ns: int
    frame_id: str
    max_depth_side: int = 0


@dataclass(frozen=True, eq=False)
class DepthAnswer:
    """A teacher's label.

    `depth`: float32 (H, W) in metres along the optical axis, NaN = unknown. `confidence`:
    float32 (H, W), 0..1, or None. `teacher`: who answered, as the answer itself says; the
    client fills it in, backends leave it.
    """

    depth: DepthMap
    confidence: npt.NDArray[np.float32] | None = None
    teacher: TeacherIdentity | None = None

    def shrunk(self, max_side: int) -> DepthAnswer:
        """Return the answer with sides of at most `max_side` pixels; 0 = as it is."""
        confidence = self.confidence
        if confidence is not None:
            confidence = shrink_map(confidence, max_side)
        return replace(self, depth=shrink_map(self.depth, max_side), confidence=confidence)


def infer_arguments(request: DepthRequest) -> dict[str, Any]:
    """Return the arguments of tritonclient's `infer` for one request."""
    from tritonclient.grpc import InferInput  # here, for `tiekd --help` reads the backends' options

    image = InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([request.image], dtype=np.object_))
    inputs = [image]
    if request.intrinsics is not None:
        intrinsics = InferInput("intrinsics", [4], "FP32")
        intrinsics.set_data_from_numpy(np.array(request.intrinsics.as_tuple(), np.float32))
        inputs.append(intrinsics)
    parameters: dict[str, int | str] = {"stamp_ns": request.stamp_ns, "frame_id": request.frame_id}
    if request.max_depth_side:
        parameters["max_depth_side"] = request.max_depth_side
    return {"model_name": MODEL_NAME, "inputs": inputs, "parameters": parameters}


def read_request(message: service_pb2.ModelInferRequest) -> DepthRequest:
    """Read a request on the server.

    Raises:
        BadRequestError: the message breaks the protocol; the text says where.
    """
    raws: Sequence[bytes | None] = message.raw_input_contents or [None] * len(message.inputs)
    if len(raws) != len(message.inputs):
        raise BadRequestError(f"{len(message.inputs)} inputs came with {len(raws)} raw contents")
    tensors: dict[str, tuple[Any, bytes | None]] = {}
    for tensor, raw in zip(message.inputs, raws, strict=True):
        if tensor.name not in _INPUTS or tensor.name in tensors:
            raise BadRequestError(
                f"unexpected input {tensor.name!r}: {MODEL_NAME} takes `image`, and `intrinsics` "
                "where they are known, once each"
            )
        tensors[tensor.name] = (tensor, raw)
    if "image" not in tensors:
        raise BadRequestError("the input `image` (BYTES [1]: one encoded JPEG or PNG) is missing")
    return DepthRequest(
        image=_read_bytes(*tensors["image"]),
        intrinsics=_read_intrinsics(*tensors["intrinsics"]) if "intrinsics" in tensors else None,
        stamp_ns=_read_integer(message.parameters, "stamp_ns", "nanoseconds"),
        frame_id=message.parameters["frame_id"].string_param,  # "" where there is none
        max_depth_side=_read_side(message.parameters),
    )


def wanted_outputs(message: service_pb2.ModelInferRequest) -> tuple[str, ...]:
    """Return the names of the outputs that a request asks for; all where it names none.

    Raises:
        BadRequestError: it asks for an output that does not exist, or twice for one.
    """
    names = tuple(output.name for output in message.outputs)
    for name in names:
        if name not in _OUTPUTS:
            raise BadRequestError(f"unknown output {name!r}: there are {', '.join(_OUTPUTS)}")
    if len(set(names)) < len(names):  # a kilobyte of names would ask for gigabytes of maps
        raise BadRequestError(f"{len(names)} outputs are asked for: ask for each one once")
    return names or _OUTPUTS


def write_answer(
    answer: DepthAnswer,
    identity: TeacherIdentity,
    depth_type: str = "FP16",
    wanted: Sequence[str] = _OUTPUTS,
) -> service_pb2.ModelInferResponse:
    """Write an answer on the server.

    Args:
        answer: depth in metres, NaN = unknown; beyond 65504 m FP16 overflows to infinity,
            which clients refuse.
        identity: the teacher that the answer names.
        depth_type: "FP16" (relative rounding below 0.05 %) or "FP32".
        wanted: outputs to send, in this order; confidence only where there is one.
    """
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferResponse(model_name=MODEL_NAME, model_version=identity.version)
    for key, text in identity.as_parameters().items():
        message.parameters[key].string_param = text
    tensors = {"depth": (answer.depth, depth_type), "confidence": (answer.confidence, "FP16")}
    for name in wanted:
        values, datatype = tensors[name]
        if values is None:
            continue
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(values, dtype=FLOAT_TYPES[datatype])
        message.outputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_output_contents.append(array.tobytes())
    return message


def read_answer(message: service_pb2.ModelInferResponse) -> DepthAnswer:
    """Read an answer on the client; a depth of 0 becomes NaN (unknown).

    Raises:
        TeacherAnswerError: the message breaks the protocol; the text says where.
    """
    names = [output.name for output in message.outputs]
    if "depth" not in names:
        raise TeacherAnswerError(f"the answer has no output `depth`, only {names}")
    depth = _read_map(message, names.index("depth"))
    depth[depth == 0] = np.nan
    confidence = None
    if "confidence" in names:
        confidence = _read_map(message, names.index("confidence"))
    texts = {key: value.string_param for key, value in message.parameters.items()}
    return DepthAnswer(depth, confidence, TeacherIdentity.from_parameters(texts))


def _read_bytes(tensor: Any, raw: bytes | None) -> bytes:
    if tensor.datatype != "BYTES" or list(tensor.shape) != [1]:
        raise BadRequestError(
            f"`image` must be BYTES [1], got {tensor.datatype} {list(tensor.shape)}"
        )
    if raw is None:
        if len(tensor.contents.bytes_contents) != 1:
            raise BadRequestError("`image` must hold exactly one element, the encoded image")
        return bytes(tensor.contents.bytes_contents[0])
    if len(raw) < 4 or struct.unpack("<I", raw[:4])[0] != len(raw) - 4:
        raise BadRequestError(
            "`image` in raw_input_contents must be one element behind its length (4 bytes, "
            "little-endian)"
        )
    return raw[4:]


def _read_intrinsics(tensor: Any, raw: bytes | None) -> Intrinsics:
    if tensor.datatype != "FP32" or list(tensor.shape) != [4]:
        raise BadRequestError(
            f"`intrinsics` must be FP32 [4] (fx, fy, cx, cy in pixels), got {tensor.datatype} "
            f"{list(tensor.shape)}"
        )
    if raw is None:
        values = [float(number) for number in tensor.contents.fp32_contents]
    else:
        values = np.frombuffer(raw, "<f4").tolist() if len(raw) % 4 == 0 else []
    if len(values) != 4:
        raise BadRequestError("`intrinsics` must hold exactly 4 numbers of 4 bytes")
    try:
        return Intrinsics(*values)
    except BadIntrinsicsError as error:
        raise BadRequestError(str(error)) from error


def _read_integer(parameters: Mapping[str, Any], name: str, unit: str) -> int:
    if name not in parameters:
        return 0
    kind = parameters[name].WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise BadRequestError(f"the parameter `{name}` must be an int64, {unit}")
    return int(getattr(parameters[name], kind))


def _read_side(parameters: Mapping[str, Any]) -> int:
    side = _read_integer(parameters, "max_depth_side", "pixels")
    if side < 0:
        raise BadRequestError(
            f"the parameter `max_depth_side` must be a number of pixels, or 0 for all, got {side}"
        )
    return side


def _read_map(message: service_pb2.ModelInferResponse, index: int) -> npt.NDArray[np.float32]:
    output = message.outputs[index]
    shape = tuple(output.shape)
    if output.datatype not in FLOAT_TYPES:
        raise TeacherAnswerError(f"`{output.name}` must be FP16 or FP32, got {output.datatype}")
    if len(shape) != 2 or min(shape) < 1:
        raise TeacherAnswerError(f"`{output.name}` must have the shape [H, W], got {list(shape)}")
    if message.raw_output_contents:
        kind = np.dtype(FLOAT_TYPES[output.datatype]).newbyteorder("<")
        raw = (
            message.raw_output_contents[index] if index < len(message.raw_output_contents) else b""
        )
        values = np.frombuffer(raw, kind) if len(raw) % kind.itemsize == 0 else np.empty(0, kind)
    else:
        values = np.array(output.contents.fp32_contents, np.float32)
    if values.size != shape[0] * shape[1]:
        raise TeacherAnswerError(
            f"`{output.name}` says {list(shape)} and carries {values.size} numbers"
        )
    result: npt.NDArray[np.float32] = values.astype(np.float32).reshape(shape)
    return result
