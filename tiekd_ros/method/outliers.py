"""Labels that lie: those that disagree with a student by far more than their neighbours in time.

What is hard, and what is new, comes in stretches; a label that alone is off does not. So a frame
is compared with the frames around it, and a place where a student is wrong throughout has no
outlier. docs/learning.md has how many lies that finds, and how many honest labels it costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

OUTLIER_FACTOR = 1.5
_REACH = 4  # neighbours on each side
_LEAST = 5  # frames whose median says something


def outliers(
    errors: Sequence[float] | npt.NDArray[np.floating], factor: float = OUTLIER_FACTOR
) -> npt.NDArray[np.bool_]:
    """Return which frames' errors are more than `factor` times the median of their neighbours'.

    Args:
        errors: of a student against the labels, (N,), in the order of time; NaN = not known, and
            no outlier.
        factor: above 1.

    Returns:
        (N,), True for an outlier.
    """
    values = np.asarray(errors, np.float64)
    found = np.zeros(len(values), np.bool_)
    if np.isfinite(values).sum() < _LEAST:
        return found
    padded = np.pad(values, _REACH, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH + 1)
    enough = np.isfinite(around).sum(axis=1) >= _LEAST
    found[enough] = values[enough] > factor * np.nanmedian(around[enough], axis=1)
    return found
