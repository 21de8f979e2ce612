"""The noise that is added to a control at t = 0, without which one control would have one treated sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor

SOURCE_NOISES = ("white", "band_limited")


def sample_source_noise(
    shape: Sequence[int],
    kind: str = "white",
    grid: int = 12,
    detail: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Draw Gaussian noise of unit variance.

        white:          n_white
        band-limited:   sqrt(1 - d^2) n_smooth + d n_white,   n_smooth a coarse grid of noise, up-sampled

    Args:
        shape: `(N, ...)`; of images, `(N, C, H, W)`, for band-limited noise.
        kind: `"white"` or `"band_limited"`.
        grid: Side of the coarse grid of band-limited noise.
        detail: d, the share of white noise in band-limited noise, as a standard deviation.
        generator: A list, one for each sample, makes samples independent of the batch they are in.

    Raises:
        ValueError: For band-limited noise of samples that are not images.

    Example:
        >>> sample_source_noise((2, 50)).shape, sample_source_noise((2, 3, 48, 48), "band_limited").shape
        (torch.Size([2, 50]), torch.Size([2, 3, 48, 48]))
    """
    shape = tuple(shape)

    def white(*size: int) -> torch.Tensor:
        return randn_tensor(size, generator=generator, device=device, dtype=dtype)

    if kind == "white":
        return white(*shape)
    if len(shape) != 4:
        raise ValueError(f"band_limited noise is for images (N, C, H, W), got samples of shape {shape}: use 'white'")
    noise = band_limited_noise(white(*shape[:2], grid, grid), *shape[2:])
    return (1 - detail**2) ** 0.5 * noise + detail * white(*shape) if detail else noise


def band_limited_noise(noise: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Up-sample white noise bicubically to smooth noise of unit variance at every pixel.

    Args:
        noise: `(N, C, h, w)`; standard normal values on a coarse grid.
        height, width: Size of the result.

    Returns:
        `(N, C, height, width)`.
    """
    rows = _unit_variance_interpolation(noise.shape[-2], height).to(noise)
    columns = _unit_variance_interpolation(noise.shape[-1], width).to(noise)
    return rows @ noise @ columns.T


def _unit_variance_interpolation(coarse: int, fine: int) -> torch.Tensor:
    weights = F.interpolate(torch.eye(coarse)[None, None], size=(fine, coarse), mode="bicubic")[0, 0]
    return weights / weights.norm(dim=1, keepdim=True)
