"""The seven biological rewards as one object that is fitted on real cells, saved, and called on images."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin

from cellfluxrl.configuration import ConfigMixin, register_to_config
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import ImageBatch, as_model_images
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.errors import unknown_name
from cellfluxrl.hub.access import CARD_NAME, push_files
from cellfluxrl.hub.download import readable_download_errors
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.rewards.card import suite_card
from cellfluxrl.rewards.energy import distances_to_real, energy_rewards
from cellfluxrl.rewards.segmentation.measurements import measure
from cellfluxrl.rewards.segmentation.protocol import Masks, Segmenter, make_segmenter
from cellfluxrl.rewards.statistics import FEW_IMAGES, REFERENCE_SIZE, Statistics, fit_statistics, separability
from cellfluxrl.rewards.terms import REWARD_NAMES, Observation, Reward, find_reward, register_reward

logger = logging.getLogger(__name__)

FORMS = ("deviation", "energy")
MINIMUM_SPREAD = 0.05
UNMEASURED = -10.0  # standard deviations from the real mean
REAL_RANGE = (0.025, 0.975)  # quantiles of real cells between which something counts as real


@dataclass(frozen=True)
class Measured:
    """What a suite needs to know of N images to score them in any form.

    Args:
        values: `(N, S)`; the statistics of `statistic_names`; NaN where there is nothing to measure.
        scores: The rewards that have a score of their own, each `(N,)`.
        measurements: See [`measure`]; each `(N,)`, none if no reward needs masks.
        features: `(N, D)`; the classifier's, where a reward needs it.
    """

    values: torch.Tensor
    scores: dict[str, torch.Tensor]
    measurements: dict[str, torch.Tensor]
    features: torch.Tensor | None = None

    def room_for(self, count: int) -> Measured:
        """Of the same kind, uninitialised, for `count` images."""

        def room(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor.new_empty(count) for name, tensor in tensors.items()}

        values, features = (
            None if t is None else t.new_empty(count, t.shape[1]) for t in (self.values, self.features)
        )
        return Measured(values, room(self.scores), room(self.measurements), features)

    def put(self, start: int, part: Measured) -> None:
        """Write what was measured in some images to the rows from `start`."""
        rows = slice(start, start + len(part.values))
        self.values[rows] = part.values
        if self.features is not None:
            self.features[rows] = part.features
        for name in ("scores", "measurements"):
            for key, tensor in getattr(part, name).items():
                getattr(self, name)[key][rows] = tensor

    @staticmethod
    def cat(parts: Sequence[Measured]) -> Measured:
        """Join what was measured in several batches."""

        def joined(name: str) -> dict[str, torch.Tensor]:
            return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

        features = None if parts[0].features is None else torch.cat([part.features for part in parts])
        return Measured(torch.cat([part.values for part in parts]), joined("scores"), joined("measurements"), features)


class RewardSuite(ModelMixin, ConfigMixin):
    """Scores images of cells by the seven rewards of CellFluxRL, and by those of users.

    `moa` is the classifier's probability of the true mechanism of action; `containment` the share of the nuclei that
    lies inside cells; `roundness`, `nucleus_size`, `cytoplasm_size`, `nucleus_count` and `cytoplasm_count` compare a
    statistic with real cells of the MoA. In the `"deviation"` form (the paper's) that is -|s - mean| / std, which one
    average cell maximises; in the `"energy"` form it is the derivative of a strictly proper score, which the real
    distribution maximises ([`energy_rewards`]). Use [`fit`] to make one from real images.

    An image without a nucleus, or without a cell, is never rewarded: what cannot be measured counts as ten standard
    deviations from the real mean, its containment is 0, and without a nucleus so is its probability of the MoA.

    Args:
        classifier_config: Configuration of the [`MoAClassifier`]; its classes are the MoAs of the suite.
        segmenter: Name of the segmenter.
        segmenter_settings: Its settings.
        rewards: Names of the rewards; by default the seven.
        reward_weights: Weight of each reward in `combined`; 1 each by default. A reward of weight 0 is left out of it,
            in both forms.
        image_size: Height and width in pixels of the images that were fitted.
        pixel_size: Width of their pixels in micrometres.

    Example:
        >>> suite = RewardSuite.from_pretrained("runs/demo/pipeline/rewards")         # doctest: +SKIP
        >>> scores = suite(images, moa=["Protein synthesis"] * len(images))           # doctest: +SKIP
        >>> scores["containment"].shape, scores["combined"].shape                     # doctest: +SKIP
    """

    @register_to_config
    def __init__(
        self,
        classifier_config: dict[str, Any],
        segmenter: str = "watershed",
        segmenter_settings: dict[str, Any] | None = None,
        rewards: Sequence[str] | None = None,
        reward_weights: dict[str, float] | None = None,
        image_size: Sequence[int] | None = None,
        pixel_size: float | None = None,
    ):
        super().__init__()
        self.classifier = MoAClassifier.from_config(classifier_config).eval().requires_grad_(False)
        settings = {"channel_names": self.channel_names, **(segmenter_settings or {})}
        if tuple(settings["channel_names"]) != self.channel_names:
            raise ValueError(
                f"the segmenter has channels {tuple(settings['channel_names'])}, the classifier {self.channel_names}"
            )
        self.segmenter: Segmenter = make_segmenter(segmenter, **settings)
        self.rewards = tuple(find_reward(name) for name in (REWARD_NAMES if rewards is None else rewards))
        if not self.rewards:
            raise ValueError("a suite needs at least one reward")
        names = [reward.name for reward in self.rewards]
        for name in set(reward_weights or {}) - set(names):
            raise unknown_name("reward", name, names)
        self.weights = {name: float((reward_weights or {}).get(name, 1.0)) for name in names}
        count, statistics = len(self.moas), len(self.statistic_names)
        self.register_buffer("mean", torch.zeros(count, statistics))
        self.register_buffer("std", torch.ones(count, statistics))
        self.register_buffer("reference", torch.zeros(count, REFERENCE_SIZE, statistics))
        self.register_buffer("count", torch.zeros(count, dtype=torch.long))
        self.register_buffer("real_rewards", torch.zeros(count, len(names) + 1))
        self.register_buffer("score_floor", torch.zeros(count, len(self.score_names)))
        features = self.classifier.head.in_features if self.uses_classifier else 0
        self.register_buffer("feature_mean", torch.zeros(count, features))
        self.register_buffer("feature_scale", torch.ones(count))
        self.register_buffer("feature_reference", torch.zeros(count, REFERENCE_SIZE, features))

    @property
    def moas(self) -> list[str]:
        """The MoAs that the classifier knows; those without real images in the fit cannot be scored against."""
        return list(self.classifier.config.moas)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels of the images, in order."""
        return tuple(self.classifier.config.channel_names)

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The rewards that compare a statistic with real cells: first those that have nothing else, then `moa`."""
        own = [reward.name for reward in self.rewards if reward.statistic and not reward.score]
        return (*own, *(reward.name for reward in self.rewards if reward.statistic and reward.score))

    @property
    def uses_classifier(self) -> bool:
        """Whether a reward needs the classifier's verdict, and images are therefore shown to it."""
        return any("classifier" in reward.needs for reward in self.rewards)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The rewards that have a score and no statistic, such as containment."""
        return tuple(reward.name for reward in self.rewards if not reward.statistic)

    @classmethod
    def fit(
        cls,
        real_dataset: datasets.Dataset,
        classifier: MoAClassifier,
        segmenter: str = "watershed",
        segmenter_settings: dict[str, Any] | None = None,
        rewards: Sequence[str | Reward] | None = None,
        pixel_size: float | None = None,
        seed: int = 0,
        batch_size: int = 128,
    ) -> RewardSuite:
        """Fit statistics, reference cells and weights on real images.

        Each reward is weighted by 1 / its standard deviation over real cells of one MoA (at least 0.05), `moa` twice
        that, and the weights sum to 1: `combined` is a weighted mean in which no reward drowns another. MoAs with few
        images are shrunk towards the others ([`fit_statistics`]); those with none cannot be scored.

        Args:
            real_dataset: Rows of the cell schema, treated and control.
            classifier: Its classes must include all MoAs of the data set.
            segmenter, segmenter_settings: See [`make_segmenter`].
            rewards: Names of rewards, or rewards of one's own, which are then registered ([`register_reward`]); by
                default the seven.
            pixel_size: Width of a pixel in micrometres; images of another are then refused.
            seed: Which real cells become the reference of the energy form.
            batch_size: Images that are in memory at once.

        Raises:
            ValueError: If the channels differ from the classifier's, or no MoA has two images.
        """
        channels = channel_names_of(real_dataset)
        if channels != tuple(classifier.config.channel_names):
            raise ValueError(
                f"the data set has channels {channels}, the classifier {tuple(classifier.config.channel_names)}"
            )
        names = [r if isinstance(r, str) else register_reward(r).name for r in rewards or REWARD_NAMES]
        images = open_images(real_dataset)
        fitted = make_segmenter(segmenter, **{"channel_names": channels, **(segmenter_settings or {})})
        suite = cls(
            classifier_config=dict(classifier.config),
            segmenter=segmenter,
            segmenter_settings=dataclasses.asdict(fitted),
            rewards=names,
            image_size=list(images.shape[2:]),
            pixel_size=pixel_size,
        )
        suite.classifier.load_state_dict(classifier.state_dict())
        suite.to(classifier.device)

        moas = real_dataset["moa"]
        index = suite.classifier.class_indices(moas)
        measured = suite.measure_batches(images, moas, batch_size)
        suite._set_statistics(measured, index, seed)
        suite._report_gaps(measured.values)
        suite._set_weights(measured, index.to(suite.device))
        suite._set_real_rewards(measured, moas, index.to(suite.device))
        suite._set_score_floor(measured, index.to(suite.device))
        return suite

    def real_means(self, moa: Sequence[str]) -> dict[str, float]:
        """What real cells of these MoAs score on average, in the deviation form: a value above it is over-optimised.

        Of real images in which everything could be measured.

        Args:
            moa: The MoA of each image that is compared; real cells of each weigh as often.

        Returns:
            For each reward and `"combined"`.
        """
        means = self.real_rewards[self.classifier.class_indices(moa).to(self.device)].mean(dim=0)
        return dict(zip([*self.weights, "combined"], means.tolist(), strict=True))

    def _set_real_rewards(self, measured: Measured, moa: Sequence[str], index: torch.Tensor) -> None:
        scores = torch.stack(list(self.score(measured, moa).values()), dim=1)
        whole = measured.values.isfinite().all(dim=1)
        for k in (self.count > 0).nonzero()[:, 0].tolist():
            self.real_rewards[k] = scores[whole & (index == k)].mean(dim=0)

    def _set_score_floor(self, measured: Measured, index: torch.Tensor) -> None:
        whole = measured.values.isfinite().all(dim=1)
        for column, name in enumerate(self.score_names):
            for k, count in enumerate(self.count.tolist()):
                real = measured.scores[name][whole & (index == k) if count >= FEW_IMAGES else whole]
                self.score_floor[k, column] = real.quantile(REAL_RANGE[0])

    def _set_statistics(self, measured: Measured, index: torch.Tensor, seed: int) -> None:
        values = measured.values.cpu()
        own = values.shape[1]
        if measured.features is not None:
            values = torch.cat([values, measured.features.cpu()], dim=1)
        fitted = fit_statistics(values, index, len(self.moas), seed)
        self.count.copy_(fitted.count)
        for name in ("mean", "std", "reference"):
            getattr(self, name).copy_(getattr(fitted, name)[..., :own])
        std = fitted.std[:, own:]
        self.feature_mean.copy_(fitted.mean[:, own:])
        self.feature_scale.copy_((std.norm(dim=1) / max(1, own) ** 0.5).clamp(min=1e-6))
        reference = fitted.reference[..., own:] * std[:, None]
        self.feature_reference.copy_(reference / self.feature_scale.cpu()[:, None, None])

    def _report_gaps(self, values: torch.Tensor) -> None:
        unmeasured = int((~values.isfinite().all(dim=1)).sum())
        if unmeasured:
            logger.warning("%d of %d real images lack a nucleus or a cell: left out", unmeasured, len(values))
        counts = dict(zip(self.moas, self.count.tolist(), strict=True))
        if missing := [moa for moa, count in counts.items() if count == 0]:
            logger.warning("nothing can be scored against MoAs without real images: %s", ", ".join(missing))
        if few := [f"{moa} ({count})" for moa, count in counts.items() if 0 < count < FEW_IMAGES]:
            logger.warning(
                "MoAs with fewer than %d real images are shrunk towards the others: %s", FEW_IMAGES, ", ".join(few)
            )

    def _set_weights(self, measured: Measured, index: torch.Tensor) -> None:
        values = measured.values
        scaled = (values - self.mean[index]) / self.std[index]
        deviation = {name: -scaled[:, k].abs() for k, name in enumerate(self.statistic_names)} | measured.scores
        whole = values.isfinite().all(dim=1)
        weights = {}
        for name in self.weights:
            spreads = [deviation[name][whole & (index == k)].std() for k in (self.count > 1).nonzero()[:, 0].tolist()]
            spread = float(torch.stack(spreads).mean().clamp(min=MINIMUM_SPREAD))
            weights[name] = (2 if name == "moa" else 1) / spread
        self.weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self.register_to_config(reward_weights=self.weights)

    def separability(self) -> dict[str, float]:
        """Share of each statistic's variance in real cells that lies between MoAs, 0 to 1 ([`separability`])."""
        shares = separability(Statistics(self.mean, self.std, self.reference, self.count))
        return dict(zip(self.statistic_names, shares.tolist(), strict=True))

    def segment(self, images: ImageBatch) -> Masks:
        """Labelled nuclei and cells of `(N, C, H, W)` images (see [`as_model_images`] for the accepted kinds)."""
        return self.segmenter(((as_model_images(images, self.channel_names) + 1) / 2).cpu().numpy())

    @torch.no_grad()
    def observe(self, images: torch.Tensor, moa: Sequence[str]) -> Observation:
        """What the rewards are computed from: masks, measurements and the classifier's verdict.

        Args:
            images: `(N, C, H, W)`; floats in [-1, 1].
            moa: The true MoA of each.
        """
        needs = {need for reward in self.rewards for need in reward.needs}
        seen: dict[str, Any] = {}
        if "masks" in needs:
            seen["masks"] = self.segmenter(((images + 1) / 2).cpu().numpy())
            measurements = measure(seen["masks"])
            seen["measurements"] = {k: torch.from_numpy(v).float().to(self.device) for k, v in measurements.items()}
        if "classifier" in needs:
            verdict = self.classifier(images.to(self.device))
            logits, seen["features"] = verdict.logits.float(), verdict.features.float()
            own = torch.zeros_like(logits, dtype=torch.bool)
            own[torch.arange(len(own)), self.classifier.class_indices(moa)] = True
            # log(p / (1 - p)) = own logit - log sum exp(other logits)
            seen["logit"] = logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
            seen["probability"] = seen["logit"].sigmoid()
        return Observation(images.to(self.device), list(moa), **seen)

    def _values(self, seen: Observation) -> torch.Tensor:
        """The statistics of `statistic_names`: (N, S), NaN where there is nothing to measure."""
        rewards = {reward.name: reward for reward in self.rewards}
        columns = [self._checked(name, rewards[name].statistic(seen), seen) for name in self.statistic_names]
        return torch.stack(columns, dim=1) if columns else torch.zeros(len(seen.moa), 0, device=self.device)

    def _scores(self, seen: Observation) -> dict[str, torch.Tensor]:
        """The rewards that have a score of their own, each (N,)."""
        scores = {r.name: self._checked(r.name, r.score(seen), seen) for r in self.rewards if r.score}
        for name, score in scores.items():
            if not score.isfinite().all():
                rows = (~score.isfinite()).nonzero()[:8, 0].tolist()
                raise ValueError(f"reward {name!r} gave a score that is not finite for images {rows} of the batch")
        return scores

    def _checked(self, name: str, values: torch.Tensor, seen: Observation) -> torch.Tensor:
        if not isinstance(values, torch.Tensor) or values.shape != (len(seen.moa),):
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"reward {name!r} must give a tensor of shape ({len(seen.moa)},), got {got}")
        return values.float().to(self.device)

    def measure(
        self, images: ImageBatch, moa: Sequence[str], pixel_size: float | None = None, batch_size: int = 128
    ) -> Measured:
        """Segment, measure and classify images, a batch at a time: all of the work, before [`score`] compares.

        Arguments and errors are those of the call of the suite. uint8 images are converted batch by batch.
        """
        in_8_bits = getattr(images, "dtype", None) in (np.uint8, torch.uint8) and len(images.shape) == 4
        if not in_8_bits:
            images = as_model_images(images, self.channel_names)  # a float's range is that of all images together
        self.check_batch(images, moa, pixel_size)
        return self.measure_batches(images, moa, batch_size)

    @torch.no_grad()
    def measure_batches(self, images: Any, moa: Sequence[str], batch_size: int) -> Measured:
        """[`measure`] without its checks and its guess of the range.

        Args:
            images: `(N, C, H, W)`; uint8, or floats in [-1, 1].
            moa, batch_size: As in [`measure`].
        """
        measured = None
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            if batch.dtype in (np.uint8, torch.uint8):
                batch = as_model_images(batch, self.channel_names)
            seen = self.observe(batch, moa[start : start + batch_size])
            part = Measured(self._values(seen), self._scores(seen), seen.measurements or {}, seen.features)
            # Small results, kept between the large arrays of two batches, would keep the memory from being used again.
            measured = part.room_for(len(images)) if measured is None else measured
            measured.put(start, part)
        return measured

    def score(
        self, measured: Measured, moa: Sequence[str], form: str = "deviation", groups: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Rewards of what was measured; arguments, result and errors are those of the call of the suite."""
        if form not in FORMS:
            raise unknown_name("reward form", form, FORMS)
        index = self.classifier.class_indices(moa).to(self.device)
        scaled = self.standardise(measured, moa)
        deviation = {name: -scaled[:, k].abs() for k, name in enumerate(self.statistic_names)} | measured.scores
        result = {reward.name: deviation[reward.name].clone() for reward in self.rewards}  # the energy form overwrites
        result["combined"] = sum(self.weights[name] * result[name] for name in self.weights)
        if form == "energy":
            self._to_energy(result, scaled, measured.values.isfinite().all(dim=1), index, groups)
        return result

    def statistics(self, images: ImageBatch, moa: Sequence[str]) -> torch.Tensor:
        """Statistics of each image, in standard deviations from the mean of real cells of its MoA.

        Returns:
            `(N, S)`; columns as in `statistic_names`; -10 where there is nothing to measure.
        """
        return self.standardise(self.measure(images, moa), moa)

    def standardise(self, measured: Measured, moa: Sequence[str]) -> torch.Tensor:
        """The statistics of what was measured, as [`statistics`] gives them."""
        index = self.classifier.class_indices(moa).to(self.device)
        return ((measured.values - self.mean[index]) / self.std[index]).nan_to_num(nan=UNMEASURED)

    def appearance(self, measured: Measured, moa: Sequence[str]) -> torch.Tensor:
        """What `selection="match"` compares with [`real_appearance`]: the statistics, and what the classifier sees.

        Statistics of shape and number say nothing of brightness and texture, so that cells which match in them may
        still look wrong. The classifier's features, all together, count as much as all statistics together.

        Args:
            measured: Of N images, as [`measure`] gives it.
            moa: The true MoA of each.

        Returns:
            `(N, S + D)`; first the columns of [`standardise`].
        """
        scaled = self.standardise(measured, moa)
        if not self.uses_classifier:
            return scaled
        index = self.classifier.class_indices(moa).to(self.device)
        features = (measured.features - self.feature_mean[index]) / self.feature_scale[index, None]
        return torch.cat([scaled, features], dim=1)

    def real_appearance(self, moa: str) -> torch.Tensor:
        """[`appearance`] of the reference cells of one MoA, `(R, S + D)`."""
        k = self.moas.index(moa)
        return torch.cat([self.reference[k], self.feature_reference[k]], dim=1)

    def outside_real_range(self, measured: Measured, moa: Sequence[str]) -> torch.Tensor:
        """How far images lie outside of the range of real cells of their MoA: 0 where everything is inside.

        A statistic is inside between the 2.5 % and the 97.5 % quantile of the reference cells, a reward without a
        statistic, such as containment, from the 2.5 % quantile of real cells upwards (of all MoAs together where one
        has fewer than 30 images). What cannot be measured is outside.

        Args:
            measured: Of N images, as [`measure`] gives it.
            moa: The true MoA of each.

        Returns:
            `(N,)`; euclidean length of what is beyond the range, in standard deviations of real cells for statistics,
            and in units of 0.05 for the others.
        """
        index = self.classifier.class_indices(moa).to(self.device)
        beyond = torch.zeros_like(measured.values)
        if self.statistic_names:
            low, high = torch.quantile(self.reference, self.reference.new_tensor(REAL_RANGE), dim=1)
            scaled = self.standardise(measured, moa)
            beyond = (low[index] - scaled).clamp(min=0) + (scaled - high[index]).clamp(min=0)
        if self.score_names:
            scores = torch.stack([measured.scores[name] for name in self.score_names], dim=1)
            lacking = (self.score_floor[index] - scores).clamp(min=0) / MINIMUM_SPREAD
            beyond = torch.cat([beyond, lacking], dim=1)
        return beyond.norm(dim=1)

    def forward(
        self,
        images: ImageBatch,
        moa: Sequence[str],
        form: str = "deviation",
        groups: torch.Tensor | None = None,
        pixel_size: float | None = None,
        batch_size: int = 128,
    ) -> dict[str, torch.Tensor]:
        """Score images.

        Args:
            images: `(N, C, H, W)` images; see [`as_model_images`] for the accepted kinds.
            moa: The true MoA of each.
            form: `"deviation"` or `"energy"`.
            groups: `(N,)`; rollouts with the same integer are compared with each other in the energy form; by default
                those of one MoA. An image without others to compare with gets the deviation form.
            pixel_size: Width of a pixel in micrometres, checked against that of the fit.
            batch_size: Images that are segmented and classified at once.

        Returns:
            Each reward and `"combined"`, of shape `(N,)`, all finite. In the energy form `combined` is the energy
            reward of the vector of all statistics, plus the rewards without a statistic as they are; a weight of 0
            leaves one out, other weights make no difference there.

        Raises:
            ValueError: For an unknown MoA or form, a MoA without statistics, images of a wrong kind or of another
                size than was fitted, or a group of several MoAs.
        """
        if form not in FORMS:  # before the work, not after
            raise unknown_name("reward form", form, FORMS)
        return self.score(self.measure(images, moa, pixel_size, batch_size), moa, form, groups)

    def _to_energy(
        self,
        scores: dict[str, torch.Tensor],
        scaled: torch.Tensor,
        whole: torch.Tensor,
        index: torch.Tensor,
        groups: torch.Tensor | None,
    ) -> None:
        """Replace the scores of all images that have others in their group by the energy form."""
        groups = (index if groups is None else groups).to(index.device)
        _, group = groups.unique(return_inverse=True)
        moa_of = index.new_zeros(int(group.max()) + 1).scatter(0, group, index)
        if (moa_of[group] != index).any():
            raise ValueError("rollouts of one group must have one MoA: they are compared with the same real cells")
        # An image in which something cannot be measured is far from all others, which must not count in its favour.
        compared = whole & (torch.bincount(group, weights=whole.double())[group] >= 2)
        alone = ~whole & (torch.bincount(group)[group] >= 2)
        reference = self.reference[moa_of]

        def energy(columns: list[int], out: torch.Tensor) -> None:
            for rows, score in ((compared, energy_rewards), (alone, lambda *of: -distances_to_real(*of))):
                if rows.any():
                    out[rows] = score(scaled[rows][:, columns], reference[:, :, columns], group[rows])

        for k, name in enumerate(self.statistic_names):
            energy([k], scores[name])
        weighted = [k for k, name in enumerate(self.statistic_names) if self.weights[name] > 0]
        if not weighted:
            return
        combined = scores["combined"]
        energy(weighted, combined)
        # Once each: a reward that is largest at its extreme, not at the real distribution, keeps pulling when the
        # others are matched, and by its weight, over ten times as strongly, it would decide what is learnt then.
        replaced = compared | alone
        for name in set(self.weights) - set(self.statistic_names):
            if self.weights[name] > 0:
                combined[replaced] += scores[name][replaced]

    def check_batch(self, images: Any, moa: Sequence[str], pixel_size: float | None = None) -> None:
        """See that a batch of images can be scored, without scoring it.

        Args:
            images: `(N, C, H, W)`; only the shape is looked at.
            moa, pixel_size: As in the call of the suite.

        Raises:
            ValueError: For an empty batch, another number of MoAs, a MoA without statistics, or other channels or
                another image or pixel size than was fitted.
        """
        if isinstance(moa, str) or len(moa) != len(images):
            raise ValueError(f"moa must name one MoA for each of the {len(images)} images, got {moa!r}")
        if len(images) == 0:
            raise ValueError("the batch of images is empty")
        if len(images.shape) != 4 or images.shape[1] != len(self.channel_names):
            raise ValueError(
                f"images must be (N, {len(self.channel_names)}, H, W), one plane for each of {self.channel_names}, "
                f"got {tuple(images.shape)}"
            )
        self.check_moas(moa)
        self._check_size(tuple(images.shape[2:]), pixel_size)

    def check_moas(self, moa: Sequence[str]) -> None:
        """Raise a `ValueError` for a MoA that the suite does not know, or has no statistics of."""
        for k in self.classifier.class_indices(moa).unique().tolist():
            if self.count[k] == 0:
                known = [m for m, count in zip(self.moas, self.count.tolist(), strict=True) if count]
                raise ValueError(f"the suite has no statistics of MoA {self.moas[k]!r}, only of {known}")

    def _check_size(self, size: tuple[int, ...], pixel_size: float | None) -> None:
        fitted = self.config.image_size
        if fitted and size != tuple(fitted):
            raise ValueError(
                f"the images are {size} pixels, the suite's statistics are of {tuple(fitted)}: "
                "areas and counts do not compare. Resize images of the same field of view, or fit another suite"
            )
        own = self.config.pixel_size
        if own and pixel_size and not math.isclose(own, pixel_size, rel_tol=0.01):
            raise ValueError(
                f"the pixels of the images are {pixel_size:g} um wide, those that the suite was fitted on {own:g} um: "
                f"resize the images by {pixel_size / own:.3g} and cut the same number of pixels, or fit another suite"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> RewardSuite:
        """Load a suite from a folder or from the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: A folder, or `"owner/name"` on the Hub; with `subfolder="rewards"` those of
                a pipeline.
            **kwargs: `revision`, `cache_dir`, `token` and the others of `diffusers.ModelMixin.from_pretrained`.
                Weights are safetensors only.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError, ValueError: As [`readable_download_errors`] says; the
                last one also for a suite that lacks statistics, because an earlier version saved it.
        """
        kwargs.setdefault("use_safetensors", True)
        where = (pretrained_model_name_or_path, "reward suite", kwargs.get("revision"), kwargs.get("token"))
        tells = kwargs.pop("output_loading_info", False)
        with readable_download_errors(*where, bool(kwargs.get("local_files_only"))):
            suite, found = super().from_pretrained(pretrained_model_name_or_path, **kwargs, output_loading_info=True)
        if tells:
            return suite, found
        if missing := sorted(found.get("missing_keys", [])):  # zeros, from which everything would be far
            raise ValueError(
                f"the reward suite {str(pretrained_model_name_or_path)!r} has no {', '.join(missing)}: an earlier "
                "version saved it. Fit it again, with `cellfluxrl rewards fit`"
            )
        return suite

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save everything into one folder: configuration, weights and statistics (safetensors), and the card,
        README.md.

        Args:
            save_directory: Made if it is not there.
            push_to_hub: Publish it too: `repo_id` (by default the folder's name), `private`, `token` and
                `commit_message` are passed on to [`push_to_hub`].
            **kwargs: The others are those of `diffusers.ModelMixin.save_pretrained`.
        """
        hub = {name: kwargs.pop(name) for name in ("private", "token", "commit_message") if name in kwargs}
        repo_id = kwargs.pop("repo_id", Path(save_directory).name)
        super().save_pretrained(
            save_directory, is_main_process, save_function, safe_serialization, variant, max_shard_size, **kwargs
        )
        if is_main_process:
            (Path(save_directory) / CARD_NAME).write_text(suite_card(self), encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(repo_id, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Biological rewards, fitted with CellFluxRL",
    ) -> str:
        """Publish the suite on the Hugging Face Hub, in one commit; repeat it after an interruption.

        Args:
            repo_id: `"owner/name"`; the repository is created where there is none.
            private: Whether only its owner may read a new repository.
            token: An access token with the right to write; by default the one of `hf auth login`.
            commit_message: One line.

        Returns:
            The repository's address.

        Raises:
            ValueError, PermissionError, ConnectionError: As [`push_files`] says.

        Example:
            >>> suite.push_to_hub("my-lab/my-rewards", private=True)                  # doctest: +SKIP
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            names = sorted(path.name for path in Path(folder).iterdir())
            return push_files(folder, names, repo_id, "model", commit_message, private, token, "*.safetensors*")
