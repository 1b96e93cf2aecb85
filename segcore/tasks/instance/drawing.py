"""Objects drawn over an image: tints, thin contours, and words where there is room for them."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segcore.errors import ShapeError
from segcore.inference.visualize import as_rgb

Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]
Place = tuple[int, int, int, int]

GOLDEN = 0.618033988749895  # of the circle of hues: the next colour is far from all before
TINT = 0.38
PAPER = (18, 20, 24)
INK = (255, 255, 255)
FONT_SHARE = 36  # heights of text in the shorter side of an image
LARGEST_FONT, SMALLEST_FONT = 22, 10
SMALLEST_SHOWN = 8  # pixels: text of a picture this small would cover it


@dataclass(frozen=True, eq=False)
class Shape:
    """One object as it is drawn.

    Args:
        mask: bool [h, w], a window of the image.
        corner: (top, left) of the window.
        color: of tint, contour and box.
        words: to write, the longest first: what fits into the object's width is taken; none
            without.
        boxed: draw its box, if its words fit.
    """

    mask: Bools
    corner: tuple[int, int]
    color: Color
    words: tuple[str, ...] = ()
    boxed: bool = False

    @property
    def box(self) -> Place:
        """(left, top, right, bottom), the last pixels inside."""
        top, left = self.corner
        return left, top, left + self.mask.shape[1] - 1, top + self.mask.shape[0] - 1


def color_of(number: int) -> Color:
    """Colour of object `number` >= 0: hues by the golden ratio, in three turns of brightness."""
    hue = (0.07 + number * GOLDEN) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (1.0, 0.8))[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(image: Pixels, shapes: Sequence[Shape], *, tint: float = TINT) -> Image.Image:
    """An image [H, W, C] with shapes over it, the first one on top.

    Args:
        image: uint8; grey is shown grey, other channels than RGB are left out.
        shapes: windows lie within the image.
        tint: weight of the colours in 0..1; contours have their full colour.

    Raises:
        ShapeError: a window reaches out of the image.
    """
    pixels = np.array(as_rgb(image))
    for shape in reversed(shapes):
        left, top, right, bottom = shape.box
        if left < 0 or top < 0 or right >= pixels.shape[1] or bottom >= pixels.shape[0]:
            raise ShapeError(
                f"an object lies in {shape.box}, the image is {pixels.shape[:2]}: "
                "draw it over the image that it was found on"
            )
        part = pixels[top : bottom + 1, left : right + 1]
        inside = part[shape.mask]
        part[shape.mask] = ((1 - tint) * inside + tint * np.array(shape.color)).round()
        part[contour(shape.mask)] = shape.color
    picture = Image.fromarray(pixels)
    _write(picture, shapes)
    return picture


def contour(mask: Bools) -> Bools:
    """Pixels of a mask [h, w] of which one of four neighbours is outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def _write(picture: Image.Image, shapes: Sequence[Shape]) -> None:
    """Words and boxes of those shapes whose words fit, and lie over no other words."""
    if min(picture.size) < SMALLEST_SHOWN * SMALLEST_FONT:
        return
    size = min(LARGEST_FONT, max(SMALLEST_FONT, min(picture.size) // FONT_SHARE))
    font = ImageFont.load_default(size=size)
    pen = ImageDraw.Draw(picture)
    taken: list[Place] = []
    for shape in shapes:
        left, top, right, bottom = shape.box
        for words in shape.words:
            width, height = round(font.getlength(words)) + 4, size + 3
            y = min(max(0, top), picture.height - height)
            place = (left, y, left + width, y + height)
            fits = width <= right - left + 1 and 2 * height <= bottom - top + 1
            if fits and not any(_overlap(place, other) for other in taken):
                taken.append(place)
                if shape.boxed:
                    pen.rectangle(shape.box, outline=shape.color)
                pen.rectangle(place, fill=PAPER)
                pen.text((left + 2, y + height / 2), words, fill=INK, font=font, anchor="lm")
                break


def _overlap(first: Place, second: Place) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def crops(
    image: Pixels, shapes: Sequence[Shape], *, size: tuple[int, int], nothing: str
) -> Image.Image:
    """Shapes one by one, each enlarged with what is around it, on a picture of (height, width).

    Args:
        image: uint8 [H, W, C].
        shapes: as many as find room are shown, in order, with the first of their words below.
        size: of the picture.
        nothing: words for when there are no shapes.
    """
    height, width = size
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    text = min(14, max(SMALLEST_FONT, height // 20))
    font = ImageFont.load_default(size=text)
    if not shapes:
        pen.text((width / 2, height / 2), nothing, fill=INK, font=font, anchor="mm")
        return sheet
    side = max(24, min(160, height // 2, round((width * height / len(shapes)) ** 0.5)))
    columns, rows = max(1, width // side), max(1, height // side)
    for index, shape in enumerate(shapes[: columns * rows]):
        x, y = index % columns * side, index // columns * side
        room = side - text - 4 if side > 4 * text else side
        left, top, right, bottom = _around(shape.box, (image.shape[1], image.shape[0]))
        bare = Shape(shape.mask, (shape.corner[0] - top, shape.corner[1] - left), shape.color)
        crop = draw(image[top:bottom, left:right], [bare], tint=0.15)
        factor = min(room / crop.width, room / crop.height)
        scaled = (max(1, round(crop.width * factor)), max(1, round(crop.height * factor)))
        sheet.paste(crop.resize(scaled, Image.Resampling.BICUBIC), (x, y))
        if room < side and shape.words:
            pen.text((x + 1, y + room + 2), shape.words[0], fill=shape.color, font=font)
    return sheet


def _around(box: Place, size: tuple[int, int]) -> Place:
    """A square of twice the box's longer side about its centre, cut at the image (width, height);
    the last pixels outside."""
    left, top, right, bottom = box
    half = max(12, right - left + 1, bottom - top + 1)
    x, y = (left + right + 1) // 2, (top + bottom + 1) // 2
    return (
        max(0, x - half),
        max(0, y - half),
        min(size[0], x + half),
        min(size[1], y + half),
    )
