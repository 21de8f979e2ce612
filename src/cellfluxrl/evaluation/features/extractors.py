"""Where the features of a Frechet or kernel distance come from, by a name that goes into the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cellfluxrl.data.images import to_uint8
from cellfluxrl.models.moa_classifier import MoAClassifier

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity names and stores them
INCEPTION_FEATURES = 2048
_BATCH = 64


@dataclass(frozen=True)
class FeatureExtractor:
    """From images to features, with the name that results are reported under.

    Args:
        name: For example `"Inception-v3 (2048)"`.
        network: From `(N, C, H, W)` images in [-1, 1] to an `(N, D)` tensor.

    Example:
        >>> means = FeatureExtractor("channel means", lambda images: images.mean(dim=(2, 3)))
        >>> means(torch.zeros(100, 3, 8, 8)).shape
        (100, 3)
    """

    name: str
    network: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> np.ndarray:
        """Features of `(N, C, H, W)` images in [-1, 1], `(N, D)` float64."""
        return torch.cat([self.network(part).cpu().double() for part in images.split(_BATCH)]).numpy()


def classifier_extractor(classifier: MoAClassifier, name: str) -> FeatureExtractor:
    """Features of a classifier of this package, before its last layer: they need no download and know these cells.

    Args:
        classifier: In evaluation mode; one that no reward used is held-out evidence.
        name: Which one it is; the name becomes `"MoA classifier <name> (D)"`.
    """
    if classifier.training:
        raise ValueError("the classifier is in training mode, where features depend on the batch: call eval() first")
    dimension = classifier.head.in_features
    return FeatureExtractor(
        f"MoA classifier {name} ({dimension})", lambda images: classifier(images.to(classifier.device)).features
    )


def inception_extractor(weights: str | Path | None = None, device: str | torch.device = "cpu") -> FeatureExtractor:
    """The 2,048 features of the Inception network that FID and KID are defined on, by torchmetrics and torch-fidelity.

    Images are rounded to 8 bits and resized to 299 x 299 as torchmetrics does. Nothing is downloaded.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; by default the copy in the cache of
            `torch.hub`, where torch-fidelity stores it.
        device: Where it runs.

    Raises:
        ImportError: If torchmetrics or torch-fidelity is not installed.
        FileNotFoundError: If the weights are not there.

    Example:
        >>> extractor = inception_extractor("weights-inception-2015-12-05-6726825d.pth")    # doctest: +SKIP
    """
    path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {path}; get {INCEPTION_WEIGHTS} from the releases of toshas/torch-fidelity, or "
            "use the features of a MoA classifier"
        )
    # torch-fidelity unpickles the file without restriction: let nothing through that is more than tensors.
    torch.load(path, map_location="cpu", weights_only=True)
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise ImportError(
            f"Inception features need torchmetrics and torch-fidelity ({error}): pip install "
            "'cellfluxrl[inception]'; the features of a MoA classifier need neither"
        ) from error
    network = NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)], str(path)).to(device)

    def features(images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] != 3:
            raise ValueError(f"Inception takes images of three channels, got {images.shape[1]}")
        return network(torch.from_numpy(to_uint8(images)).to(device))

    return FeatureExtractor(f"Inception-v3 ({INCEPTION_FEATURES})", features)
