"""Generation with rewards: one of N samples for each image, chosen or searched for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from cellfluxrl.errors import unknown_name
from cellfluxrl.flow.integration import solve
from cellfluxrl.models.compound_encoder import CompoundEncoder
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.pipelines.inputs import ControlImages, as_control_images
from cellfluxrl.pipelines.outputs import OUTPUT_TYPES, CellFluxPipelineOutput, Sampling, convert_images
from cellfluxrl.pipelines.search import search_noise, steer
from cellfluxrl.pipelines.selection import (
    SELECTIONS,
    CandidateScores,
    StreamingMatch,
    choose_candidates,
    score_candidates,
)
from cellfluxrl.rewards.context import Context
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler

logger = logging.getLogger(__name__)

SEARCHES = {"steer": ("strength", "resample_times"), "noise": ("num_rounds", "angle")}
SEARCHABLE = ("batch_size", "guidance_interval")  # arguments of CellFluxPipeline.__call__ that a search takes
CANDIDATE_BYTES = 2**24  # of float32 candidates that are in memory at once


@dataclass(frozen=True)
class _Wanted:
    """Images to be generated, `count` candidates for each of M: their controls `(M, C, H, W)`, conditions `(M, D)` or
    `None`, expected MoAs, what rewards may know of them, and one generator, or one for each of the `M * count`
    candidates.
    """

    control: torch.Tensor
    condition: torch.Tensor | None
    moas: list[str]
    context: Context
    generator: torch.Generator | list[torch.Generator] | None
    count: int

    def part(self, start: int, end: int) -> _Wanted:
        own = self.generator
        return _Wanted(
            self.control[start:end],
            None if self.condition is None else self.condition[start:end],
            self.moas[start:end],
            self.context.take(slice(start, end)),
            own[start * self.count : end * self.count] if isinstance(own, list) else own,
            self.count,
        )

    def conditions(self, count: int) -> torch.Tensor | None:
        """The condition of `count` candidates of each image."""
        return None if self.condition is None else self.condition.repeat_interleave(count, dim=0)


class CellFluxRLPipeline(CellFluxPipeline):
    """[`CellFluxPipeline`] with a reward suite, which scores the samples and chooses among several of each control.

    Args:
        unet, scheduler, encoder, control_levels: As in [`CellFluxPipeline`].
        rewards: Without it the pipeline generates, but does not score or choose.

    Example:
        >>> pipe = CellFluxRLPipeline.from_pretrained("runs/demo/pipeline")                        # doctest: +SKIP
        >>> out = pipe(controls, compound="taxol", best_of_n=4, selection="match")                 # doctest: +SKIP
        >>> out.images[0], out.rewards["containment"][0], out.selected[0]                          # doctest: +SKIP
        >>> out = pipe(controls, compound="taxol", best_of_n=8, search="steer")                    # doctest: +SKIP
        >>> out.num_function_evaluations, out.within_range                                         # doctest: +SKIP
    """

    model_cpu_offload_seq = "unet->rewards"
    _optional_components = ["rewards"]

    def __init__(
        self,
        unet: CellFluxUNet2DModel,
        scheduler: CellFluxFlowMatchScheduler,
        encoder: CompoundEncoder,
        rewards: RewardSuite | None = None,
        control_levels: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__(unet, scheduler, encoder, control_levels)
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
        selection: str | StreamingMatch = "best",
        moa: str | Sequence[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_trajectory: bool = False,
        return_dict: bool = True,
        compound_embeds: torch.Tensor | None = None,
        *,
        selection_reward: str = "combined",
        search: str | None = None,
        search_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> CellFluxPipelineOutput | tuple:
        """Generate treated cells, and choose among `best_of_n` samples for each image that is returned.

        Every choice and every search spends the evaluations of `best_of_n` samples for each image. Candidates are
        generated, scored and chosen among for a group of images at a time, and only the chosen ones are kept, so the
        memory does not grow with the number of candidates.

        Args:
            best_of_n: Samples drawn for each image that is returned.
            selection: `"best"` takes the highest reward. `"match"` chooses jointly, for all images of the call, the
                samples that follow the distribution of real cells in [`RewardSuite.appearance`] (group after group, by
                [`StreamingMatch`], where the candidates are too many for one). `"reject"` takes the first sample that
                is within the range of real cells ([`RewardSuite.outside_real_range`]), or the nearest, with a warning,
                where none is. One [`StreamingMatch`] that is passed to several calls matches the images of all of them
                together.
            moa: The mechanism that the rewards expect; by default that of the compound. Needed for a SMILES or an
                embedding.
            selection_reward: The reward that `"best"` and the searches maximise.
            search: How the samples are drawn: by default independently of each other. `"steer"` resamples them along
                the trajectory ([`steer`]; rewards are computed four times as often), `"noise"` searches around the
                best source noise so far ([`search_noise`]). `selection` then chooses among them.
            search_kwargs: `strength` and `resample_times` for `"steer"`, `num_rounds` and `angle` for `"noise"`.
            **kwargs: Everything else as in [`CellFluxPipeline.__call__`]; a search takes `batch_size` and
                `guidance_interval` only.

        Returns:
            [`CellFluxPipelineOutput`] with `rewards` and `within_range` where the suite knows the MoA, and `selected`
            if `best_of_n > 1`.

        Raises:
            ValueError: If a choice is asked for without a reward suite or a MoA, or for what [`CellFluxPipeline`]
                refuses.
        """
        # 1. Check the inputs
        control = as_control_images(control_images, self.channel_names)
        treatment = {
            "compound": compound,
            "smiles": smiles,
            "compound_embeds": compound_embeds,
            "concentration": concentration,
        }
        for name, number in (("num_images_per_control", num_images_per_control), ("best_of_n", best_of_n)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if output_type not in OUTPUT_TYPES:
            raise unknown_name("output_type", output_type, OUTPUT_TYPES)
        settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **kwargs}
        settings["return_trajectory"] = return_trajectory
        self._check_choice(best_of_n, selection, selection_reward, search)
        self._check_search(best_of_n, search, search_kwargs or {}, settings)
        num_rows = self.count_rows(control, **treatment)
        context = _context(control.expand(num_rows, -1, -1, -1), compound, concentration)
        moas = self._scored_moas(num_rows, best_of_n, moa, treatment, context)

        # 2. Generate, and choose
        if best_of_n == 1:
            several = {"num_images_per_control": num_images_per_control, "generator": generator}
            output = super().__call__(control_images, **treatment, **settings, **several, output_type="pt")
            if moas is not None:
                scores = score_candidates(self.rewards, output.images, moas, context)
                _add_scores(output, scores.map(lambda values: values.flatten(0, 1)))
        else:
            checked = ("guidance_interval", "batch_size", "direction", "callback_on_step_end_tensor_inputs")
            self.check_inputs(
                control,
                num_rows,
                num_images_per_control * best_of_n,
                guidance_scale,
                generator=generator,
                **{name: settings[name] for name in checked if name in settings},
            )
            device, dtype = self._execution_device, torch.promote_types(self.unet.dtype, torch.float32)
            condition = self.encode_condition(num_rows, **treatment)
            rows = torch.arange(num_rows).repeat_interleave(num_images_per_control)
            wanted = _Wanted(
                control=control.expand(num_rows, -1, -1, -1)[rows].to(device, dtype),
                condition=None if condition is None else condition.to(device, dtype)[rows.to(device)],
                moas=[moas[i] for i in rows.tolist()],
                context=context.take(rows),
                generator=generator,
                count=best_of_n,
            )
            output = self._choose_by_group(wanted, selection, selection_reward, search, search_kwargs or {}, settings)

        # 3. Convert
        self.maybe_free_model_hooks()
        output.images = convert_images(output.images, output_type)
        return output if return_dict else output.to_tuple()

    def _check_choice(
        self, best_of_n: int, selection: str | StreamingMatch, selection_reward: str, search: str | None
    ) -> None:
        if not isinstance(selection, StreamingMatch) and selection not in SELECTIONS:
            raise unknown_name("selection", selection, SELECTIONS)
        if best_of_n > 1 and self.rewards is None:
            raise ValueError(f"best_of_n={best_of_n} needs rewards to choose by, and this pipeline has none")
        if selection_reward == "combined":
            return
        if best_of_n == 1 or (selection != "best" and search is None):
            raise ValueError(
                f"selection_reward={selection_reward!r} is for selection='best' or a search, with best_of_n > 1"
            )
        names = [*self.rewards.weights, "combined"]
        if selection_reward not in names:
            raise unknown_name("selection_reward", selection_reward, names)

    def _check_search(
        self, best_of_n: int, search: str | None, search_kwargs: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        if search is None:
            if search_kwargs:
                raise ValueError(f"search_kwargs={dict(search_kwargs)} needs a search, one of {list(SEARCHES)}")
            return
        if search not in SEARCHES:
            raise unknown_name("search", search, SEARCHES)
        for name in search_kwargs:
            if name not in SEARCHES[search]:
                raise unknown_name(f"argument of search {search!r}:", name, SEARCHES[search])
        if best_of_n == 1:
            raise ValueError(f"search={search!r} needs several candidates: pass best_of_n")
        own = ("num_inference_steps", "guidance_scale", *SEARCHABLE)
        given = {name for name, value in settings.items() if value is not None and value is not False}
        if refused := sorted(given.difference(own)):
            raise ValueError(f"search={search!r} does not take {', '.join(refused)}")

    def _scored_moas(
        self,
        count: int,
        best_of_n: int,
        moa: str | Sequence[str] | None,
        treatment: Mapping[str, Any],
        context: Context,
    ) -> list[str] | None:
        """The MoA to score each of `count` rows for; `None` if they are not to be scored."""
        moas = self._expected_moas(count, treatment["compound"], moa)
        if best_of_n > 1 and moas is None:
            given = treatment["compound"] or treatment["smiles"]
            shown = "the embedding" if treatment["compound_embeds"] is not None else repr(given)
            raise ValueError(f"best_of_n={best_of_n} needs the MoA to expect of {shown}: pass moa=...")
        if self.rewards is None or moas is None:
            return None
        strange = set(moas) - set(self.rewards.moas)
        if strange and moa is None and best_of_n == 1:
            logger.warning("the images are not scored: the rewards were not fitted on %s", sorted(strange))
            return None
        # What cannot be scored is refused before the work, not after.
        self.rewards.classifier.class_indices(moas)
        try:
            self.rewards.check_context(context)
        except ValueError as error:
            if best_of_n > 1 or moa is not None:
                raise
            logger.warning("the images are not scored: %s", error)
            return None
        return moas

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

    def _choose_by_group(
        self,
        wanted: _Wanted,
        selection: str | StreamingMatch,
        selection_reward: str,
        search: str | None,
        search_kwargs: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> CellFluxPipelineOutput:
        """Generate candidates for as many images at a time as `CANDIDATE_BYTES` allow, and keep the chosen ones."""
        per_group = max(1, CANDIDATE_BYTES // (4 * wanted.count * wanted.control[0].numel()))
        selection = StreamingMatch() if selection == "match" else selection
        images, trajectories, every_selected, every_score = [], [], [], []
        self._interrupt = False
        for start in range(0, len(wanted.moas), per_group):
            group = wanted.part(start, start + per_group)
            if search is None:
                condition = group.conditions(group.count)
                candidates, trajectory = self._integrate(self._sources(group), condition, Sampling(**settings))
                scores = score_candidates(self.rewards, candidates, group.moas, group.context)
            else:
                draw = self._steered if search == "steer" else self._searched
                candidates, scores = draw(group, selection_reward, search_kwargs, settings)
                trajectory = None
            selected = choose_candidates(self.rewards, scores, group.moas, selection, selection_reward)
            rows = (torch.arange(len(selected)) * group.count + selected).to(candidates.device)
            images.append(candidates[rows])
            trajectories += [] if trajectory is None else [trajectory[:, rows]]
            every_selected.append(selected)
            every_score.append(scores.chosen(selected))

        costly = ("num_inference_steps", "guidance_scale", "guidance_interval")
        per_sample = self.evaluations_of(**{name: settings[name] for name in costly if name in settings})
        output = CellFluxPipelineOutput(
            images=torch.cat(images),
            selected=torch.cat(every_selected),
            trajectory=torch.cat(trajectories, dim=1) if trajectories and not self.interrupt else None,
            num_function_evaluations=None if self.interrupt else wanted.count * per_sample,
        )
        _add_scores(output, CandidateScores.cat(every_score))
        outside = int((~output.within_range).sum())
        if selection == "reject" and outside:
            logger.warning(
                "for %d of %d images none of %d candidates is within the range of real cells: the nearest is returned",
                *(outside, len(output.within_range), wanted.count),
            )
        return output

    def _sources(self, wanted: _Wanted, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Controls with fresh noise, of all candidates or of some among all."""
        if candidates is None:
            candidates = torch.arange(len(wanted.moas) * wanted.count)
        control = wanted.control[candidates.to(wanted.control.device) // wanted.count]
        return control + self._fresh_noise(wanted, candidates)

    def _fresh_noise(self, wanted: _Wanted, candidates: torch.Tensor) -> torch.Tensor:
        own, control = wanted.generator, wanted.control
        if isinstance(own, list):
            own = [own[i] for i in candidates.tolist()]
        return self._source_noise((len(candidates), *control.shape[1:]), own, control.device, control.dtype)

    def _searched(
        self, wanted: _Wanted, reward: str, search_kwargs: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> tuple[torch.Tensor, CandidateScores]:
        """Candidates of a search over the source noise."""
        rounds = []
        every = torch.arange(len(wanted.moas) * wanted.count).view(-1, wanted.count)

        def generate(noise: torch.Tensor) -> torch.Tensor:
            count = len(noise) // len(wanted.moas)
            source = wanted.control.repeat_interleave(count, dim=0) + noise
            return self._integrate(source, wanted.conditions(count), Sampling(**settings))[0]

        def score(images: torch.Tensor) -> torch.Tensor:
            rounds.append(score_candidates(self.rewards, images, wanted.moas, wanted.context))
            return rounds[-1].rewards[reward].flatten()

        def draw_noise(start: int, end: int) -> torch.Tensor:
            return self._fresh_noise(wanted, every[:, start:end].flatten())

        images = search_noise(generate, score, draw_noise, wanted.count, **search_kwargs)
        return images, CandidateScores.cat(rounds, dim=1)

    def _steered(
        self, wanted: _Wanted, reward: str, search_kwargs: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> tuple[torch.Tensor, CandidateScores]:
        """Candidates that were resampled along the trajectory."""
        condition, sampling = wanted.conditions(wanted.count), Sampling(**settings)
        self._lay_grid(sampling, wanted.control.device)
        timesteps = iter(self.scheduler.timesteps)
        scales = iter(self._guidance_scales(sampling.guidance_scale, sampling.guidance_interval))

        def velocity(sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            scale, samples = next(scales), sample.split(sampling.batch_size)
            conditions = [None] * len(samples) if condition is None else condition.split(sampling.batch_size)
            return torch.cat(
                [self._guided_velocity(x, t, own, scale) for x, own in zip(samples, conditions, strict=True)]
            )

        def advance(sample: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            evaluations = islice(timesteps, (len(part) - 1) * self.scheduler.order)
            state = solve(velocity, self.scheduler, sample, evaluations)
            return state.sample, state.target

        def score(targets: torch.Tensor) -> torch.Tensor:
            seen = targets.float().clamp(-1, 1)
            return score_candidates(self.rewards, seen, wanted.moas, wanted.context).rewards[reward].flatten()

        images = steer(
            self._sources(wanted),
            self.scheduler.grid,
            advance,
            score,
            draw_source=lambda candidates: self._sources(wanted, candidates),
            num_particles=wanted.count,
            generator=wanted.generator,
            on_resample=self.scheduler.resample,
            **search_kwargs,
        )
        images = images.float().clamp(-1, 1)
        return images, score_candidates(self.rewards, images, wanted.moas, wanted.context)


def _context(
    control: torch.Tensor, compound: str | Sequence[str] | None, concentration: float | Sequence[float] | None
) -> Context:
    """What rewards may know of images: one compound or concentration stands for all."""

    def column(value: Any) -> list[Any]:
        return [value] * len(control) if value is None or isinstance(value, (str, int, float)) else list(value)

    columns = {"compound": column(compound), "concentration": column(concentration)}
    known = {name: values for name, values in columns.items() if None not in values}
    return Context.of(len(control), control=control, **known)


def _add_scores(output: CellFluxPipelineOutput, scores: CandidateScores) -> None:
    """Put the scores of the images, `(M,)` each, into the output."""
    output.rewards, output.within_range = scores.rewards, scores.outside == 0
