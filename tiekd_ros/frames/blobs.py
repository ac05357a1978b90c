"""What is stored of an image as bytes."""

from __future__ import annotations

from typing import NamedTuple

from tiekd_ros.frames.labels import encode_label
from tiekd_ros.frames.records import KeptLabel, Observation
from tiekd_ros.images import encode_jpeg, encode_mask_png


class Blobs(NamedTuple):
    """A frame's image, with what belongs to it where it is logged."""

    jpeg: bytes
    blind_png: bytes | None
    """The mask of what the camera did not see; None = it saw all."""
    depth_png: bytes | None
    """The label, where it is known already."""


def encode_frame(observation: Observation, label: KeptLabel | None, jpeg_quality: int) -> Blobs:
    """Encode an image, its mask, and the label that is known already.

    Raises:
        BadDepthError: no pixel of the label is known.
    """
    jpeg = encode_jpeg(observation.image, jpeg_quality)
    blind_png = None if observation.blind is None else encode_mask_png(observation.blind)
    depth_png = None if label is None else encode_label(label.depth, None, blind_png)[0]
    return Blobs(jpeg, blind_png, depth_png)
