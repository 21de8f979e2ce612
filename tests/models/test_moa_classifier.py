import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassCalibrationError

from cellfluxrl import MoAClassifier
from cellfluxrl.models.moa_classifier import expected_calibration_error

MOAS = ["DMSO", "Protein synthesis", "DNA damage"]


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return MoAClassifier(moas=MOAS, width=4).eval()


@pytest.fixture
def images(generator):
    return 2 * torch.rand(5, 3, 16, 16, generator=generator) - 1


def test_logits_and_features_have_one_row_for_each_image(classifier, images):
    output = classifier(images)
    assert output.logits.shape == (5, 3)
    assert output.features.shape == (5, 16)
    logits, features = classifier(images, return_dict=False)
    assert torch.equal(logits, output.logits)
    assert torch.equal(features, output.features)


def test_an_image_is_classified_the_same_in_every_batch(classifier, images):
    torch.testing.assert_close(classifier(images).logits[2:3], classifier(images[2:3]).logits, rtol=0, atol=1e-5)


def test_a_saved_classifier_gives_the_same_logits(classifier, images, tmp_path):
    classifier.temperature.fill_(1.7)
    classifier.save_pretrained(tmp_path)
    loaded = MoAClassifier.from_pretrained(tmp_path)
    assert not loaded.training
    assert list(loaded.config.moas) == MOAS
    assert torch.equal(loaded(images).logits, classifier(images).logits)


def test_the_temperature_divides_the_logits(classifier, images):
    logits = classifier(images).logits
    classifier.temperature.fill_(2.0)
    torch.testing.assert_close(classifier(images).logits, logits / 2)


def test_class_indices_are_positions(classifier):
    assert classifier.class_indices(["DNA damage", "DMSO", "DNA damage"]).tolist() == [2, 0, 2]


def test_an_unknown_mechanism_is_refused_with_the_nearest(classifier):
    with pytest.raises(ValueError, match=r"unknown MoA 'DNA damages'; did you mean 'DNA damage'\? 3 known"):
        classifier.class_indices(["DMSO", "DNA damages"])


@pytest.mark.parametrize("shape", [(5, 2, 16, 16), (3, 16, 16), (0, 3, 16, 16), (5, 3, 0, 16)])
def test_images_of_the_wrong_shape_are_refused(classifier, shape):
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, H, W\) for the channels \('dna', 'tubulin'"):
        classifier(torch.zeros(shape))


def test_integers_are_refused(classifier):
    with pytest.raises(ValueError, match=r"floating point in \[-1, 1\], got torch.uint8"):
        classifier(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1.01, -1.01, 255.0])
def test_one_pixel_that_is_not_in_range_is_refused(classifier, images, value):
    images[3, 1, 5, 7] = value
    with pytest.raises(ValueError, match=r"must be finite and lie in \[-1, 1\], got values from"):
        classifier(images)


@pytest.mark.parametrize("image_size", [0, -8, 4, 20])
def test_an_image_size_that_cannot_be_halved_three_times_is_refused(image_size):
    with pytest.raises(ValueError, match=f"multiple of 8, got {image_size}$"):
        MoAClassifier(moas=MOAS, width=4, image_size=image_size)


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(1, 8), height=st.integers(1, 512), width=st.integers(1, 512), value=st.floats(-1, 1))
def test_any_number_of_channels_and_any_size_give_finite_logits(channels, height, width, value):
    names = [f"channel_{c}" for c in range(channels)]
    classifier = MoAClassifier(moas=MOAS, channel_names=names, width=4).eval()
    images = torch.stack([torch.full((channels, height, width), value), 2 * torch.rand(channels, height, width) - 1])
    assert classifier(images).logits.isfinite().all()


def test_the_same_field_of_view_at_another_resolution_is_classified_alike(classifier, generator):
    images = F.interpolate(torch.rand(4, 3, 5, 5, generator=generator) - 0.5, size=(48, 48), mode="bicubic")
    logits = classifier(images).logits
    differences = logits[:, None] - logits[None]
    for size in ((96, 96), (192, 192), (64, 96)):
        other = classifier(F.interpolate(images, size=size, mode="bilinear")).logits
        assert (other - logits).abs().max() < 0.1 * differences.abs().max()


def test_fine_texture_of_a_large_image_does_not_alias(classifier):
    """A checkerboard is grey at a quarter of the resolution; every fourth pixel of it is white."""
    board = (torch.arange(192)[:, None] + torch.arange(192)) % 2 * 2.0 - 1
    logits = classifier(board.expand(1, 3, -1, -1)).logits
    torch.testing.assert_close(logits, classifier(torch.zeros(1, 3, 48, 48)).logits, rtol=0, atol=0.02)


def test_channels_are_standardised_by_the_training_set(classifier, images):
    logits = classifier(images).logits
    classifier.channel_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    classifier.channel_std.copy_(torch.tensor([0.5, 0.25, 0.4]))
    dimmed = images * classifier.channel_std[:, None, None] + classifier.channel_mean[:, None, None]
    torch.testing.assert_close(classifier(dimmed).logits, logits, rtol=0, atol=1e-5)


def test_calibration_error_of_an_example_done_by_hand():
    probabilities = torch.tensor([[0.95, 0.05], [0.93, 0.07], [0.35, 0.65], [0.38, 0.62]])
    labels = torch.tensor([0, 1, 1, 1])
    # Bin 0.9-1: confidence 0.94, accuracy 1/2; bin 0.6-0.7: confidence 0.635, accuracy 1; half of the cells in each.
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.44 + 0.5 * 0.365, abs=1e-6)


def test_calibration_error_at_its_extremes():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(certain, torch.tensor([0, 1])) == 0
    assert expected_calibration_error(certain, torch.tensor([1, 0])) == 1


def test_calibrated_probabilities_have_a_small_error(generator):
    confidence = 0.5 + 0.5 * torch.rand(20_000, generator=generator)
    labels = (torch.rand(20_000, generator=generator) > confidence).long()
    assert expected_calibration_error(torch.stack([confidence, 1 - confidence], dim=1), labels) < 0.02


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16), classes=st.integers(2, 13), sharpness=st.floats(0.1, 10), num_bins=st.integers(1, 20)
)
def test_calibration_error_is_that_of_torchmetrics(seed, classes, sharpness, num_bins):
    random = torch.Generator().manual_seed(seed)
    probabilities = (sharpness * torch.randn(200, classes, generator=random)).softmax(dim=1)
    labels = torch.randint(classes, (200,), generator=random)
    expected = MulticlassCalibrationError(num_classes=classes, n_bins=num_bins, norm="l1")(probabilities, labels)
    assert expected_calibration_error(probabilities, labels, num_bins) == pytest.approx(float(expected), abs=1e-5)
