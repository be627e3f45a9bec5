"""Answers drawn onto their picture, so that they can be read on any background.

Boxes have a dark rim, points a light and a dark one; each text stands on a plate of its own
colour, black or white by that colour's brightness, inside the picture and, where there is room, on
no other text.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgecv.results import (
    Classification,
    Detections,
    Embedding,
    Landmarks,
    Result,
    Segmentation,
)

Color = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

GOLDEN = 0.618033988749895  # neighbouring classes get hues far apart
SHADE = 0.55  # how much of a segmentation's colour lies over the picture
LINES = 8  # at most, on the bar below a picture


class _Plate(NamedTuple):
    """The rectangle of a text, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    def overlap(self, other: _Plate) -> int:
        """The area, in pixels, that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


def draw(picture: Image.Image, result: Result) -> Image.Image:
    """A copy of the RGB ``picture`` with ``result`` drawn on it.

    Boxes, points and masks lie on the picture; what belongs to all of it stands on a bar below.
    """
    if isinstance(result, Detections):
        return _boxes(picture, result)
    if isinstance(result, Segmentation):
        return _mask(picture, result)
    if isinstance(result, Landmarks):
        return _points(picture, result)
    return with_bar(picture, _lines(result))


def _lines(result: Classification | Embedding) -> list[tuple[str, Color | None]]:
    if isinstance(result, Classification):
        return [(f"{c.label}  {c.probability:.1%}", None) for c in result.top(3)]
    return [(str(result), None)]


def with_bar(picture: Image.Image, lines: Sequence[tuple[str, Color | None]]) -> Image.Image:
    """``picture`` above a black bar with ``lines`` of text, each after a patch of its colour."""
    size = max(12, picture.width // 28)
    line_height, margin = round(size * 1.4), size // 2
    bar = line_height * len(lines) + 2 * margin if lines else 0
    canvas = Image.new("RGB", (picture.width, picture.height + bar), "black")
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    for index, (text, color) in enumerate(lines):
        x, y = margin, picture.height + margin + index * line_height
        if color is not None:
            pen.rectangle((x, y + 1, x + size, y + 1 + size), fill=color, outline="white")
            x += 2 * size
        fill = "white" if color is not None or index == 0 else "#b0b0b0"
        room = picture.width - x - margin
        pen.text((x, y), fitting(text, room, font := font_of(size)), fill=fill, font=font)
    return canvas


def color_of(index: int) -> Color:
    """The colour of class ``index``: bright, saturated, unlike its neighbours', always the same."""
    value = (0.95, 0.75)[index % 2]
    red, green, blue = colorsys.hsv_to_rgb((0.08 + index * GOLDEN) % 1, 0.9, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color(plate: Color) -> Color:
    """Black or white, whichever has the higher contrast on ``plate`` (WCAG's luminance)."""
    linear = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (channel / 255 for channel in plate)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    black, white = (luminance + 0.05) / 0.05, 1.05 / (luminance + 0.05)
    return (0, 0, 0) if black >= white else (255, 255, 255)


def _boxes(picture: Image.Image, result: Detections) -> Image.Image:
    canvas = picture.copy()
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(min(picture.size) / 240))
    size = max(11, round(min(picture.size) / 32))
    found = list(result)
    for index in reversed(range(len(found))):  # the best lie on top
        color = color_of(found[index].class_id)
        box = _inside(found[index].box, picture.size)
        pen.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline="black")
        pen.rectangle(box, outline=color, width=line)
        inner = [box[0] + line, box[1] + line, box[2] - line, box[3] - line]
        if inner[2] > inner[0] and inner[3] > inner[1]:
            pen.rectangle(inner, outline="black")
        if result.landmarks is not None:
            _dots(pen, result.landmarks[index], line + 1, color)
    taken: list[_Plate] = []
    for detection in found:  # the best choose their place first
        text = f"{detection.label} {detection.score:.0%}"
        box = _inside(detection.box, picture.size)
        _label(pen, text, box, picture.size, color_of(detection.class_id), size, taken)
    return canvas


def _inside(box: Sequence[float], size: tuple[int, int]) -> list[int]:
    """The box's whole pixels inside a picture of ``size``."""
    limits = (size[0] - 1, size[1] - 1) * 2
    return [int(min(max(v, 0), limit)) for v, limit in zip(box, limits, strict=True)]


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[int],
    size: tuple[int, int],
    color: Color,
    font_size: int,
    taken: list[_Plate],
) -> None:
    """Write ``text`` beside ``box``, where it covers the least of the texts before it."""
    font = font_of(font_size)
    pad = max(2, font_size // 6)
    text = fitting(text, size[0] - 2 * pad, font)
    left, top, right, bottom = font.getbbox(text)  # Pillow 9.4: textbbox takes TrueType only
    width, height = int(right - left) + 2 * pad, int(bottom - top) + 2 * pad
    places = [
        (box[0], box[1] - height),  # above, then inside, below, and at the right
        (box[0], box[1]),
        (box[2] - width, box[1] - height),
        (box[2] - width, box[1]),
        (box[0], box[3]),
        (box[0], box[3] - height),
        (box[2], box[1]),
    ]
    plates = []
    for x, y in places:
        x, y = min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))
        plates.append(_Plate(x, y, x + width, y + height))
    plate = min(plates, key=lambda p: sum(p.overlap(other) for other in taken))
    taken.append(plate)
    pen.rectangle((plate.left, plate.top, plate.right - 1, plate.bottom - 1), fill=color)
    pen.text(
        (plate.left + pad - left, plate.top + pad - top), text, fill=text_color(color), font=font
    )


def _mask(picture: Image.Image, result: Segmentation) -> Image.Image:
    """Class 0 keeps the picture's own colours: it is the background in most label lists."""
    palette = np.array([color_of(i) for i in range(len(result.labels))], np.float32)
    pixels = np.asarray(picture, np.float32)
    shade = np.where(result.mask[..., None] > 0, np.float32(SHADE), np.float32(0))
    mixed = pixels + (palette[result.mask] - pixels) * shade
    canvas = Image.fromarray(mixed.round().astype(np.uint8))
    shares = list(result.shares().items())[:LINES]
    index = {label: i for i, label in reversed(list(enumerate(result.labels)))}
    return with_bar(
        canvas,
        [
            (f"{label}  {share:.1%}", color_of(index[label]) if index[label] else None)
            for label, share in shares
        ],
    )


def _points(picture: Image.Image, result: Landmarks) -> Image.Image:
    canvas = picture.copy()
    pen = ImageDraw.Draw(canvas)
    _dots(pen, result.points, max(2, round(min(picture.size) / 120)), color_of(0))
    return canvas


def _dots(pen: ImageDraw.ImageDraw, points: Any, radius: int, color: Color) -> None:
    for x, y in np.asarray(points).tolist():
        rim = radius + 1
        pen.ellipse((x - rim, y - rim, x + rim, y + rim), fill="black")
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline="white")


def fitting(text: str, room: int, font: Font) -> str:
    """``text``, or as much of it as ``room`` pixels hold, with an ellipsis."""
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow's old font knows Latin-1 only
        text = text.encode("latin-1", "replace").decode("latin-1")
    measure: Callable[[str], float] = font.getlength
    if measure(text) <= room:
        return text
    while len(text) > 1 and measure(text + "...") > room:
        text = text[:-1]
    return text + "..."


_FONTS: dict[int, Font] = {}


def font_of(size: int) -> Font:
    """Pillow's own font, ``size`` pixels high where Pillow can scale it."""
    if size not in _FONTS:
        try:
            _FONTS[size] = ImageFont.load_default(size)
        except TypeError:  # Pillow before 10.1 has one size only
            _FONTS[size] = ImageFont.load_default()
    return _FONTS[size]
