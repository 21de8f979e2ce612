"""The last steps of a simulated picture: what is stained in each cell, and what a camera makes of it."""

from __future__ import annotations

import numpy as np

from cellfluxrl.data.rendering.phenotypes import REFERENCE_SIZE
from cellfluxrl.data.rendering.tracing import Pixels

_WHITE = np.array([1.75, 3.8, 3.0], dtype=np.float32)[:, None]  # fluorescence that saturates, per channel
_PHOTONS = 1200  # in one unit of fluorescence


def stain(pixels: Pixels, noise: dict[str, np.ndarray]) -> np.ndarray:
    """Fluorescence, (n, 3, H * W), in units of a typical DMSO cell's; background is 0."""
    nucleus = np.clip((1 - pixels.nucleus_level) * pixels.of_cell("nucleus_radius") + 0.5, 0, 1)  # soft edge of one px
    cell = pixels.inside * np.clip(pixels.depth + 0.3, 0, 1)
    from_nucleus = np.maximum(pixels.nucleus_level - 1, 0) * pixels.of_cell("nucleus_radius")
    around = np.exp(-from_nucleus / 5)  # the cell is thickest around its nucleus
    dna = _stain_dna(pixels, noise) * nucleus
    tubulin = _stain_tubulin(pixels, noise, around) * (1 - 0.5 * nucleus)
    actin = _stain_actin(pixels, noise, around) * (1 - 0.25 * nucleus)
    return cell[:, None] * np.stack([dna, tubulin, actin], axis=1)


def _stain_dna(pixels: Pixels, noise: dict[str, np.ndarray]) -> np.ndarray:
    """Chromatin with nucleoli as dark holes; in mitosis a ring of chromosomes around a monopolar spindle."""
    chromatin = noise["fine"] - 2.0 * np.clip(noise["coarse"] - 0.9, 0, 1)
    dome = 1 - 0.3 * pixels.nucleus_level**2
    interphase = np.maximum(dome, 0.3) * (1 + pixels.of_cell("dna_texture") * chromatin)
    ring = 0.3 + np.exp(-(((pixels.nucleus_level - 0.68) / 0.25) ** 2))
    shape = np.where(pixels.of_cell("mitotic") > 0, ring * (1 + 0.15 * noise["fine"]), interphase)
    return pixels.of_cell("dna_brightness") * np.maximum(shape, 0.1)


def _stain_tubulin(pixels: Pixels, noise: dict[str, np.ndarray], around: np.ndarray) -> np.ndarray:
    """Crossing spirals of filaments that leave the nucleus, thick bundles, and an aggregate beside the nucleus."""
    # From the centrosome, which lies beside the nucleus' centre.
    row = pixels.row - 0.6 * pixels.of_cell("nucleus_radius") * np.sin(pixels.of_cell("aggregate_angle"))
    column = pixels.column - 0.6 * pixels.of_cell("nucleus_radius") * np.cos(pixels.of_cell("aggregate_angle"))
    distance, angle = np.sqrt(row**2 + column**2), np.arctan2(row, column)
    phase, sway = pixels.of_cell("phase"), noise["warp_row"] + 0.8 * noise["coarse"]
    fine = 0.35 + 0.85 * (
        _ridge(11 * angle + 0.50 * distance + phase + 1.5 * sway)
        + _ridge(8 * angle - 0.60 * distance - phase + 1.5 * noise["warp_column"])
    )
    bundled = 0.25 + 1.9 * _ridge(5 * angle + 0.22 * distance + phase + 0.8 * sway) ** 2
    bundling = pixels.of_cell("tubulin_bundling")
    filaments = (1 - bundling) * fine + bundling * bundled
    share = pixels.of_cell("tubulin_filaments")
    mesh = (1 - share) * (0.9 + 0.1 * noise["coarse"]) + share * filaments
    # Filaments converge on the nucleus, and so more of them overlap there; dissolved ones do not.
    body = mesh * (0.45 + (0.25 + 1.1 * share) * around)
    aggregate = pixels.of_cell("tubulin_aggregate") * np.exp(-((distance / 3.5) ** 2))
    aster = 1.2 * pixels.of_cell("mitotic") * np.exp(-(pixels.row**2 + pixels.column**2) / 25)
    return pixels.of_cell("tubulin_brightness") * (body + aggregate + aster)


def _stain_actin(pixels: Pixels, noise: dict[str, np.ndarray], around: np.ndarray) -> np.ndarray:
    """A rim under the membrane, stress fibres along the cell's axis, and clumps."""
    angle = pixels.of_cell("cell_angle")
    across = pixels.row * np.cos(angle) - pixels.column * np.sin(angle)
    fibres = _ridge(2.0 * across + 0.7 * noise["warp_row"] + pixels.of_cell("phase"))
    strength = pixels.of_cell("actin_fibres") * np.clip(0.4 + 0.5 * noise["coarse"], 0, 1.2)  # fibres come in sheets
    body = (0.4 + 0.35 * around) * (1 + 0.12 * noise["fine"]) * (1 - 0.5 * strength + 1.5 * strength * fibres)
    cortex = pixels.of_cell("actin_cortex") * np.exp(-((pixels.depth / 1.4) ** 2)) * (1 + 0.25 * noise["coarse"])
    clumps = pixels.of_cell("actin_clumps") * np.clip(noise["coarse"] - 0.6, 0, 1.5)
    return pixels.of_cell("actin_brightness") * np.maximum(body + cortex + clumps, 0)


def _ridge(phase: np.ndarray) -> np.ndarray:
    """Periodic bright lines in [0, 1], narrower than the gaps between them."""
    return (0.5 + 0.5 * np.cos(phase)) ** 2


def photograph(fluorescence: np.ndarray, plate: np.ndarray, noise: np.ndarray, scale: float) -> np.ndarray:
    """Take the plate's picture, (n, 3, H, W) uint8, of fluorescence (n, 3, H * W)."""
    n, channels, height, width = noise.shape
    optics = [_plate_optics(index) for index in plate.tolist()]
    gain = np.stack([gain for gain, _, _ in optics])[:, :, None]
    background = np.stack([background for _, background, _ in optics])[:, :, None]
    blur = np.stack([_gaussian_matrix(height, height, sigma * scale) for _, _, sigma in optics])[:, None]
    sharp = fluorescence.reshape(n, channels, height, width)
    blurred = (blur @ sharp @ blur.swapaxes(-1, -2)).reshape(n, channels, height * width)
    light = gain * blurred + background
    # Gaussian shot noise: at these counts a Poisson's, and several times faster to draw.
    light = light + np.sqrt(light / _PHOTONS) * noise.reshape(light.shape)
    # A camera's black level is set below its background; the square root lifts dim structures, as on real crops.
    stretched = np.sqrt(np.clip((light - 0.8 * background) / _WHITE, 0, 1))
    return np.rint(255 * stretched).astype(np.uint8).reshape(n, channels, height, width)


def _plate_optics(plate: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Gain and background per channel, (3,) float32, and blur in px of one plate."""
    rng = np.random.default_rng([2012, plate])
    gain = np.exp(0.14 * rng.standard_normal(3)).astype(np.float32)
    background = rng.uniform(0.015, 0.05, size=3).astype(np.float32)
    return gain, background, rng.uniform(0.6, 1.0)


def smooth_noise(white: np.ndarray, sigma: float, image_size: int) -> np.ndarray:
    """Unit-variance noise, (n, H * W), that varies over about `sigma` px, from white noise (n, 48, 48)."""
    kernel = _gaussian_matrix(image_size, REFERENCE_SIZE, sigma * image_size / REFERENCE_SIZE)
    kernel = kernel / np.sqrt((kernel**2).sum(axis=1, keepdims=True))
    return (kernel @ white @ kernel.T).reshape(len(white), -1)


def _gaussian_matrix(rows: int, columns: int, sigma: float) -> np.ndarray:
    """Matrix (rows, columns) that smooths, and resamples from `columns` to `rows`; `sigma` in rows."""
    target = np.arange(rows, dtype=np.float32)[:, None] + np.float32(0.5)
    source = (np.arange(columns, dtype=np.float32)[None] + np.float32(0.5)) * np.float32(rows / columns)
    weights = np.exp(-0.5 * ((target - source) / np.float32(sigma)) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)
