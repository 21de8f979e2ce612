import importlib.util
import pickle

import numpy as np
import pytest
import torch

from cellfluxrl import MoAClassifier
from cellfluxrl.evaluation.features.extractors import INCEPTION_WEIGHTS, classifier_extractor, inception_extractor


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return MoAClassifier(moas=["DMSO", "DNA damage"], width=4, image_size=16).eval()


def test_classifier_features_are_those_of_the_classifier(classifier, generator):
    images = 2 * torch.rand(70, 3, 16, 16, generator=generator) - 1
    extractor = classifier_extractor(classifier, "second")
    features = extractor(images)
    assert extractor.name == "MoA classifier second (16)"
    assert features.shape == (70, 16)
    assert features.dtype == np.float64
    with torch.no_grad():
        np.testing.assert_allclose(features, classifier(images).features.numpy(), atol=1e-6)


def test_a_classifier_in_training_is_refused():
    with pytest.raises(ValueError, match="call eval"):
        classifier_extractor(MoAClassifier(moas=["DMSO"]).train(), "first")


def test_missing_inception_weights_are_named_and_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=INCEPTION_WEIGHTS):
        inception_extractor()
    assert not list(tmp_path.rglob("*.pth"))
    with pytest.raises(FileNotFoundError, match=r"no Inception weights at .*mine\.pth"):
        inception_extractor(tmp_path / "mine.pth")


class Payload:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_weights_that_are_more_than_tensors_are_refused(tmp_path, capsys):
    torch.save({"weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError):
        inception_extractor(tmp_path / "bad.pth")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_torch_fidelity_says_what_to_install(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ImportError, match=r"pip install 'cellfluxrl\[inception\]'"):
        inception_extractor(tmp_path / "weights.pth")
