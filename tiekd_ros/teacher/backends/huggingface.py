"""A teacher of transformers' `AutoModelForDepthEstimation`: Depth Anything, DPT, GLPN, ...

Weights come from safetensors alone, and no code of a checkpoint is run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import RgbImage
from tiekd_ros.core.settings import setting
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.backends.image_recipe import CONFIG_FILES, ImageRecipe, read_recipe, resized
from tiekd_ros.teacher.backends.network import (
    INVERSE_DEPTH,
    METRIC,
    NEEDS_FOCAL,
    PROBE,
    BatchedBackend,
    Meaning,
    NetworkSettings,
    answer_size,
    fingerprint,
    finished,
    identity_of,
)
from tiekd_ros.teacher.errors import BackendError, BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)

_FILES = ("config.json", *CONFIG_FILES, "model*.safetensors", "model*.safetensors.index.json")
_METRIC_KINDS = {"glpn", "zoedepth", "depth_pro", "tipsv2_dpt"}
# DPT's first fusion layer has no skip connection, and so never uses these; Intel's checkpoints
# leave them out.
_UNUSED = re.compile(r"fusion_stage\.layers\.0\.residual_layer1\.")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class HuggingFaceSettings(NetworkSettings):
    """A checkpoint, and how its network runs."""

    MISSING = (
        "the huggingface backend needs a checkpoint: give model=DIR or model=ORG/NAME (--model)"
    )

    model: str = setting("", "a checkpoint's folder, or its hub id (ORG/NAME, ORG/NAME@REVISION)")
    dtype: str = setting(
        "auto",
        "number type of the network; auto is float16 on a GPU, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    meaning: str = setting(
        "auto",
        "what the network's numbers are, where its configuration does not say it",
        choices=("auto", "metric", "relative_depth", "inverse_depth"),
    )
    input_side: int = setting(
        0,
        "height and width that images are fitted to, in place of the checkpoint's own; 0 keeps "
        "that. Smaller is faster and less sharp",
        unit="pixels",
        minimum=0,
        maximum=8192,
    )

    def check_source(self) -> None:
        """Check that `model` is a folder here, or can be a hub id."""
        path = Path(self.model).expanduser()
        if path.is_file():
            raise InvalidSettingError(
                f"model {self.model!r} is a file; give the folder that it lies in, {path.parent}"
            )
        if not path.is_dir() and not _HUB_ID.fullmatch(self.model):
            raise InvalidSettingError(
                f"model {self.model!r} is no folder here, and no hub id either (ORG/NAME or "
                "ORG/NAME@REVISION)"
            )

    def load(self) -> Backend:
        """Load the checkpoint, from the hub where it is no folder, and try it once."""
        return HuggingFaceBackend(self)


@dataclass(frozen=True)
class Checkpoint:
    """A network ready to run, and what is known about it."""

    name: str
    version: str
    network: torch.nn.Module
    config: Any
    """transformers' configuration."""
    meaning: Meaning
    recipe: ImageRecipe
    device: torch.device
    dtype: torch.dtype


def open_checkpoint(settings: HuggingFaceSettings) -> Checkpoint:
    """Load the checkpoint that `settings.model` names.

    Raises:
        InvalidSettingError: the device does not exist.
        BackendError: transformers is missing, the checkpoint cannot be had or lacks something,
            or it does not say what its numbers mean.
    """
    import torch

    device = choose_device(settings.device)
    auto = "float16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, auto if settings.dtype == "auto" else settings.dtype)
    folder = find_folder(settings.model)
    config = _load_config(folder)  # first: without a depth network no other advice helps
    recipe = read_recipe(folder, settings.input_side, settings.max_input_pixels)
    meaning = read_meaning(config, settings.meaning)
    network = _load_network(folder, config, dtype)
    try:
        network = network.to(device).eval()
    except RuntimeError as error:  # no memory, no driver
        raise BackendError(f"{folder} does not fit on {device}: {_first_line(error)}") from error
    # What changes the answers; device and number type do not, beyond rounding.
    extra = {"meaning": meaning, "input_side": settings.input_side}
    version = fingerprint((path for name in _FILES for path in folder.glob(name)), extra)
    name = folder.resolve().name if Path(settings.model).expanduser().is_dir() else settings.model
    return Checkpoint(name, version, network, config, meaning, recipe, device, dtype)


def find_folder(model: str) -> Path:
    """Return a checkpoint's folder, downloaded first where `model` is a hub id.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN count, as everywhere with the hub.

    Raises:
        BackendError: the hub does not give it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BackendError(_missing_package(error)) from error
    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's errors have no common root
        raise BackendError(
            f"no folder {model!r} is here, and the Hugging Face hub did not give it: "
            f"{_first_line(error)}; check the name and the network, or download it elsewhere and "
            "give the folder"
        ) from error


def read_meaning(config: Any, said: str = "auto") -> Meaning:
    """Return what the numbers of a network of this configuration are.

    Args:
        config: transformers' configuration.
        said: what the user says, which goes before; "auto" says nothing.

    Raises:
        BackendError: the configuration does not tell, and neither does the user.
    """
    kind = config.model_type
    if said != "auto":
        return said  # type: ignore[return-value]
    if kind == "depth_anything":
        return METRIC if config.depth_estimation_type == "metric" else INVERSE_DEPTH
    if kind in _METRIC_KINDS:
        return METRIC
    backbone = getattr(getattr(config, "backbone_config", None), "model_type", "")
    # MiDaS's networks answer inverse depth; DPT heads on DINOv2 were trained on metres.
    if kind == "dpt" and backbone != "dinov2":
        return INVERSE_DEPTH
    on = f" on {backbone}" if backbone else ""
    raise BackendError(
        f"what the numbers of a {kind}{on} network mean does not stand in its configuration: say "
        "it with meaning=metric, relative_depth or inverse_depth (--meaning)"
    )


def _load_config(folder: Path) -> Any:
    try:
        from transformers import MODEL_FOR_DEPTH_ESTIMATION_MAPPING, AutoConfig
    except ImportError as error:
        raise BackendError(_missing_package(error)) from error
    if not (folder / "config.json").is_file():
        raise BackendError(f"{folder} is no checkpoint of a depth model: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a broken file anything can come
        raise BackendError(
            f"{folder} is no checkpoint that transformers knows: {_first_line(error)}"
        ) from error
    if type(config) not in MODEL_FOR_DEPTH_ESTIMATION_MAPPING:
        raise BackendError(
            f"{folder} is not a depth model: its configuration is of a {config.model_type} "
            "network, and AutoModelForDepthEstimation has none of these"
        )
    return config


def _load_network(folder: Path, config: Any, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoModelForDepthEstimation
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not list(folder.glob("model*.safetensors")):
        raise BackendError(
            f"{folder} has no model.safetensors; pickled weights are not read: convert them with "
            "save_pretrained, on a machine where they may be trusted"
        )
    try:
        network, report = AutoModelForDepthEstimation.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # of a broken file anything can come
        raise BackendError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    _check_complete(folder, network, report["missing_keys"])
    loaded: torch.nn.Module = network
    return loaded


def _check_complete(folder: Path, network: torch.nn.Module, missing: set[str]) -> None:
    """Refuse a network some of whose weights are random."""
    parameters = {name for name, _ in network.named_parameters()}
    lacking = sorted(name for name in missing if name in parameters and not _UNUSED.search(name))
    if lacking:
        raise BackendError(
            f"{folder} lacks {len(lacking)} of the network's {len(parameters)} weights, "
            f"{lacking[0]} for example, which would be random: is it a checkpoint for depth?"
        )


def _missing_package(error: ImportError) -> str:
    return (
        f"the huggingface backend needs transformers ({error}): pip install "
        "'tiekd_ros[huggingface]'"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class HuggingFaceBackend(BatchedBackend):
    """One checkpoint on one device; several images of one size are one batch.

    Metres where the network is metric, else its own numbers (`meaning` says which). Depth Pro's
    numbers become metres by the request's focal length, or by the field of view that it guesses
    itself where the request has none.

    Raises:
        InvalidSettingError: the device does not exist.
        BackendError: the checkpoint cannot be had, lacks something or does not run.
    """

    def __init__(self, settings: HuggingFaceSettings) -> None:
        """Load the checkpoint that `settings.model` names and try it once."""
        loaded = self._checkpoint = open_checkpoint(settings)
        self.meaning = loaded.meaning
        self.identity = identity_of(loaded.name, loaded.version, self.meaning)
        self._canonical = loaded.config.model_type == "depth_pro" and self.meaning == METRIC
        self._guesses = bool(getattr(loaded.config, "use_fov_model", False))
        # ZoeDepth's votes for one of its heads with all images of a batch: neighbours would change
        # an image's metres.
        self._alone = len(getattr(loaded.config, "bin_configurations", None) or ()) > 1
        size = self._try()
        _LOG.info(
            "%s version %s on %s in %s, %s, %dx%d for %dx%d images",
            self.identity.name, self.identity.version, loaded.device,
            str(loaded.dtype).removeprefix("torch."), self.meaning, *size[::-1], *PROBE[::-1],
        )  # fmt: skip

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse a size that does not suit the network, or a request without its intrinsics."""
        self._checkpoint.recipe.seen_size(height, width)
        if self._canonical and not self._guesses and request.intrinsics is None:
            raise BackendRefusal(NEEDS_FOCAL)

    def seen_focal_px(
        self, intrinsics: Intrinsics, height: int, width: int
    ) -> tuple[float, float] | None:
        """Return (fx, fy) in pixels of the network's input; None where it counts itself."""
        if self._canonical:
            return None
        x, y = self._checkpoint.recipe.magnification(height, width)
        return intrinsics.fx * x, intrinsics.fy * y

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size in one pass; errors as `check`'s."""
        import torch

        if self._alone and len(images) > 1:
            return [self.infer(*pair) for pair in zip(images, requests, strict=True)]
        loaded = self._checkpoint
        height, width = images[0].shape[:2]
        with torch.inference_mode():
            prepared = loaded.recipe.prepare(images, loaded.device, loaded.dtype)
            output = loaded.network(pixel_values=prepared.pixels)
            maps = output.predicted_depth.float()  # (B, h, w)
            content = prepared.content_size(maps.shape[1], maps.shape[2])
            maps = resized(prepared.content_of(maps), answer_size((height, width), content))
            if self._canonical:
                maps = self._metres(maps, output.field_of_view, requests, width)
            values = maps.cpu().numpy()
        return [DepthAnswer(finished(depth, self.meaning)) for depth in values]

    def _metres(
        self,
        canonical: torch.Tensor,
        fields_of_view: torch.Tensor | None,
        requests: Sequence[DepthRequest],
        width: int,
    ) -> torch.Tensor:
        """Turn Depth Pro's canonical inverse depth into metres.

        1 / d = canonical * width / focal (arXiv 2410.02073, section 3.2).
        """
        import torch

        guesses: list[float | None] = [None] * len(requests)
        if fields_of_view is not None:  # horizontal, degrees
            half = torch.deg2rad(fields_of_view.float()) / 2
            guesses = (0.5 * width / torch.tan(half)).tolist()
        focals = []
        for request, guess in zip(requests, guesses, strict=True):
            focal = request.intrinsics.fx if request.intrinsics is not None else guess
            if focal is None or not np.isfinite(focal) or focal <= 0:
                raise BackendRefusal(NEEDS_FOCAL)
            focals.append(focal)
        shape = (-1, 1, 1)
        scale = width / torch.tensor(focals, device=canonical.device).view(shape)
        return 1 / (canonical * scale)  # what is not positive becomes unknown

    def _try(self) -> tuple[int, int]:
        """Run once, so that what cannot work stops the start; returns the input's size."""
        import torch

        loaded = self._checkpoint
        image = np.full((*PROBE, 3), 128, np.uint8)
        try:
            with torch.inference_mode():
                prepared = loaded.recipe.prepare([image], loaded.device, loaded.dtype)
                output = loaded.network(pixel_values=prepared.pixels)
                shape = tuple(output.predicted_depth.shape)
                finite = bool(torch.isfinite(output.predicted_depth).any())
        except BackendRefusal as error:
            raise BackendError(f"{loaded.name} cannot serve: {error}") from error
        except Exception as error:
            raise BackendError(
                f"{loaded.name} does not run on {loaded.device} in {loaded.dtype} "
                f"({type(error).__name__}: {error}); try another device or dtype"
            ) from error
        if len(shape) != 3 or shape[0] != 1:
            raise BackendError(f"{loaded.name} answers {shape}, expected (1, height, width)")
        if not finite:
            raise BackendError(
                f"{loaded.name} answers no finite number in {loaded.dtype}: its arithmetic "
                "overflows; say dtype=float32 (--dtype)"
            )
        return prepared.pixels.shape[2], prepared.pixels.shape[3]
