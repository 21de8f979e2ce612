"""Everything that an evaluation measures on one set of cells, in one pass over the images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from cellfluxrl.checkpoints import weights_hash
from cellfluxrl.data.images import images_to_tensor, unit_floats
from cellfluxrl.evaluation.features.extractors import FeatureExtractor, classifier_extractor, inception_extractor
from cellfluxrl.evaluation.features.morphology import morphology_features
from cellfluxrl.files import write_whole
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.segmentation.measurements import STATISTICS, measure
from cellfluxrl.rewards.segmentation.protocol import Segmenter, make_segmenter
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rows import Rows

BATCH = 256
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Evaluators:
    """What looks at the cells; [`make_evaluators`] chooses them.

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

    @property
    def features_are_held_out(self) -> bool:
        """Whether no reward was computed with the network of the features."""
        return self.judge is not None or "Inception" in self.extractor.name

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of `(N, C, H, W)` uint8 images, `(N, D)`."""
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([self.extractor(images_to_tensor(np.array(part))) for part in parts])

    def fingerprint(self) -> str:
        """Differs where a result may differ: of the weights and settings of all of them."""
        networks = [weights_hash(self.suite), self.judge and weights_hash(self.judge)]
        names = [self.extractor.name, type(self.segmenter).name, repr(self.segmenter), repr(self.suite.segmenter)]
        return hashlib.sha256(repr([networks, names, self.suite.weights]).encode()).hexdigest()


def make_evaluators(
    suite: RewardSuite,
    judge: MoAClassifier | None = None,
    features: str | None = None,
    segmenter: str | None = None,
    inception_weights: str | Path | None = None,
) -> Evaluators:
    """Choose what evaluates beside the rewards, so that as much as possible was never optimised.

    Args:
        suite: The rewards.
        judge: A classifier that no reward used.
        features: `"judge"`, `"rewards"` (of their classifier) or `"inception"`; by default the judge's, if there is
            one.
        segmenter: Name of another segmenter than that of the rewards; by default `"otsu"`, or `"watershed"` where the
            rewards use that.
        inception_weights: See [`inception_extractor`].

    Raises:
        ValueError: If the judge or the segmenter is that of the rewards.
    """
    if judge is not None and weights_hash(judge) == weights_hash(suite.classifier):
        raise ValueError("the judge is the classifier of the rewards, which is not held-out evidence")
    of_rewards = type(suite.segmenter).name
    segmenter = segmenter or ("watershed" if of_rewards == "otsu" else "otsu")
    if segmenter == of_rewards:
        raise ValueError(f"segmenter {segmenter!r} is that of the rewards, which is not held-out evidence")
    if features == "inception":
        extractor = inception_extractor(inception_weights, suite.device)
    elif judge is not None and features != "rewards":
        extractor = classifier_extractor(judge, "held out")
    else:
        extractor = classifier_extractor(suite.classifier, "of the rewards")
    return Evaluators(suite, extractor, make_segmenter(segmenter, channel_names=suite.channel_names), judge)


@dataclass(frozen=True)
class Verdicts(Rows):
    """What the networks say of N images, by classifier: `"rewards"` and, if there is one, `"judge"`."""

    features: np.ndarray  # (N, D), of the feature extractor
    probabilities: dict[str, np.ndarray]  # of the true mechanism, (N,)
    correct: dict[str, np.ndarray]  # whether the true mechanism is the most probable one, (N,)


@dataclass(frozen=True)
class Measurements(Verdicts):
    """What was measured on N images, beside what the networks say."""

    rewards: dict[str, np.ndarray]  # each reward and "combined" in the deviation form, (N,)
    morphology: np.ndarray  # (N, F), columns of `morphology_feature_names`
    statistics: np.ndarray  # (N, 5), the shapes and counts that the rewards judge too, by the other segmenter

    @property
    def per_cell(self) -> dict[str, np.ndarray]:
        """By column, what every single cell has a value of, `(N,)`."""
        columns = {**self.rewards, "accuracy_rewards": self.correct["rewards"]}
        if "judge" in self.correct:
            columns |= {"judge": self.probabilities["judge"], "accuracy_judge": self.correct["judge"]}
        return columns

    @property
    def measurable(self) -> np.ndarray:
        """Whether the whole morphology panel could be measured, `(N,)`: not without a nucleus, or light."""
        return np.isfinite(self.morphology).all(axis=1)

    def save(self, path: str | Path, fingerprint: str) -> None:
        """Write an `.npz` file, or nothing."""
        arrays = {"fingerprint": np.array(fingerprint), **self.tensors()}
        write_whole(path, lambda partial: np.savez(partial, **arrays))

    @classmethod
    def load(cls, path: str | Path, fingerprint: str) -> Measurements | None:
        """Read what [`save`] wrote; `None` if it is not there, or is of other images or evaluators."""
        if not Path(path).is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            return cls.from_tensors({name: stored[name] for name in stored.files if name != "fingerprint"})


def measure_cells(
    images: np.ndarray, moa: Sequence[str], evaluators: Evaluators, title: str = "measuring"
) -> Measurements:
    """Measure everything on `(N, C, H, W)` uint8 images with their true mechanisms of action.

    A `ValueError` says if a mechanism is unknown to one of the classifiers, or the images are not the suite's kind.
    """

    def measured(start: int) -> Measurements:
        batch = np.array(images[start : start + BATCH])  # a copy: tensors are not made of read-only files
        return _measure_batch(batch, moa[start : start + BATCH], evaluators)

    # Most of the work is in NumPy, OpenCV and torch, which let other threads run meanwhile.
    options = {"max_workers": THREADS, "tqdm_class": tqdm, "unit": " batches", "desc": title, "leave": False}
    return Measurements.cat(thread_map(measured, range(0, len(images), BATCH), **options))


@torch.no_grad()  # which holds for one thread only
def _measure_batch(batch: np.ndarray, moa: Sequence[str], evaluators: Evaluators) -> Measurements:
    suite, images = evaluators.suite, images_to_tensor(batch)
    rewards = suite.score(suite.measure(batch, moa, batch_size=BATCH), moa)
    masks = evaluators.segmenter(unit_floats(batch))
    measured = measure(masks)
    return Measurements(
        rewards={name: values.cpu().double().numpy() for name, values in rewards.items()},
        **vars(_judge(images, moa, evaluators)),
        morphology=morphology_features(images, masks),
        statistics=np.stack([measured[name] for name in STATISTICS], axis=1),
    )


@torch.no_grad()
def _judge(images: torch.Tensor, moa: Sequence[str], evaluators: Evaluators) -> Verdicts:
    """What the networks say of one batch."""
    probabilities, correct = {}, {}
    for name, classifier in (("rewards", evaluators.suite.classifier), ("judge", evaluators.judge)):
        if classifier is None:
            continue
        true = classifier.class_indices(moa)
        logits = classifier(images.to(classifier.device)).logits.cpu()
        probabilities[name] = logits.softmax(dim=1)[torch.arange(len(true)), true].double().numpy()
        correct[name] = (logits.argmax(dim=1) == true).double().numpy()
    return Verdicts(evaluators.extractor(images), probabilities, correct)


@dataclass(frozen=True)
class CandidateMeasurements:
    """What best-of-N needs to know of K candidates of each of N controls, `N * K` rows, control after control."""

    measured: Measured
    verdicts: Verdicts


@torch.no_grad()
def measure_candidates(images: np.ndarray, moa: Sequence[str], evaluators: Evaluators) -> CandidateMeasurements:
    """Measure `(N, K, C, H, W)` uint8 images, K candidates of each of N mechanisms."""
    flat = images.reshape(-1, *images.shape[2:])
    repeated = [name for name in moa for _ in range(images.shape[1])]
    measured, verdicts = [], []
    for start in tqdm(range(0, len(flat), BATCH), desc="measuring candidates", leave=False):
        crops, names = np.array(flat[start : start + BATCH]), repeated[start : start + BATCH]
        measured.append(evaluators.suite.measure(crops, names, batch_size=BATCH))
        verdicts.append(_judge(images_to_tensor(crops), names, evaluators))
    return CandidateMeasurements(Measured.cat(measured), Verdicts.cat(verdicts))
