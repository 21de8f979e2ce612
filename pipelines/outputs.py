"""How samples are drawn, and what the pipelines return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from PIL import Image

from cellfluxrl.data.images import to_pil, to_unit

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass(frozen=True)
class Sampling:
    """How sources become images; each is an argument of [`CellFluxPipeline.__call__`], which says what it does."""

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    direction: str = "forward"
    trajectory_times: Sequence[float] | None = None
    return_trajectory: bool = False
    batch_size: int = 64
    batch_invariant: bool = False
    callback_on_step_end: Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",)


@dataclass
class CellFluxPipelineOutput(BaseOutput):
    """Output of the pipelines.

    With K images per control, images `i K` to `i K + K - 1` belong to control `i`, or to compound or concentration `i`
    of a single control.

    Args:
        images: PIL in RGB (red is the last channel, blue the first); or `(N, C, H, W)`: numpy in [0, 1] for
            `output_type="np"`, a tensor in [-1, 1] for `"pt"`.
        rewards: The rewards of each image, each of shape `(N,)`.
        selected: `(N,)`; which of its `best_of_n` candidates each image is.
        trajectory: `(T, N, C, H, W)`; from the noisy control to the image, at the times of the scheduler's grid or at
            `trajectory_times`.
        within_range: `(N,)`; whether each image is, in all that the rewards measure, within the range of real cells
            ([`RewardSuite.outside_real_range`]).
        num_function_evaluations: Evaluations of the network on one image that each returned image has cost, those of
            its other candidates included; a guided one counts twice. `None` after an interruption.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    rewards: dict[str, torch.Tensor] | None = None
    selected: torch.Tensor | None = None
    trajectory: torch.Tensor | None = None
    within_range: torch.Tensor | None = None
    num_function_evaluations: int | None = None


def convert_images(images: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Convert `(N, C, H, W)` images in [-1, 1] to PIL images, a numpy array in [0, 1], or leave them."""
    if output_type == "pil":
        return to_pil(images)
    if output_type == "np":
        return to_unit(images).cpu().numpy()
    return images
