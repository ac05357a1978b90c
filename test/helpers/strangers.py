"""Plain tritonclient code that knows nothing of this package."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from helpers.children import PATIENCE_S


def image_input(data: bytes) -> triton.InferInput:
    """Return an encoded image as the protocol's input."""
    image = triton.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([data], dtype=np.object_))
    return image


def infer(url: str, data: bytes, model: str = "depth_teacher", **arguments) -> triton.InferResult:
    """Ask a server for the depth of an encoded image."""
    with triton.InferenceServerClient(url) as client:
        return client.infer(
            model, [image_input(data)], **{"client_timeout": PATIENCE_S, **arguments}
        )


def refusal(url: str, data: bytes, **arguments) -> tuple[str, str]:
    """Return the status code and the text with which a server refuses an encoded image."""
    with pytest.raises(InferenceServerException) as raised:
        infer(url, data, **arguments)
    return raised.value.status().removeprefix("StatusCode."), raised.value.message()
