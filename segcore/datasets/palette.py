"""Colours of classes: read from `classes.txt`, or made up so that neighbours differ."""

import colorsys
import re
from pathlib import Path

from segcore.errors import DataError

Color = tuple[int, int, int]

CLASS_LISTS = ("classes", "labelmap", "label_colors")
VOC_BORDER = (224, 224, 192)  # of objects in the colours of VOC: void

GOLDEN = 0.618033988749895

_LABELMAP = re.compile(r"(?P<name>[^:]*):(?:(?P<r>\d{1,3}),(?P<g>\d{1,3}),(?P<b>\d{1,3}))?:.*")
_COLOR_FIRST = re.compile(r"(?P<r>\d{1,3})\s+(?P<g>\d{1,3})\s+(?P<b>\d{1,3})\s+(?P<name>.*)")
_HEX = re.compile(r"(?P<name>.*?)[\s,;]+#(?P<hex>[0-9a-fA-F]{6})")
_RGB = re.compile(r"(?P<name>.*?)[\s,;]+(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})")


def make_palette(count: int) -> tuple[Color, ...]:
    """`count` colours (r, g, b) in 0..255; hues step by the golden ratio, so that all differ."""
    colors = []
    for index in range(count):
        value = (0.95, 0.75, 0.55)[index % 3]
        red, green, blue = colorsys.hsv_to_rgb((0.6 + index * GOLDEN) % 1.0, 0.65, value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)


def bit_palette(count: int) -> tuple[Color, ...]:
    """VOC's colours: bits 0, 3, 6 of an index are red, highest first, 1, 4, 7 green, 2, 5 blue.

    Reference: Everingham et al., the development kit of VOC 2012.
    """
    places = range(8)
    red, green, blue = (
        [sum((i >> 3 * k + c & 1) << 7 - k for k in places if 3 * k + c < 8) for i in range(count)]
        for c in range(3)
    )
    return tuple(zip(red, green, blue, strict=True))


def find_classes(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Names and colours of a folder's `classes.txt`, else `labelmap.txt`, else `label_colors.txt`.

    Raises:
        DataError: as `read_classes`.
    """
    files = [path / f"{name}.txt" for name in CLASS_LISTS]
    return read_classes(next((file for file in files if file.is_file()), files[0]))


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Read a list of classes: a name a line, in index order; colours after all names or none.

    Args:
        path: text of lines "name", "name r g b" or "name #rrggbb"; a `labelmap.txt` of lines
            "name:r,g,b:parts:actions" (Pascal's, as CVAT writes it); a `label_colors.txt` of lines
            "r g b name" (Cityscapes' likewise). It need not exist.

    Returns:
        (names, colours); both empty without a file.

    Raises:
        DataError: a name or colour occurs twice, or only some lines have colours.
    """
    if not path.is_file():
        return (), ()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as such") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    other = {"labelmap": _LABELMAP, "label_colors": _COLOR_FIRST}.get(path.stem)
    if other is None:
        entries = [_entry(line) for line in lines]
    else:
        entries = [_matched(other, line, path) for line in lines if not line.startswith("#")]
    names = tuple(name for name, _ in entries)
    colors = tuple(color for _, color in entries if color is not None)
    for kind, values in (("name", names), ("colour", colors)):
        twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
        if twice is not None:
            raise DataError(f"{path} has the {kind} {twice} twice: give each class its own")
    if not names:
        raise DataError(f"{path} names no class: write a name a line, or remove it")
    if colors and len(colors) != len(names):
        raise DataError(
            f"{path} has {len(names)} names and {len(colors)} colours: give every class one, "
            "or none"
        )
    return names, colors


def _entry(line: str) -> tuple[str, Color | None]:
    if match := _HEX.fullmatch(line):
        code = int(match["hex"], 16)
        return match["name"], (code >> 16, code >> 8 & 255, code & 255)
    if (match := _RGB.fullmatch(line)) and all(int(match[c]) < 256 for c in "rgb"):
        return match["name"], (int(match["r"]), int(match["g"]), int(match["b"]))
    return line, None


def _matched(form: re.Pattern[str], line: str, path: Path) -> tuple[str, Color | None]:
    """Name and colour of a line of one form.

    Raises:
        DataError: it is of another.
    """
    match = form.fullmatch(line)
    if match is None or any(int(match[c] or 0) > 255 for c in "rgb"):
        raise DataError(f"{path} has {line!r}: give each class a line as the tool writes it")
    if match["r"] is None:
        return match["name"], None
    return match["name"], (int(match["r"]), int(match["g"]), int(match["b"]))
