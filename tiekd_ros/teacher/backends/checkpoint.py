"""Find and load a depth network's checkpoint: a local folder, or one of the Hugging Face hub.

Weights come from safetensors alone, and no code that lies beside them is run.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiekd_ros.devices import choose_device
from tiekd_ros.teacher.backends.fingerprint import fingerprint
from tiekd_ros.teacher.backends.image_recipe import ImageRecipe
from tiekd_ros.teacher.backends.options import BackendOptions
from tiekd_ros.teacher.backends.outputs import INVERSE_DEPTH, METRIC, Meaning
from tiekd_ros.teacher.backends.recipe_file import CONFIG_FILES, read_recipe
from tiekd_ros.teacher.backends.sources import check_model
from tiekd_ros.teacher.errors import BackendError

_LOG = logging.getLogger(__name__)

_FILES = ("config.json", *CONFIG_FILES, "model*.safetensors", "model*.safetensors.index.json")
_METRIC_KINDS = {"glpn", "zoedepth", "depth_pro", "tipsv2_dpt"}
# DPT's first fusion layer has no skip connection, and so never uses these; Intel's checkpoints
# leave them out.
_UNUSED = re.compile(r"fusion_stage\.layers\.0\.residual_layer1\.")
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


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


def open_checkpoint(options: BackendOptions) -> Checkpoint:
    """Load the checkpoint that `options.model` names.

    Raises:
        InvalidSettingError: the folder or the device does not exist.
        BackendError: transformers is missing, the checkpoint cannot be had or lacks something,
            or it does not say what its numbers mean.
    """
    device = choose_device(options.device)
    dtype = _pick_dtype(options.dtype, device)
    folder = find_folder(options.model)
    config = _load_config(folder)  # first: without a depth network no other advice helps
    recipe = read_recipe(folder, options.input_side, options.max_input_pixels)
    meaning = read_meaning(config, options.meaning)
    network = _load_network(folder, config, dtype)
    try:
        network = network.to(device).eval()
    except RuntimeError as error:  # no memory, no driver
        raise BackendError(f"{folder} does not fit on {device}: {_first_line(error)}") from error
    # What changes the answers; device and number type do not, beyond rounding.
    extra = {"meaning": meaning, "input_side": options.input_side}
    version = fingerprint((path for name in _FILES for path in folder.glob(name)), extra)
    name = folder.resolve().name if Path(options.model).expanduser().is_dir() else options.model
    return Checkpoint(name, version, network, config, meaning, recipe, device, dtype)


def find_folder(model: str) -> Path:
    """Return a checkpoint's folder, downloaded first where `model` is a hub id.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN count, as everywhere with the hub.

    Raises:
        InvalidSettingError: it is neither a folder nor a hub id.
        BackendError: the hub does not give it.
    """
    check_model(model)
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


def _pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]


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
