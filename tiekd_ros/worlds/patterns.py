"""Procedural pictures, uint8 RGB (H, W, 3): patterns that tile, and faces that are stretched.

Building materials wrap around at their borders, so that a surface of any size can be covered
without a seam. Posters, books, doors and views are stretched over one face.
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


def _blank(height: int, width: int, colour: Colour) -> Picture:
    canvas: Picture = np.empty((height, width, 3), np.uint8)
    canvas[:] = np.array(colour, np.uint8)
    return canvas


def _vivid(rng: np.random.Generator) -> Colour:
    return hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.45, 0.95))


def abstract_poster(rng: np.random.Generator) -> Picture:
    """Circles, bars and triangles on a plain ground, with a white margin."""
    ground = hsv(rng.random(), rng.uniform(0.1, 0.4), rng.uniform(0.7, 0.95))
    canvas = _blank(256, 256, ground)
    for _ in range(int(rng.integers(5, 10))):
        colour, kind = _vivid(rng), int(rng.integers(4))
        x, y = (int(v) for v in rng.integers(20, 236, 2))
        size = int(rng.integers(15, 75))
        if kind == 0:
            cv2.circle(canvas, (x, y), size, colour, -1, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(canvas, (x - size, y - 12), (x + size, y + 12), colour, -1)
        elif kind == 2:
            corners = np.array([[x, y - size], [x - size, y + size], [x + size, y + size]])
            cv2.fillPoly(canvas, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        else:
            cv2.circle(canvas, (x, y), size, colour, 9, cv2.LINE_AA)
    cv2.rectangle(canvas, (0, 0), (255, 255), (244, 242, 236), 28)
    return canvas


def landscape(rng: np.random.Generator, size: int = 256) -> Picture:
    """Sky, a sun and ranges of hills, farther ones paler."""
    rows = np.linspace(0, 1, size)[:, None, None]
    hue = rng.uniform(0.5, 0.65) if rng.random() < 0.7 else rng.uniform(0.0, 0.12)
    top = np.array(hsv(hue, rng.uniform(0.45, 0.7), 0.8))
    low = np.array(hsv(hue + rng.uniform(-0.1, 0.1), 0.22, 0.97))
    canvas = finish(np.broadcast_to((1 - rows) * top + rows * low, (size, size, 3)))
    sun = (int(rng.integers(40, size - 40)), int(rng.integers(30, size // 2)))
    cv2.circle(canvas, sun, int(rng.integers(10, 24)), (252, 238, 190), -1, cv2.LINE_AA)
    ground = rng.uniform(0.2, 0.42)
    x = np.arange(size)
    for depth in range(4):
        wave = noise(rng, 64, 1.6)[0] * (10 + 3 * depth)
        ridge = size * (0.5 + 0.12 * depth) + np.interp(x / size * 63, np.arange(64), wave)
        colour = hsv(ground, 0.2 + 0.13 * depth, 0.75 - 0.14 * depth)
        canvas[np.arange(size)[:, None] > ridge[None, :]] = np.array(colour, np.uint8)
    return canvas


def text_poster(rng: np.random.Generator) -> Picture:
    """A notice: a coloured head, a diagram and lines of writing too small to read."""
    canvas = _blank(256, 256, (240, 238, 230))
    colour = _vivid(rng)
    cv2.rectangle(canvas, (0, 0), (255, 52), colour, -1)
    cv2.rectangle(canvas, (18, 20), (int(rng.integers(110, 220)), 34), (250, 250, 250), -1)
    heights = rng.integers(15, 80, 6)
    for i, height in enumerate(heights):
        bar = _vivid(rng) if i % 2 else colour
        cv2.rectangle(canvas, (22 + 18 * i, 160 - int(height)), (34 + 18 * i, 160), bar, -1)
    for i in range(9):
        x0, y = (140, 72 + 11 * i) if i < 8 else (22, 172)
        cv2.line(canvas, (x0, y), (int(rng.integers(200, 240)), y), (96, 96, 100), 3)
    for i in range(6):
        y = 184 + 11 * i
        cv2.line(canvas, (22, y), (int(rng.integers(150, 240)), y), (110, 110, 110), 3)
    return canvas


def window_view(rng: np.random.Generator) -> Picture:
    """The view from a window: landscape with clouds, behind glazing bars."""
    scene = landscape(rng).astype(np.float32)
    clouds = np.clip(noise(rng, 256, 1.8), 0, 2)[..., None] * np.linspace(30, 0, 256)[:, None, None]
    picture = finish(scene * 0.72 + 72 + clouds)
    cv2.line(picture, (0, 90), (255, 90), (238, 238, 234), 7)
    return picture


def book_row(rng: np.random.Generator) -> Picture:
    """Spines of books side by side, some with labels, a few leaning gaps between."""
    canvas = _blank(256, 256, (28, 24, 22))
    x, hue = 2, rng.random()
    while x < 250:
        width = int(rng.integers(9, 26))
        top = int(rng.integers(0, 50))
        tint = hue + rng.normal(0, 0.16)
        colour = hsv(tint, rng.uniform(0.15, 0.75), rng.uniform(0.3, 0.9))
        cv2.rectangle(canvas, (x, top), (x + width - 2, 255), colour, -1)
        dark = tuple(0.6 * c for c in colour)
        cv2.line(canvas, (x, top), (x, 255), dark, 2)
        label = _vivid(rng) if rng.random() < 0.5 else (236, 230, 214)
        y = top + int(rng.integers(18, 60))
        cv2.rectangle(canvas, (x + 2, y), (x + width - 4, y + int(rng.integers(12, 60))), label, -1)
        x += width
    return canvas


def panelled(rng: np.random.Generator, base: Picture, rows: int, cols: int) -> Picture:
    """Doors or drawers on a base picture: bevelled panels with handles."""
    canvas: Picture = cv2.resize(base, (256, 256)).astype(np.uint8)
    height, width = 256 // rows, 256 // cols
    for r in range(rows):
        for c in range(cols):
            x, y = c * width, r * height
            cv2.rectangle(canvas, (x, y), (x + width - 1, y + height - 1), (30, 26, 24), 2)
            inner = canvas[y + 14 : y + height - 14, x + 14 : x + width - 14]
            inner[:] = finish(inner * 0.93)
            cv2.rectangle(
                canvas, (x + 12, y + 12), (x + width - 13, y + height - 13), (70, 62, 56), 1
            )
            hx = x + (width - 24 if c % 2 == 0 else 18) if cols > 1 else x + width // 2 - 14
            hy = y + height // 2
            end = (hx + 6, hy + 22) if cols > 1 else (hx + 28, hy + 6)
            cv2.rectangle(canvas, (hx, hy), end, (205, 205, 208), -1)
            cv2.line(canvas, (hx, end[1] + 2), (end[0], end[1] + 2), (60, 55, 50), 1)
    return canvas


def screen(rng: np.random.Generator) -> Picture:
    """A monitor: a dark editor with coloured lines and a window beside it."""
    canvas = _blank(160, 256, (26, 29, 36))
    cv2.rectangle(canvas, (0, 0), (255, 11), (58, 64, 78), -1)
    for i in range(13):
        x = 10 + 10 * int(rng.integers(0, 4))
        for _ in range(int(rng.integers(1, 4))):
            end = x + int(rng.integers(10, 40))
            cv2.line(canvas, (x, 22 + 10 * i), (min(end, 160), 22 + 10 * i), _vivid(rng), 4)
            x = min(end + 6, 158)
    canvas[20:92, 172:248] = cv2.resize(landscape(rng, 128), (76, 72))
    cv2.rectangle(canvas, (172, 100), (248, 150), (66, 90, 130), -1)
    cv2.rectangle(canvas, (0, 0), (255, 159), (12, 12, 14), 5)
    return canvas


def cardboard(rng: np.random.Generator) -> Picture:
    """The side of a cardboard box: flutes, tape and a label."""
    lines = 1 + 0.03 * np.sin(np.arange(256) * 0.7)[None, :] + 0.04 * noise(rng, 256, 1.2)
    canvas = finish(lines[..., None] * np.array((186, 148, 102), np.float32))
    canvas[:, 112:144] = finish(canvas[:, 112:144] * 0.4 + np.array((206, 188, 150)) * 0.6)
    x, y = int(rng.integers(12, 40)), int(rng.integers(140, 180))
    cv2.rectangle(canvas, (x, y), (x + 72, y + 54), (240, 238, 232), -1)
    for i in range(12):
        cv2.line(canvas, (x + 6 + 5 * i, y + 6), (x + 6 + 5 * i, y + 26), (30,) * 3, i % 3 + 1)
    cv2.line(canvas, (x + 6, y + 36), (x + 60, y + 36), (90,) * 3, 2)
    cv2.rectangle(canvas, (0, 0), (255, 255), (140, 108, 72), 4)
    return canvas


def crate(rng: np.random.Generator, base: Picture) -> Picture:
    """A slatted wooden crate with a frame and a diagonal."""
    canvas: Picture = cv2.resize(base, (256, 256)).astype(np.uint8)
    for i in range(5):
        cv2.line(canvas, (0, 51 * i), (255, 51 * i), (34, 26, 18), 5)
    frame = finish(canvas[::-1].astype(np.float32) * rng.uniform(1.05, 1.2))
    mask = np.zeros((256, 256), np.uint8)
    cv2.rectangle(mask, (0, 0), (255, 255), 255, 56)
    cv2.line(mask, (20, 236), (236, 20), 255, 28)
    canvas[mask > 0] = frame[mask > 0]
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    canvas[edge > 0] = (48, 36, 24)
    return canvas


def rug(rng: np.random.Generator) -> Picture:
    """A woven rug: nested borders around a field of diamonds."""
    colours = [_vivid(rng), hsv(rng.random(), 0.25, 0.85), _vivid(rng)]
    canvas = _blank(192, 256, colours[0])
    for i, inset in enumerate((8, 16, 20, 34, 38)):
        corner = (256 - inset, 192 - inset)
        cv2.rectangle(canvas, (inset, inset), corner, colours[(i + 1) % 3], -1)
    for cx in range(64, 220, 32):
        for cy in (72, 120):
            shape = np.array([[cx - 13, cy], [cx, cy - 20], [cx + 13, cy], [cx, cy + 20]])
            cv2.fillPoly(canvas, [shape.astype(np.int32)], colours[(cx // 32) % 3], cv2.LINE_AA)
    weave = 1 + 0.07 * noise(rng, 256, 0.1)[:192]
    return finish(canvas * weave[..., None])


def ribs() -> Picture:
    """The front of a radiator: vertical ribs."""
    wave = 0.86 + 0.14 * np.cos(np.arange(256) * 2 * np.pi / 16)
    shade = np.broadcast_to(wave[None, :, None], (128, 256, 3)) * 236.0
    picture = finish(shade)
    picture[:8], picture[-8:] = 214, 190
    return picture
