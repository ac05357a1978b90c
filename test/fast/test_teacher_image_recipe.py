"""A checkpoint's images are prepared as transformers itself prepares them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from helpers.checkpoints import (
    DEPTH_ANYTHING_IMAGES,
    DEPTH_PRO_IMAGES,
    DPT_IMAGES,
    GLPN_IMAGES,
    ZOE_IMAGES,
)
from helpers.onnx_teachers import grey_picture
from helpers.teachers import picture
from tiekd_ros.teacher.backends.image_recipe import read_recipe, resized
from tiekd_ros.teacher.errors import BackendError, BackendRefusal

MANY = 10**8
ONE_GREY_LEVEL = 1 / 255 / 0.224  # after normalising with the smallest std
VIT_IMAGES = {"image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 42}}


def recipe(folder, config, side=0, limit=MANY):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return read_recipe(folder, side, limit)


def prepared(found, *images):
    return found.prepare(images, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        DEPTH_ANYTHING_IMAGES,
        DPT_IMAGES,
        {**DPT_IMAGES, "do_pad": True, "size_divisor": 48},
        {"feature_extractor_type": "DPTFeatureExtractor", "size": 40, "resample": 2},
        GLPN_IMAGES,
        ZOE_IMAGES,
        VIT_IMAGES,
    ],
    ids=["depth_anything", "dpt", "dpt_padded", "dpt_old", "glpn", "zoe", "vit"],
)
def test_pixels_are_those_of_the_library(tmp_path, config):
    pytest.importorskip("PIL")
    from transformers import AutoImageProcessor

    found = recipe(tmp_path, config)
    library = AutoImageProcessor.from_pretrained(tmp_path)
    for width, height in ((64, 48), (200, 90), (72, 120)):
        image = picture(3, width, height)
        ours = prepared(found, image).pixels
        theirs = library(images=image, return_tensors="pt")["pixel_values"]
        assert ours.shape == theirs.shape
        # PIL rounds to bytes, and cuts bicubic's overshoot off, also between rows and columns.
        difference = (ours - theirs).abs()
        assert float(difference.max()) <= 6 * ONE_GREY_LEVEL
        assert float(difference.mean()) <= 0.5 * ONE_GREY_LEVEL


def test_depth_pro_s_images_become_square_without_smoothing(tmp_path):
    flat = np.full((48, 100, 3), 51, np.uint8)
    pixels = prepared(recipe(tmp_path, DEPTH_PRO_IMAGES), flat).pixels
    assert pixels.shape == (1, 3, 64, 64)
    torch.testing.assert_close(pixels, torch.full_like(pixels, (51 / 255 - 0.5) / 0.5))
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    halved = prepared(recipe(tmp_path, DEPTH_PRO_IMAGES), stripes).pixels
    torch.testing.assert_close(halved, torch.zeros_like(halved), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        DEPTH_ANYTHING_IMAGES,
        {**DPT_IMAGES, "do_pad": True, "size_divisor": 48},
        {**ZOE_IMAGES, "size": {"height": 280, "width": 350}},
    ],
    ids=["none", "divisor", "zoe"],
)
def test_what_was_padded_is_cut_off_the_output_again(tmp_path, config):
    image = grey_picture(width=200, height=160)
    ready = prepared(recipe(tmp_path, config), image)
    # A network that gives its input back, at a quarter of the resolution.
    height, width = ready.pixels.shape[2:]
    output = resized(ready.pixels[:, 0], (height // 2, width // 2))
    content = resized(ready.content_of(output), (40, 50))[0]
    mean, std = config["image_mean"][0], config["image_std"][0]
    seen = (content * std + mean).numpy()
    wanted = image[..., 0].reshape(40, 4, 50, 4).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(seen[2:-2, 2:-2], wanted[2:-2, 2:-2], atol=0.06)


def test_another_input_side_replaces_the_checkpoint_s_and_wide_images_keep_their_aspect(tmp_path):
    found = recipe(tmp_path, DEPTH_ANYTHING_IMAGES, side=112)
    assert found.input_size(480, 640) == (112, 154)
    with pytest.raises(BackendError, match="leave out input_side"):
        recipe(tmp_path, GLPN_IMAGES, side=112)
    config = {**DEPTH_ANYTHING_IMAGES, "size": {"height": 518, "width": 518}}
    assert recipe(tmp_path, config).input_size(480, 640) == (518, 686)
    height, width = recipe(tmp_path, config).input_size(375, 1242)
    assert width / height == pytest.approx(1242 / 375, rel=0.03)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (DEPTH_ANYTHING_IMAGES, (16, 16000, 3)),  # would be 896000 pixels wide for 56 high
        (GLPN_IMAGES, (1000, 1200, 3)),
        (GLPN_IMAGES, (20, 400, 3)),
        (ZOE_IMAGES, (2, 400, 3)),
    ],
    ids=["strip", "large", "flat", "flatter"],
)
def test_an_image_that_would_be_too_large_or_too_small_is_refused(tmp_path, config, shape):
    found = recipe(tmp_path, config, limit=1_000_000)
    with pytest.raises(BackendRefusal, match=f"{shape[1]}x{shape[0]}"):
        prepared(found, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"image_processor_type": "OwlProcessor"}, "'OwlProcessor' is not known.*GLPN"),
        ({**DPT_IMAGES, "do_center_crop": True}, "cuts images"),
        ({**DPT_IMAGES, "resample": 1}, "resample must be one of"),
        ({**DPT_IMAGES, "size": {"shortest_edge": 384}}, "height and width, got"),
        ({**DPT_IMAGES, "image_mean": [0.5]}, "cannot be used.*3 channels"),
        ([1], "no readable JSON object"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(tmp_path, config, words):
    with pytest.raises(BackendError, match=words):
        recipe(tmp_path, config)


def test_newer_checkpoints_have_it_inside_their_processor_s_file_and_one_there_must_be(tmp_path):
    with pytest.raises(BackendError, match=r"has no preprocessor_config\.json"):
        read_recipe(tmp_path, 0, MANY)
    content = {"processor_class": "DepthProcessor", "image_processor": DEPTH_ANYTHING_IMAGES}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert read_recipe(tmp_path, 0, MANY) == recipe(tmp_path, DEPTH_ANYTHING_IMAGES)
