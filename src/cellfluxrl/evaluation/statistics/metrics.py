"""Distances between generated and real cells, and hand-made features of images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance


def check_features(a: np.ndarray, b: np.ndarray) -> None:
    """Raise a `ValueError` unless both are finite `(rows, D)` of one D."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D) of one D, got {a.shape} and {b.shape}")
    for name, features in (("first", a), ("second", b)):
        if not np.isfinite(features).all():
            raise ValueError(
                f"features of the {name} set are not all finite: leave out rows with NaN, and say how many"
            )


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to features `(N, D)` and `(M, D)` (Heusel et al., 2017).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B. Biased upwards for small sets, so
    compare only sets of one size with one reference.
    """
    check_features(a, b)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The eigenvalues of a product of positive semidefinite matrices are real and not negative, up to rounding.
    eigenvalues = np.linalg.eigvals(covariance_a @ covariance_b).real.clip(min=0)
    shift = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(eigenvalues).sum())


def mean_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the columns of `(N, D)` statistics of the Wasserstein-1 distance, in standard deviations of `b`."""
    scale = np.maximum(b.std(axis=0), 1e-6)
    return float(np.mean([wasserstein_distance(x, y) / s for x, y, s in zip(a.T, b.T, scale, strict=True)]))


def relative_spread(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the ratio of total variances of two sets of features: 1 if `a` is as diverse as `b`."""
    return float(np.sqrt(a.var(axis=0).sum() / b.var(axis=0).sum()))


def spread_within(a: np.ndarray, a_groups: np.ndarray, b: np.ndarray, b_groups: np.ndarray) -> float:
    """Root of the mean over columns of the ratio of variances within groups of `(N, D)` and `(M, D)` statistics.

    The difference between groups, which is most of a total variance, does not count: samples that were chosen near
    the mean of each mechanism are caught by this alone. NaN if no group has two rows.
    """
    ratio = _variance_within(a, a_groups) / np.maximum(_variance_within(b, b_groups), 1e-12)
    return float(np.sqrt(ratio.mean()))


def _variance_within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(index, weights=column) / counts for column in values.T], axis=1)
    free = len(values) - len(counts)
    return ((values - means[index]) ** 2).sum(axis=0) / free if free else np.full(values.shape[1], np.nan)


def image_features(images: torch.Tensor) -> torch.Tensor:
    """Hand-made features `(N, 8 C + C (C - 1) / 2)` of `(N, C, H, W)` images, which nothing is trained on.

    For each channel mean, standard deviation, skewness and upper 5 % of the intensity, the standard deviation of three
    octaves of detail, and the difference between centre and rim; for each pair of channels their correlation.
    """
    pixels = images.float().flatten(2)
    centred = pixels - pixels.mean(dim=2, keepdim=True)
    std = centred.square().mean(dim=2).sqrt().clamp(min=1e-3)
    skewness = (centred / std[..., None]).pow(3).mean(dim=2)
    octaves, coarse = [], images.float()
    for _ in range(3):
        smaller = F.avg_pool2d(coarse, 2)
        detail = coarse[..., : 2 * smaller.shape[-2], : 2 * smaller.shape[-1]] - F.interpolate(smaller, scale_factor=2)
        octaves.append(detail.flatten(2).std(dim=2))
        coarse = smaller
    height, width = images.shape[-2:]
    centre = images[..., height // 4 : -(height // 4), width // 4 : -(width // 4)].float().mean(dim=(2, 3))
    first, second = torch.triu_indices(images.shape[1], images.shape[1], offset=1)
    scaled = centred / std[..., None]
    correlations = (scaled[:, first] * scaled[:, second]).mean(dim=2)
    per_channel = [pixels.mean(2), std, skewness, pixels.quantile(0.95, dim=2), *octaves, centre - pixels.mean(2)]
    return torch.cat([*per_channel, correlations], dim=1)
