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
from cellfluxrl.pipelines.inputs import ControlImages, as_control_images, one_for_each
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
SEARCH_SETTINGS = ("num_inference_steps", "guidance_scale", "guidance_interval", "batch_size")  # that a search takes
CANDIDATE_BYTES = 2**24  # of float32 candidates that are in memory at once


@dataclass(frozen=True)
class _Request:
    """M images to be generated, each of which is chosen among `count` candidates.

    Their controls are `(M, C, H, W)`, conditions `(M, D)`; a list of generators has one for each candidate.
    """

    control: torch.Tensor
    condition: torch.Tensor | None
    moas: list[str]
    context: Context
    generator: torch.Generator | list[torch.Generator] | None
    count: int

    def part(self, start: int, end: int) -> _Request:
        """The images `start` to `end - 1`."""
        return _Request(
            self.control[start:end],
            None if self.condition is None else self.condition[start:end],
            self.moas[start:end],
            self.context.take(slice(start, end)),
            self.generators_of(torch.arange(start * self.count, min(end, len(self.moas)) * self.count)),
            self.count,
        )

    def conditions(self, count: int) -> torch.Tensor | None:
        """The condition of `count` candidates of each image."""
        return None if self.condition is None else self.condition.repeat_interleave(count, dim=0)

    def controls_of(self, candidates: torch.Tensor) -> torch.Tensor:
        """The control of some among all candidates, `(M * count,)`."""
        return self.control[candidates.to(self.control.device) // self.count]

    def generators_of(self, candidates: torch.Tensor) -> torch.Generator | list[torch.Generator] | None:
        """The generators of some among all candidates, or the one of all."""
        if not isinstance(self.generator, list):
            return self.generator
        return [self.generator[i] for i in candidates.tolist()]


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
        treatment: dict[str, Any] = {"compound": compound, "smiles": smiles, "concentration": concentration}
        treatment["compound_embeds"] = compound_embeds
        for name, number in (("num_images_per_control", num_images_per_control), ("best_of_n", best_of_n)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if output_type not in OUTPUT_TYPES:
            raise unknown_name("output_type", output_type, OUTPUT_TYPES)
        settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **kwargs}
        settings["return_trajectory"] = return_trajectory
        search_kwargs = search_kwargs or {}
        self._check_choice(best_of_n, selection, selection_reward, search)
        _check_search(best_of_n, search, search_kwargs, settings)
        num_rows = self.count_rows(control, **treatment)
        controls = control.expand(num_rows, -1, -1, -1)
        context = _context(controls, compound, concentration)
        moas = self._scored_moas(num_rows, best_of_n, moa, treatment, context)

        # 2. Generate, and choose
        if best_of_n == 1:
            several = {"num_images_per_control": num_images_per_control, "generator": generator}
            output = super().__call__(control_images, **treatment, **settings, **several, output_type="pt")
            assert isinstance(output, CellFluxPipelineOutput)
            assert isinstance(output.images, torch.Tensor)
            if moas is not None:
                scores = score_candidates(self.rewards, output.images, moas, context)
                scores = scores.map(lambda values: values.flatten(0, 1))
                output.rewards, output.within_range = scores.rewards, scores.outside == 0
        else:
            sampling = Sampling(**settings)
            self.check_inputs(control, num_rows, num_images_per_control * best_of_n, sampling, generator)
            device, dtype = self._execution_device, torch.promote_types(self.unet.dtype, torch.float32)
            condition = self.encode_condition(num_rows, **treatment)
            assert moas is not None  # several candidates without were refused
            rows = torch.arange(num_rows).repeat_interleave(num_images_per_control)
            request = _Request(
                control=controls[rows].to(device, dtype),
                condition=None if condition is None else condition.to(device, dtype)[rows.to(device)],
                moas=[moas[i] for i in rows.tolist()],
                context=context.take(rows),
                generator=generator,
                count=best_of_n,
            )
            output = self._choose_by_group(request, selection, selection_reward, search, search_kwargs, sampling)

        # 3. Convert
        self.maybe_free_model_hooks()
        assert isinstance(output.images, torch.Tensor)
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

    def _scored_moas(
        self,
        count: int,
        best_of_n: int,
        moa: str | Sequence[str] | None,
        treatment: Mapping[str, Any],
        context: Context,
    ) -> list[str] | None:
        """Find the MoA to score each of `count` rows for; `None` if they are not to be scored."""
        moas = self._expected_moas(count, treatment["compound"], moa)
        if best_of_n > 1 and moas is None:
            given = treatment["compound"] or treatment["smiles"]
            shown = "the embedding" if treatment["compound_embeds"] is not None else repr(given)
            raise ValueError(f"best_of_n={best_of_n} needs the MoA to expect of {shown}: pass moa=...")
        if self.rewards is None or moas is None:
            return None
        unknown = set(moas) - set(self.rewards.moas)
        if unknown and moa is None and best_of_n == 1:
            logger.warning("the images are not scored: the rewards were not fitted on %s", sorted(unknown))
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
            moas: list[Any] = [self.encoder.moa(name) for name in one_for_each(compound, count)]
            return None if None in moas else moas
        moas = one_for_each(moa, count)
        if len(moas) != count:
            raise ValueError(f"moa must be one, or one for each of {count} images; got {len(moas)}")
        return moas

    def _choose_by_group(
        self,
        request: _Request,
        selection: str | StreamingMatch,
        selection_reward: str,
        search: str | None,
        search_kwargs: Mapping[str, Any],
        sampling: Sampling,
    ) -> CellFluxPipelineOutput:
        """Generate candidates for as many images at a time as `CANDIDATE_BYTES` allow, and keep the chosen ones."""
        per_group = max(1, CANDIDATE_BYTES // (4 * request.count * request.control[0].numel()))
        selection = StreamingMatch() if selection == "match" else selection
        images, trajectories, selected, scores = [], [], [], []
        self._interrupt = False
        for start in range(0, len(request.moas), per_group):
            group = request.part(start, start + per_group)
            trajectory = None
            if search is None:
                sources = self._sources(group, torch.arange(len(group.moas) * group.count))
                candidates, trajectory = self._integrate(sources, group.conditions(group.count), sampling)
                group_scores = score_candidates(self.rewards, candidates, group.moas, group.context)
            else:
                draw = self._steered if search == "steer" else self._searched
                candidates, group_scores = draw(group, selection_reward, search_kwargs, sampling)
            chosen = choose_candidates(self.rewards, group_scores, group.moas, selection, selection_reward)
            rows = (torch.arange(len(chosen)) * group.count + chosen).to(candidates.device)
            images.append(candidates[rows])
            trajectories += [] if trajectory is None else [trajectory[:, rows]]
            selected.append(chosen)
            scores.append(group_scores.chosen(chosen))

        chosen_scores = CandidateScores.cat(scores)
        output = CellFluxPipelineOutput(
            images=torch.cat(images),
            rewards=chosen_scores.rewards,
            selected=torch.cat(selected),
            trajectory=torch.cat(trajectories, dim=1) if trajectories and not self.interrupt else None,
            within_range=chosen_scores.outside == 0,
            num_function_evaluations=None if self.interrupt else request.count * self._count_evaluations(sampling),
        )
        outside = int((chosen_scores.outside != 0).sum())
        if selection == "reject" and outside:
            logger.warning(
                "for %d of %d images none of %d candidates is within the range of real cells: the nearest is returned",
                *(outside, len(request.moas), request.count),
            )
        return output

    def _sources(self, request: _Request, candidates: torch.Tensor) -> torch.Tensor:
        """Add fresh noise to the controls of some candidates."""
        control = request.controls_of(candidates)
        return control + self._source_noise(control, request.generators_of(candidates))

    def _searched(
        self, request: _Request, reward: str, search_kwargs: Mapping[str, Any], sampling: Sampling
    ) -> tuple[torch.Tensor, CandidateScores]:
        """Search for candidates over the source noise."""
        rounds = []
        every = torch.arange(len(request.moas) * request.count).view(-1, request.count)

        def generate(noise: torch.Tensor) -> torch.Tensor:
            count = len(noise) // len(request.moas)
            source = request.control.repeat_interleave(count, dim=0) + noise
            return self._integrate(source, request.conditions(count), sampling)[0]

        def score(images: torch.Tensor) -> torch.Tensor:
            rounds.append(score_candidates(self.rewards, images, request.moas, request.context))
            return rounds[-1].rewards[reward].flatten()

        def draw_noise(start: int, end: int) -> torch.Tensor:
            candidates = every[:, start:end].flatten()
            return self._source_noise(request.controls_of(candidates), request.generators_of(candidates))

        images = search_noise(generate, score, draw_noise, request.count, **search_kwargs)
        return images, CandidateScores.cat(rounds, dim=1)

    def _steered(
        self, request: _Request, reward: str, search_kwargs: Mapping[str, Any], sampling: Sampling
    ) -> tuple[torch.Tensor, CandidateScores]:
        """Resample candidates along the trajectory."""
        condition = request.conditions(request.count)
        self._lay_grid(sampling, request.control.device)
        timesteps = iter(self.scheduler.timesteps)
        scales = iter(self._guidance_scales(sampling))

        def velocity(sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            scale, samples = next(scales), sample.split(sampling.batch_size)
            conditions = [None] * len(samples) if condition is None else condition.split(sampling.batch_size)
            batches = zip(samples, conditions, strict=True)
            return torch.cat([self._guided_velocity(x, t, batch_condition, scale) for x, batch_condition in batches])

        def advance(sample: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            evaluations = islice(timesteps, (len(part) - 1) * self.scheduler.order)
            state = solve(velocity, self.scheduler, sample, evaluations)
            assert state.target is not None  # a scheduler that can resample says where the velocity points
            return state.sample, state.target

        def scores_of(images: torch.Tensor) -> CandidateScores:
            return score_candidates(self.rewards, images, request.moas, request.context)

        images = steer(
            self._sources(request, torch.arange(len(request.moas) * request.count)),
            self.scheduler.grid,
            advance,
            score=lambda targets: scores_of(targets.float().clamp(-1, 1)).rewards[reward].flatten(),
            draw_source=lambda candidates: self._sources(request, candidates),
            num_particles=request.count,
            generator=request.generator,
            on_resample=self.scheduler.resample,
            **search_kwargs,
        )
        images = images.float().clamp(-1, 1)
        return images, scores_of(images)


def _check_search(
    best_of_n: int, search: str | None, search_kwargs: Mapping[str, Any], settings: Mapping[str, Any]
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
    given = {name for name, value in settings.items() if value is not None and value is not False}
    if refused := sorted(given.difference(SEARCH_SETTINGS)):
        raise ValueError(f"search={search!r} does not take {', '.join(refused)}")


def _context(
    control: torch.Tensor, compound: str | Sequence[str] | None, concentration: float | Sequence[float] | None
) -> Context:
    """What rewards may know of images: one compound or concentration stands for all."""
    count = len(control)
    columns = {"compound": one_for_each(compound, count), "concentration": one_for_each(concentration, count)}
    known = {name: values for name, values in columns.items() if None not in values}
    return Context.of(len(control), control=control, **known)
