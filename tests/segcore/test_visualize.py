"""Pictures of class maps, checked by their pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from segcore.errors import ShapeError
from segcore.inference import visualize

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
MASK = np.array([[0, 0, 1], [0, 2, 1], [255, 2, 2]], np.uint8)


def test_colorize_paints_classes_and_leaves_others_black() -> None:
    pixels = np.asarray(visualize.colorize(MASK, PALETTE))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 1].tolist() == [0, 0, 255]
    assert pixels[2, 0].tolist() == [0, 0, 0]


def test_palette_png_keeps_indices() -> None:
    buffer = io.BytesIO()
    visualize.palette_png(MASK, PALETTE).save(buffer, "PNG")
    picture = Image.open(buffer)
    np.testing.assert_array_equal(np.asarray(picture), MASK)
    assert np.asarray(picture.convert("RGB"))[0, 2].tolist() == [0, 255, 0]


def test_more_than_256_classes_are_sixteen_bit() -> None:
    mask = np.array([[0, 300]], np.uint16)
    buffer = io.BytesIO()
    visualize.palette_png(mask, [(i % 256, 0, 0) for i in range(400)]).save(buffer, "PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(buffer)), mask)


def test_overlay_mixes_by_alpha_and_spares_unknown_pixels() -> None:
    image = np.full((3, 3, 3), 100, np.uint8)
    mixed = np.asarray(visualize.overlay(image, MASK, palette=PALETTE, alpha=0.4, contours=False))
    assert mixed[0, 0].tolist() == [162, 60, 60]
    assert mixed[2, 0].tolist() == [100, 100, 100]
    bordered = np.asarray(visualize.overlay(image, MASK, palette=PALETTE, alpha=0.4))
    assert bordered[0, 0].tolist() == [162, 60, 60]
    assert bordered[0, 2].min() > 150


def test_overlay_shows_grey_images_grey() -> None:
    image = np.full((3, 3, 1), 80, np.uint8)
    mixed = np.asarray(visualize.overlay(image, MASK, palette=PALETTE, alpha=0, contours=False))
    assert (mixed == 80).all()


def test_overlay_refuses_unlike_sizes() -> None:
    with pytest.raises(ShapeError, match="equal sizes"):
        visualize.overlay(np.zeros((3, 4, 3), np.uint8), MASK, palette=PALETTE)


def test_difference_is_red_only_where_wrong() -> None:
    image = np.full((1, 3, 3), 128, np.uint8)
    truth, found = np.array([[0, 1, 255]]), np.array([[0, 2, 1]])
    red, green, blue = (
        np.asarray(visualize.difference(image, found, truth, ignore_index=255)).astype(int)[0].T
    )
    assert red[0] == green[0] == blue[0]
    assert red[1] > 2 * green[1]
    assert blue[2] > red[2]


def test_sheets_have_room_for_all() -> None:
    images = [np.zeros((60, 80, 3), np.uint8)] * 2
    masks = [np.zeros((60, 80), np.uint8)] * 2
    names = [f"a rather long class name {i}" for i in range(3)]
    sheet = visualize.contact_sheet(
        images, masks, palette=PALETTE, classes=names, truths=masks, height=90
    )
    assert sheet.width == 3 * 120 + 2 * 4 + 24
    assert sheet.height > 2 * 90 + 3 * 20
    key = visualize.legend(names, PALETTE, width=300)
    assert key.width == 300
    colors = {color for _, color in key.getcolors(100_000) or []}
    assert set(PALETTE) <= colors
