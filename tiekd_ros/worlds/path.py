"""Camera path: a smooth closed walk, as Fourier series in the phase of one turn.

The route's corners are rounded by a Gaussian along its length, which in the frequency
domain is a product; the few harmonics that survive give position and heading at any phase,
smooth in every derivative and exactly periodic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_Series = npt.NDArray[np.complex128]

_POINTS = 2048
_HARMONICS = 128
_CORNER_M = 0.28  # standard deviation of the rounding; doorways are approached straight
_HEADING_M = 0.75  # the head turns before and after the feet do
_HEIGHT_M = 1.22
_PITCH_RAD = -0.07  # slightly down: the floor near the robot matters


class CameraPath:
    """Where the camera is, and where it looks, at a phase in [0, 1) of one turn."""

    def __init__(self, route: Floats, rng: np.random.Generator) -> None:
        """Smooth a closed route of corners (N, 2), metres."""
        dense, self.length_m = _resample(route)
        self._order = np.arange(-_HARMONICS, _HARMONICS + 1)
        self._position = _filtered(dense[:, 0] + 1j * dense[:, 1], _CORNER_M / self.length_m)
        self._winding, self._heading = self._heading_series()
        self._sway_phase = rng.uniform(0, 2 * np.pi, 6)

    def position(self, phase: float) -> Floats:
        """Return the camera centre (3,) in metres."""
        spot = self._evaluate(self._position, phase)
        bob = 0.02 * np.sin(2 * np.pi * 29 * phase + self._sway_phase[0])
        return np.array([spot.real, spot.imag, _HEIGHT_M + bob])

    def footprints(self, count: int = 1024) -> Floats:
        """Return points (count, 2) of the walk at equal phases, metres."""
        return np.array([self.position(i / count)[:2] for i in range(count)])

    def pose(self, phase: float) -> Floats:
        """Return the 4x4 camera-to-world matrix, optical frame (x right, y down, z forward)."""
        turn, sway = 2 * np.pi * phase, self._sway_phase
        pan = 0.34 * np.sin(6 * turn + sway[1]) + 0.22 * np.sin(13 * turn + sway[2])
        yaw = self._winding * turn + self._evaluate(self._heading, phase).real + pan
        pitch = _PITCH_RAD + 0.06 * np.sin(9 * turn + sway[3])
        pitch += 0.012 * np.sin(29 * turn + sway[4])
        roll = 0.022 * np.sin(17 * turn + sway[5])

        return look(self.position(phase), float(yaw), float(pitch), float(roll))

    def _evaluate(self, series: _Series, phase: float) -> complex:
        return complex(np.sum(series * np.exp(2j * np.pi * phase * self._order)))

    def _heading_series(self) -> tuple[int, _Series]:
        """Return the whole turns of one walk, and the series of what is left of the heading."""
        phases = np.arange(_POINTS) / _POINTS
        waves = np.exp(2j * np.pi * np.outer(phases, self._order))
        velocity = (waves * (self._position * 2j * np.pi * self._order)).sum(axis=1)
        heading = np.unwrap(np.angle(velocity))
        closing = np.angle(velocity[0] / velocity[-1])
        winding = round((heading[-1] + closing - heading[0]) / (2 * np.pi))
        rest = heading - 2 * np.pi * winding * phases
        return winding, _filtered(rest, _HEADING_M / self.length_m)


def look(position: Floats, yaw: float, pitch: float, roll: float) -> Floats:
    """Return the 4x4 camera-to-world matrix of a camera (3,) that looks along yaw and pitch.

    Radians: yaw about z from east to north, pitch up, roll about the optical axis.
    """
    flat = np.cos(pitch)
    forward = np.array([np.cos(yaw) * flat, np.sin(yaw) * flat, np.sin(pitch)])
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    below = np.cross(forward, level)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * level + np.sin(roll) * below
    pose[:3, 1] = np.cos(roll) * below - np.sin(roll) * level
    pose[:3, 2] = forward
    pose[:3, 3] = position
    return pose


def _resample(route: Floats) -> tuple[Floats, float]:
    """Return points (2048, 2) at equal steps along a closed polyline, and its length."""
    closed = np.vstack([route, route[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    steps = np.arange(_POINTS) / _POINTS * along[-1]
    dense = np.stack([np.interp(steps, along, closed[:, i]) for i in range(2)], axis=1)
    return dense, float(along[-1])


def _filtered(samples: npt.NDArray[np.generic], sigma: float) -> _Series:
    """Return the harmonics of periodic samples after a Gaussian of `sigma` turns."""
    order = np.arange(-_HARMONICS, _HARMONICS + 1)
    series: _Series = np.fft.fft(samples)[order] / len(samples)
    series *= np.exp(-0.5 * (2 * np.pi * order * sigma) ** 2)
    return series
