"""Fit the weights by which the watershed segmenter tells two nuclei from parts of one, and print them.

Run as `OMP_NUM_THREADS=1 python benchmarks/nucleus_borders.py`. Regions and borders are the segmenter's own; the
simulator knows the answer. The error is that on other crops than the weights were fitted on.
"""

from unittest import mock

import numpy as np
from scipy.optimize import minimize
from simulated_truth import known_crops

import cellfluxrl.rewards.segmentation.watershed as watershed
from cellfluxrl.rewards.segmentation.nucleus_borders import FEATURES, border_features

COUNT = 1200
BATCH = 64  # what the segmenter computes at once
PENALTY = 1e-3


def borders_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of the borders between regions of known nuclei, and whether both are of one nucleus."""
    crops, _ = known_crops(COUNT, seed)
    features, same = [], []
    for start in range(0, len(crops.image), BATCH):
        truth = crops.nucleus_labels[start : start + BATCH].ravel()

        def record(labels, borders, planes, scale, truth=truth):
            votes = np.zeros((labels.max() + 1, truth.max() + 1))
            np.add.at(votes, (labels.ravel(), truth), 1)
            votes[:, 0] *= 0.3  # most regions are a little larger than the nucleus
            own = votes.argmax(axis=1)
            known = (own[borders.first] > 0) & (own[borders.second] > 0)
            features.append(border_features(labels, borders, planes, scale)[known])
            same.append((own[borders.first] == own[borders.second])[known])
            return np.full(len(borders.first), -np.inf)  # none is joined, so there is no second round

        with mock.patch.object(watershed, "log_odds_of_one_nucleus", record):
            watershed.WatershedSegmenter()((crops.image[start : start + BATCH] / 255).astype(np.float32))
    return np.concatenate(features), np.concatenate(same)


def fit(features: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and intercept of a logistic regression with a small ridge penalty on standardised features."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    inputs = np.c_[(features - mean) / std, np.ones(len(features))]

    def loss(weights: np.ndarray) -> float:
        wrong = np.logaddexp(0, -(2 * same - 1) * (inputs @ weights)).mean()
        return wrong + PENALTY * (weights[:-1] ** 2).sum()

    weights = minimize(loss, np.zeros(inputs.shape[1])).x
    return weights[:-1] / std, weights[-1] - (weights[:-1] * mean / std).sum()


def main() -> None:
    parts = [borders_of(seed) for seed in (11, 12, 14)]
    features, same = (np.concatenate(part) for part in zip(*parts, strict=True))
    weights, intercept = fit(features, same)
    print(f"{len(same)} borders, {same.mean():.0%} within a nucleus")
    print("weights:", ", ".join(f"{name} {weight:.3f}" for name, weight in zip(FEATURES, weights, strict=True)))
    print(f"intercept: {intercept:.3f}")
    features, same = borders_of(13)
    print(f"error on {len(same)} borders of other crops: {np.mean((features @ weights + intercept > 0) != same):.1%}")


if __name__ == "__main__":
    main()
