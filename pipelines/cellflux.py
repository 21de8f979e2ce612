"""From control images and a compound to treated images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from cellfluxrl.data.images import ImageBatch, as_model_images, to_pil
from cellfluxrl.errors import unknown_name
from cellfluxrl.models.compound_encoder import CompoundEncoder
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class CellFluxPipelineOutput(BaseOutput):
    """
    Output of the pipelines. With K images per control, images `i K` to `i K + K - 1` belong to control `i`.

    Args:
        images (`list[PIL.Image.Image]`, `numpy.ndarray` or `torch.Tensor`):
            PIL in RGB (red is the last channel, blue the first); or `(N, C, H, W)`: numpy in [0, 1] for
            `output_type="np"`, a tensor in [-1, 1] for `"pt"`.
        rewards (`dict[str, torch.Tensor]`, *optional*): The rewards of each image, each of shape `(N,)`.
        selected (`torch.Tensor` of shape `(N,)`, *optional*): Which of its `best_of_n` candidates each image is.
        trajectory (`torch.Tensor` of shape `(T + 1, N, C, H, W)`, *optional*): From the noisy control to the image.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    rewards: dict[str, torch.Tensor] | None = None
    selected: torch.Tensor | None = None
    trajectory: torch.Tensor | None = None


class CellFluxPipeline(DiffusionPipeline):
    """
    Generates treated cells by flow matching from control cells (CellFlux, Zhang et al., 2025).

    Args:
        unet ([`CellFluxUNet2DModel`]): The velocity network.
        scheduler ([`CellFluxFlowMatchScheduler`]): Solver, time grid and source noise.
        encoder ([`CompoundEncoder`]): Compound names or SMILES to conditions.

    Example:
        >>> pipe = CellFluxPipeline.from_pretrained("runs/demo/pipeline")                          # doctest: +SKIP
        >>> images = pipe(controls, compound="taxol", num_inference_steps=4).images                # doctest: +SKIP
    """

    model_cpu_offload_seq = "encoder->unet"
    _callback_tensor_inputs = ("sample",)

    def __init__(
        self, unet: CellFluxUNet2DModel, scheduler: CellFluxFlowMatchScheduler, encoder: CompoundEncoder
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, encoder=encoder)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any):
        """
        Load a pipeline from a folder (or see [`DiffusionPipeline.from_pretrained`]).

        Raises:
            FileNotFoundError: If the folder is no pipeline, or lacks one of its components.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            _check_folder(folder, overridden=set(kwargs), optional=cls._optional_components)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels of the images, in order."""
        return tuple(self.unet.config.channel_names)

    def check_inputs(
        self,
        control: torch.Tensor,
        compound: str | Sequence[str] | None,
        concentration: float | None,
        smiles: str | Sequence[str] | None,
        num_images_per_control: int,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
    ) -> None:
        """Raise a `ValueError` that names the value for arguments that do not fit each other."""
        if (compound is None) == (smiles is None):
            raise ValueError("give either a compound name or a SMILES")
        for kind, given in (("compound", compound), ("smiles", smiles)):
            if given is not None and not isinstance(given, str) and len(given) != len(control):
                raise ValueError(
                    f"{kind} must be one name or one for each of {len(control)} controls, got {len(given)}"
                )
        if concentration is not None:
            raise ValueError(
                f"concentration={concentration}: this network is not conditioned on the concentration; leave it None"
            )
        if num_images_per_control < 1:
            raise ValueError(f"num_images_per_control must be at least 1, got {num_images_per_control}")
        count = len(control) * num_images_per_control
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"a list of generators needs one for each of {count} images, got {len(generator)}")
        if output_type not in OUTPUT_TYPES:
            raise unknown_name("output_type", output_type, OUTPUT_TYPES)
        factor = self.unet.config.patch_size * 2 ** (len(self.unet.config.channel_mult) - 1)
        if control.shape[2] % factor or control.shape[3] % factor:
            raise ValueError(f"height and width must be multiples of {factor}, got {tuple(control.shape[2:])}")

    def encode_compounds(
        self, compound: str | Sequence[str] | None, smiles: str | Sequence[str] | None, count: int
    ) -> torch.Tensor:
        """Conditions of shape `(count, D)` from one compound or SMILES for all controls, or one for each."""
        given = compound if compound is not None else smiles
        names = [given] if isinstance(given, str) else list(given)
        encoded = self.encoder.encode(names) if compound is not None else self.encoder.encode(smiles=names)
        return encoded.expand(count, -1) if isinstance(given, str) else encoded

    @torch.no_grad()
    def __call__(
        self,
        control_images: ImageBatch,
        compound: str | Sequence[str] | None = None,
        concentration: float | None = None,
        smiles: str | Sequence[str] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.2,
        num_images_per_control: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_trajectory: bool = False,
        return_dict: bool = True,
        batch_size: int = 64,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict] | None = None,
    ) -> CellFluxPipelineOutput | tuple:
        """
        Generate treated cells.

        Args:
            control_images: Control cells, one or a batch; see [`as_model_images`] for the accepted kinds.
            compound (`str` or `Sequence[str]`, *optional*): A known name for all controls, or one for each.
            concentration (`float`, *optional*): In uM; only for networks that are conditioned on it (none yet).
            smiles (`str` or `Sequence[str]`, *optional*): Any molecule, instead of a name.
            num_inference_steps (`int`, defaults to 20): Steps of the solver (midpoint and Heun evaluate twice a step).
            guidance_scale (`float`, defaults to 1.2): v = v_uncond + g (v_cond - v_uncond); 1 switches guidance off.
                CellFlux's 0.2 is 1.2 here.
            num_images_per_control (`int`, defaults to 1): Samples of each control.
            generator (`torch.Generator` or a list with one for each image, *optional*): Makes the noise reproducible;
                a list makes each image independent of the others of the call.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_trajectory (`bool`, defaults to `False`): Also return the sample at every time of the grid.
            return_dict (`bool`, defaults to `True`): Return a [`CellFluxPipelineOutput`], else a tuple.
            batch_size (`int`, defaults to 64): Images that go through the network at a time.
            callback_on_step_end (`Callable`, *optional*): Called as `f(pipe, evaluation, t, {"sample": x})` after each
                evaluation; may return a changed `sample`.

        Returns:
            [`CellFluxPipelineOutput`] or a tuple whose first element is the images.

        Raises:
            ValueError: For controls of the wrong shape, type or channel count, an unknown compound, and the like.
        """
        # 1. Check the inputs
        control = as_model_images(control_images, self.channel_names)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.check_inputs(control, compound, concentration, smiles, num_images_per_control, generator, output_type)

        # 2. Encode the compounds; one row for each image
        device, dtype = self._execution_device, self.unet.dtype
        condition = self.encode_compounds(compound, smiles, len(control))
        condition = condition.to(device, dtype).repeat_interleave(num_images_per_control, dim=0)
        control = control.to(device, dtype).repeat_interleave(num_images_per_control, dim=0)

        # 3. Add the source noise
        source = control + self.scheduler.sample_source_noise(tuple(control.shape), generator, device, dtype)

        # 4. Integrate, a part of the images at a time
        parts = list(zip(source.split(batch_size), condition.split(batch_size), strict=True))
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        images, trajectories = [], []
        with self.progress_bar(total=len(parts) * len(self.scheduler.timesteps)) as progress:
            for sample, own_condition in parts:
                self.scheduler.set_timesteps(num_inference_steps, device=device)
                trajectory = [sample]
                for i, t in enumerate(self.scheduler.timesteps):
                    velocity = self._guided_velocity(sample, t, own_condition, guidance_scale)
                    sample = self.scheduler.step(velocity, t, sample, return_dict=False)[0]
                    if callback_on_step_end is not None:
                        changed = callback_on_step_end(self, i, t, {"sample": sample})
                        sample = (changed or {}).get("sample", sample)
                    if return_trajectory and (i + 1) % self.scheduler.order == 0:
                        trajectory.append(sample)
                    progress.update()
                images.append(sample)
                trajectories.append(torch.stack(trajectory))

        # 5. Convert
        generated = torch.cat(images).float().clamp(-1, 1)
        trajectory = torch.cat(trajectories, dim=1).float() if return_trajectory else None
        self.maybe_free_model_hooks()
        output = CellFluxPipelineOutput(images=convert_images(generated, output_type), trajectory=trajectory)
        return output if return_dict else output.to_tuple()

    def _guided_velocity(
        self, sample: torch.Tensor, t: torch.Tensor, condition: torch.Tensor, guidance_scale: float
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
    components = {name: v for name, v in json.loads(index.read_text()).items() if isinstance(v, list) and v[0]}
    missing = [name for name in components if name not in overridden and not list((folder / name).glob("*.json"))]
    if missing:
        hint = "; pass " + ", ".join(f"{m}=None" for m in missing) + " to load without it"
        raise FileNotFoundError(
            f"the pipeline in {str(folder)!r} lacks {missing} of its components {sorted(components)}"
            + (hint if set(missing) <= set(optional) else "")
        )
