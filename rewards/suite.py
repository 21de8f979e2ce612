"""The seven biological rewards as one object that is fitted on real cells, saved, and called on images."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import ImageBatch, as_model_images
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.errors import unknown_name
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.rewards.energy import energy_rewards
from cellfluxrl.rewards.measurements import STATISTICS, measure
from cellfluxrl.rewards.segmentation import Masks, Segmenter, make_segmenter
from cellfluxrl.rewards.terms import REWARD_NAMES, REWARDS, Observation
from cellfluxrl.seeding import seeded_generator

logger = logging.getLogger(__name__)

FORMS = ("deviation", "energy")
VECTOR = (*STATISTICS, "moa_logit")
REFERENCE_SIZE = 400
FEW_IMAGES = 30
MINIMUM_SPREAD = 0.05


class RewardSuite(ModelMixin, ConfigMixin):
    """
    Scores images of cells by the seven rewards of CellFluxRL.

    `moa` is the classifier's probability of the true mechanism of action; `containment` the share of the nuclei that
    lies inside cells; `roundness`, `nucleus_size`, `cytoplasm_size`, `nucleus_count` and `cytoplasm_count` compare a
    statistic with real cells of the MoA. In the `"deviation"` form (the paper's) that is -|s - mean| / std, which one
    average cell maximises; in the `"energy"` form it is the derivative of a strictly proper score, which the real
    distribution maximises ([`energy_rewards`]). Use [`fit`] to make one from real images.

    Args:
        classifier_config (`dict`): Configuration of the [`MoAClassifier`]; its classes are the MoAs of the suite.
        segmenter (`str`, defaults to `"watershed"`): Name of the segmenter.
        segmenter_settings (`dict`, *optional*): Its settings.
        reward_weights (`dict[str, float]`, *optional*): Weight of each reward in `combined`; 1 each by default.

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
        reward_weights: dict[str, float] | None = None,
    ):
        super().__init__()
        self.classifier = MoAClassifier.from_config(classifier_config).eval().requires_grad_(False)
        count = len(self.moas)
        self.register_buffer("mean", torch.zeros(count, len(VECTOR)))
        self.register_buffer("std", torch.ones(count, len(VECTOR)))
        self.register_buffer("reference", torch.zeros(count, REFERENCE_SIZE, len(VECTOR)))
        settings = dict(segmenter_settings or {})
        if "channel_names" in settings:
            settings["channel_names"] = tuple(settings["channel_names"])
        self.segmenter: Segmenter = make_segmenter(segmenter, **settings)
        for name in set(reward_weights or {}) - set(REWARD_NAMES):
            raise unknown_name("reward", name, REWARD_NAMES)
        self.weights = {name: float((reward_weights or {}).get(name, 1.0)) for name in REWARD_NAMES}

    @property
    def moas(self) -> list[str]:
        """The MoAs that images can be scored against."""
        return list(self.classifier.config.moas)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels of the images, in order."""
        return tuple(self.classifier.config.channel_names)

    @classmethod
    def fit(
        cls,
        real_dataset: datasets.Dataset,
        classifier: MoAClassifier,
        segmenter: str = "watershed",
        segmenter_settings: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> RewardSuite:
        """
        Fit statistics, reference cells and weights on real images.

        Each reward is weighted by 1 / its standard deviation over real cells of one MoA (at least 0.05), `moa` twice
        that, and the weights sum to 1: `combined` is a weighted mean in which no reward drowns another.

        Args:
            real_dataset (`datasets.Dataset`): Rows of the cell schema, treated and control.
            classifier (`MoAClassifier`): Its classes must all occur in the data set.
            segmenter (`str`, defaults to `"watershed"`), segmenter_settings (`dict`, *optional*): See
                [`make_segmenter`].
            seed (`int`, defaults to 0): Which real cells become the reference of the energy form.

        Raises:
            ValueError: If the channels differ from the classifier's, or a MoA has fewer than two images.
        """
        channels = channel_names_of(real_dataset)
        if channels != tuple(classifier.config.channel_names):
            raise ValueError(
                f"the data set has channels {channels}, the classifier {tuple(classifier.config.channel_names)}"
            )
        settings = {"channel_names": channels, **(segmenter_settings or {})}
        fitted = dataclasses.asdict(make_segmenter(segmenter, **settings))
        suite = cls(classifier_config=dict(classifier.config), segmenter=segmenter, segmenter_settings=fitted)
        suite.classifier.load_state_dict(classifier.state_dict())

        moas = real_dataset["moa"]
        index = suite.classifier.class_indices(moas)
        images = open_images(real_dataset)[:]
        vectors = suite._raw_vectors(as_model_images(images, channels), index)[0]
        for k, moa in enumerate(suite.moas):
            own = vectors[index == k]
            if len(own) < 2:
                raise ValueError(f"MoA {moa!r} has {len(own)} real images; at least two are needed")
            if len(own) < FEW_IMAGES:
                logger.warning("MoA %r has only %d real images: its statistics are rough", moa, len(own))
            suite.mean[k], suite.std[k] = own.mean(dim=0), own.std(dim=0).clamp(min=1e-3)
            generator = seeded_generator(seed, "reference cells", k)
            if len(own) >= REFERENCE_SIZE:
                chosen = torch.randperm(len(own), generator=generator)[:REFERENCE_SIZE]
            else:
                chosen = torch.randint(len(own), (REFERENCE_SIZE,), generator=generator)
            suite.reference[k] = (own[chosen] - suite.mean[k]) / suite.std[k]

        scores = suite(images, moa=moas)
        suite._set_weights(scores, index)
        return suite

    def _set_weights(self, scores: dict[str, torch.Tensor], index: torch.Tensor) -> None:
        spread = {
            name: torch.stack([scores[name][index == k].std() for k in index.unique()])
            .mean()
            .clamp(min=MINIMUM_SPREAD)
            for name in REWARD_NAMES
        }
        weights = {name: (2 if name == "moa" else 1) / float(spread[name]) for name in REWARD_NAMES}
        total = sum(weights.values())
        self.weights = {name: weight / total for name, weight in weights.items()}
        self.register_to_config(reward_weights=self.weights)

    def segment(self, images: ImageBatch) -> Masks:
        """Labelled nuclei and cells of `(N, C, H, W)` images (see [`as_model_images`] for the accepted kinds)."""
        return self.segmenter(((as_model_images(images, self.channel_names) + 1) / 2).cpu().numpy())

    @torch.no_grad()
    def _raw_vectors(self, images: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        masks = self.segmenter(((images + 1) / 2).cpu().numpy())
        measurements = {k: torch.from_numpy(v).float().to(self.mean.device) for k, v in measure(masks).items()}
        logits = torch.cat([self.classifier(chunk.to(self.device)).logits.float() for chunk in images.split(256)])
        own = torch.zeros_like(logits, dtype=torch.bool)
        own[torch.arange(len(own)), index] = True
        # log(p / (1 - p)) = own logit - log sum exp(other logits)
        logit = logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        vectors = torch.stack([*(measurements[name] for name in STATISTICS), logit], dim=1)
        return vectors, measurements

    def statistics(self, images: ImageBatch, moa: Sequence[str]) -> torch.Tensor:
        """
        Statistics and classifier logit of each image, in standard deviations from the mean of real cells of its MoA.

        Returns:
            `torch.Tensor` of shape `(N, 6)`: columns as in `cellfluxrl.rewards.suite.VECTOR`.
        """
        images, index = self._check(images, moa)
        return (self._raw_vectors(images, index)[0] - self.mean[index]) / self.std[index]

    def forward(
        self,
        images: ImageBatch,
        moa: Sequence[str],
        form: str = "deviation",
        groups: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Score images.

        Args:
            images: `(N, C, H, W)` images; see [`as_model_images`] for the accepted kinds.
            moa (`Sequence[str]`): The true MoA of each.
            form (`str`, defaults to `"deviation"`): `"deviation"` or `"energy"`.
            groups (`torch.Tensor` of shape `(N,)`, *optional*): Rollouts with the same integer are compared with each
                other in the energy form; by default those of one MoA.

        Returns:
            `dict[str, torch.Tensor]`: The seven rewards and `"combined"`, each of shape `(N,)`. In the energy form
            `combined` is the energy reward of the vector of all statistics and the classifier's logit.

        Raises:
            ValueError: For an unknown MoA or form, or images of a wrong kind.
        """
        if form not in FORMS:
            raise unknown_name("reward form", form, FORMS)
        images, index = self._check(images, moa)
        vectors, measurements = self._raw_vectors(images, index)
        if form == "energy":
            return self._energy(vectors, measurements, index, groups)
        mean, std = (dict(zip(VECTOR, t[index].unbind(1), strict=True)) for t in (self.mean, self.std))
        logit = vectors[:, VECTOR.index("moa_logit")]
        seen = Observation(measurements, logit.sigmoid(), logit, mean, std)
        scores = {reward.name: reward.score(seen) for reward in REWARDS}
        scores["combined"] = sum(self.weights[name] * scores[name] for name in REWARD_NAMES)
        return scores

    def _energy(
        self,
        vectors: torch.Tensor,
        measurements: dict[str, torch.Tensor],
        index: torch.Tensor,
        groups: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        groups = index if groups is None else groups
        names, compact = groups.unique(return_inverse=True)
        first = torch.stack([(compact == g).nonzero()[0, 0] for g in range(len(names))])
        scaled = (vectors - self.mean[index]) / self.std[index]
        reference = self.reference[index[first]]
        single = {
            name: energy_rewards(scaled[:, k : k + 1], reference[:, :, k : k + 1], compact)
            for k, name in enumerate(VECTOR)
        }
        scores = {"moa": single["moa_logit"], "containment": measurements["containment"]}
        scores |= {name: single[name] for name in STATISTICS}
        scores["combined"] = energy_rewards(scaled, reference, compact)
        return scores

    def _check(self, images: ImageBatch, moa: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        images = as_model_images(images, self.channel_names)
        if isinstance(moa, str) or len(moa) != len(images):
            raise ValueError(f"moa must name one MoA for each of the {len(images)} images, got {moa!r}")
        return images, self.classifier.class_indices(moa)
