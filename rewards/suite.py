"""The rewards as one object that is fitted on real cells, saved, and called on images."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import datasets
import numpy as np
import torch

from cellfluxrl.configuration import ConfigMixin, ModelMixin, register_to_config
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import ImageBatch, as_model_images, to_unit
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.errors import unknown_name
from cellfluxrl.hub.mixin import HubModelMixin
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.rewards.biological import REWARD_NAMES
from cellfluxrl.rewards.card import suite_card
from cellfluxrl.rewards.context import COLUMNS, NO_CONTEXT, Context, MissingContextError, context_of_dataset
from cellfluxrl.rewards.forms import FORMS, Groups, deviation_scores, energy_scores, standardise
from cellfluxrl.rewards.measuring import Measured, Observer, statistic_names
from cellfluxrl.rewards.plugins import load_named_plugins, load_plugins
from cellfluxrl.rewards.real_range import balanced_weights, outside_real_range, score_floor
from cellfluxrl.rewards.segmentation.protocol import Masks, Segmenter, make_segmenter
from cellfluxrl.rewards.statistics import REFERENCE_SIZE, Statistics, fit_statistics, report_gaps, separability
from cellfluxrl.rewards.terms import Reward, find_reward, register_reward


class RewardSuite(HubModelMixin, ModelMixin, ConfigMixin):
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
        plugins: Modules that hold custom rewards or segmenters, which the user has to name too
            ([`load_named_plugins`]).
        looks_at: What each reward looks at, see [`Observation`]; found by [`fit`].

    Example:
        >>> suite = RewardSuite.from_pretrained("runs/demo/pipeline/rewards")         # doctest: +SKIP
        >>> scores = suite(images, moa=["Protein synthesis"] * len(images))           # doctest: +SKIP
        >>> scores["containment"].shape, scores["combined"].shape                     # doctest: +SKIP
    """

    hub_kind = "reward suite"
    hub_message = "Biological rewards, fitted with CellFluxRL"

    classifier: MoAClassifier
    mean: torch.Tensor
    std: torch.Tensor
    reference: torch.Tensor
    count: torch.Tensor
    real_rewards: torch.Tensor
    score_floor: torch.Tensor
    feature_mean: torch.Tensor
    feature_scale: torch.Tensor
    feature_reference: torch.Tensor

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
        plugins: Sequence[str] | None = None,
        *,
        looks_at: Mapping[str, Sequence[str]] | None = None,
    ):
        super().__init__()
        load_named_plugins(plugins or ())
        self.classifier = cast(MoAClassifier, MoAClassifier.from_config(classifier_config)).eval()
        self.classifier.requires_grad_(requires_grad=False)
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
        return list(self.classifier.config["moas"])

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels of the images, in order."""
        return tuple(self.classifier.config["channel_names"])

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The rewards that compare a statistic with real cells: first those that have nothing else, then `moa`."""
        return statistic_names(self.rewards)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The rewards that have a score and no statistic, such as containment."""
        return tuple(reward.name for reward in self.rewards if not reward.statistic)

    @property
    def looks_at(self) -> dict[str, set[str]]:
        """What each reward looks at besides the images, as found when the suite was fitted; see [`Observation`]."""
        if self.config["looks_at"] is not None:
            return {name: set(looks) for name, looks in self.config["looks_at"].items()}
        # Suites that were saved before this was found out. Of the seven only `moa` looks at the classifier.
        return {r.name: {"classifier"} if r.name == "moa" else set(r.needs) for r in self.rewards}

    @property
    def uses_classifier(self) -> bool:
        """Whether a reward looks at the classifier's verdict, and images are therefore shown to it."""
        return any("classifier" in looks for looks in self.looks_at.values())

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
        *,
        plugins: Sequence[str] = (),
    ) -> RewardSuite:
        """Fit statistics, reference cells and weights on real images.

        Each reward is weighted by 1 / its standard deviation over real cells of one MoA (at least 0.05), `moa` twice
        that, and the weights sum to 1: `combined` is a weighted mean in which no reward drowns another. MoAs with few
        images are shrunk towards the others ([`fit_statistics`]); those with none cannot be scored.

        A reward that compares with the control sees a random control cell of the plate and split of each real cell.

        Args:
            real_dataset: Rows of the cell schema, treated and control.
            classifier: Its classes must include all MoAs of the data set.
            segmenter, segmenter_settings: See [`make_segmenter`].
            rewards: Names of rewards, or custom rewards, which are then registered ([`register_reward`]); by default
                the seven and those of the plug-ins.
            pixel_size: Width of a pixel in micrometres; images of another are then refused.
            seed: Which real cells become the reference of the energy form.
            batch_size: Images that are in memory at once.
            plugins: Modules that hold custom rewards or segmenters ([`load_plugins`]); saved with the suite.

        Raises:
            ValueError: If the channels differ from the classifier's, or no MoA has two images.
        """
        channels = channel_names_of(real_dataset)
        if channels != tuple(classifier.config["channel_names"]):
            raise ValueError(
                f"the data set has channels {channels}, the classifier {tuple(classifier.config['channel_names'])}"
            )
        custom = load_plugins(plugins)
        chosen = rewards or [*REWARD_NAMES, *custom]
        names = [r if isinstance(r, str) else register_reward(r).name for r in chosen]
        images = open_images(real_dataset)
        fitted = make_segmenter(segmenter, **{"channel_names": channels, **(segmenter_settings or {})})
        suite = cls(
            classifier_config=dict(classifier.config),
            segmenter=segmenter,
            segmenter_settings=dataclasses.asdict(cast(Any, fitted)),
            rewards=list(dict.fromkeys(names)),
            image_size=list(images.shape[2:]),
            pixel_size=pixel_size,
            plugins=list(plugins) or None,
        )
        suite.classifier.load_state_dict(classifier.state_dict())
        cast(torch.nn.Module, suite).to(classifier.device)

        moas = list(real_dataset["moa"])
        observer = suite._observer()
        measured = observer.measure(images, moas, context_of_dataset(real_dataset, images, seed), batch_size)
        suite.register_to_config(looks_at={name: sorted(looks) for name, looks in observer.looks_at.items()})
        suite._fit(measured, moas, seed)
        report_gaps(dict(zip(suite.moas, suite.count.tolist(), strict=True)), measured.whole)
        return suite

    def real_means(self, moa: Sequence[str]) -> dict[str, float]:
        """What real cells of these MoAs score on average, in the deviation form: a value above it is over-optimised.

        Args:
            moa: The MoA of each image that is compared; real cells of each weigh as often. Only those in which
                everything could be measured count.

        Returns:
            For each reward and `"combined"`.
        """
        means = self.real_rewards[self._index(moa)].mean(dim=0)
        return dict(zip([*self.weights, "combined"], means.tolist(), strict=True))

    def separability(self) -> dict[str, float]:
        """Share of each statistic's variance in real cells that lies between MoAs, 0 to 1 ([`separability`])."""
        shares = separability(Statistics(self.mean, self.std, self.reference, self.count))
        return dict(zip(self.statistic_names, shares.tolist(), strict=True))

    def _fit(self, measured: Measured, moas: Sequence[str], seed: int) -> None:
        """Fit everything that is of real cells."""
        index = self.classifier.class_indices(moas)
        self._fit_statistics(measured, index, seed)
        index = index.to(self.device)
        scaled = standardise(measured.values, self.mean[index], self.std[index])
        deviations = deviation_scores(scaled, self.statistic_names, measured.scores)
        self.weights = balanced_weights(
            {name: deviations[name] for name in self.weights}, measured.whole, index, self.count
        )
        self.register_to_config(reward_weights=self.weights)
        scores = torch.stack(list(self.score(measured, moas).values()), dim=1)
        for k in (self.count > 0).nonzero()[:, 0].tolist():
            self.real_rewards[k] = scores[measured.whole & (index == k)].mean(dim=0)
        self.score_floor.copy_(score_floor(measured, self.score_names, index, self.count))

    def _fit_statistics(self, measured: Measured, index: torch.Tensor, seed: int) -> None:
        values = measured.values.cpu()
        features = values[:, :0] if measured.features is None else measured.features.cpu()
        fitted = fit_statistics(torch.cat([values, features], dim=1), index, len(self.moas), seed)
        count = values.shape[1]
        self.count.copy_(fitted.count)
        for name in ("mean", "std", "reference"):
            getattr(self, name).copy_(getattr(fitted, name)[..., :count])
        std = fitted.std[:, count:]
        scale = (std.norm(dim=1) / max(1, count) ** 0.5).clamp(min=1e-6)
        self.feature_scale.copy_(scale)
        # Of another size than before, where a custom reward looks at the classifier.
        self.feature_mean = fitted.mean[:, count:].to(self.device)
        self.feature_reference = (fitted.reference[..., count:] * std[:, None] / scale[:, None, None]).to(self.device)

    def segment(self, images: ImageBatch) -> Masks:
        """Labelled nuclei and cells of `(N, C, H, W)` images (see [`as_model_images`] for the accepted kinds)."""
        return self.segmenter(to_unit(as_model_images(images, self.channel_names)).cpu().numpy())

    def measure(
        self,
        images: ImageBatch,
        moa: Sequence[str],
        pixel_size: float | None = None,
        batch_size: int = 128,
        context: Context = NO_CONTEXT,
    ) -> Measured:
        """Segment, measure and classify images, a batch at a time: all of the work, before [`score`] compares.

        Arguments and errors are those of the call of the suite; uint8 images are converted batch by batch.
        """
        in_8_bits = getattr(images, "dtype", None) in (np.uint8, torch.uint8)
        if not in_8_bits or len(cast(Any, images).shape) != 4:
            images = as_model_images(images, self.channel_names)  # a float's range is that of all images together
        self.check_batch(images, moa, pixel_size, context)
        return self.measure_batches(images, moa, batch_size, context)

    def measure_batches(
        self, images: Any, moa: Sequence[str], batch_size: int, context: Context = NO_CONTEXT
    ) -> Measured:
        """[`measure`] without its checks, of `(N, C, H, W)` images that are uint8 or floats in [-1, 1]."""
        return self._observer().measure(images, moa, context, batch_size)

    def _observer(self) -> Observer:
        return Observer(self.rewards, self.segmenter, self.classifier)

    def score(
        self,
        measured: Measured,
        moa: Sequence[str],
        form: str = "deviation",
        groups: torch.Tensor | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Rewards of what was measured; arguments, result and errors are those of the call of the suite.

        Args:
            weights: Of the rewards in `"combined"`, in place of the suite's.
        """
        weights = self.weights if weights is None else weights
        if form not in FORMS:
            raise unknown_name("reward form", form, FORMS)
        scaled = self.standardise(measured, moa)
        deviations = deviation_scores(scaled, self.statistic_names, measured.scores)
        result = {reward.name: deviations[reward.name].clone() for reward in self.rewards}
        weighted = [weight * result[name] for name, weight in weights.items()]
        result["combined"] = sum(weighted[1:], start=weighted[0])
        if form == "energy":
            compared = Groups.of(scaled, measured.whole, self._index(moa), self.reference, groups)
            return energy_scores(result, self.statistic_names, weights, compared)
        return result

    def statistics(self, images: ImageBatch, moa: Sequence[str]) -> torch.Tensor:
        """Statistics of each image, `(N, S)`, in standard deviations from the mean of real cells; -10 for nothing."""
        return self.standardise(self.measure(images, moa), moa)

    def standardise(self, measured: Measured, moa: Sequence[str]) -> torch.Tensor:
        """The statistics of what was measured, as [`statistics`] gives them."""
        index = self._index(moa)
        return standardise(measured.values, self.mean[index], self.std[index])

    def appearance(self, measured: Measured, moa: Sequence[str]) -> torch.Tensor:
        """What `selection="match"` compares with [`real_appearance`], `(N, S + D)`: [`standardise`] and features.

        Statistics of shape and number say nothing of brightness and texture, so that cells which match in them may
        still look wrong. The classifier's features, all together, count as much as all statistics together.
        """
        scaled = self.standardise(measured, moa)
        if measured.features is None:
            return scaled
        index = self._index(moa)
        features = (measured.features - self.feature_mean[index]) / self.feature_scale[index, None]
        return torch.cat([scaled, features], dim=1)

    def real_appearance(self, moa: str) -> torch.Tensor:
        """[`appearance`] of the reference cells of one MoA, `(R, S + D)`."""
        k = self.moas.index(moa)
        return torch.cat([self.reference[k], self.feature_reference[k]], dim=1)

    def outside_real_range(self, measured: Measured, moa: Sequence[str]) -> torch.Tensor:
        """`(N,)`; how far images lie outside of the range of real cells of their MoA: 0 where everything is inside.

        A statistic is inside between the 2.5 % and the 97.5 % quantile of the reference cells, a reward without a
        statistic, such as containment, from the 2.5 % quantile of real cells upwards (of all MoAs together where one
        has fewer than 30 images). What cannot be measured is outside. The distance is the euclidean length of what is
        beyond, in standard deviations of real cells for statistics, and in units of 0.05 for the others.
        """
        scaled = self.standardise(measured, moa)
        scores = [measured.scores[name] for name in self.score_names]
        stacked = torch.stack(scores, dim=1) if scores else scaled[:, :0]
        return outside_real_range(scaled, stacked, self.reference, self.score_floor, self._index(moa))

    def forward(
        self,
        images: ImageBatch,
        moa: Sequence[str],
        form: str = "deviation",
        groups: torch.Tensor | None = None,
        pixel_size: float | None = None,
        batch_size: int = 128,
        *,
        control: ImageBatch | None = None,
        compound: Sequence[str] | None = None,
        concentration: Sequence[float] | None = None,
        plate: Sequence[str] | None = None,
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
            control, compound, concentration, plate: For custom rewards that look at them: the control cell of each
                image, the name of its compound, the concentration in uM, and the plate.

        Returns:
            Each reward and `"combined"`, of shape `(N,)`, all finite. In the energy form `combined` is the energy
            reward of the vector of all statistics, plus the rewards without a statistic as they are; a weight of 0
            leaves one out, other weights make no difference there.

        Raises:
            ValueError: For an unknown MoA or form, a MoA without statistics, images of a wrong kind or of another
                size than was fitted, a group of several MoAs, or if a reward looks at something that was not passed.
        """
        if form not in FORMS:  # before the work, not after
            raise unknown_name("reward form", form, FORMS)
        if control is not None:
            control = as_model_images(control, self.channel_names)
        columns = {"control": control, "compound": compound, "concentration": concentration, "plate": plate}
        context = Context.of(len(moa), **columns)
        return self.score(self.measure(images, moa, pixel_size, batch_size, context), moa, form, groups)

    def check_batch(
        self, images: Any, moa: Sequence[str], pixel_size: float | None = None, context: Context = NO_CONTEXT
    ) -> None:
        """Check that a batch of images can be scored, without scoring it: only the shape of `images` is looked at.

        Raises:
            ValueError: For an empty batch, another number of MoAs, a MoA without statistics, other channels or
                another image or pixel size than was fitted, or if the context lacks what a reward looks at.
        """
        _check_shape(images.shape, moa, self.channel_names)
        self.check_moas(moa)
        _check_size(tuple(images.shape[2:]), pixel_size, self.config["image_size"], self.config["pixel_size"])
        self.check_context(context)

    def check_context(self, context: Context) -> None:
        """Raise a `ValueError` if a reward looks at something that is not known of the images."""
        for name, looks in self.looks_at.items():
            for column in COLUMNS:
                if column in looks and getattr(context, column) is None:
                    raise ValueError(f"reward {name!r} {MissingContextError(column)}")

    def check_moas(self, moa: Sequence[str]) -> None:
        """Raise a `ValueError` for a MoA that the suite does not know, or has no statistics of."""
        for k in self.classifier.class_indices(moa).unique().tolist():
            if self.count[k] == 0:
                known = [m for m, count in zip(self.moas, self.count.tolist(), strict=True) if count]
                raise ValueError(f"the suite has no statistics of MoA {self.moas[k]!r}, only of {known}")

    def _index(self, moa: Sequence[str]) -> torch.Tensor:
        return self.classifier.class_indices(moa).to(self.device)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> RewardSuite:
        """Load a suite from a folder or from the Hugging Face Hub, see [`HubModelMixin.from_pretrained`].

        Raises:
            ValueError: Also if it lacks statistics, because an earlier version saved it.
        """
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs, output_loading_info=True)
        if with_info:
            return loaded
        suite, found = loaded
        if missing := sorted(found.get("missing_keys", [])):  # zeros, from which everything would be far
            raise ValueError(
                f"the reward suite {str(pretrained_model_name_or_path)!r} has no {', '.join(missing)}: an earlier "
                "version saved it. Fit it again, with `cellfluxrl rewards fit`"
            )
        return suite

    def saved_card(self) -> str:
        """The card, README.md, that is saved with the suite."""
        return suite_card(cast(Any, self))


def _check_shape(shape: Sequence[int], moa: Sequence[str], channel_names: Sequence[str]) -> None:
    if isinstance(moa, str) or len(moa) != shape[0]:
        raise ValueError(f"moa must name one MoA for each of the {shape[0]} images, got {moa!r}")
    if shape[0] == 0:
        raise ValueError("the batch of images is empty")
    if len(shape) != 4 or shape[1] != len(channel_names):
        raise ValueError(
            f"images must be (N, {len(channel_names)}, H, W), one plane for each of {channel_names}, "
            f"got {tuple(shape)}"
        )


def _check_size(
    size: tuple[int, ...], pixel_size: float | None, fitted: Sequence[int] | None, pixel_of_fit: float | None
) -> None:
    """Raise a `ValueError` if images, or their pixels in micrometres, are of another size than those of the fit."""
    if fitted and size != tuple(fitted):
        raise ValueError(
            f"the images are {size} pixels, the suite's statistics are of {tuple(fitted)}: "
            "areas and counts do not compare. Resize images of the same field of view, or fit another suite"
        )
    if pixel_of_fit and pixel_size and not math.isclose(pixel_of_fit, pixel_size, rel_tol=0.01):
        raise ValueError(
            f"the pixels of the images are {pixel_size:g} um wide, those that the suite was fitted on "
            f"{pixel_of_fit:g} um: resize the images by {pixel_size / pixel_of_fit:.3g} and cut the same number of "
            "pixels, or fit another suite"
        )
