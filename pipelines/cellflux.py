"""From control images and a compound to treated images, or back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tqdm import tqdm

from cellfluxrl.data.calibration import intensity_levels, match_levels
from cellfluxrl.data.images import from_unit
from cellfluxrl.errors import unknown_name
from cellfluxrl.flow.integration import integration_steps
from cellfluxrl.hub.mixin import HubPipelineMixin
from cellfluxrl.models.compound_encoder import CompoundEncoder
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.pipelines.card import pipeline_card
from cellfluxrl.pipelines.inputs import (
    ControlImages,
    as_control_images,
    check_condition,
    check_precision,
    check_size,
    number_of,
    one_for_each,
)
from cellfluxrl.pipelines.outputs import OUTPUT_TYPES, CellFluxPipelineOutput, Sampling, convert_images
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler

DIRECTIONS = ("forward", "reverse")


class CellFluxPipeline(HubPipelineMixin, DiffusionPipeline):
    """Generates treated cells by flow matching from control cells (CellFlux, Zhang et al., 2025).

    Args:
        unet: The velocity network.
        scheduler: Solver, time grid and source noise.
        encoder: Compound names or SMILES to conditions.
        control_levels: Intensities of the controls of training, by channel ([`control_levels`]), to which
            [`calibrate`] brings those of other plates.

    Example:
        >>> pipe = CellFluxPipeline.from_pretrained("runs/demo/pipeline")                          # doctest: +SKIP
        >>> images = pipe(controls, compound="taxol", num_inference_steps=4).images                # doctest: +SKIP
    """

    unet: CellFluxUNet2DModel
    scheduler: CellFluxFlowMatchScheduler
    encoder: CompoundEncoder
    config: Any
    progress_bar: Callable[..., tqdm]  # diffusers decorates it with what hides its type

    card_of = staticmethod(pipeline_card)
    model_cpu_offload_seq = "unet"
    _exclude_from_cpu_offload = ("encoder",)  # a small table without parameters, which accelerate cannot offload
    _callback_tensor_inputs = ("sample", "condition")
    _interrupt = False

    def __init__(
        self,
        unet: CellFluxUNet2DModel,
        scheduler: CellFluxFlowMatchScheduler,
        encoder: CompoundEncoder,
        control_levels: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, encoder=encoder)
        self.register_to_config(control_levels=control_levels)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels of the images, in order."""
        return tuple(self.unet.config.channel_names)

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `pipe._interrupt = True`, which ends the sampling (as in diffusers)."""
        return self._interrupt

    @property
    def is_conditioned_on_dose(self) -> bool:
        """Whether the network sees the concentration beside the compound."""
        return getattr(self.encoder.config, "log_dose", False)

    def calibrate(self, control_images: ControlImages, plate_controls: ControlImages | None = None) -> torch.Tensor:
        """Controls of another plate, at the intensities of the controls that the network was trained on.

        Staining and exposure differ between plates, and what is generated follows its control. Each pixel gets the
        intensity that has its rank among the controls of training, channel by channel ([`match_levels`]).

        Args:
            control_images: Control cells of one plate; see [`as_control_images`].
            plate_controls: Many controls of the same plate, 20 or more, whose ranks count; by default `control_images`
                themselves.

        Returns:
            `(N, C, H, W)`, float32 in [-1, 1]; what the pipeline takes.

        Raises:
            ValueError: If the pipeline does not know those of training, there are too few of the plate, or a channel
                is the same everywhere.

        Example:
            >>> images = pipe(pipe.calibrate(controls), compound="taxol").images               # doctest: +SKIP
        """
        images = as_control_images(control_images, self.channel_names)
        plate = images if plate_controls is None else as_control_images(plate_controls, self.channel_names)
        return match_levels(images, intensity_levels(plate.cpu().numpy()), self.training_levels())

    def training_levels(self) -> np.ndarray:
        """[`intensity_levels`] of the controls of training, `(C, 201)` in [-1, 1]; an error if they are unknown."""
        if not self.config.control_levels:
            raise ValueError(
                "this pipeline does not know the intensities of the controls that it was trained on: an earlier "
                "version saved it, or they were too few"
            )
        return from_unit(np.array([self.config.control_levels[name] for name in self.channel_names]))

    def check_inputs(
        self,
        control: torch.Tensor,
        num_rows: int,
        num_images_per_control: int,
        sampling: Sampling,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> None:
        """Raise a `ValueError` that names the value for arguments that do not fit each other or the network."""
        config = self.unet.config
        check_size(control, config.patch_size * 2 ** (len(config.channel_mult) - 1))
        check_precision(self._execution_device, self.unet.dtype)
        for name, number in (("num_images_per_control", num_images_per_control), ("batch_size", sampling.batch_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        count = num_rows * num_images_per_control
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"a list of generators needs one for each of {count} images, got {len(generator)}")
        can_guide = config.condition_dim is not None and config.trained_unconditionally
        if sampling.guidance_scale != 1 and not can_guide:
            raise ValueError(
                f"guidance_scale={sampling.guidance_scale} needs a network that was trained both with and without "
                "compounds, and this one was not: pass guidance_scale=1"
            )
        interval = sampling.guidance_interval
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"guidance_interval must be two increasing times in [0, 1], got {interval}")
        tensor_names = sampling.callback_on_step_end_tensor_inputs
        for kind, name, allowed in (
            ("output_type", output_type, OUTPUT_TYPES),
            ("direction", sampling.direction, DIRECTIONS),
            *(("callback tensor", name, self._callback_tensor_inputs) for name in tensor_names),
        ):
            if name not in allowed:
                raise unknown_name(kind, name, allowed)
        if sampling.direction == "reverse" and num_images_per_control > 1:
            raise ValueError(
                f"num_images_per_control={num_images_per_control}: the reverse direction has no noise, so all images "
                "of a cell would be the same"
            )

    def count_rows(
        self,
        control: torch.Tensor,
        compound: str | Sequence[str] | None = None,
        smiles: str | Sequence[str] | None = None,
        compound_embeds: torch.Tensor | None = None,
        concentration: float | Sequence[float] | None = None,
    ) -> int:
        """Count the pairs of a control and a condition, and refuse numbers or kinds that do not go together.

        Controls, compounds and concentrations are each one, for all, or several; those that are several are as many.
        """
        compounds = {"compound": compound, "smiles": smiles, "compound_embeds": compound_embeds}
        compounds = {kind: value for kind, value in compounds.items() if value is not None}
        width = self.unet.config.condition_dim
        check_condition(compounds, concentration, width, is_conditioned_on_dose=self.is_conditioned_on_dose)
        if compound_embeds is not None and compound_embeds.ndim == 1:
            compounds = {}
        lengths = {kind: number_of(value) for kind, value in {**compounds, "concentration": concentration}.items()}
        several = {kind: length for kind, length in lengths.items() if length is not None}
        count, what = len(control), "controls"
        if count == 1 and several:
            kind, count = next(iter(several.items()))
            what = f"values of {kind}"
        for kind, length in several.items():
            if length != count:
                raise ValueError(f"{kind} must be one, or one for each of {count} {what}; got {length}")
        return count

    def encode_condition(
        self,
        count: int,
        compound: str | Sequence[str] | None = None,
        smiles: str | Sequence[str] | None = None,
        compound_embeds: torch.Tensor | None = None,
        concentration: float | Sequence[float] | None = None,
    ) -> torch.Tensor | None:
        """Conditions of shape `(count, D)`, or `None` for an unconditional network; `count` as [`count_rows`]."""
        if self.unet.config.condition_dim is None:
            return None
        if compound_embeds is not None:
            return compound_embeds.expand(count, -1)
        kind, given = ("smiles", smiles) if compound is None else ("compounds", compound)
        if given is None:
            raise ValueError("give either a compound name or a SMILES or compound_embeds")
        if not self.is_conditioned_on_dose:
            return self.encoder.encode(**{kind: one_for_each(given, 1)}).expand(count, -1)
        doses = one_for_each(concentration, count)
        return self.encoder.encode(**{kind: one_for_each(given, count)}, concentrations=doses)

    @torch.no_grad()
    def __call__(
        self,
        control_images: ControlImages,
        compound: str | Sequence[str] | None = None,
        concentration: float | Sequence[float] | None = None,
        smiles: str | Sequence[str] | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.2,
        num_images_per_control: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_trajectory: bool = False,
        return_dict: bool = True,
        batch_size: int = 64,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
        *,
        compound_embeds: torch.Tensor | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        trajectory_times: Sequence[float] | None = None,
        direction: str = "forward",
        batch_invariant: bool = False,
    ) -> CellFluxPipelineOutput | tuple:
        """Generate treated cells.

        Controls, compounds and concentrations are each one, for all, or several: N controls go with N compounds pair
        by pair, one control with N compounds is shown under each of them, and other numbers are refused.

        Args:
            control_images: Control cells, one or a batch, rows of a data set included; see [`as_control_images`].
            compound: Known names.
            concentration: In uM; for networks that are conditioned on it.
            smiles: Any molecules, instead of names.
            num_inference_steps: Steps of the solver; some evaluate more than once a step.
            guidance_scale: v = v_uncond + g (v_cond - v_uncond); 1 switches guidance off. CellFlux's 0.2 is 1.2 here.
            num_images_per_control: Samples of each pair of a control and a condition.
            generator: Makes the noise reproducible. One generator draws the noise of all images in one go, so an image
                depends on the number of images; a list makes each image independent of the others of the call.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_trajectory: Also return the sample at every time of the grid.
            return_dict: Return a [`CellFluxPipelineOutput`], else a tuple.
            batch_size: Images that go through the network at a time.
            callback_on_step_end: Called as `f(pipe, evaluation, t, tensors)` after each evaluation, for each batch;
                may return changed tensors. Setting `pipe._interrupt = True` ends the sampling: images are returned as
                far as they have come, without a trajectory.
            callback_on_step_end_tensor_inputs: What `tensors` holds: `"sample"`, `"condition"`.
            compound_embeds: `(N, D)` or `(D,)`; conditions as [`encode_condition`] makes them, instead of compounds.
            guidance_interval: Times at which guidance is applied (Kynkaanniemi et al., 2024); elsewhere an evaluation
                costs half as much.
            trajectory_times: Times of the trajectory in place of the grid's; they cost no evaluation and do not change
                the images. Implies `return_trajectory`.
            direction: `"reverse"` takes treated cells under `compound` and returns what they would be without it: the
                flow from t = 1 to t = 0, without noise. Its end is a control plus source noise, as that is what the
                flow starts from.
            batch_invariant: Fill up the last batch to `batch_size`. Matrix products and convolutions round differently
                for other batch sizes; with this and a list of generators, an image is the same to the last bit
                whatever else is generated beside it (float32 on a CPU, one `batch_size`, 8 for instance). Without, it
                differs by rounding, about 1e-6.

        Returns:
            [`CellFluxPipelineOutput`] or a tuple whose first element is the images.

        Raises:
            ValueError: For controls of the wrong shape, type or channels, an unknown compound, and the like.
        """
        # 1. Check the inputs
        control = as_control_images(control_images, self.channel_names)
        treatment: dict[str, Any] = {"compound": compound, "smiles": smiles, "concentration": concentration}
        treatment["compound_embeds"] = compound_embeds
        num_rows = self.count_rows(control, **treatment)
        sampling = Sampling(
            num_inference_steps,
            guidance_scale,
            guidance_interval=guidance_interval,
            direction=direction,
            trajectory_times=trajectory_times,
            return_trajectory=return_trajectory,
            batch_size=batch_size,
            batch_invariant=batch_invariant,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self.check_inputs(control, num_rows, num_images_per_control, sampling, generator, output_type)

        # 2. Encode the compounds; one row for each image. The state stays in float32 with a half-precision network.
        device, dtype = self._execution_device, torch.promote_types(self.unet.dtype, torch.float32)
        condition = self.encode_condition(num_rows, **treatment)
        if condition is not None:
            condition = condition.to(device, dtype).repeat_interleave(num_images_per_control, dim=0)
        source = control.to(device, dtype).expand(num_rows, -1, -1, -1)
        source = source.repeat_interleave(num_images_per_control, dim=0)

        # 3. Add the source noise, integrate and convert
        if direction == "forward":
            source = source + self._source_noise(source, generator)
        self._interrupt = False
        generated, trajectory = self._integrate(source, condition, sampling)
        evaluations = None if self.interrupt else self._count_evaluations(sampling)
        self.maybe_free_model_hooks()
        output = CellFluxPipelineOutput(
            convert_images(generated, output_type), trajectory=trajectory, num_function_evaluations=evaluations
        )
        return output if return_dict else output.to_tuple()

    def _integrate(
        self, source: torch.Tensor, condition: torch.Tensor | None, sampling: Sampling
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and trajectories from the states at the start of the grid, `batch_size` at a time."""
        num_images, batch_size = len(source), sampling.batch_size
        if sampling.batch_invariant:
            source = _filled_up(source, batch_size)
            condition = None if condition is None else _filled_up(condition, batch_size)
        samples = source.split(batch_size)
        conditions = [None] * len(samples) if condition is None else condition.split(batch_size)
        self._lay_grid(sampling, source.device)
        images, trajectories = [], []
        with self.progress_bar(total=len(samples) * len(self.scheduler.timesteps)) as progress:
            for batch in zip(samples, conditions, strict=True):
                image, trajectory = self._integrate_batch(*batch, sampling, progress)
                images.append(image)
                trajectories.append(trajectory)
        complete = not self.interrupt and trajectories[0] is not None
        trajectory = torch.cat(trajectories, dim=1)[:, :num_images].float() if complete else None
        return torch.cat(images)[:num_images].float().clamp(-1, 1), trajectory

    def _integrate_batch(
        self, sample: torch.Tensor, condition: torch.Tensor | None, sampling: Sampling, progress: tqdm
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.interrupt:
            return sample, None
        self._lay_grid(sampling, sample.device)
        scales = iter(self._guidance_scales(sampling))
        states = [sample]

        def velocity(sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self._guided_velocity(sample, t, condition, next(scales))

        for i, state in enumerate(integration_steps(velocity, self.scheduler, sample)):
            if sampling.callback_on_step_end is not None:
                tensors = {"sample": state.sample, "condition": condition}
                given = {name: tensors[name] for name in sampling.callback_on_step_end_tensor_inputs}
                changed = sampling.callback_on_step_end(self, i, self.scheduler.timesteps[i], given) or {}
                state.sample, condition = (changed.get(name, value) for name, value in tensors.items())
            sample = state.sample
            if sampling.return_trajectory and (i + 1) % self.scheduler.order == 0:
                states.append(sample)
            progress.update()
            if self.interrupt:
                return sample, None
        if sampling.trajectory_times is not None:
            return sample, self.scheduler.readout()
        return sample, torch.stack(states) if sampling.return_trajectory else None

    def evaluations_of(
        self,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.2,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ) -> int:
        """Evaluations of the network that one sample costs, a guided one counting twice.

        With N candidates (`best_of_n`), whatever chooses or searches among them, an image costs N times that. The
        arguments are those of [`__call__`].
        """
        sampling = Sampling(num_inference_steps, guidance_scale, guidance_interval)
        self._lay_grid(sampling, torch.device("cpu"))
        return self._count_evaluations(sampling)

    def _count_evaluations(self, sampling: Sampling) -> int:
        """Count the evaluations of one sample on the current grid."""
        return sum(1 if scale == 1 else 2 for scale in self._guidance_scales(sampling))

    def interpolate(
        self,
        control_image: ControlImages,
        compound: str | Sequence[str] | None = None,
        concentration: float | Sequence[float] | None = None,
        smiles: str | Sequence[str] | None = None,
        num_frames: int = 8,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> CellFluxPipelineOutput | tuple:
        """Show one control on the way from one compound, or one concentration, to another.

        Conditions are interpolated linearly, so concentrations logarithmically, and all frames have the same noise.

        Args:
            control_image: One control cell; see [`as_control_images`].
            compound, concentration, smiles: As in [`__call__`]; two of one of them, such as `("taxol", "nocodazole")`.
            num_frames: Images, both ends included.
            generator: Makes the noise reproducible.
            **kwargs: Everything else as in [`__call__`], which also says what is returned.

        Raises:
            ValueError: If there is more than one control, or not two conditions, or for what [`__call__`] refuses.
        """
        control = as_control_images(control_image, self.channel_names)
        if len(control) != 1:
            raise ValueError(f"interpolate takes one control image, got {len(control)}")
        treatment = {"compound": compound, "smiles": smiles, "concentration": concentration}
        count = self.count_rows(control, **treatment)
        if count != 2:
            raise ValueError(f"interpolate needs two compounds or two concentrations, got {count}")
        if num_frames < 2:
            raise ValueError(f"num_frames must be at least 2, got {num_frames}")
        conditions = self.encode_condition(count, **treatment)
        assert conditions is not None  # an unconditional network takes no compounds
        start, end = conditions
        share = torch.linspace(0, 1, num_frames, device=start.device, dtype=start.dtype)[:, None]
        seed = int(torch.randint(2**62, (), generator=generator, device=getattr(generator, "device", None)))
        generators = [torch.Generator().manual_seed(seed) for _ in range(num_frames)]
        return self(control_image, compound_embeds=torch.lerp(start, end, share), generator=generators, **kwargs)

    def _source_noise(
        self, source: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        """Draw noise of the shape, device and type of `source`."""
        shape, draw = source.shape, self.scheduler.sample_source_noise
        if not isinstance(generator, list):
            return draw(tuple(shape), generator, source.device, source.dtype)
        # One by one: shaping the noise is a matrix product, whose rounding depends on the number of rows.
        return torch.cat([draw((1, *shape[1:]), [one], source.device, source.dtype) for one in generator])

    def _lay_grid(self, sampling: Sampling, device: torch.device) -> None:
        options: dict[str, Any] = {}  # only what is asked for, so that a simpler scheduler can be swapped in
        if sampling.direction == "reverse":
            options["reverse"] = True
        if sampling.trajectory_times is not None:
            options["readout_times"] = sampling.trajectory_times
        self.scheduler.set_timesteps(sampling.num_inference_steps, device=device, **options)

    def _guidance_scales(self, sampling: Sampling) -> list[float]:
        """The scale at each evaluation on the current grid: 1, no guidance, outside of the interval."""
        low, high = sampling.guidance_interval
        guided = ((self.scheduler.timesteps >= low) & (self.scheduler.timesteps <= high)).tolist()
        return [sampling.guidance_scale if is_guided else 1 for is_guided in guided]

    def _guided_velocity(
        self, sample: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        if condition is None or guidance_scale == 1:
            return self.unet(sample, t, condition, return_dict=False)[0]
        count = len(sample)
        mask = torch.arange(2 * count, device=sample.device) < count
        velocity = self.unet(
            torch.cat([sample, sample]), t, torch.cat([condition, condition]), condition_mask=mask, return_dict=False
        )[0]
        conditional, unconditional = velocity.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)


def _filled_up(rows: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Repeat the last row until the number of rows is a multiple of `batch_size`."""
    return torch.cat([rows, rows[-1:].repeat_interleave(-len(rows) % batch_size, dim=0)])
