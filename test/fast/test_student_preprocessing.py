"""What the network sees is the same wherever it is prepared: with OpenCV or on a device."""

import numpy as np
import torch

from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.preprocessing import (
    STD,
    DevicePreprocessing,
    normalise,
    normalise_on_cpu,
    resize_image,
)

RNG = np.random.default_rng(0)
SIZE = InputSize(96, 128)
ONE_VALUE = 1 / min(STD)  # of 0..255, normalised: OpenCV rounds a half its own way


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_table_gives_what_the_arithmetic_gives():
    image = noise(96, 128)
    expected = normalise(torch.from_numpy(image)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(normalise_on_cpu(image), expected, atol=1e-6)


def test_preprocessing_on_a_device_gives_what_opencv_gives():
    for before in (
        (96, 128), (192, 256), (480, 640), (100, 131), (97, 128), (48, 64), (96, 100), (1, 1),
        (60, 300),
    ):  # fmt: skip
        image = noise(*before)
        assert DevicePreprocessing.can_resize(before, SIZE)
        given = DevicePreprocessing(before, SIZE)(torch.from_numpy(image))
        assert given.shape == (1, 3, 96, 128)
        assert given.is_contiguous(memory_format=torch.channels_last)
        expected = normalise_on_cpu(resize_image(image, SIZE))
        np.testing.assert_allclose(given[0].permute(1, 2, 0), expected, atol=1.01 * ONE_VALUE)
        assert np.abs(given[0].permute(1, 2, 0).numpy() - expected).mean() < 0.2 * ONE_VALUE
    assert not DevicePreprocessing.can_resize((200, 100), SIZE)  # OpenCV has its own way for it
