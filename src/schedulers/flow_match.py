"""Solvers, time grids and source noise for flow matching from control to treated images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from cellfluxrl.errors import unknown_name

SOLVERS = ("euler", "midpoint", "heun")
TIME_GRIDS = ("uniform", "edm")
SOURCE_NOISES = ("white", "band_limited")
PREDICTION_TYPES = ("velocity", "target")


@dataclass
class CellFluxFlowMatchSchedulerOutput(BaseOutput):
    """
    Output of [`CellFluxFlowMatchScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(N, C, H, W)`):
            The sample at the next time of the grid, to be given to the model next.
        pred_target_sample (`torch.Tensor` of shape `(N, C, H, W)`):
            Where the current velocity points at t = 1: `x_t + (1 - t) v`.
    """

    prev_sample: torch.Tensor
    pred_target_sample: torch.Tensor


def edm_times(num_steps: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> torch.Tensor:
    """
    Times of the EDM noise levels (Karras et al., 2022, eq. 5) under t = 1 / (1 + sigma), ending at t = 1.

    Returns:
        `torch.Tensor` of shape `(num_steps + 1,)`, float64, increasing from `1 / (1 + sigma_max)` = 0.0123.
    """
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64) if num_steps > 1 else torch.zeros(1).double()
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([1 / (1 + sigmas), torch.ones(1, dtype=torch.float64)])


def band_limited_noise(noise: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Up-sample white noise bicubically to smooth noise of unit variance at every pixel.

    Args:
        noise (`torch.Tensor` of shape `(N, C, h, w)`): Standard normal values on a coarse grid.
        height (`int`), width (`int`): Size of the result.

    Returns:
        `torch.Tensor` of shape `(N, C, height, width)`.
    """
    rows = _unit_variance_interpolation(noise.shape[-2], height).to(noise)
    columns = _unit_variance_interpolation(noise.shape[-1], width).to(noise)
    return rows @ noise @ columns.T


def _unit_variance_interpolation(coarse: int, fine: int) -> torch.Tensor:
    weights = F.interpolate(torch.eye(coarse)[None, None], size=(fine, coarse), mode="bicubic")[0, 0]
    return weights / weights.norm(dim=1, keepdim=True)


class CellFluxFlowMatchScheduler(SchedulerMixin, ConfigMixin):
    """
    Integrates dx/dt = v(x, t) from a control image at t = 0 to a treated image at t = 1.

    It follows the scheduler protocol of diffusers: [`set_timesteps`] lays the grid, the model is called once for every
    entry of `timesteps`, and [`step`] moves the sample. Solvers of second order have two entries a step. All solvers
    are deterministic: stochastic samplers that assume a Gaussian source are not valid from control images.

    Args:
        solver (`str`, defaults to `"midpoint"`):
            `"euler"` (one evaluation a step), `"midpoint"` or `"heun"` (two).
        time_grid (`str`, defaults to `"uniform"`):
            `"uniform"` from t = 0, or `"edm"` as CellFlux samples (rho = 7, starts at t = 0.0123).
        prediction_type (`str`, defaults to `"velocity"`):
            What the model returns. [`CellFluxUNet2DModel`] always returns a velocity; `"target"` is for other networks
            that return the treated sample x1, which is turned into `(x1 - x_t) / max(1 - t, min_time_remaining)`.
        min_time_remaining (`float`, defaults to 0.1): Floor of 1 - t in that quotient.
        source_noise (`str`, defaults to `"white"`):
            `"white"` (CellFlux), or `"band_limited"`: Gaussian on a coarse grid, up-sampled bicubically.
        source_noise_scale (`float`, defaults to 1.0): Standard deviation of the source noise, images being in [-1, 1].
        source_noise_grid (`int`, defaults to 12): Side of the coarse grid of band-limited noise.

    Example:
        >>> scheduler = CellFluxFlowMatchScheduler(solver="euler")
        >>> scheduler.set_timesteps(4)
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> for t in scheduler.timesteps:
        ...     x = scheduler.step(torch.ones_like(x), t, x).prev_sample
        >>> float(x.mean())
        1.0
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        solver: str = "midpoint",
        time_grid: str = "uniform",
        prediction_type: str = "velocity",
        min_time_remaining: float = 0.1,
        source_noise: str = "white",
        source_noise_scale: float = 1.0,
        source_noise_grid: int = 12,
    ):
        for kind, name, allowed in (
            ("solver", solver, SOLVERS),
            ("time_grid", time_grid, TIME_GRIDS),
            ("prediction_type", prediction_type, PREDICTION_TYPES),
            ("source_noise", source_noise, SOURCE_NOISES),
        ):
            if name not in allowed:
                raise unknown_name(kind, name, allowed)
        if source_noise_scale < 0:
            raise ValueError(f"source_noise_scale must not be negative, got {source_noise_scale}")
        self.order = 1 if solver == "euler" else 2
        self.grid = torch.empty(0)
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._evaluation = 0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        grid: torch.Tensor | list[float] | None = None,
    ) -> None:
        """
        Lay the time grid before sampling.

        Args:
            num_inference_steps (`int`, *optional*): Number of steps; a second-order solver evaluates twice as often.
            device (`torch.device`, *optional*): Where `timesteps` live.
            grid (`torch.Tensor` or `list[float]`, *optional*): A custom grid of increasing times in [0, 1] instead.

        Raises:
            ValueError: If neither or both of `num_inference_steps` and `grid` are given, or they are not usable.
        """
        if (num_inference_steps is None) == (grid is None):
            raise ValueError("give either num_inference_steps or a custom grid")
        if grid is not None:
            grid = torch.as_tensor(grid, dtype=torch.float64).cpu()
            valid = grid.ndim == 1 and len(grid) >= 2 and grid[0] >= 0 and grid[-1] <= 1 and (grid.diff() > 0).all()
            if not valid:
                raise ValueError(f"a custom grid needs two or more increasing times in [0, 1], got {grid.tolist()}")
        elif num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        elif self.config.time_grid == "edm":
            grid = edm_times(num_inference_steps)
        else:
            grid = torch.linspace(0, 1, num_inference_steps + 1, dtype=torch.float64)

        self.num_inference_steps = len(grid) - 1
        self.grid = grid
        start, end = grid[:-1], grid[1:]
        if self.config.solver == "euler":
            evaluations = start
        elif self.config.solver == "midpoint":
            evaluations = torch.stack([start, (start + end) / 2], dim=1).flatten()
        else:
            evaluations = torch.stack([start, end], dim=1).flatten()
        # A grid in float64 decides where a step ends; the model gets float32 times.
        self.timesteps = evaluations.float().to(device)
        self._evaluation = 0

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """Return `sample` unchanged: flow matching needs no scaling. Here so that schedulers can be swapped."""
        return sample

    def velocity(
        self, model_output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor
    ) -> torch.Tensor:
        """Turn the model's output into a velocity, as `prediction_type` says."""
        if self.config.prediction_type == "velocity":
            return model_output
        return (model_output - sample) / max(1 - float(timestep), self.config.min_time_remaining)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> CellFluxFlowMatchSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        Move the sample by one evaluation of the model. Call it once for every entry of `timesteps`, in order.

        Args:
            model_output (`torch.Tensor` of shape `(N, C, H, W)`): What the model returned for `sample` at `timestep`.
            timestep (`float` or `torch.Tensor`): The entry of `timesteps` that the model was called with.
            sample (`torch.Tensor` of shape `(N, C, H, W)`): What the model was called with.
            generator: Not used: every solver is deterministic.
            return_dict (`bool`, defaults to `True`): Return a [`CellFluxFlowMatchSchedulerOutput`], else a tuple.

        Raises:
            ValueError: If `set_timesteps` was not called, or all its steps have been taken.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        if self._evaluation >= len(self.timesteps):
            raise ValueError(f"all {len(self.timesteps)} evaluations are done: call set_timesteps to start again")
        velocity = self.velocity(model_output, timestep, sample)
        pred_target_sample = sample + (1 - float(timestep)) * velocity
        interval, stage = divmod(self._evaluation, self.order)
        size = float(self.grid[interval + 1] - self.grid[interval])

        if self.config.solver == "euler":
            prev_sample = sample + size * velocity
        elif stage == 0:
            self._start, self._start_velocity = sample, velocity
            prev_sample = sample + (size / 2 if self.config.solver == "midpoint" else size) * velocity
        elif self.config.solver == "midpoint":
            prev_sample = self._start + size * velocity
        else:
            prev_sample = self._start + size * (self._start_velocity + velocity) / 2
        self._evaluation += 1

        if not return_dict:
            return prev_sample, pred_target_sample
        return CellFluxFlowMatchSchedulerOutput(prev_sample=prev_sample, pred_target_sample=pred_target_sample)

    def sample_source_noise(
        self,
        shape: tuple[int, int, int, int],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """
        Draw the noise that is added to a control image at t = 0.

        Args:
            shape (`tuple` of `(N, C, H, W)`): Shape of the control images.
            generator (`torch.Generator` or a list of N of them, *optional*): A list makes samples independent of
                the batch they are in.

        Returns:
            `torch.Tensor` of that shape with standard deviation `source_noise_scale`.
        """
        n, channels, height, width = shape
        if self.config.source_noise == "white":
            noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        else:
            side = self.config.source_noise_grid
            coarse = randn_tensor((n, channels, side, side), generator=generator, device=device, dtype=dtype)
            noise = band_limited_noise(coarse, height, width)
        return self.config.source_noise_scale * noise

    def __len__(self) -> int:
        return len(self.timesteps)
