"""Control images of every kind that users have them in."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from cellfluxrl.data.images import as_model_images, to_pil
from cellfluxrl.data.schema import CHANNEL_NAMES
from cellfluxrl.pipelines.inputs import as_control_images

UINT8 = np.random.default_rng(0).integers(0, 256, size=(3, 3, 16, 12), dtype=np.uint8)
EXPECTED = as_model_images(UINT8, CHANNEL_NAMES)


def array_dataset(images=UINT8, names=CHANNEL_NAMES, dtype="uint8") -> datasets.Dataset:
    feature = datasets.Array3D(shape=images.shape[1:], dtype=dtype, id=names and ",".join(names))
    columns = {"image": list(images), "well": [f"A0{i}" for i in range(len(images))]}
    return datasets.Dataset.from_dict(
        columns, features=datasets.Features(image=feature, well=datasets.Value("string"))
    )


def picture_dataset(names=CHANNEL_NAMES) -> datasets.Dataset:
    feature = datasets.Image(id=names and ",".join(names))
    return datasets.Dataset.from_dict({"image": to_pil(EXPECTED)}, features=datasets.Features(image=feature))


@pytest.mark.parametrize(
    "cells",
    [
        array_dataset(),
        array_dataset(names=None),
        array_dataset().with_format("torch"),
        picture_dataset(),
        picture_dataset(names=None),
        array_dataset()[:3],
        array_dataset().with_format("numpy")[:],
        picture_dataset()[:],
        list(array_dataset()),
        list(array_dataset().with_format("numpy")),
        list(picture_dataset()),
        list(array_dataset().with_format("torch")),
        [{"image": image} for image in torch.from_numpy(UINT8)],
    ],
    ids=[
        "Array3D",
        "Array3D without names",
        "Array3D as torch",
        "Image",
        "Image without names",
        "slice",
        "slice in numpy",
        "slice of Image",
        "rows",
        "rows in numpy",
        "rows of Image",
        "rows in torch",
        "own rows",
    ],
)
def test_cells_of_a_data_set_are_controls_like_any_other(cells):
    assert torch.equal(as_control_images(cells, CHANNEL_NAMES), EXPECTED)


def test_a_single_row_is_a_single_control():
    for cells in (array_dataset(), picture_dataset()):
        assert torch.equal(as_control_images(cells[1], CHANNEL_NAMES), EXPECTED[1:2])


def test_values_of_floating_point_stay_what_they_are():
    cells = array_dataset(EXPECTED.numpy(), dtype="float32")
    assert torch.equal(as_control_images(cells, CHANNEL_NAMES), EXPECTED)
    assert torch.equal(as_control_images(cells[:], CHANNEL_NAMES), EXPECTED)


def test_other_images_are_left_to_as_model_images():
    for images in (UINT8, EXPECTED, list(EXPECTED), to_pil(EXPECTED), to_pil(EXPECTED)[0]):
        assert torch.equal(as_control_images(images, CHANNEL_NAMES), as_model_images(images, CHANNEL_NAMES))


@pytest.mark.parametrize("make", [array_dataset, picture_dataset])
def test_channels_are_brought_into_the_order_of_the_network(make):
    names = ("tubulin", "actin", "dna")
    images = as_control_images(make(names=names), CHANNEL_NAMES)
    assert torch.equal(images, EXPECTED[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            array_dataset(names=("dna", "tubulin", "er")),
            r"the channels \('dna', 'tubulin', 'er'\), the network \('dna', 'tubulin', 'actin'\)",
        ),
        (array_dataset().remove_columns("image"), r"no column 'image'; its columns: \['well'\]"),
        ([{"well": "A01"}], r"needs an 'image', got the columns \['well'\]"),
        ([{"image": UINT8[0]}, {"image": UINT8[1, :, :8]}], "must have one shape"),
        ({"image": [[[[0, 300]]] * 3]}, "must be uint8 or floating point, got int64"),
        ({"image": [[[[0, 1]]] * 3, [[[0, 1, 2]]] * 3]}, "differ in shape"),
        (array_dataset().select([]), "the data set of control images is empty"),
        ({"image": Image.new("L", (16, 16))}, "PIL images must be RGB"),
        ("cells.png", "must be tensors, numpy arrays or PIL images, got str"),
    ],
)
def test_what_cannot_be_used_is_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        as_control_images(cells, CHANNEL_NAMES)
