"""The scheduler of flow matching between control and treated images: what the pipeline calls to integrate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput

from cellfluxrl.configuration import ConfigMixin, register_to_config
from cellfluxrl.errors import unknown_name
from cellfluxrl.flow.noise import SOURCE_NOISES, sample_source_noise
from cellfluxrl.flow.paths import PREDICTION_TYPES
from cellfluxrl.schedulers.grids import TIME_GRIDS, as_grid, make_grid
from cellfluxrl.schedulers.solvers import MULTISTEP, RUNGE_KUTTA, Evaluation, straight_before


@dataclass
class CellFluxFlowMatchSchedulerOutput(BaseOutput):
    """Output of [`CellFluxFlowMatchScheduler.step`].

    Args:
        prev_sample: `(N, C, H, W)`; the sample at the next time of the grid, to be given to the model next.
        pred_target_sample: `(N, C, H, W)`; where the current velocity points at t = 1: `x_t + (1 - t) v`.
    """

    prev_sample: torch.Tensor
    pred_target_sample: torch.Tensor


class CellFluxFlowMatchScheduler(SchedulerMixin, ConfigMixin):
    """Integrates dx/dt = v(x, t) from a control image at t = 0 to a treated image at t = 1, or back.

    It follows the scheduler protocol of diffusers: [`set_timesteps`] lays the grid, the model is called once for every
    entry of `timesteps`, and [`step`] moves the sample. All solvers are deterministic: stochastic samplers that assume
    a Gaussian source are not valid from control images. docs/schedulers.md says how to choose one, and how to write
    another.

    Args:
        solver: With one evaluation of the model a step: `"euler"` (order 1), `"ab2"` (Adams-Bashforth, order 2) and
            `"exponential_ab2"` (the same in the predicted target, order 2, much like DPM-Solver++(2M)). With two:
            `"midpoint"` and `"heun"` (order 2). With four: `"rk4"` (order 4).
        time_grid: `"uniform"` from t = 0, or `"edm"` as CellFlux samples (rho = 7, starts at t = 0.0123).
        prediction_type: What the model returns. [`CellFluxUNet2DModel`] always returns a velocity; `"target"` is for
            other networks that return the treated sample x1, which is turned into
            `(x1 - x_t) / max(1 - t, min_time_remaining)`.
        min_time_remaining: Floor of 1 - t in that quotient.
        source_noise: `"white"` (CellFlux), or `"band_limited"`: Gaussian on a coarse grid, up-sampled bicubically.
        source_noise_scale: Standard deviation of the source noise, images being in [-1, 1].
        source_noise_grid: Side of the coarse grid of band-limited noise.
        source_noise_detail: Standard deviation of white noise within band-limited noise, as a share of
            `source_noise_scale`, which stays that of the sum. Without any, a sample has no randomness at the scale of
            pixels, and its texture comes out smooth.

    Attributes:
        order: Evaluations a step, as diffusers uses the word.
        grid: `(num_inference_steps + 1,)`; the times at which steps begin and end, float64.
        timesteps: `(num_inference_steps * order,)`; the times to call the model with.
        init_noise_sigma: 1: the source is not scaled.

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
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        solver: str = "exponential_ab2",
        time_grid: str = "uniform",
        prediction_type: str = "velocity",
        min_time_remaining: float = 0.1,
        source_noise: str = "white",
        source_noise_scale: float = 1.0,
        source_noise_grid: int = 12,
        source_noise_detail: float = 0.0,
    ):
        for kind, name, allowed in (
            ("solver", solver, (*RUNGE_KUTTA, *MULTISTEP)),
            ("time_grid", time_grid, TIME_GRIDS),
            ("prediction_type", prediction_type, PREDICTION_TYPES),
            ("source_noise", source_noise, SOURCE_NOISES),
        ):
            if name not in allowed:
                raise unknown_name(kind, name, allowed)
        if source_noise_scale < 0:
            raise ValueError(f"source_noise_scale must not be negative, got {source_noise_scale}")
        if not 0 <= source_noise_detail <= 1:
            raise ValueError(f"source_noise_detail must be in [0, 1], got {source_noise_detail}")
        if source_noise_detail > 0 and source_noise == "white":
            raise ValueError(
                f"source_noise_detail={source_noise_detail} is for band_limited noise, white has it anyway"
            )
        self._nodes = RUNGE_KUTTA[solver].nodes if solver in RUNGE_KUTTA else (0,)
        self.order = len(self._nodes)
        self.grid = torch.empty(0)
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        grid: torch.Tensor | Sequence[float] | None = None,
        reverse: bool = False,
        readout_times: Sequence[float] = (),
    ) -> None:
        """Lay the time grid before sampling.

        Args:
            num_inference_steps: Number of steps; each evaluates the model `order` times.
            device: Where `timesteps` live.
            grid: A custom grid instead: times in [0, 1] that increase, or that decrease to integrate backwards.
            reverse: Integrate from t = 1 (treated) to t = 0 (control).
            readout_times: Times of the grid's range, in any order, whose states [`readout`] returns afterwards. They
                cost no evaluation and do not change the sample.

        Raises:
            ValueError: If neither or both of `num_inference_steps` and `grid` are given, or they are not usable, or a
                readout time lies outside the grid.
        """
        if grid is not None and num_inference_steps is None:
            if reverse:
                raise ValueError("reverse=True is for num_inference_steps; a custom grid runs as it is given")
            grid = as_grid(grid)
        elif num_inference_steps is not None and grid is None:
            grid = make_grid(self.config.time_grid, num_inference_steps)
            grid = grid.flip(0) if reverse else grid
        else:
            raise ValueError("give either num_inference_steps or a custom grid")
        low, high = sorted((float(grid[0]), float(grid[-1])))
        for time in readout_times:
            if not low <= time <= high:
                raise ValueError(f"readout time {time} is outside the grid, which covers [{low:.4g}, {high:.4g}]")

        self.grid, self.num_inference_steps = grid, len(grid) - 1
        stages = grid[:-1, None] + grid.diff()[:, None] * torch.tensor(self._nodes, dtype=torch.float64)
        # Python floats decide where a step ends, so that `step` never waits for a GPU; the model gets float32 times.
        self._grid, self._times = self.grid.tolist(), stages.flatten().tolist()
        self.timesteps = stages.flatten().float().to(device)
        self._evaluations: list[Evaluation] = []
        self._before: Evaluation | None = None
        self._renewed: torch.Tensor | None = None
        self._done = 0
        self._readout_times = [float(time) for time in readout_times]
        self._readout: dict[float, torch.Tensor] = {}

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """Return `sample` unchanged: flow matching needs no scaling. Here so that schedulers can be swapped."""
        return sample

    def velocity(self, model_output: torch.Tensor, timestep: float, sample: torch.Tensor) -> torch.Tensor:
        """Turn the model's output into a velocity, as `prediction_type` says."""
        if self.config.prediction_type == "velocity":
            return model_output
        return (model_output - sample) / max(1 - timestep, self.config.min_time_remaining)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> CellFluxFlowMatchSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Move the sample by one evaluation of the model. Call it once for every entry of `timesteps`, in order.

        Args:
            model_output: `(N, C, H, W)`; what the model returned for `sample` at `timestep`.
            timestep: The entry of `timesteps` that the model was called with. The scheduler counts for itself; where
                it can without waiting for a GPU, it checks that this is the same.
            sample: `(N, C, H, W)`; what the model was called with.
            generator: Not used: every solver is deterministic.
            return_dict: Return a [`CellFluxFlowMatchSchedulerOutput`], else a tuple.

        Raises:
            ValueError: If `set_timesteps` was not called, all its steps have been taken, or `timestep` is not next.
        """
        time = self._next_time(timestep)
        evaluation = Evaluation(time, sample, self.velocity(model_output, time, sample))
        if self._renewed is not None and self._before is not None:
            self._before = straight_before(evaluation, self._before, self._renewed)
        self._renewed = None
        self._evaluations.append(evaluation)
        index, stage = divmod(self._done, self.order)
        start, end = self._grid[index : index + 2]
        self._done += 1

        if stage < self.order - 1:
            prev_sample = RUNGE_KUTTA[self.config.solver].stage(self._evaluations, end - start)
        else:
            prev_sample = self._state(start, end, end)
            self._read_out(start, end, prev_sample)
            self._before, self._evaluations = evaluation, []

        if not return_dict:
            return prev_sample, evaluation.target
        return CellFluxFlowMatchSchedulerOutput(prev_sample=prev_sample, pred_target_sample=evaluation.target)

    def resample(self, rows: torch.Tensor, renewed: torch.Tensor) -> None:
        """Let a solver that remembers the step before know that the samples have been changed between two steps.

        Args:
            rows: `(N,)`; which of the samples so far each of the N now is.
            renewed: `(N,)`; whether it was drawn again, and is not a state of the path so far: the solver restarts
                with it, by a step of Euler's.
        """
        if self._evaluations:
            raise ValueError("samples can be changed between two steps only, not between the evaluations of one")
        if self._before is not None:
            before = self._before
            self._before = Evaluation(before.time, before.sample[rows], before.velocity[rows])
        self._renewed = renewed

    def readout(self) -> torch.Tensor:
        """The states at the `readout_times` of [`set_timesteps`], in their order, once the sampling is over.

        Each is the solver's continuation to that time within a step (dense output), of the solver's order.

        Returns:
            `torch.Tensor` of shape `(len(readout_times), N, C, H, W)`.

        Raises:
            ValueError: If no readout times were given, or some have not been reached yet.

        Example:
            >>> scheduler = CellFluxFlowMatchScheduler(solver="midpoint")
            >>> scheduler.set_timesteps(2, readout_times=[0.0, 0.3, 1.0])
            >>> x = torch.zeros(1, 1, 1, 1)
            >>> for t in scheduler.timesteps:
            ...     x = scheduler.step(torch.ones_like(x), t, x).prev_sample
            >>> [round(value, 3) for value in scheduler.readout().flatten().tolist()]
            [0.0, 0.3, 1.0]
        """
        if self.num_inference_steps is None or not self._readout_times:
            raise ValueError("call set_timesteps with readout_times first")
        if missing := [time for time in self._readout_times if time not in self._readout]:
            raise ValueError(f"the sampling has not reached the readout times {missing} yet")
        return torch.stack([self._readout[time] for time in self._readout_times])

    def _next_time(self, timestep: torch.Tensor | float) -> float:
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        if self._done >= len(self._times):
            raise ValueError(f"all {len(self._times)} evaluations are done: call set_timesteps to start again")
        time = self._times[self._done]
        on_cpu = not isinstance(timestep, torch.Tensor) or timestep.device.type == "cpu"
        if on_cpu and abs(float(timestep) - time) > 1e-6:
            raise ValueError(
                f"timestep {float(timestep)} is not the next one: evaluation {self._done} of timesteps is at {time}"
            )
        return time

    def _state(self, start: float, end: float, time: float) -> torch.Tensor:
        """The state at `time` of the step from `start` to `end`, whose evaluations are all there."""
        if self.config.solver in MULTISTEP:
            return MULTISTEP[self.config.solver](self._evaluations[0], self._before, time)
        share = (time - start) / (end - start)
        return RUNGE_KUTTA[self.config.solver].state(self._evaluations, end - start, share)

    def _read_out(self, start: float, end: float, prev_sample: torch.Tensor) -> None:
        for time in self._readout_times:
            if min(start, end) <= time <= max(start, end) and time not in self._readout:
                self._readout[time] = prev_sample if time == end else self._state(start, end, time)

    def sample_source_noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Draw the noise that is added to a control at t = 0 ([`cellfluxrl.flow.noise`]).

        Args:
            shape: Shape of the controls, `(N, ...)`.
            generator: A list makes samples independent of the batch they are in.

        Returns:
            Noise of that shape with standard deviation `source_noise_scale`.

        Raises:
            ValueError: For band-limited noise of samples that are not images.
        """
        config = self.config
        noise = sample_source_noise(
            shape, config.source_noise, config.source_noise_grid, config.source_noise_detail, generator, device, dtype
        )
        return config.source_noise_scale * noise

    def __len__(self) -> int:
        return len(self.timesteps)
