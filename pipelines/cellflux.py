"""From control images and a compound to treated images, or back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from cellfluxrl.data.calibration import intensity_levels, match_levels
from cellfluxrl.data.images import to_pil
from cellfluxrl.errors import unknown_name
from cellfluxrl.files import contained_path
from cellfluxrl.hub import check_repo_id
from cellfluxrl.hub_download import check_name, download_pipeline
from cellfluxrl.models.compound_encoder import CompoundEncoder
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.pipelines.inputs import ControlImages, as_control_images
from cellfluxrl.publishing import PUSH_OPTIONS, copy_records, push_pipeline
from cellfluxrl.remote_code import with_modules, write_shims
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler

OUTPUT_TYPES = ("pil", "np", "pt")
DIRECTIONS = ("forward", "reverse")


@dataclass
class CellFluxPipelineOutput(BaseOutput):
    """
    Output of the pipelines. With K images per control, images `i K` to `i K + K - 1` belong to control `i`, or to
    compound or concentration `i` of a single control.

    Args:
        images (`list[PIL.Image.Image]`, `numpy.ndarray` or `torch.Tensor`):
            PIL in RGB (red is the last channel, blue the first); or `(N, C, H, W)`: numpy in [0, 1] for
            `output_type="np"`, a tensor in [-1, 1] for `"pt"`.
        rewards (`dict[str, torch.Tensor]`, *optional*): The rewards of each image, each of shape `(N,)`.
        selected (`torch.Tensor` of shape `(N,)`, *optional*): Which of its `best_of_n` candidates each image is.
        trajectory (`torch.Tensor` of shape `(T, N, C, H, W)`, *optional*): From the noisy control to the image, at
            the times of the scheduler's grid or at `trajectory_times`.
        within_range (`torch.Tensor` of shape `(N,)`, *optional*): Whether each image is, in all that the rewards
            measure, within the range of real cells ([`RewardSuite.outside_real_range`]).
        num_function_evaluations (`int`, *optional*): Evaluations of the network on one image that each returned image
            has cost, those of its other candidates included; a guided one counts twice. `None` after an interruption.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    rewards: dict[str, torch.Tensor] | None = None
    selected: torch.Tensor | None = None
    trajectory: torch.Tensor | None = None
    within_range: torch.Tensor | None = None
    num_function_evaluations: int | None = None


class CellFluxPipeline(DiffusionPipeline):
    """
    Generates treated cells by flow matching from control cells (CellFlux, Zhang et al., 2025).

    Args:
        unet ([`CellFluxUNet2DModel`]): The velocity network.
        scheduler ([`CellFluxFlowMatchScheduler`]): Solver, time grid and source noise.
        encoder ([`CompoundEncoder`]): Compound names or SMILES to conditions.
        control_levels (`dict[str, list[float]]`, *optional*): Intensities of the controls of training, by channel
            ([`control_levels`]), to which [`calibrate`] brings those of other plates.

    Example:
        >>> pipe = CellFluxPipeline.from_pretrained("runs/demo/pipeline")                          # doctest: +SKIP
        >>> images = pipe(controls, compound="taxol", num_inference_steps=4).images                # doctest: +SKIP
    """

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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any):
        """
        Load a pipeline from a folder or from the Hugging Face Hub, without running code that lies there.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): A folder, or `"owner/name"` on the Hub.
            **kwargs: `revision`, `variant`, `cache_dir`, `token`, components to use instead of those that are there,
                and everything else as in [`DiffusionPipeline.from_pretrained`]. Weights are safetensors only.

        Raises:
            FileNotFoundError: If there is no such folder or repository, or it lacks a component.
            PermissionError, ConnectionError: As [`download_pipeline`] says.
            ValueError: If the revision or variant is unknown, with the nearest one.
        """
        check_name(pretrained_model_name_or_path)
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            _check_folder(folder, overridden=set(kwargs), optional=cls._optional_components)
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> Path:
        """Fetch a pipeline from the Hub into the cache, see [`download_pipeline`], and return its folder."""
        how = ("revision", "variant", "cache_dir", "token", "force_download", "local_files_only")
        given = {name: kwargs.pop(name) for name in how if kwargs.get(name) is not None}
        folder = download_pipeline(pretrained_model_name, passed=set(kwargs), **given)
        _check_folder(folder, overridden=set(kwargs), optional=cls._optional_components)
        return folder

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any):
        """
        The index of a pipeline's folder, with the installed modules for what it loads through files of its own.

        Components that this class does not have, such as the rewards of a post-trained pipeline that is loaded as a
        base, are left out.
        """
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        return cls._own_index(config) if isinstance(config, dict) else (cls._own_index(config[0]), *config[1:])

    @classmethod
    def _own_index(cls, index: dict[str, Any]) -> dict[str, Any]:
        own, _ = cls._get_signature_keys(cls)
        return {
            name: value
            for name, value in with_modules(index).items()
            if name.startswith("_") or name in own or not isinstance(value, list)
        }

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Save everything into one folder, which this class loads, and diffusers alone with `trust_remote_code=True`.

        Args:
            save_directory (`str` or `Path`): Made if it is not there.
            variant (`str`, *optional*): Part of the names of the weights, such as `"fp16"`, beside those of others.
            push_to_hub (`bool`, defaults to `False`): Publish it too: `repo_id` (by default the folder's name) and
                the other arguments of [`push_to_hub`] are passed on.
            **kwargs: The others are those of `diffusers.DiffusionPipeline.save_pretrained`.
        """
        hub = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        repo_id = kwargs.pop("repo_id", Path(save_directory).name)
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size, **kwargs)
        write_shims(save_directory)
        if push_to_hub:
            push_pipeline(save_directory, repo_id, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
    ) -> str:
        """
        Publish the pipeline on the Hugging Face Hub, with a card, in one commit; repeat it after an interruption.

        What the card says of training and evaluation is in the folder that the pipeline was loaded from
        ([`push_pipeline`]), and is left out if the weights are others by now.

        Args:
            repo_id (`str`): `"owner/name"`; the repository is created where there is none.
            private (`bool`, defaults to `False`): Whether only its owner may read a new repository.
            token (`str`, *optional*): An access token with the right to write; by default the one of `hf auth login`.
            commit_message (`str`, *optional*): One line.
            license (`str`, *optional*): A licence identifier of the Hub, where the training data do not say it.

        Returns:
            `str`: The repository's address.

        Raises:
            ValueError, PermissionError, ConnectionError: As [`push_files`] says.

        Example:
            >>> pipe.push_to_hub("my-lab/my-cells", private=True)                          # doctest: +SKIP
        """
        check_repo_id(repo_id)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            copy_records(self.name_or_path, folder)
            return push_pipeline(folder, repo_id, private, token, commit_message, license)

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
        """
        Controls of another plate, at the intensities of the controls that the network was trained on.

        Staining and exposure differ between plates, and what is generated follows its control. Each pixel gets the
        intensity that has its rank among the controls of training, channel by channel ([`match_levels`]).

        Args:
            control_images: Control cells of one plate; see [`as_control_images`].
            plate_controls (*optional*): Many controls of the same plate, 20 or more, whose ranks count; by default
                `control_images` themselves.

        Returns:
            `torch.Tensor` of shape `(N, C, H, W)`, float32 in [-1, 1]: what the pipeline takes.

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
        """
        [`intensity_levels`] of the controls of training, in [-1, 1]: `(C, 201)`.

        Raises:
            ValueError: If the pipeline does not know them.
        """
        if not self.config.control_levels:
            raise ValueError(
                "this pipeline does not know the intensities of the controls that it was trained on: an earlier "
                "version saved it, or they were too few"
            )
        return 2 * np.array([self.config.control_levels[name] for name in self.channel_names]) - 1

    def check_inputs(
        self,
        control: torch.Tensor,
        num_rows: int,
        num_images_per_control: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        batch_size: int = 64,
        direction: str = "forward",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> None:
        """Raise a `ValueError` that names the value for arguments that do not fit each other or the network."""
        _check_size(control, self.unet.config.patch_size * 2 ** (len(self.unet.config.channel_mult) - 1))
        _check_precision(self._execution_device, self.unet.dtype)
        for name, number in (("num_images_per_control", num_images_per_control), ("batch_size", batch_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if isinstance(generator, list) and len(generator) != num_rows * num_images_per_control:
            count = num_rows * num_images_per_control
            raise ValueError(f"a list of generators needs one for each of {count} images, got {len(generator)}")
        if guidance_scale != 1 and not self._can_guide():
            raise ValueError(
                f"guidance_scale={guidance_scale} needs a network that was trained both with and without compounds, "
                "and this one was not: pass guidance_scale=1"
            )
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] < guidance_interval[1] <= 1:
            raise ValueError(f"guidance_interval must be two increasing times in [0, 1], got {guidance_interval}")
        for kind, name, allowed in (
            ("output_type", output_type, OUTPUT_TYPES),
            ("direction", direction, DIRECTIONS),
            *(("callback tensor", name, self._callback_tensor_inputs) for name in callback_on_step_end_tensor_inputs),
        ):
            if name not in allowed:
                raise unknown_name(kind, name, allowed)
        if direction == "reverse" and num_images_per_control > 1:
            raise ValueError(
                f"num_images_per_control={num_images_per_control}: the reverse direction has no noise, so all images "
                "of a cell would be the same"
            )

    def _can_guide(self) -> bool:
        config = self.unet.config
        return config.condition_dim is not None and config.trained_unconditionally

    def count_rows(
        self,
        control: torch.Tensor,
        compound: str | Sequence[str] | None = None,
        smiles: str | Sequence[str] | None = None,
        compound_embeds: torch.Tensor | None = None,
        concentration: float | Sequence[float] | None = None,
    ) -> int:
        """
        How many pairs of a control and a condition there are: controls, compounds and concentrations are each one,
        for all, or several; those that are several are as many.

        Raises:
            ValueError: If their numbers differ, more or less than one kind of compound is given, or the network is
                not conditioned on what is given.
        """
        compounds = {"compound": compound, "smiles": smiles, "compound_embeds": compound_embeds}
        compounds = {kind: value for kind, value in compounds.items() if value is not None}
        self._check_condition(compounds, concentration)
        if compound_embeds is not None and compound_embeds.ndim == 1:
            compounds = {}
        lengths = {kind: _length(value) for kind, value in {**compounds, "concentration": concentration}.items()}
        several = {kind: length for kind, length in lengths.items() if length is not None}
        count, what = len(control), "controls"
        if count == 1 and several:
            kind, count = next(iter(several.items()))
            what = f"values of {kind}"
        for kind, length in several.items():
            if length != count:
                raise ValueError(f"{kind} must be one, or one for each of {count} {what}; got {length}")
        return count

    def _check_condition(self, compounds: dict[str, Any], concentration: float | Sequence[float] | None) -> None:
        width = self.unet.config.condition_dim
        if width is None:
            if compounds or concentration is not None:
                given = ", ".join([*compounds, *(["concentration"] if concentration is not None else [])])
                raise ValueError(f"this network is unconditional (condition_dim is None): leave {given} None")
            return
        if len(compounds) != 1:
            given = " and ".join(compounds) or "none"
            raise ValueError(f"give either a compound name or a SMILES or compound_embeds; given: {given}")
        embeds = compounds.get("compound_embeds")
        if embeds is not None:
            if not isinstance(embeds, torch.Tensor) or embeds.ndim not in (1, 2) or embeds.shape[-1] != width:
                shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
                raise ValueError(f"compound_embeds must be a tensor of shape (N, {width}) or ({width},), got {shape}")
            if not embeds.isfinite().all():
                raise ValueError("compound_embeds hold values that are not finite (NaN or infinity)")
        if embeds is not None and concentration is not None:
            raise ValueError(f"concentration={concentration} is part of compound_embeds: leave it None")
        if not self.is_conditioned_on_dose and concentration is not None:
            raise ValueError(
                f"concentration={concentration}: this network is not conditioned on the concentration; leave it None"
            )
        if self.is_conditioned_on_dose and concentration is None and embeds is None:
            raise ValueError("this network is conditioned on the concentration: give concentration= in uM")

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
        kind, given = ("compounds", compound) if compound is not None else ("smiles", smiles)
        names = [given] if isinstance(given, str) else list(given)
        if not self.is_conditioned_on_dose:
            return self.encoder.encode(**{kind: names}).expand(count, -1)
        doses = [concentration] * count if _length(concentration) is None else list(concentration)
        names = names * count if isinstance(given, str) else names
        return self.encoder.encode(**{kind: names}, concentrations=doses)

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
        """
        Generate treated cells.

        Controls, compounds and concentrations are each one, for all, or several: N controls go with N compounds pair
        by pair, one control with N compounds is shown under each of them, and other numbers are refused.

        Args:
            control_images: Control cells, one or a batch, rows of a data set included; see [`as_control_images`].
            compound (`str` or `Sequence[str]`, *optional*): Known names.
            concentration (`float` or `Sequence[float]`, *optional*): In uM; for networks that are conditioned on it.
            smiles (`str` or `Sequence[str]`, *optional*): Any molecules, instead of names.
            num_inference_steps (`int`, defaults to 10): Steps of the solver; some evaluate more than once a step.
            guidance_scale (`float`, defaults to 1.2): v = v_uncond + g (v_cond - v_uncond); 1 switches guidance off.
                CellFlux's 0.2 is 1.2 here.
            num_images_per_control (`int`, defaults to 1): Samples of each pair of a control and a condition.
            generator (`torch.Generator` or a list with one for each image, *optional*): Makes the noise reproducible.
                One generator draws the noise of all images in one go, so an image depends on the number of images;
                a list makes each image independent of the others of the call.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_trajectory (`bool`, defaults to `False`): Also return the sample at every time of the grid.
            return_dict (`bool`, defaults to `True`): Return a [`CellFluxPipelineOutput`], else a tuple.
            batch_size (`int`, defaults to 64): Images that go through the network at a time.
            callback_on_step_end (`Callable`, *optional*): Called as `f(pipe, evaluation, t, tensors)` after each
                evaluation, for each batch; may return changed tensors. Setting `pipe._interrupt = True` ends the
                sampling: images are returned as far as they have come, without a trajectory.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("sample",)`): What `tensors` holds:
                `"sample"`, `"condition"`.
            compound_embeds (`torch.Tensor` of shape `(N, D)` or `(D,)`, *optional*): Conditions as
                [`encode_condition`] makes them, instead of compounds.
            guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`): Times at which guidance is applied
                (Kynkaanniemi et al., 2024); elsewhere an evaluation costs half as much.
            trajectory_times (`Sequence[float]`, *optional*): Times of the trajectory in place of the grid's; they cost
                no evaluation and do not change the images. Implies `return_trajectory`.
            direction (`str`, defaults to `"forward"`): `"reverse"` takes treated cells under `compound` and returns
                what they would be without it: the flow from t = 1 to t = 0, without noise. Its end is a control plus
                source noise, as that is what the flow starts from.
            batch_invariant (`bool`, defaults to `False`): Fill up the last batch to `batch_size`. Matrix products and
                convolutions round differently for other batch sizes; with this and a list of generators, an image is
                the same to the last bit whatever else is generated beside it (float32 on a CPU, one `batch_size`,
                8 for instance). Without, it differs by rounding, about 1e-6.

        Returns:
            [`CellFluxPipelineOutput`] or a tuple whose first element is the images.

        Raises:
            ValueError: For controls of the wrong shape, type or channels, an unknown compound, and the like.
        """
        # 1. Check the inputs
        control = as_control_images(control_images, self.channel_names)
        treatment = {
            "compound": compound,
            "smiles": smiles,
            "compound_embeds": compound_embeds,
            "concentration": concentration,
        }
        num_rows = self.count_rows(control, **treatment)
        self.check_inputs(
            control,
            num_rows,
            num_images_per_control,
            guidance_scale,
            guidance_interval,
            generator,
            output_type,
            batch_size,
            direction,
            callback_on_step_end_tensor_inputs,
        )

        # 2. Encode the compounds; one row for each image. The state stays in float32 with a half-precision network.
        device, dtype = self._execution_device, torch.promote_types(self.unet.dtype, torch.float32)
        condition = self.encode_condition(num_rows, **treatment)
        if condition is not None:
            condition = condition.to(device, dtype).repeat_interleave(num_images_per_control, dim=0)
        source = control.to(device, dtype).expand(num_rows, -1, -1, -1)
        source = source.repeat_interleave(num_images_per_control, dim=0)

        # 3. Add the source noise
        if direction == "forward":
            source = source + self._source_noise(tuple(source.shape), generator, device, dtype)

        # 4. Integrate and convert
        self._interrupt = False
        generated, trajectory = self._integrate(
            source,
            condition,
            num_inference_steps,
            guidance_scale,
            guidance_interval=guidance_interval,
            return_trajectory=return_trajectory,
            batch_size=batch_size,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            trajectory_times=trajectory_times,
            direction=direction,
            batch_invariant=batch_invariant,
        )
        evaluations = None if self.interrupt else self._count_evaluations(guidance_scale, guidance_interval)
        self.maybe_free_model_hooks()
        output = CellFluxPipelineOutput(
            images=convert_images(generated, output_type),
            trajectory=trajectory,
            num_function_evaluations=evaluations,
        )
        return output if return_dict else output.to_tuple()

    def _integrate(
        self,
        source: torch.Tensor,
        condition: torch.Tensor | None,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        return_trajectory: bool = False,
        batch_size: int = 64,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
        trajectory_times: Sequence[float] | None = None,
        direction: str = "forward",
        batch_invariant: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and trajectories from the states at the start of the grid, `batch_size` at a time."""
        num_images, device = len(source), source.device
        if batch_invariant:
            source, condition = _filled_up(source, batch_size), _filled_up(condition, batch_size)
        samples = source.split(batch_size)
        conditions = [None] * len(samples) if condition is None else condition.split(batch_size)
        self._lay_grid(num_inference_steps, device, direction, trajectory_times)
        images, trajectories = [], []
        with self.progress_bar(total=len(samples) * len(self.scheduler.timesteps)) as progress:
            for sample, own_condition in zip(samples, conditions, strict=True):
                self._lay_grid(num_inference_steps, device, direction, trajectory_times)
                guided = self._guided_evaluations(guidance_interval)
                states = [sample]
                for i, t in enumerate(self.scheduler.timesteps):
                    if self.interrupt:
                        break
                    scale = guidance_scale if guided[i] else 1
                    velocity = self._guided_velocity(sample, t, own_condition, scale)
                    sample = self.scheduler.step(velocity, t, sample, return_dict=False)[0]
                    if callback_on_step_end is not None:
                        tensors = {"sample": sample, "condition": own_condition}
                        given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                        changed = callback_on_step_end(self, i, t, given) or {}
                        sample, own_condition = (changed.get(name, value) for name, value in tensors.items())
                    if return_trajectory and (i + 1) % self.scheduler.order == 0:
                        states.append(sample)
                    progress.update()
                images.append(sample)
                if trajectory_times is not None and not self.interrupt:
                    trajectories.append(self.scheduler.readout())
                elif return_trajectory and not self.interrupt:
                    trajectories.append(torch.stack(states))
        complete = trajectories and not self.interrupt
        trajectory = torch.cat(trajectories, dim=1)[:, :num_images].float() if complete else None
        return torch.cat(images)[:num_images].float().clamp(-1, 1), trajectory

    def evaluations_of(
        self,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.2,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ) -> int:
        """
        Evaluations of the network that one sample costs: steps times those of the solver, a guided one counting twice.

        With N candidates (`best_of_n`), whatever chooses or searches among them, an image costs N times that.

        Args:
            num_inference_steps, guidance_scale, guidance_interval: As in [`__call__`].
        """
        self._lay_grid(num_inference_steps, torch.device("cpu"), "forward", None)
        return self._count_evaluations(guidance_scale, guidance_interval)

    def _count_evaluations(self, guidance_scale: float, guidance_interval: tuple[float, float]) -> int:
        """Of one sample on the grid that is laid."""
        guided = sum(self._guided_evaluations(guidance_interval)) if guidance_scale != 1 else 0
        return len(self.scheduler.timesteps) + guided

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
        """
        Show one control on the way from one compound, or one concentration, to another.

        Conditions are interpolated linearly, so concentrations logarithmically, and all frames have the same noise.

        Args:
            control_image: One control cell; see [`as_control_images`].
            compound, concentration, smiles: As in [`__call__`]; two of one of them, such as `("taxol", "nocodazole")`.
            num_frames (`int`, defaults to 8): Images, both ends included.
            generator (`torch.Generator`, *optional*): Makes the noise reproducible.
            **kwargs: Everything else as in [`__call__`].

        Returns:
            What [`__call__`] returns, for `num_frames` images.

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
        start, end = self.encode_condition(count, **treatment)
        share = torch.linspace(0, 1, num_frames, device=start.device, dtype=start.dtype)[:, None]
        seed = int(torch.randint(2**62, (), generator=generator, device=getattr(generator, "device", None)))
        generators = [torch.Generator().manual_seed(seed) for _ in range(num_frames)]
        return self(control_image, compound_embeds=torch.lerp(start, end, share), generator=generators, **kwargs)

    def _source_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        draw = self.scheduler.sample_source_noise
        if not isinstance(generator, list):
            return draw(shape, generator, device, dtype)
        # One by one: shaping the noise is a matrix product, whose rounding depends on the number of rows.
        return torch.cat([draw((1, *shape[1:]), [own], device, dtype) for own in generator])

    def _lay_grid(
        self, num_inference_steps: int, device: torch.device, direction: str, trajectory_times: Sequence[float] | None
    ) -> None:
        options: dict[str, Any] = {}  # only what is asked for, so that a simpler scheduler can be swapped in
        if direction == "reverse":
            options["reverse"] = True
        if trajectory_times is not None:
            options["readout_times"] = trajectory_times
        self.scheduler.set_timesteps(num_inference_steps, device=device, **options)

    def _guided_evaluations(self, guidance_interval: tuple[float, float]) -> list[bool]:
        low, high = guidance_interval
        return ((self.scheduler.timesteps >= low) & (self.scheduler.timesteps <= high)).tolist()

    def _guided_velocity(
        self, sample: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        if guidance_scale == 1:
            return self.unet(sample, t, condition, return_dict=False)[0]
        count = len(sample)
        mask = torch.arange(2 * count, device=sample.device) < count
        velocity = self.unet(
            torch.cat([sample, sample]), t, torch.cat([condition, condition]), condition_mask=mask, return_dict=False
        )[0]
        conditional, unconditional = velocity.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)


def _length(value: Any) -> int | None:
    """The number of values of a sequence, or `None` for a single value."""
    return None if isinstance(value, str) or not hasattr(value, "__len__") else len(value)


def _filled_up(rows: torch.Tensor | None, batch_size: int) -> torch.Tensor | None:
    """Repeat the last row until the number of rows is a multiple of `batch_size`."""
    if rows is None:
        return None
    return torch.cat([rows, rows[-1:].repeat_interleave(-len(rows) % batch_size, dim=0)])


def _check_size(images: torch.Tensor, factor: int) -> None:
    size = tuple(images.shape[2:])
    if any(side % factor for side in size):
        nearest = tuple(max(factor, round(side / factor) * factor) for side in size)
        raise ValueError(
            f"height and width must be multiples of {factor}, got {size}; the nearest that fits is {nearest}"
        )


def _check_precision(device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cpu" and dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise ValueError(
            "this CPU does not compute in float16 (it would be many times slower than float32): "
            "load the pipeline with dtype=torch.bfloat16 or torch.float32"
        )


def convert_images(images: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Convert `(N, C, H, W)` images in [-1, 1] to PIL images, a numpy array in [0, 1], or leave them."""
    if output_type == "pil":
        return to_pil(images)
    if output_type == "np":
        return ((images + 1) / 2).cpu().numpy()
    return images


def _check_folder(folder: Path, overridden: set[str], optional: Sequence[str]) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{str(folder)!r} is not a pipeline: it has no model_index.json; it holds: {found}")
    entries = json.loads(index.read_text(encoding="utf-8")).items()
    components = {name: v for name, v in entries if not name.startswith("_") and isinstance(v, list) and v[0]}
    folders = {name: contained_path(folder, name, follow_links=True) for name in components}
    missing = [name for name in components if name not in overridden and not list(folders[name].glob("*.json"))]
    if missing:
        hint = "; pass " + ", ".join(f"{m}=None" for m in missing) + " to load without it"
        raise FileNotFoundError(
            f"the pipeline in {str(folder)!r} lacks {missing} of its components {sorted(components)}"
            + (hint if set(missing) <= set(optional) else "")
        )
