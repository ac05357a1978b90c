"""The one error of the dataset readers."""

from __future__ import annotations

from tiekd_ros.errors import TiekdError


class DatasetError(TiekdError):
    """A file or folder is not what the reader needs; the message names it and the way out."""
