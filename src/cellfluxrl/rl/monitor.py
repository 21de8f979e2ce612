"""Is post-training still improving the samples, or only their scores?

A real sample has no perfect score, and real samples differ. Rewards above the real ones' (over-optimisation), or
samples more alike than the base's (collapse), are a model that has learnt the rewards instead of the distribution.

Nothing here knows of images: rewards and vectors of statistics are tensors whose first axis counts the samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Moments:
    """Mean and its standard error for each of L labels; NaN for labels without samples.

    Args:
        mean, standard_error (`torch.Tensor` of shape `(L,)`).
    """

    mean: torch.Tensor
    standard_error: torch.Tensor


def moments(values: torch.Tensor, labels: torch.Tensor, num_labels: int) -> Moments:
    """Mean and standard error of each label.

    Args:
        values: `(N,)`; NaN is left out.
        labels: `(N,)`; integers from 0 to `num_labels` - 1.
        num_labels: L.

    Example:
        >>> real = moments(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), num_labels=2)
        >>> real.mean.tolist(), real.standard_error.tolist()
        ([2.0, 5.0], [1.0, nan])
    """
    mean, error = torch.full((2, num_labels), torch.nan, dtype=torch.double)
    for label in labels.unique().tolist():
        own = values[(labels == label) & values.isfinite()].double()
        if len(own):
            mean[label] = own.mean()
        if len(own) > 1:
            error[label] = own.std() / len(own) ** 0.5
    return Moments(mean, error)


def squared_deviations(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared distance of each sample to the mean of its label: how diverse the samples of one label are.

    Args:
        vectors: `(N, S)`; statistics or features, of comparable scales.
        labels: `(N,)`; samples with the same integer differ by chance only.

    Returns:
        `(N,)`; mean over the S columns, times n / (n - 1) for the n samples of the label, so that its mean does not
        depend on n; NaN for samples with a NaN, and for those alone with their label.

    Example:
        >>> squared_deviations(torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([0, 0, 1])).tolist()
        [2.0, 2.0, nan]
    """
    result = torch.full((len(vectors),), torch.nan, dtype=torch.double)
    whole = vectors.isfinite().all(dim=1)
    for label in labels.unique().tolist():
        rows = (whole & (labels == label)).nonzero()[:, 0]
        if len(rows) > 1:
            own = vectors[rows].double()
            result[rows] = (own - own.mean(dim=0)).square().mean(dim=1) * len(rows) / (len(rows) - 1)
    return result


class Monitor:
    """Warns, once each, when a reward passes its value in real samples, and when diversity falls.

    Over the last `window` iterations, each reward is compared with its mean over real samples of the same label, and
    the squared deviations of the vectors with the base's. What is reported is beyond chance: further than
    `standard_errors` standard errors, those of both sides and with the samples of one group counted as one.

    Give rewards in a form that real samples do not maximise, such as -|s - mean| / std; at real samples a proper score
    is the same for everything, and cannot be passed.

    Args:
        real: Of each reward that is watched, its [`moments`] over real samples.
        base: [`moments`] of the [`squared_deviations`] of the base's samples; without them diversity is not watched.
        diversity_share: The least share of the base's diversity, as a standard deviation.
        standard_errors: How many make a difference; see `benchmarks/monitor.py` for how often there is a false alarm.
        window: Iterations that are judged together.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> labels, groups = torch.zeros(64, dtype=torch.long), torch.arange(64)
        >>> real = moments(torch.randn(400) - 0.8, torch.zeros(400, dtype=torch.long), num_labels=1)
        >>> monitor = Monitor({"roundness": real}, window=1)
        >>> monitor.update({"roundness": torch.randn(64) - 0.9}, labels, groups), monitor.stop
        ([], False)
        >>> warnings = monitor.update({"roundness": torch.randn(64) + 0.5}, labels, groups)
        >>> len(warnings), monitor.stop
        (1, True)
    """

    def __init__(
        self,
        real: Mapping[str, Moments],
        base: Moments | None = None,
        diversity_share: float = 0.95,
        standard_errors: float = 3.0,
        window: int = 10,
    ):
        if not 0 < diversity_share <= 1:
            raise ValueError(f"diversity_share must be in (0, 1], got {diversity_share}")
        if standard_errors < 0:
            raise ValueError(f"standard_errors must not be negative, got {standard_errors}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.real, self.base = dict(real), base
        self.diversity_share, self.standard_errors, self.window = diversity_share, standard_errors, window
        names = [*(f"excess/{name}" for name in real), *(["diversity"] if base is not None else [])]
        self._windows: dict[str, deque[list[float]]] = {name: deque(maxlen=window) for name in names}
        self._warned: list[str] = []

    @property
    def stop(self) -> bool:
        """Whether there was a warning."""
        return bool(self._warned)

    def update(
        self,
        rewards: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        groups: torch.Tensor,
        vectors: torch.Tensor | None = None,
    ) -> list[str]:
        """Take in the samples of an iteration.

        Args:
            rewards: Each `(N,)`; NaN is left out, and so are rewards not watched.
            labels: `(N,)`; index into the moments.
            groups: `(N,)`; samples with the same integer are not independent.
            vectors: `(N, S)`; as those the base's diversity was computed from.

        Returns:
            New warnings.

        Raises:
            ValueError: If a watched reward is missing.
        """
        labels, groups = labels.cpu(), groups.cpu()
        for name, real in self.real.items():
            if name not in rewards:
                raise ValueError(f"reward {name!r} is watched, but there are only {sorted(rewards)}")
            self._take(f"excess/{name}", rewards[name].cpu().double() - real.mean[labels], real, labels, groups)
        if self.base is not None and vectors is not None:
            relative = squared_deviations(vectors.cpu(), labels) / self.base.mean[labels]
            error = self.base.standard_error / self.base.mean
            self._take("diversity", relative, Moments(self.base.mean, error), labels, groups)
        return self._new_warnings()

    def _take(
        self, name: str, values: torch.Tensor, reference: Moments, labels: torch.Tensor, groups: torch.Tensor
    ) -> None:
        """Keep the sums that mean and error over the window need."""
        error = reference.standard_error[labels]
        rows = (values.isfinite() & error.isfinite()).nonzero()[:, 0]
        if not len(rows):
            return
        names, group = groups[rows].unique(return_inverse=True)
        sums = torch.zeros(len(names), dtype=torch.double).index_add(0, group, values[rows])
        means = sums / torch.bincount(group)
        row = [len(means), float(means.sum()), float(means.square().sum()), float(error[rows].mean())]
        self._windows[name].append(row)

    def _judged(self, name: str) -> tuple[float, float] | None:
        """Mean over the window and its standard error, once there are two groups."""
        window = self._windows[name]
        count, total, squares = (sum(row[k] for row in window) for k in range(3))
        if count < 2:
            return None
        mean = total / count
        variance = max(squares - count * mean**2, 0.0) / (count - 1)
        reference_error = sum(row[3] for row in window) / len(window)
        return mean, (variance / count + reference_error**2) ** 0.5

    def values(self) -> dict[str, float]:
        """What to log: `excess/NAME`, a reward's mean above real samples', and `diversity`, a share of the base's."""
        judged = {name: self._judged(name) for name in self._windows}
        means = {name: pair[0] for name, pair in judged.items() if pair is not None}
        return {name: mean**0.5 if name == "diversity" else mean for name, mean in means.items()}

    def _new_warnings(self) -> list[str]:
        warnings = []
        for name, window in self._windows.items():
            judged = self._judged(name)
            if name in self._warned or len(window) < self.window or judged is None:
                continue
            mean, error = judged
            margin = self.standard_errors * error
            if name == "diversity" and mean + margin < self.diversity_share**2:
                warnings.append(
                    f"diversity fell to {mean**0.5:.3f} of the base's, under {self.diversity_share:g}: the samples "
                    "become alike; raise the KL weight, lower the rate, or use the energy form of the rewards"
                )
                self._warned.append(name)
            elif name != "diversity" and mean > margin:
                warnings.append(
                    f"reward {name.removeprefix('excess/')!r} is {mean:.3g} +- {error:.2g} above its mean in real "
                    "samples: over-optimised; more of it is no longer better"
                )
                self._warned.append(name)
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON."""
        return {
            "windows": {name: list(window) for name, window in self._windows.items()},
            "warned": list(self._warned),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where [`state_dict`] was called.

        Raises:
            ValueError: If the state watches other rewards.
        """
        if set(state["windows"]) != set(self._windows):
            raise ValueError(f"the state is of {sorted(state['windows'])}, this monitor of {sorted(self._windows)}")
        for name, rows in state["windows"].items():
            self._windows[name] = deque(rows, maxlen=self.window)
        self._warned = list(state["warned"])
