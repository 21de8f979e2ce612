import pytest
import torch

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


@pytest.mark.parametrize("shape", [(5, 2, 16, 16), (3, 16, 16)])
def test_images_of_the_wrong_shape_are_refused(classifier, shape):
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, H, W\) for the channels \('dna', 'tubulin'"):
        classifier(torch.zeros(shape))


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
