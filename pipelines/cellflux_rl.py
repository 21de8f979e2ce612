"""Generation with rewards: the best, or the best matching, of N samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from cellfluxrl.errors import unknown_name
from cellfluxrl.evaluation.selection import select_best, select_match
from cellfluxrl.models.compound_encoder import CompoundEncoder
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.pipelines.cellflux import (
    OUTPUT_TYPES,
    CellFluxPipeline,
    CellFluxPipelineOutput,
    convert_images,
)
from cellfluxrl.pipelines.inputs import ControlImages, as_control_images
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler

logger = logging.getLogger(__name__)

SELECTIONS = ("best", "match")


class CellFluxRLPipeline(CellFluxPipeline):
    """
    [`CellFluxPipeline`] with a reward suite, which scores the samples and chooses among several of each control.

    Args:
        unet, scheduler, encoder: As in [`CellFluxPipeline`].
        rewards ([`RewardSuite`], *optional*): Without it the pipeline generates, but does not score or choose.

    Example:
        >>> pipe = CellFluxRLPipeline.from_pretrained("runs/demo/pipeline")                        # doctest: +SKIP
        >>> out = pipe(controls, compound="taxol", num_inference_steps=4, best_of_n=4)             # doctest: +SKIP
        >>> out.images[0], out.rewards["containment"][0], out.selected[0]                          # doctest: +SKIP
    """

    model_cpu_offload_seq = "unet->rewards"
    _optional_components = ["rewards"]

    def __init__(
        self,
        unet: CellFluxUNet2DModel,
        scheduler: CellFluxFlowMatchScheduler,
        encoder: CompoundEncoder,
        rewards: RewardSuite | None = None,
    ) -> None:
        super().__init__(unet, scheduler, encoder)
        self.register_modules(rewards=rewards)

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
        best_of_n: int = 1,
        selection: str = "best",
        moa: str | Sequence[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_trajectory: bool = False,
        return_dict: bool = True,
        compound_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CellFluxPipelineOutput | tuple:
        """
        Generate treated cells, and choose among `best_of_n` samples for each image that is returned.

        Args:
            best_of_n (`int`, defaults to 1): Samples drawn for each image that is returned.
            selection (`str`, defaults to `"best"`): `"best"` takes the highest combined reward; `"match"` chooses for
                all controls of the call together the samples whose statistics follow the real distribution.
            moa (`str` or `Sequence[str]`, *optional*): The mechanism that the rewards expect; by default that of the
                compound. Needed for a SMILES or an embedding.
            **kwargs: Everything else as in [`CellFluxPipeline.__call__`].

        Returns:
            [`CellFluxPipelineOutput`] with `rewards` where the suite knows the MoA, and `selected` if `best_of_n > 1`.

        Raises:
            ValueError: If a choice is asked for without a reward suite or a MoA, or for what [`CellFluxPipeline`]
                refuses.
        """
        # 1. Check the inputs
        control = as_control_images(control_images, self.channel_names)
        for name, number in (("num_images_per_control", num_images_per_control), ("best_of_n", best_of_n)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        for kind, name, allowed in (("selection", selection, SELECTIONS), ("output_type", output_type, OUTPUT_TYPES)):
            if name not in allowed:
                raise unknown_name(kind, name, allowed)
        num_rows = self.count_rows(control, compound, smiles, compound_embeds, concentration)
        moas = self._expected_moas(num_rows, compound, moa)
        if best_of_n > 1 and self.rewards is None:
            raise ValueError(f"best_of_n={best_of_n} needs rewards to choose by, and this pipeline has none")
        if best_of_n > 1 and moas is None:
            treatment = "the embedding" if compound_embeds is not None else repr(compound or smiles)
            raise ValueError(f"best_of_n={best_of_n} needs the MoA to expect of {treatment}: pass moa=...")
        if self.rewards is not None and moas is not None:
            strange = set(moas) - set(self.rewards.moas)
            if strange and moa is None and best_of_n == 1:
                logger.warning("the images are not scored: the rewards were not fitted on %s", sorted(strange))
                moas = None
        if self.rewards is not None and moas is not None:
            self.rewards.classifier.class_indices(moas)  # an unknown MoA is refused before the work, not after

        # 2. Generate all candidates
        generated = super().__call__(
            control_images,
            compound=compound,
            concentration=concentration,
            smiles=smiles,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_control=num_images_per_control * best_of_n,
            generator=generator,
            output_type="pt",
            return_trajectory=return_trajectory,
            compound_embeds=compound_embeds,
            **kwargs,
        )
        images, trajectory = generated.images, generated.trajectory

        # 3. Choose
        selected = None
        expected = [m for m in moas or [] for _ in range(num_images_per_control)]
        if best_of_n > 1:
            selected = self._select(images, expected, best_of_n, selection)
            rows = torch.arange(len(selected)) * best_of_n + selected
            images = images[rows.to(images.device)]
            trajectory = None if trajectory is None else trajectory[:, rows.to(images.device)]

        # 4. Score what was chosen, and convert
        rewards = self.rewards(images, moa=expected) if self.rewards is not None and moas is not None else None
        self.maybe_free_model_hooks()
        output = CellFluxPipelineOutput(
            images=convert_images(images, output_type), rewards=rewards, selected=selected, trajectory=trajectory
        )
        return output if return_dict else output.to_tuple()

    def _expected_moas(
        self, count: int, compound: str | Sequence[str] | None, moa: str | Sequence[str] | None
    ) -> list[str] | None:
        if moa is None:
            if compound is None:
                return None
            moa = [self.encoder.moa(c) for c in ([compound] if isinstance(compound, str) else compound)]
            if None in moa:
                return None
            moa = moa[0] if isinstance(compound, str) else moa
        if isinstance(moa, str):
            return [moa] * count
        if len(moa) != count:
            raise ValueError(f"moa must be one, or one for each of {count} images; got {len(moa)}")
        return list(moa)

    def _select(self, images: torch.Tensor, moas: list[str], best_of_n: int, selection: str) -> torch.Tensor:
        repeated = [m for m in moas for _ in range(best_of_n)]
        if selection == "best":
            return select_best(self.rewards(images, moa=repeated)["combined"].view(-1, best_of_n)).cpu()
        vectors = self.rewards.statistics(images, moa=repeated).view(len(moas), best_of_n, -1)
        selected = torch.zeros(len(moas), dtype=torch.long)
        for moa, k in zip(
            dict.fromkeys(moas), self.rewards.classifier.class_indices(list(dict.fromkeys(moas))), strict=True
        ):
            own = torch.tensor([i for i, m in enumerate(moas) if m == moa])
            selected[own] = select_match(vectors[own.to(vectors.device)], self.rewards.reference[k]).cpu()
        return selected
