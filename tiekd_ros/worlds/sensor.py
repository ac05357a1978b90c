"""What a cheap camera makes of the light: exposure, colour, blur, noise, compression.

Everything here changes the image only; it never moves a pixel, so depth stays exact.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.images import RgbImage

Reals = npt.NDArray[np.float32]


def random_exposure(linear: Reals, rng: np.random.Generator) -> RgbImage:
    """Return a random camera's image, uint8 (H, W, 3), of colours (H, W, 3) in 0..255 and above."""
    image = _toned(linear, rng)
    if rng.random() < 0.4:
        image = _blurred(image, rng)
    if rng.random() < 0.85:
        image = _noisy(image, rng)
    out: RgbImage = np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        out = _compressed(out, rng)
    return out


def _toned(linear: Reals, rng: np.random.Generator) -> Reals:
    """Return the image after exposure, white balance, saturation, vignette and gamma."""
    gains = np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.08, 3))
    mixing = np.diag(gains)
    grey = np.full((3, 3), 1 / 3)
    keep = 0.0 if rng.random() < 0.08 else float(rng.uniform(0.3, 1.5))  # 0: a grey image
    mixing = mixing @ (keep * np.eye(3) + (1 - keep) * grey)
    if rng.random() < 0.3:  # another palette: colours must not mean a thing
        mixing = mixing @ _swapped_palette(rng)
    toned: Reals = np.clip(linear @ mixing.T.astype(np.float32), 0, 400) / np.float32(255)
    if rng.random() < 0.5:
        toned *= _vignette(toned.shape, rng)[..., None]
    toned = np.power(toned, np.float32(np.exp(rng.normal(0, 0.2))))
    lift = float(rng.uniform(-0.05, 0.12))
    toned = np.float32(lift) + np.float32(1 - lift) * toned
    return toned * np.float32(255)


def _swapped_palette(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a 3x3 colour matrix whose rows sum to 1, part of the way to swapped channels."""
    swapped = np.eye(3)[rng.permutation(3)]
    share = rng.uniform(0.2, 1.0)
    mixed: npt.NDArray[np.float64] = share * swapped + (1 - share) * np.eye(3)
    return mixed


def _vignette(shape: tuple[int, ...], rng: np.random.Generator) -> Reals:
    height, width = shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    off = np.hypot(x - width / 2, y - height / 2) / np.float32(np.hypot(width, height) / 2)
    falloff: Reals = 1 - np.float32(rng.uniform(0.05, 0.5)) * off * off
    return falloff


def _blurred(image: Reals, rng: np.random.Generator) -> Reals:
    """Return the image out of focus, or smeared by motion; about one in two each."""
    scale = image.shape[1] / 320
    if rng.random() < 0.5:
        sigma = float(rng.uniform(0.3, 1.6)) * scale
        blurred: Reals = cv2.GaussianBlur(image, (0, 0), max(sigma, 0.2))
        return blurred
    reach = max(1, round(float(rng.uniform(1, 5)) * scale))
    size = 2 * reach + 1
    kernel = np.zeros((size, size), np.float32)
    angle = rng.uniform(0, np.pi)
    shift = reach * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple((reach + sign * shift).round().astype(int).tolist()) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    smeared: Reals = cv2.filter2D(image, -1, kernel / kernel.sum())
    return smeared


def _noisy(image: Reals, rng: np.random.Generator) -> Reals:
    """Add read and shot noise, coarse-grained at times as demosaicing makes it."""
    read, shot = np.float32(rng.uniform(0, 6)), np.float32(rng.uniform(0, 0.6))
    grain = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.5:
        grain = cv2.GaussianBlur(grain, (3, 3), 0.7) * np.float32(2.2)
    strength = read + shot * np.sqrt(np.clip(image, 0, 255))
    noisy: Reals = image + grain * strength
    return noisy


def _compressed(image: RgbImage, rng: np.random.Generator) -> RgbImage:
    quality = int(rng.integers(30, 96))
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: RgbImage = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return decoded
