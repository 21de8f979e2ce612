"""What rewards look at: everything is computed when a reward looks at it, once for all rewards of a suite."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.rewards.context import NO_CONTEXT, Context, MissingContextError
from cellfluxrl.rewards.segmentation.measurements import measure
from cellfluxrl.rewards.segmentation.protocol import Masks, Segmenter


class Observation:
    """What is seen in N images.

    Attributes:
        images: `(N, C, H, W)`; floats in [-1, 1], on the device of the classifier, as all tensors are.
        looked_at: What was looked at so far: `"moa"`, `"masks"`, `"classifier"`, and columns of [`Context`].
    """

    def __init__(
        self,
        images: torch.Tensor,
        moa: Sequence[str],
        segmenter: Segmenter,
        classifier: MoAClassifier,
        context: Context = NO_CONTEXT,
    ):
        self.images = images.to(classifier.device)
        self.looked_at: set[str] = set()
        self._moa, self._context = list(moa), context
        self._segmenter, self._classifier = segmenter, classifier

    def __len__(self) -> int:
        return len(self.images)

    @property
    def moa(self) -> list[str]:
        """The true mechanism of action of each image."""
        self.looked_at.add("moa")
        return self._moa

    @property
    def masks(self) -> Masks:
        """Labelled nuclei and cells."""
        self.looked_at.add("masks")
        return self._masks

    @property
    def measurements(self) -> dict[str, torch.Tensor]:
        """The six measurements of the masks, each `(N,)`; see [`measure`]."""
        self.looked_at.add("masks")
        return self._measurements

    @property
    def logit(self) -> torch.Tensor:
        """`(N,)`; log(p / (1 - p)) of the probability of the true MoA, without overflow."""
        self.looked_at.add("classifier")
        return self._verdict[0]

    @property
    def probability(self) -> torch.Tensor:
        """`(N,)`; the classifier's probability of the true MoA."""
        return self.logit.sigmoid()

    @property
    def features(self) -> torch.Tensor:
        """`(N, D)`; the classifier's activations before its last layer."""
        self.looked_at.add("classifier")
        return self._verdict[1]

    @cached_property
    def _masks(self) -> Masks:
        return self._segmenter(((self.images + 1) / 2).cpu().numpy())

    @cached_property
    def _measurements(self) -> dict[str, torch.Tensor]:
        measured = measure(self._masks)
        return {name: torch.from_numpy(values).float().to(self.images.device) for name, values in measured.items()}

    @cached_property
    def _verdict(self) -> tuple[torch.Tensor, torch.Tensor]:
        verdict = self._classifier(self.images)
        logits = verdict.logits.float()
        true = torch.zeros_like(logits, dtype=torch.bool)
        true[torch.arange(len(true)), self._classifier.class_indices(self._moa)] = True
        # log(p / (1 - p)) = logit of the true class - log sum exp(logits of the others)
        logit = logits[true] - logits.masked_fill(true, -torch.inf).logsumexp(dim=1)
        return logit, verdict.features.float()

    @property
    def control(self) -> torch.Tensor:
        """`(N, C, H, W)`; the control cell of each image, floats in [-1, 1].

        Raises:
            MissingContextError: If it was not passed. The same holds for the following three.
        """
        self.looked_at.add("control")
        return self._control

    @cached_property
    def _control(self) -> torch.Tensor:
        control = self._known("control")
        if not isinstance(control, torch.Tensor):
            control = torch.as_tensor(np.asarray(control))
        return (images_to_tensor(control) if control.dtype == torch.uint8 else control).to(self.images.device)

    @property
    def compound(self) -> list[str]:
        """The name of each image's compound."""
        return self._known("compound").tolist()

    @property
    def concentration(self) -> torch.Tensor:
        """`(N,)`; of the compound, in uM; NaN where it is not known."""
        return torch.as_tensor(self._known("concentration").astype(np.float32)).to(self.images.device)

    @property
    def plate(self) -> list[str]:
        """The name of each image's plate."""
        return self._known("plate").tolist()

    def _known(self, name: str) -> Any:
        self.looked_at.add(name)
        values = getattr(self._context, name)
        if values is None:
            raise MissingContextError(name)
        return values
