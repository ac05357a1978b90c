"""Procedural patterns: building materials that tile, as uint8 RGB pictures.

Every function takes the generator first, returns (H, W, 3) uint8 and wraps around at its
borders, so that a surface of any size can be covered without a seam.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]
Colour = tuple[float, float, float]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return RGB in 0..255 of hue (turns), saturation and value in 0..1."""
    sector = hue % 1.0 * 6.0
    low, rise = value * (1 - saturation), value * saturation
    parts = [(sector + shift) % 6.0 for shift in (0.0, 4.0, 2.0)]
    r, g, b = (low + rise * min(max(abs(p - 3.0) - 1.0, 0.0), 1.0) for p in parts)
    return (255 * r, 255 * g, 255 * b)


def noise(rng: np.random.Generator, size: int, slope: float = 1.2, stretch: float = 1.0) -> Field:
    """Return periodic noise (size, size), zero mean, unit deviation, amplitude ~ f^-slope.

    `stretch` > 1 draws it out along x, as wood grain.
    """
    fy = np.fft.fftfreq(size)[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(size)[None, :].astype(np.float32) * stretch
    weight = np.maximum(np.sqrt(fx * fx + fy * fy), 1.5 / size) ** -slope
    weight[0, 0] = 0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    field = np.fft.irfft2(spectrum * weight, s=(size, size)).astype(np.float32)
    return field / max(float(field.std()), 1e-6)


def coloured(colour: Colour, shade: Field) -> Picture:
    """Return a colour times a field of brightness (1 = as given)."""
    return finish(shade[..., None] * np.array(colour, np.float32))


def finish(picture: npt.NDArray[np.floating]) -> Picture:
    """Clip 0..255 values to uint8."""
    out: Picture = np.clip(picture, 0, 255).astype(np.uint8)
    return out


def grid(size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the row and column numbers of a square picture."""
    rows, cols = np.mgrid[0:size, 0:size]
    return rows, cols


def plaster(rng: np.random.Generator, colour: Colour, size: int = 256) -> Picture:
    """Painted plaster: a hardly visible roughness."""
    shade = 1 + 0.022 * noise(rng, size, 1.0) + 0.012 * noise(rng, size, 0.1)
    return coloured(colour, shade)


def two_tone(rng: np.random.Generator, lower: Colour, upper: Colour) -> Picture:
    """A wall painted darker up to a border at breast height: (1024, 256), 4 m high."""
    base = np.tile(plaster(rng, (255.0, 255.0, 255.0)), (4, 1, 1)).astype(np.float32) / 255
    edge = 1024 - int(rng.uniform(0.85, 1.2) * 256)
    base[:edge] *= np.array(upper, np.float32)
    base[edge:] *= np.array(lower, np.float32)
    base[edge - 10 : edge + 6] = np.array(lower, np.float32) * 0.55
    return finish(base)


def wallpaper(rng: np.random.Generator, ground: Colour, ink: Colour, size: int = 256) -> Picture:
    """Wallpaper: stripes, diamonds or dots in two colours."""
    rows, cols = grid(size)
    kind, step = int(rng.integers(3)), size // int(rng.choice([2, 4]))
    x, y = (cols % step) / step - 0.5, (rows % step) / step - 0.5
    if kind == 0:
        ink_at = np.abs(x) < 0.22
    elif kind == 1:
        ink_at = np.abs(np.abs(x) + np.abs(y) - 0.32) < 0.06
    else:
        odd = (rows // step % 2) * 0.5
        ink_at = np.hypot((x + 0.5 + odd) % 1 - 0.5, y) < 0.16
    mask = cv2.GaussianBlur(ink_at.astype(np.float32), (0, 0), 0.8)[..., None]
    mixed = mask * np.array(ink, np.float32) + (1 - mask) * np.array(ground, np.float32)
    return finish(mixed * (1 + 0.02 * noise(rng, size, 0.6))[..., None])


def brick(rng: np.random.Generator, colour: Colour, size: int = 512) -> Picture:
    """Brickwork of 16 courses and four bricks a course."""
    rows, cols = grid(size)
    course = rows // 32
    shifted = (cols + (course % 2) * 64) % size
    number = course * 4 + shifted // 128
    tone = rng.normal(1.0, 0.13, 64).astype(np.float32)[number]
    from_edge = np.minimum.reduce([rows % 32, 31 - rows % 32, shifted % 128, 127 - shifted % 128])
    rough = noise(rng, size, 0.8)
    joint = np.clip(1.6 - 0.45 * (from_edge + 0.5 * rough), 0, 1)[..., None]
    body = (tone * (1 + 0.07 * rough))[..., None] * np.array(colour, np.float32)
    mortar = (1 + 0.05 * rough)[..., None] * np.array((176, 170, 160), np.float32)
    return finish(body * (1 - joint) + mortar * joint)


def boards(rng: np.random.Generator, colour: Colour, size: int = 512) -> Picture:
    """Floor boards along x: 16 rows, each of two boards with their own tone and grain."""
    rows, cols = grid(size)
    row = rows * 16 // size
    along = (cols + rng.integers(0, size, 16)[row]) % size
    number = row * 2 + along * 2 // size
    tone = rng.normal(1.0, 0.12, 32).astype(np.float32)[number]
    grain = noise(rng, size, 1.0, stretch=14.0)
    grain = grain[rows, (cols + rng.integers(0, size, 32)[number]) % size]
    height = size // 16
    gap = (rows % height == 0) | (along % (size // 2) < 2)
    shade = tone * (1 + 0.09 * grain) * np.where(gap, 0.45, 1.0).astype(np.float32)
    return coloured(colour, shade)


def herringbone(rng: np.random.Generator, colour: Colour, size: int = 512) -> Picture:
    """Parquet of square blocks, each of four slats, laid crosswise in turn."""
    rows, cols = grid(size)
    block = size // 8
    cross = (rows // block + cols // block) % 2 == 0
    slat = np.where(cross, rows, cols) % block // (block // 4)
    number = (rows // block * 8 + cols // block) * 4 + slat
    tone = rng.normal(1.0, 0.1, 256).astype(np.float32)[number]
    grain = noise(rng, size, 1.0, stretch=10.0)
    grain = np.where(cross, grain, grain.T)
    edge = np.where(cross, rows, cols) % (block // 4) == 0
    edge |= np.where(cross, cols, rows) % block == 0
    return coloured(colour, tone * (1 + 0.08 * grain) * np.where(edge, 0.55, 1).astype(np.float32))


def tiles(rng: np.random.Generator, one: Colour, two: Colour, size: int = 512) -> Picture:
    """Ceramic tiles, 6 x 6 or 4 x 4 in a picture, in one or two colours, with grout."""
    rows, cols = grid(size)
    step = size // int(rng.choice([4, 8]))
    r, c = rows // step, cols // step
    second = ((r + c) % 2 == 1)[..., None] if rng.random() < 0.6 else np.zeros((1, 1, 1), bool)
    body = np.where(second, np.array(two, np.float32), np.array(one, np.float32))
    tone = rng.normal(1.0, 0.035, 64).astype(np.float32)[r * 8 + c]
    from_edge = np.minimum.reduce([rows % step, step - 1 - rows % step])
    from_edge = np.minimum(from_edge, np.minimum(cols % step, step - 1 - cols % step))
    tone = tone * (1 + 0.04 * noise(rng, size, 1.6)) * np.where(from_edge < 5, 0.94, 1.0)
    grout = np.clip(2.5 - from_edge, 0, 1)[..., None]
    return finish(body * tone[..., None] * (1 - grout) + 118.0 * grout)


def carpet(rng: np.random.Generator, colour: Colour, size: int = 256) -> Picture:
    """Carpet or cloth: a fine weave with faint blotches."""
    rows, cols = grid(size)
    weave = 0.05 * np.where((rows // 2 + cols // 2) % 2 == 0, 1, -1)
    shade = 1 + weave + 0.09 * noise(rng, size, 0.15) + 0.04 * noise(rng, size, 1.5)
    return coloured(colour, shade.astype(np.float32))


def wood(rng: np.random.Generator, colour: Colour, size: int = 256) -> Picture:
    """Wood with its grain along x."""
    grain, wave = noise(rng, size, 1.1, stretch=18.0), noise(rng, size, 1.9, stretch=8.0)
    rings = np.sin(5.0 * wave)
    return coloured(colour, 1 + 0.07 * grain + 0.06 * rings)


def concrete(rng: np.random.Generator, colour: Colour, size: int = 256) -> Picture:
    """Concrete: clouds and pores."""
    pores = noise(rng, size, 0.3) > 2.4
    shade = 1 + 0.07 * noise(rng, size, 1.5) + 0.03 * noise(rng, size, 0.2)
    return coloured(colour, shade * np.where(pores, 0.75, 1.0).astype(np.float32))


def ceiling_grid(rng: np.random.Generator, colour: Colour, size: int = 256) -> Picture:
    """Suspended ceiling: two by two speckled boards between rails."""
    rows, cols = grid(size)
    half = size // 2
    speckle = np.where(noise(rng, size, 0.4) > 1.3, 0.88, 1.0)
    rail = np.minimum(rows % half, cols % half) < 4
    tone = np.where(rail, 0.8, speckle * (1 + 0.01 * noise(rng, size, 1.0)))
    return coloured(colour, tone.astype(np.float32))
