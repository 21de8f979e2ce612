"""Asking the rewards about images, batch by batch: what a suite needs to know to score them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.rewards.context import Context, MissingContextError
from cellfluxrl.rewards.observation import Observation
from cellfluxrl.rewards.segmentation.protocol import Segmenter
from cellfluxrl.rewards.terms import Reward
from cellfluxrl.rows import Rows


@dataclass(frozen=True)
class Measured(Rows):
    """What a suite needs to know of N images to score them in any form.

    Args:
        values: `(N, S)`; the statistics, in the order of [`statistic_names`]; NaN where there is nothing to measure.
        scores: The rewards that have a score, each `(N,)`.
        measurements: See [`measure`]; each `(N,)`; none if no reward looks at the masks.
        features: `(N, D)`; the classifier's, if a reward looks at it.
    """

    values: torch.Tensor
    scores: dict[str, torch.Tensor]
    measurements: dict[str, torch.Tensor] = field(default_factory=dict)
    features: torch.Tensor | None = None

    @property
    def whole(self) -> torch.Tensor:
        """`(N,)`; whether everything could be measured."""
        return self.values.isfinite().all(dim=1)


def statistic_names(rewards: Sequence[Reward]) -> tuple[str, ...]:
    """The rewards that compare a statistic with real cells: first those that have nothing else, then `moa`."""
    alone = [reward.name for reward in rewards if reward.statistic and not reward.score]
    return (*alone, *(reward.name for reward in rewards if reward.statistic and reward.score))


class Observer:
    """Measures images for some rewards.

    Attributes:
        looks_at: What each reward has looked at so far; see [`Observation`].
    """

    def __init__(self, rewards: Sequence[Reward], segmenter: Segmenter, classifier: MoAClassifier):
        self.rewards, self.segmenter, self.classifier = rewards, segmenter, classifier
        self.looks_at: dict[str, set[str]] = {reward.name: set() for reward in rewards}

    @torch.no_grad()
    def measure(self, images: Any, moa: Sequence[str], context: Context, batch_size: int) -> Measured:
        """Measure `(N, C, H, W)` images, uint8 or floats in [-1, 1], a batch at a time.

        Raises:
            ValueError: If a reward does not give N numbers, or looks at something that is not in the context.
        """
        measured = None
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            batch = torch.as_tensor(images[rows])
            batch = images_to_tensor(batch) if batch.dtype == torch.uint8 else batch
            seen = Observation(batch, moa[rows], self.segmenter, self.classifier, context.take(rows))
            part = self._measured(seen, measured)
            # Small results, kept between the large arrays of two batches, would keep the memory from being used again.
            measured = part.empty(len(images)) if measured is None else measured
            measured.put(rows, part)
        if measured is None:
            raise ValueError("the batch of images is empty")
        return measured

    def _measured(self, seen: Observation, before: Measured | None) -> Measured:
        """Of one batch; what came before decides whether measurements and features are kept."""
        values = {r.name: self._asked(r, r.statistic, seen) for r in self.rewards if r.statistic}
        scores = {r.name: self._asked(r, r.score, seen) for r in self.rewards if r.score}
        for name, score in scores.items():
            if not score.isfinite().all():
                rows = (~score.isfinite()).nonzero()[:8, 0].tolist()
                raise ValueError(f"reward {name!r} gave a score that is not finite for images {rows} of the batch")
        looked_at = set().union(*self.looks_at.values())
        with_masks = bool(before.measurements) if before is not None else "masks" in looked_at
        with_features = before.features is not None if before is not None else "classifier" in looked_at
        columns = [values[name] for name in statistic_names(self.rewards)]
        return Measured(
            values=torch.stack(columns, dim=1) if columns else seen.images.new_zeros(len(seen), 0),
            scores=scores,
            measurements=seen.measurements if with_masks else {},
            features=seen.features if with_features else None,
        )

    def _asked(
        self, reward: Reward, function: Callable[[Observation], torch.Tensor], seen: Observation
    ) -> torch.Tensor:
        seen.looked_at.clear()
        try:
            values = function(seen)
        except MissingContextError as error:
            raise ValueError(f"reward {reward.name!r} {error}") from None
        self.looks_at[reward.name] |= seen.looked_at
        if not isinstance(values, torch.Tensor) or values.shape != (len(seen),):
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"reward {reward.name!r} must give a tensor of shape ({len(seen)},), got {got}")
        return values.float().to(seen.images.device)
