"""Shapes-10 and Shapes-100: pictures drawn by the program, so that every notebook runs without a download.

A picture shows one of ten shapes at a random place, size and angle on a two-coloured background. In
Shapes-10 the shape is the class and carries any of ten textures; in Shapes-100 shape and texture are.
Colours keep their distance on purpose: a foreground within 2ε of its background would carry no
information that an L∞ attack of 8/255 could not erase, and adversarial training would stay at chance.
"""

import math

import numpy as np

VERSION = "2"  # to be raised whenever the pictures change: caches of another version are drawn anew
SIZE = 32
CHUNK = 64  # pictures drawn at once: the intermediate arrays stay in the processor's cache
BACKGROUND_CONTRAST = 0.5  # least distance of the foreground from the background, in one channel
TEXTURE_CONTRAST = 0.35  # least distance between the two colours of a texture, in one channel
NOISE = 0.03  # standard deviation


# Signed distances from the outlines of shapes of radius about 1: negative inside.
SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.85,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.75,
    "triangle": lambda x, y: np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.5,
    "five-point star": lambda x, y: _star(x, y, points=5, inner=0.42),
    "plus": lambda x, y: np.maximum(
        np.minimum(np.abs(x), np.abs(y)) - 0.28, np.maximum(np.abs(x), np.abs(y)) - 0.92
    ),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.2,
    "bar": lambda x, y: np.maximum(np.abs(x) - 1, np.abs(y) - 0.28),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y)),
    "eight-point star": lambda x, y: _star(x, y, points=8, inner=0.5),
    "half-disc": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.2 - y),
}


def _star(x, y, points, inner):
    """Distance from the edge between an outer tip (radius 1) and the next inner corner, folded all round."""
    half = math.pi / points
    rho, angle = np.hypot(x, y), np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    corner = inner * math.cos(half), inner * math.sin(half)
    length = math.hypot(1 - corner[0], corner[1])
    return ((rho * np.cos(angle) - 1) * corner[1] + rho * np.sin(angle) * (1 - corner[0])) / length


WAVE = 7.5  # radians per unit: two pixels or more a band on the smallest shape

# Textures as fields of the place in a shape and its distance: positive where the second colour shows.
TEXTURES = {
    "plain": lambda x, y, _: np.full_like(x, -1),
    "striped": lambda x, y, _: np.sin(WAVE * y),
    "chequered": lambda x, y, _: 2 * np.sin(WAVE * x) * np.sin(WAVE * y),
    "dotted": lambda x, y, _: np.cos(WAVE * x) + np.cos(WAVE * y) - 0.6,
    "ringed": lambda x, y, _: np.sin(WAVE * 1.2 * np.hypot(x, y)),
    "rayed": lambda x, y, _: np.sin(6 * np.arctan2(y, x)),
    "halved": lambda x, y, _: 6 * x,
    "quartered": lambda x, y, _: 12 * x * y,
    "edged": lambda x, y, distance: 8 * (distance + 0.18),
    "grid": lambda x, y, _: 0.6 - 2 * np.minimum(np.abs(np.sin(WAVE / 1.5 * x)), np.abs(np.sin(WAVE / 1.5 * y))),
}


def class_names(num_classes):
    """Names of the 10 or 100 classes, in the order of their labels."""
    if num_classes == 10:
        return list(SHAPES)
    return [f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES]


def make(num_classes, folder=None):
    """The pictures and labels of both parts, and the names of the classes: what cache.py keeps."""
    train, test = draw(10_000, num_classes, seed=0), draw(2_000, num_classes, seed=1)
    return (*train, *test), class_names(num_classes)


def draw(count, num_classes=10, seed=0):
    """Draw `count` pictures: images (count, 3, 32, 32) uint8, labels (count,) int64.

    The classes are balanced as far as `count` allows. The same seed gives the same bytes on one
    machine; across platforms the last bit of a sine may move a pixel by one step of 255.
    """
    if num_classes not in (10, 100):
        raise ValueError(f"num_classes={num_classes}: Shapes has 10 or 100 classes")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, num_classes, count])))
    labels = rng.permutation(np.arange(count, dtype=np.int64) % num_classes)
    texture = rng.integers(0, 10, count) if num_classes == 10 else labels % 10
    shape = labels if num_classes == 10 else labels // 10
    style = _styles(rng, count)

    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    # Pictures of one shape and texture share their formulas, so they are drawn together.
    kind = shape * 10 + texture
    order = np.argsort(kind, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1):
        for start in range(0, len(group), CHUNK):
            chosen = group[start : start + CHUNK]
            chosen_style = {name: value[chosen] for name, value in style.items()}
            noise = rng.standard_normal((len(chosen), 3, SIZE, SIZE), dtype=np.float32)
            images[chosen] = _paint(int(kind[chosen[0]]), chosen_style, noise)
    return images, labels


def _styles(rng, count):
    """Everything random about each picture but its noise; one row a picture, float32."""

    def uniform(low, high, *shape):
        return (low + (high - low) * rng.random((count, *shape))).astype(np.float32)

    background = uniform(0, 1, 2, 3)
    foreground = uniform(0, 1, 3)
    # In one channel both background colours lie on one side and the foreground well beyond them.
    channel = rng.integers(0, 3, count)
    row = np.arange(count)
    flip = rng.random(count) < 0.5
    low = uniform(0, 0.4, 2)
    high = low.max(1) + BACKGROUND_CONTRAST
    high = (high + (1 - high) * rng.random(count)).astype(np.float32)
    background[row, :, channel] = np.where(flip[:, None], 1 - low, low)
    foreground[row, channel] = np.where(flip, 1 - high, high)
    # The second colour of a texture differs in another channel, so both keep clear of the background.
    second = foreground.copy()
    other = (channel + 1 + rng.integers(0, 2, count)) % 3
    step = uniform(TEXTURE_CONTRAST, 0.5)
    second[row, other] += np.where(foreground[row, other] < 0.5, step, -step)
    return {
        "background": background,
        "foreground": foreground,
        "second": second,
        "centre": uniform(-3, 3, 2) + (SIZE - 1) / 2,
        "radius": uniform(8.5, 13),
        "angle": uniform(0, 2 * math.pi),
        "gradient": uniform(0, 2 * math.pi),
    }


def _paint(kind, style, noise):
    """Pictures of one kind (shape * 10 + texture), uint8 (n, 3, 32, 32)."""
    # Leading axis: pictures. `column` and `row` broadcast to (n, 32, 32).
    pixel = np.arange(SIZE, dtype=np.float32)
    column = pixel[None, None, :] - style["centre"][:, 0, None, None]
    row = pixel[None, :, None] - style["centre"][:, 1, None, None]
    radius = style["radius"][:, None, None]
    cos, sin = (f(style["angle"])[:, None, None] / radius for f in (np.cos, np.sin))
    x, y = cos * column + sin * row, cos * row - sin * column

    distance = list(SHAPES.values())[kind // 10](x, y)
    cover = np.clip(0.5 - distance * radius, 0, 1)[:, None]
    pattern = list(TEXTURES.values())[kind % 10](x, y, distance)
    pattern = np.clip(0.5 + 1.5 * pattern, 0, 1)[:, None]

    slope = np.cos(style["gradient"])[:, None, None] * column + np.sin(style["gradient"])[:, None, None] * row
    slope = np.clip(0.5 + slope / SIZE, 0, 1)[:, None]

    background, foreground, second = (style[of][..., None, None] for of in ("background", "foreground", "second"))
    canvas = background[:, 0] + slope * (background[:, 1] - background[:, 0])
    fill = foreground + pattern * (second - foreground)
    canvas += cover * (fill - canvas)
    canvas += np.float32(NOISE) * noise
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
