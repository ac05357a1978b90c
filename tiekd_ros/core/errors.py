"""Errors that a user can cause.

The message says what was wrong, with the value that was received, and the way out. Programs print
it without a traceback.
"""

from __future__ import annotations


class TiekdError(Exception):
    """Base of all errors that a user can mend."""


class InvalidSettingError(TiekdError, ValueError):
    """A setting has a value that cannot work."""


class BadImageError(TiekdError, ValueError):
    """Bytes or an array that are no usable image."""


class BadDepthError(TiekdError, ValueError):
    """A depth map that cannot be believed or stored."""


class BadIntrinsicsError(TiekdError, ValueError):
    """Camera intrinsics that describe no camera."""


class RoundRefusedError(TiekdError):
    """A round cannot start; the message says what is missing."""


class DatasetError(TiekdError):
    """A file or folder is not what the reader needs; the message names it and the way out."""
