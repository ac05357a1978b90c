"""Fixtures, and what comparing with them gives.

A fixture is a file of named arrays: inputs, metadata and quantities to reproduce. It counts as
checked only when every quantity in it was compared: what no check has asked for is reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch


class FixtureError(Exception):
    """A fixture that cannot be checked; the message says why."""


class Tolerance(NamedTuple):
    """How far a quantity may be off: relative to the reference's largest value, or absolute."""

    limit: float
    unit: str = "of max"  # or "m", "abs", ...: absolute


LOSS = Tolerance(1e-5)
LOSS_F64 = Tolerance(1e-6)  # measured: 1e-8
MAP = Tolerance(2e-5)
GRADIENT = Tolerance(1e-4)
EDGES = Tolerance(2e-7)  # one rounding of float32
EXACT = Tolerance(0.0, "exact")


class Check(NamedTuple):
    """One line of the table."""

    file: str
    quantity: str
    deviation: float | None  # None: nothing could be compared
    tolerance: float | None
    unit: str | None  # of the tolerance
    ok: bool
    note: str = ""


def failed(file: str, quantity: str, note: str) -> Check:
    """Return the line of something that could not be compared."""
    return Check(file, quantity, None, None, None, False, note)


class Fixture:
    """One file of arrays, its checks so far, and which of its arrays they used."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the whole file.

        Args:
            path: the file.
            name: what to call it in the table.

        Raises:
            FixtureError: it is no readable file of plain arrays, or it is empty.
        """
        self.path = path
        self.name = name
        self.checks: list[Check] = []
        self._seen: set[str] = set()
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays: dict[str, np.ndarray] = dict(file)
        except Exception as error:  # zlib.error and whatever else damaged bytes provoke
            raise FixtureError(f"unreadable: {type(error).__name__}: {error}") from error
        if not self.arrays:
            raise FixtureError("the file holds no array")

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def take(self, key: str) -> np.ndarray:
        """Return an input.

        Raises:
            FixtureError: the file lacks it.
        """
        if key not in self.arrays:
            raise FixtureError(f"the array {key!r} is missing")
        self._seen.add(key)
        return self.arrays[key]

    def number(self, key: str) -> float:
        """Return a scalar input; a float32 is taken for the shortest decimal it stands for."""
        value = self.take(key)
        if value.size != 1:
            raise FixtureError(f"the array {key!r} should be one number, is {value.shape}")
        return float(str(value.reshape(-1)[0]))

    def text(self, key: str) -> str:
        return str(self.take(key).item())

    def ignore(self, *keys: str) -> None:
        """Declare metadata that there is nothing to compare with."""
        self._seen.update(keys)

    def keys(self, prefix: str) -> list[str]:
        """Return the rest of every key that starts so."""
        return [key.removeprefix(prefix) for key in self.arrays if key.startswith(prefix)]

    def compare(self, key: str, ours: object, tolerance: Tolerance, note: str = "") -> None:
        """Compare a quantity of the file; one that the file lacks is a miss."""
        if key in self.arrays:
            self.compare_values(key, ours, self.take(key), tolerance, note)
        else:
            self.fail(key, "missing from the file")

    def compare_if_there(self, key: str, ours: object, tolerance: Tolerance) -> None:
        """Compare a quantity that not every file has."""
        if key in self.arrays:
            self.compare(key, ours, tolerance)

    def compare_values(
        self, label: str, ours: object, reference: object, tolerance: Tolerance, note: str = ""
    ) -> None:
        """Compare two arrays under any label."""
        self.checks.append(compared(self.name, label, ours, reference, tolerance, note))

    def fail(self, label: str, note: str) -> None:
        self.checks.append(failed(self.name, label, note))

    def finish(self) -> list[Check]:
        """Return all checks; an array that none of them used is a miss."""
        rest = [key for key in self.arrays if key not in self._seen]
        return [*self.checks, *(failed(self.name, key, "not checked") for key in rest)]


def compared(
    file: str, label: str, ours: object, reference: object, tolerance: Tolerance, note: str = ""
) -> Check:
    """Compare element by element; NaN equals NaN only."""
    a, b = as_array(ours), as_array(reference)
    if a.shape != b.shape:
        return failed(file, label, f"shape {a.shape} where the reference has {b.shape}")
    if b.size == 0:
        return failed(file, label, "the reference is empty")
    if a.dtype.kind in "US" or b.dtype.kind in "US":
        different = int((a != b).sum())
        return Check(file, label, float(different), *tolerance, different == 0, note)
    a, b = a.astype(np.float64), b.astype(np.float64)
    unknown = np.isnan(b)
    if (np.isnan(a) != unknown).any():
        return failed(file, label, "NaN where the reference has a number, or the other way round")
    largest = float(np.abs(np.where(unknown, 0, b)).max())
    deviation = float(np.abs(np.where(unknown | (a == b), 0, a - b)).max())
    if tolerance.unit == "of max" and largest > 0:
        deviation /= largest
    return Check(file, label, deviation, *tolerance, deviation <= tolerance.limit, note)


def as_array(value: object) -> np.ndarray:
    """Return a tensor, array or number as an array."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)
