"""Class maps as pictures: colours, overlays with contours, labelled panels and a legend."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segcore.errors import ShapeError

Palette = Sequence[tuple[int, int, int]]
Mask = NDArray[np.integer]
Pixels = NDArray[np.uint8]

PAPER = (250, 250, 250)
INK = (38, 42, 48)
VOID = (0, 0, 0)
STRIP_PIXELS = 1 << 20  # that are mixed at a time


def colorize(mask: Mask, palette: Palette) -> Image.Image:
    """Paint each class of an integer map [H, W] in its colour; values outside are black."""
    return Image.fromarray(_colors(mask, palette))


def palette_png(mask: Mask, palette: Palette) -> Image.Image:
    """The map [H, W] as a picture whose pixel values stay the class indices.

    Up to 256 classes it carries the palette (mode P, 8 bits); above, it is 16-bit grey.
    """
    if len(palette) > 256:
        return Image.fromarray(mask.astype(np.uint16))
    picture = Image.fromarray(mask.astype(np.uint8), mode="P")
    # All 256 entries: Pillow stores fewer bits a pixel for a short palette, and cuts off the rest.
    colors = [*palette, *[VOID] * (256 - len(palette))]
    picture.putpalette([value for color in colors for value in color])
    return picture


def overlay(
    image: Pixels,
    mask: Mask,
    *,
    palette: Palette,
    alpha: float = 0.5,
    contours: bool = True,
) -> Image.Image:
    """Tint an image by class, and draw the borders between classes.

    Args:
        image: uint8 [H, W, C]; grey is shown grey, other channels than RGB are left out.
        mask: integer [H, W]; values outside the palette leave the image as it is.
        palette: one (r, g, b) per class.
        alpha: weight of the colours in 0..1.
        contours: draw a light line on the border pixels of each region.

    Raises:
        ShapeError: image and mask differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise ShapeError(
            f"image is {image.shape[:2]}, mask {mask.shape}: an overlay needs equal sizes"
        )
    mixed = np.empty((*mask.shape, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // max(1, mask.shape[1]))
    for top in range(0, len(mask), rows):  # floats of a whole large image would fill the memory
        strip = slice(top, top + rows)
        mixed[strip] = _mixed(as_rgb(image[strip]), mask[strip], palette, alpha)
        if contours:
            above = max(0, top - 1)
            border = _borders(mask[above : top + rows])[top - above :]
            colors = _colors(mask[strip][border], palette)
            mixed[strip][border] = (0.35 * colors + 0.65 * 255).round()
    return Image.fromarray(mixed)


def _mixed(base: Pixels, mask: Mask, palette: Palette, alpha: float) -> Pixels:
    """`base` with the colours of known classes over it, by a table of what each class adds."""
    known = (mask >= 0) & (mask < len(palette))
    index = np.where(known, mask, len(palette))
    added = np.array([*palette, VOID], np.float32) * np.float32(alpha)
    kept = np.full(len(added), 1 - alpha, np.float32)
    kept[-1] = 1.0
    pixels: Pixels = (base * kept[index][..., None] + added[index]).round().astype(np.uint8)
    return pixels


def difference(image: Pixels, mask: Mask, truth: Mask, *, ignore_index: int) -> Image.Image:
    """Grey image with wrong pixels in red and pixels without a label in dark blue."""
    grey = np.asarray(Image.fromarray(as_rgb(image)).convert("L"), dtype=np.float32)
    base = np.repeat((0.55 * grey + 90)[..., None], 3, axis=2)
    void = truth == ignore_index
    wrong = (mask != truth) & ~void
    base[wrong] = 0.25 * base[wrong] + 0.75 * np.array([226, 46, 60])
    base[void] = 0.5 * base[void] + 0.5 * np.array([38, 42, 92])
    return Image.fromarray(base.round().clip(0, 255).astype(np.uint8))


def panel(
    pictures: Sequence[Image.Image],
    titles: Sequence[str] = (),
    *,
    height: int | None = None,
) -> Image.Image:
    """Pictures side by side at one height, each under its title.

    Args:
        pictures: at least one.
        titles: none, or one per picture.
        height: of each picture in pixels; None: of the tallest.
    """
    height = height or max(picture.height for picture in pictures)
    shown = [_scaled(picture, height) for picture in pictures]
    font = _font(height)
    head = int(font.size * 1.8) if titles else 0
    gap = max(4, height // 60)
    width = sum(picture.width for picture in shown) + gap * (len(shown) - 1)
    sheet = Image.new("RGB", (width, head + height), PAPER)
    draw = ImageDraw.Draw(sheet)
    x = 0
    for index, picture in enumerate(shown):
        if titles:
            title = _fitting(titles[index], font, picture.width)
            draw.text((x + 2, head / 2), title, fill=INK, font=font, anchor="lm")
        sheet.paste(picture, (x, head))
        x += picture.width + gap
    return sheet


def legend(classes: Sequence[str], palette: Palette, *, width: int, size: int = 14) -> Image.Image:
    """Colour swatches with class names, flowing over as many lines as `width` pixels ask for."""
    font = ImageFont.load_default(size=size)
    line, x, y = int(size * 1.7), size // 2, size // 3
    places = []
    for name, color in zip(classes, palette, strict=True):
        length = int(font.getlength(name)) + int(size * 2.6)
        if x + length > width and x > size:
            x, y = size // 2, y + line
        places.append((x, y, name, color))
        x += length
    sheet = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, y, name, color in places:
        box = (x, y + 2, x + size, y + 2 + size)
        draw.rounded_rectangle(box, radius=3, fill=tuple(color), outline=(150, 150, 150))
        draw.text((x + size * 1.4, y + 2 + size / 2), name, fill=INK, font=font, anchor="lm")
    return sheet


def stack(rows: Sequence[Image.Image], *, margin: int = 12) -> Image.Image:
    """Pictures below each other on one sheet of paper."""
    width = max(row.width for row in rows) + 2 * margin
    height = sum(row.height + margin for row in rows) + margin
    sheet = Image.new("RGB", (width, height), PAPER)
    y = margin
    for row in rows:
        sheet.paste(row, (margin, y))
        y += row.height + margin
    return sheet


def contact_sheet(
    images: Sequence[Pixels],
    masks: Sequence[Mask],
    *,
    palette: Palette,
    classes: Sequence[str],
    truths: Sequence[Mask] = (),
    height: int = 240,
) -> Image.Image:
    """One row per image: the image, its label where `truths` has one, and the prediction.

    Args:
        images: uint8 [H, W, C] each.
        masks: predicted class maps [H, W] of the same sizes.
        palette: one (r, g, b) per class.
        classes: names for the legend below.
        truths: labelled class maps, or none.
        height: of each row in pixels.
    """
    rows = []
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        pictures = [Image.fromarray(as_rgb(image)), overlay(image, mask, palette=palette)]
        titles = ["image", "prediction"]
        if truths:
            pictures.insert(1, overlay(image, truths[index], palette=palette))
            titles.insert(1, "label")
        rows.append(panel(pictures, () if index else titles, height=height))
    width = max(row.width for row in rows)
    return stack([*rows, legend(classes, palette, width=width)])


def _colors(mask: Mask, palette: Palette) -> Pixels:
    table = np.array([*palette, VOID], dtype=np.uint8)
    known = (mask >= 0) & (mask < len(palette))
    colors: Pixels = table[np.where(known, mask, len(palette))]
    return colors


def _borders(mask: Mask) -> NDArray[np.bool_]:
    border = np.zeros(mask.shape, dtype=np.bool_)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:, :] |= mask[1:, :] != mask[:-1, :]
    return border


def as_rgb(image: Pixels) -> Pixels:
    """Pixels [H, W] or [H, W, C] as [H, W, 3]: grey thrice, or the first three channels."""
    if image.ndim == 2:
        image = image[:, :, None]
    return image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)


def _scaled(picture: Image.Image, height: int) -> Image.Image:
    picture = picture.convert("RGB")
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _font(height: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=min(22, max(11, height // 14)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ShapeError("Pillow was built without FreeType: install Pillow's own wheel")
    return font


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width - 4:
        return text
    while text and font.getlength(text + "…") > width - 4:
        text = text[:-1]
    return text + "…"
