"""Pictures of cells: what is drawn, and where."""

import numpy as np
import pytest
import torch
from PIL import Image

from cellfluxrl.data.simulated import simulate_cells
from cellfluxrl.figures import (
    CELL_COLOR,
    NUCLEUS_COLOR,
    image_grid,
    outlined,
)

BLACK = -torch.ones(1, 3, 12, 12)


def square(first, last):
    labels = np.zeros((1, 12, 12), np.uint8)
    labels[0, first:last, first:last] = 1
    return labels


def where(pictures, color):
    return (pictures == color).all(axis=-1)


@pytest.mark.parametrize(("channel", "color"), [(0, (0, 0, 255)), (1, (0, 255, 0)), (2, (255, 0, 0))])
def test_dna_is_blue_tubulin_green_and_actin_red(channel, color):
    image = BLACK.clone()
    image[:, channel] = 1
    assert where(outlined(image), color).all()


def test_pixels_become_squares():
    image = BLACK.clone()
    image[0, :, 2, 5] = 1
    bright = where(outlined(image, scale=4), (255, 255, 255))
    assert bright.shape == (1, 48, 48)
    assert bright[0, 8:12, 20:24].all()
    assert bright.sum() == 16


def test_outline_is_the_rim_of_the_object_one_display_pixel_wide():
    rim = where(outlined(BLACK, cells=square(2, 7), scale=3), CELL_COLOR)[0]
    expected = np.zeros((36, 36), bool)
    expected[6:21, 6:21] = True
    expected[7:20, 7:20] = False
    np.testing.assert_array_equal(rim, expected)


def test_touching_cells_both_keep_their_outline():
    labels = np.ones((1, 12, 12), np.uint8)
    labels[:, :, 6:] = 2
    columns = where(outlined(BLACK, cells=labels, scale=2), CELL_COLOR)[0].all(axis=0)
    assert np.flatnonzero(columns).tolist() == [11, 12]


def test_nuclei_are_drawn_over_cells():
    pictures = outlined(BLACK, nuclei=square(2, 5), cells=square(2, 9), scale=1)
    assert where(pictures, NUCLEUS_COLOR)[0, 2, 2:5].all()
    assert where(pictures, CELL_COLOR)[0, 2, 5:9].all()


@pytest.mark.parametrize("name", ["nuclei", "cells"])
def test_labels_of_other_images_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must have shape \(1, 12, 12\).*\(2, 12, 12\)"):
        outlined(BLACK, **{name: np.zeros((2, 12, 12), int)})


@pytest.mark.parametrize("shape", [(1, 0, 12, 12), (3, 12, 12)])
def test_images_without_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        outlined(torch.zeros(shape))


@pytest.mark.parametrize(("channels", "color"), [(1, [255, 255, 255]), (2, [0, 255, 255]), (5, [255, 255, 255])])
def test_other_numbers_of_channels_are_shown_too(channels, color):
    assert outlined(torch.ones(1, channels, 2, 2), scale=1)[0, 0, 0].tolist() == color


def test_grid_holds_the_pictures_in_order_and_is_written(tmp_path):
    crops = simulate_cells(["DMSO", "DNA damage", "Epithelial"])
    pictures = outlined(torch.from_numpy(crops.image) / 127.5 - 1, crops.nucleus_labels, crops.cell_labels)
    grid = image_grid({"controls": pictures, "RL": pictures[::-1]}, tmp_path / "grid.png")
    pixels = np.asarray(grid)
    left, top = grid.width - 3 * 147, 3  # 3 x 48 pixels and a separator
    for row, expected in enumerate([pictures, pictures[::-1]]):
        for column, picture in enumerate(expected):
            y, x = top + 147 * row, left + 147 * column
            np.testing.assert_array_equal(pixels[y : y + 144, x : x + 144], picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), pixels)


def test_long_titles_are_not_cut_off(tmp_path):
    tile = np.zeros((1, 96, 96, 3), np.uint8)
    grid = np.asarray(image_grid({"RL with best of sixteen candidates": tile}, tmp_path / "grid.png"))
    title = grid[:, : -96 - 3]
    assert (title.max(axis=2) > 200).any()
    border = np.concatenate([title[0], title[-1], title[:, 0], title[:, -1]])
    assert border.max() < 50


def test_rows_that_do_not_fit_below_each_other_are_refused(tmp_path):
    tile = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"'real': \(1, 8, 8, 3\)"):
        image_grid({"RL": tile, "real": tile[:1]}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="all rows"):
        image_grid({}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="N > 0"):
        image_grid({"RL": tile[:0]}, tmp_path / "grid.png")
