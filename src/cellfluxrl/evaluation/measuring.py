"""Everything that an evaluation measures on one set of cells, in one pass over the images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cellfluxrl.checkpoints import weights_hash
from cellfluxrl.data.images import images_to_tensor, unit_floats
from cellfluxrl.evaluation.features.extractors import FeatureExtractor
from cellfluxrl.evaluation.features.morphology import morphology_features
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.segmentation.measurements import STATISTICS, measure
from cellfluxrl.rewards.segmentation.protocol import Segmenter
from cellfluxrl.rewards.suite import RewardSuite

BATCH = 256
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Evaluators:
    """What looks at the cells.

    Args:
        suite: The rewards, which a model may have been optimised for.
        extractor: Features of the Frechet and kernel distances.
        segmenter: For the morphology panel; another than the suite's.
        judge: A classifier that no reward used.
    """

    suite: RewardSuite
    extractor: FeatureExtractor
    segmenter: Segmenter
    judge: MoAClassifier | None = None

    def fingerprint(self) -> str:
        """Differs where a result may differ: of the weights and settings of all of them."""
        networks = [weights_hash(self.suite), self.judge and weights_hash(self.judge)]
        names = [self.extractor.name, type(self.segmenter).name, repr(self.segmenter), repr(self.suite.segmenter)]
        return hashlib.sha256(repr([networks, names, self.suite.weights]).encode()).hexdigest()


@dataclass(frozen=True)
class Measurements:
    """What was measured on N images.

    Args:
        rewards: Each reward and `"combined"` in the deviation form, `(N,)`.
        features: `(N, D)`; of the feature extractor.
        probabilities, correct: By classifier, `"rewards"` and, if there is one, `"judge"`: the probability of the true
            mechanism, and whether it is the most probable one; `(N,)`.
        morphology: `(N, F)`; columns of [`morphology_feature_names`].
        statistics: `(N, 5)`; the shapes and counts that the rewards judge too, by the other segmenter.
    """

    rewards: dict[str, np.ndarray]
    features: np.ndarray
    probabilities: dict[str, np.ndarray]
    correct: dict[str, np.ndarray]
    morphology: np.ndarray
    statistics: np.ndarray

    @property
    def measurable(self) -> np.ndarray:
        """Whether the whole morphology panel could be measured, `(N,)`: not without a nucleus, or light."""
        return np.isfinite(self.morphology).all(axis=1)

    def take(self, rows: np.ndarray) -> Measurements:
        """Of these images only."""

        def taken(values: np.ndarray | dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
            return {name: v[rows] for name, v in values.items()} if isinstance(values, dict) else values[rows]

        return Measurements(**{f.name: taken(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def save(self, path: str | Path, fingerprint: str) -> None:
        """Write an `.npz` file, or nothing."""
        arrays = {"fingerprint": np.array(fingerprint)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            parts = value.items() if isinstance(value, dict) else [("", value)]
            arrays |= {f"{field.name}/{name}": array for name, array in parts}
        partial = Path(path).with_suffix(".partial.npz")
        partial.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path, fingerprint: str) -> Measurements | None:
        """Read what [`save`] wrote; `None` if it is not there, or is of other images or evaluators."""
        if not Path(path).is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            fields: dict = {}
            for key in stored.files:
                field, _, name = key.partition("/")
                if name:
                    fields.setdefault(field, {})[name] = stored[key]
                elif field != "fingerprint":
                    fields[field] = stored[key]
        return cls(**fields)


def measure_cells(
    images: np.ndarray, moa: Sequence[str], evaluators: Evaluators, title: str = "measuring"
) -> Measurements:
    """Measure everything on images.

    Args:
        images: `(N, C, H, W)`; uint8.
        moa: The true mechanism of action of each.
        evaluators: What looks at them.
        title: Of the progress bar.

    Raises:
        ValueError: If a mechanism is unknown to one of the classifiers, or the images are not the suite's kind.
    """

    def measured(start: int) -> Measurements:
        batch = np.array(images[start : start + BATCH])  # a copy: tensors are not made of read-only files
        return _measure_batch(batch, moa[start : start + BATCH], evaluators)

    parts = []
    # Most of the work is in NumPy, OpenCV and torch, which let other threads run meanwhile.
    with (
        ThreadPoolExecutor(THREADS) as threads,
        tqdm(total=len(images), unit=" cells", desc=title, leave=False) as bar,
    ):
        for part in threads.map(measured, range(0, len(images), BATCH)):
            parts.append(part)
            bar.update(len(part.features))
    joined = {}
    for field in dataclasses.fields(Measurements):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], dict):
            joined[field.name] = {name: np.concatenate([v[name] for v in values]) for name in values[0]}
        else:
            joined[field.name] = np.concatenate(values)
    return Measurements(**joined)


@torch.no_grad()  # which holds for one thread only
def _measure_batch(batch: np.ndarray, moa: Sequence[str], evaluators: Evaluators) -> Measurements:
    suite, images = evaluators.suite, images_to_tensor(batch)
    rewards = suite.score(suite.measure(batch, moa, batch_size=BATCH), moa)
    masks = evaluators.segmenter(unit_floats(batch))
    measured = measure(masks)
    probabilities, correct = classify(images, moa, evaluators)
    return Measurements(
        rewards={name: values.cpu().double().numpy() for name, values in rewards.items()},
        features=evaluators.extractor(images),
        probabilities=probabilities,
        correct=correct,
        morphology=morphology_features(images, masks),
        statistics=np.stack([measured[name] for name in STATISTICS], axis=1),
    )


@torch.no_grad()
def classify(
    images: torch.Tensor, moa: Sequence[str], evaluators: Evaluators
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Probability of the true mechanism, and whether it is the most probable, by each classifier."""
    probabilities, correct = {}, {}
    for name, classifier in (("rewards", evaluators.suite.classifier), ("judge", evaluators.judge)):
        if classifier is None:
            continue
        own = classifier.class_indices(moa)
        logits = torch.cat([classifier(part.to(classifier.device)).logits.cpu() for part in images.split(BATCH)])
        probabilities[name] = logits.softmax(dim=1)[torch.arange(len(own)), own].double().numpy()
        correct[name] = (logits.argmax(dim=1) == own).double().numpy()
    return probabilities, correct


@dataclass(frozen=True)
class CandidateMeasurements:
    """What best-of-N needs to know of K candidates of each of N controls, `N * K` rows, control after control.

    Args:
        measured: By the suite.
        features: `(N * K, D)`; of the feature extractor.
        probabilities, correct: See [`Measurements`].
    """

    measured: Measured
    features: np.ndarray
    probabilities: dict[str, np.ndarray]
    correct: dict[str, np.ndarray]


@torch.no_grad()
def measure_candidates(images: np.ndarray, moa: Sequence[str], evaluators: Evaluators) -> CandidateMeasurements:
    """Measure `(N, K, C, H, W)` uint8 images, K candidates of each of N mechanisms."""
    flat = images.reshape(-1, *images.shape[2:])
    repeated = [name for name in moa for _ in range(images.shape[1])]
    measured, features, probabilities, correct = [], [], [], []
    for start in tqdm(range(0, len(flat), BATCH), desc="measuring candidates", leave=False):
        crops, names = np.array(flat[start : start + BATCH]), repeated[start : start + BATCH]
        measured.append(evaluators.suite.measure(crops, names, batch_size=BATCH))
        batch = images_to_tensor(crops)
        features.append(evaluators.extractor(batch))
        for collected, found in zip((probabilities, correct), classify(batch, names, evaluators), strict=True):
            collected.append(found)
    return CandidateMeasurements(
        measured=Measured.cat(measured),
        features=np.concatenate(features),
        probabilities={name: np.concatenate([p[name] for p in probabilities]) for name in probabilities[0]},
        correct={name: np.concatenate([c[name] for c in correct]) for name in correct[0]},
    )
