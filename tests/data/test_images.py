import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cellfluxrl.data.images import as_model_images, evenly_spread, to_pil, to_uint8

CHANNELS = ("dna", "tubulin", "actin")
IMAGE_SHAPE = (3, 4, 6)
uint8_batches = arrays(np.uint8, (2, *IMAGE_SHAPE))


@pytest.fixture
def expected() -> torch.Tensor:
    """Two images in [-1, 1] whose values 8 bits can hold."""
    values = np.random.default_rng(0).integers(0, 256, (2, *IMAGE_SHAPE), dtype=np.uint8)
    return torch.from_numpy(values).float() / 127.5 - 1


KINDS = {
    "uint8 tensor": lambda x: torch.from_numpy(to_uint8(x)),
    "uint8 array": to_uint8,
    "float32 tensor in [-1, 1]": lambda x: x,
    "float64 array in [-1, 1]": lambda x: x.double().numpy(),
    "float32 tensor in [0, 1]": lambda x: (x + 1) / 2,
    "float32 array in [0, 1]": lambda x: ((x + 1) / 2).numpy(),
    "list of tensors": list,
    "tuple of arrays": lambda x: tuple(to_uint8(x)),
    "list of PIL images": to_pil,
    "strided array": lambda x: to_uint8(x)[:, :, ::-1, ::-1][:, :, ::-1, ::-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_float32_in_the_models_range(kind, expected):
    images = as_model_images(KINDS[kind](expected), CHANNELS)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["uint8 tensor", "uint8 array", "float32 tensor in [-1, 1]", "list of PIL images"])
def test_a_single_image_becomes_a_batch_of_one(kind, expected):
    assert torch.equal(as_model_images(KINDS[kind](expected)[0], CHANNELS), expected[:1])


def test_half_precision_is_accepted(expected):
    torch.testing.assert_close(as_model_images(expected.half(), CHANNELS), expected, rtol=0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(values=uint8_batches)
def test_eight_bits_survive_the_round_trip(values):
    images = as_model_images(values, CHANNELS)
    np.testing.assert_array_equal(to_uint8(images), values)
    np.testing.assert_array_equal(to_uint8(as_model_images(to_pil(images), CHANNELS)), values)


@settings(max_examples=30, deadline=None)
@given(values=arrays(np.float32, (1, *IMAGE_SHAPE), elements=st.floats(0, 1, width=32)))
def test_numpy_in_the_unit_range_survives_the_round_trip(values):
    images = as_model_images(values, CHANNELS)
    np.testing.assert_allclose(((images + 1) / 2).numpy(), values, rtol=0, atol=1e-7)


def test_pil_shows_actin_in_red_and_dna_in_blue(expected):
    image = to_pil(expected[:1])[0]
    assert image.size == (6, 4)
    np.testing.assert_array_equal(np.asarray(image)[..., 0], to_uint8(expected)[0, 2])
    np.testing.assert_array_equal(np.asarray(image)[..., 2], to_uint8(expected)[0, 0])


def test_other_numbers_of_channels_are_accepted_by_name():
    assert as_model_images(torch.zeros(2, 5, 4, 4), tuple("abcde")).shape == (2, 5, 4, 4)


ZEROS = np.zeros((2, *IMAGE_SHAPE), dtype=np.float32)


def zeros_with(value):
    images = ZEROS.copy()
    images[1, 2, 3, 4] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (zeros_with(np.nan), "not finite"),
        (zeros_with(np.inf), "not finite"),
        (zeros_with(1.01), r"must lie in \[0, 1\] or \[-1, 1\], got values from 0 to 1.01"),
        (zeros_with(-3), r"must lie in \[0, 1\] or \[-1, 1\], got values from -3 to 0"),
        (255 * (ZEROS + 1), "got values from 255 to 255"),
        (ZEROS.astype(np.int64), "must be uint8 or floating point, got int64: rescale"),
        (ZEROS.astype(np.uint16), "must be uint8 or floating point, got uint16: rescale"),
        (torch.from_numpy(ZEROS).long(), "must be uint8 or floating point, got torch.int64: rescale"),
        (ZEROS.astype(bool), "must be uint8 or floating point, got bool"),
        (ZEROS[:, :2], r"must have shape \(N, 3, H, W\) .*'dna', 'tubulin', 'actin'.*got \(2, 2, 4, 6\)"),
        (ZEROS.transpose(0, 2, 3, 1), "got .*; channels come before height and width"),
        (ZEROS[0].transpose(1, 2, 0), "got .*; channels come before height and width"),
        (ZEROS[0, 0], r"must have shape \(N, 3, H, W\)"),
        (ZEROS[None], r"must have shape \(N, 3, H, W\)"),
        (ZEROS[:0], "the batch of images is empty"),
        ([], "the list of images is empty"),
        ([ZEROS[0], ZEROS[0, :, :2]], r"must have one shape, got \[\(3, 2, 6\), \(3, 4, 6\)\]"),
        ([ZEROS[0], ZEROS[0].astype(np.uint8)], r"must have one type, got \['torch.float32', 'torch.uint8'\]"),
        ([[0.0, 1.0]], "must be tensors, numpy arrays or PIL images, got list"),
        (None, "must be tensors, numpy arrays or PIL images, got NoneType"),
        ("control.png", "must be tensors, numpy arrays or PIL images, got str"),
        (ZEROS[:, :, :0], "no pixels"),
        (Image.new("L", (4, 4)), "PIL images must be RGB.*got mode 'L'"),
        (Image.new("RGBA", (4, 4)), "got mode 'RGBA'"),
    ],
)
def test_what_cannot_be_used_is_refused_and_named(images, message):
    with pytest.raises(ValueError, match=message):
        as_model_images(images, CHANNELS)


def test_pil_is_for_three_channels_only():
    with pytest.raises(ValueError, match="three channels only"):
        as_model_images(Image.new("RGB", (4, 4)), tuple("abcd"))
    with pytest.raises(ValueError, match="needs three channels, there are 4"):
        to_pil(torch.zeros(1, 4, 2, 2))


def test_values_beyond_the_range_are_clipped_on_the_way_out_only():
    assert to_uint8(torch.tensor([[[[-3.0, 3.0]]]])).tolist() == [[[[0, 255]]]]


def test_some_of_many_images_are_spread_over_all():
    chosen = evenly_spread(12_345, 1000)
    assert len(chosen) == 1000
    assert (chosen[0], chosen[-1]) == (0, 12_344)
    assert np.ptp(np.diff(chosen)) <= 1
    for at_most in (None, 7, 8):
        assert evenly_spread(7, at_most).tolist() == list(range(7))
    assert evenly_spread(7, 1).tolist() == [0]
