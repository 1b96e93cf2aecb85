"""Colours of classes: read from `classes.txt`, or made up so that neighbours differ."""

import colorsys
import re
from pathlib import Path

from segcore.errors import DataError

Color = tuple[int, int, int]

GOLDEN = 0.618033988749895

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


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Read a list of classes: a name a line, in index order; colours after all names or none.

    Args:
        path: text of lines "name", "name r g b" or "name #rrggbb"; it need not exist.

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
    entries = [_entry(line.strip()) for line in text.splitlines() if line.strip()]
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
