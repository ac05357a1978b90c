"""Depth networks of transformers, tiny and with random weights, written as real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SPREAD = 1.0  # of random weights: depths differ within a picture, and yet none is at an end
_FIELD_OF_VIEW = "fov_model.head.layers.4.bias"

DEPTH_ANYTHING_IMAGES = {
    "image_processor_type": "DPTImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": False,
    "size": {"height": 56, "width": 56},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
DPT_IMAGES = {
    **DEPTH_ANYTHING_IMAGES,
    "size": {"height": 64, "width": 64},
    "keep_aspect_ratio": False,
    "ensure_multiple_of": 1,
}
GLPN_IMAGES = {
    "feature_extractor_type": "GLPNFeatureExtractor",
    "do_rescale": True,
    "do_resize": True,
    "resample": 2,
    "size_divisor": 32,
}
DEPTH_PRO_IMAGES = {
    "image_processor_type": "DepthProImageProcessorFast",
    "size": {"height": 64, "width": 64},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
ZOE_IMAGES = {
    **DEPTH_PRO_IMAGES,
    "image_processor_type": "ZoeDepthImageProcessor",
    "do_pad": True,
    "size": {"height": 56, "width": 70},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
}
_TINY = {"hidden_size": 16, "num_attention_heads": 2}
_FUSION = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}


def write_depth_anything(folder: Path, *, metric: bool = True, seed: int = 0) -> Path:
    """Write a tiny Depth Anything V2, to 10 m: 0.1 MB, about 10 ms an image."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    config = DepthAnythingConfig(
        backbone_config=_dinov2(),
        reassemble_hidden_size=16,
        **_FUSION,
        head_hidden_size=8,
        depth_estimation_type="metric" if metric else "relative",
        max_depth=10 if metric else 1,
    )
    return _write(folder, DepthAnythingForDepthEstimation, config, DEPTH_ANYTHING_IMAGES, seed)


def write_dpt(folder: Path, *, dinov2: bool = False) -> Path:
    """Write a tiny DPT: MiDaS's, which answers inverse depth, or a head on DINOv2."""
    from transformers import DPTConfig, DPTForDepthEstimation

    own: dict[str, Any] = {
        **_TINY,
        "num_hidden_layers": 4,
        "intermediate_size": 32,
        "image_size": 64,
        "patch_size": 16,
        "backbone_out_indices": [0, 1, 2, 3],
    }
    on_dinov2 = {"backbone_config": _dinov2(), "hidden_size": 16}
    config = DPTConfig(**_FUSION, **(on_dinov2 if dinov2 else own))
    return _write(folder, DPTForDepthEstimation, config, DPT_IMAGES)


def write_glpn(folder: Path) -> Path:
    """Write a tiny GLPN, to 10 m."""
    from transformers import GLPNConfig, GLPNForDepthEstimation

    config = GLPNConfig(
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
        max_depth=10,
    )
    return _write(folder, GLPNForDepthEstimation, config, GLPN_IMAGES)


def write_zoe(folder: Path, *, heads: int = 1) -> Path:
    """Write a tiny ZoeDepth with one metric head of 0.1 to 8 m, or another one, to 80 m."""
    from transformers import ZoeDepthConfig, ZoeDepthForDepthEstimation

    bins = [
        {"name": "near", "n_bins": 8, "min_depth": 0.1, "max_depth": 8.0},
        {"name": "far", "n_bins": 8, "min_depth": 10.0, "max_depth": 80.0},
    ]
    config = ZoeDepthConfig(
        backbone_config=_dinov2(),
        **_FUSION,
        bottleneck_features=8,
        num_relative_features=4,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=bins[:heads],
        num_patch_transformer_layers=4,  # no other number runs
        patch_transformer_hidden_size=128,  # what the vote for a head takes
        patch_transformer_intermediate_size=32,
        patch_transformer_num_attention_heads=2,
    )
    return _write(folder, ZoeDepthForDepthEstimation, config, ZOE_IMAGES)


def write_depth_pro(folder: Path, *, field_of_view: bool = True) -> Path:
    """Write a tiny Depth Pro, with or without the head that guesses the field of view."""
    from transformers import DepthProConfig, DepthProForDepthEstimation

    part = {
        **_TINY,
        "model_type": "dinov2",
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = DepthProConfig(
        patch_size=32,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.25],
        scaled_images_feature_dims=[16, 16],
        **{f"{name}_model_config": dict(part) for name in ("image", "patch", "fov")},
        use_fov_model=field_of_view,
    )
    return _write(folder, DepthProForDepthEstimation, config, DEPTH_PRO_IMAGES)


def _dinov2() -> Any:
    from transformers import Dinov2Config

    return Dinov2Config(
        **_TINY,
        num_hidden_layers=4,
        patch_size=14,
        image_size=56,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )


def _write(
    folder: Path, kind: type[Any], config: Any, images: dict[str, Any], seed: int = 0
) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config).eval()
        with torch.no_grad():
            for name, weights in network.named_parameters():
                # As they come, the weights are so small that every pixel gets the same depth.
                if weights.ndim > 1 and "backbone" not in name:
                    weights.normal_(0, _SPREAD * weights[0].numel() ** -0.5)
                if name == _FIELD_OF_VIEW:
                    weights.fill_(60.0)  # degrees
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2))
    return folder
