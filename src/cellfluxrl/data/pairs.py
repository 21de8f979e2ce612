"""Control and treated cells of one plate and split, paired as CellFlux trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import datasets
import numpy as np
import pandas as pd
import torch
from diffusers.utils.torch_utils import randn_tensor

from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.seeding import numpy_generator, seeded_generator


def draw_flips(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw for each of `count` images: whether it is flipped left-right, flipped upside down, transposed."""
    return torch.rand(3, count, generator=generator) < 0.5


def flip(images: np.ndarray, flips: torch.Tensor) -> np.ndarray:
    """Flip and transpose each of `(N, C, H, H)` images as [`draw_flips`] says, bool of shape `(3, N)`."""
    moved = np.empty(images.shape, dtype=images.dtype)
    for target, image, across, down, transposed in zip(moved, images, *flips.tolist(), strict=True):
        flipped = image[:, :: -1 if down else 1, :: -1 if across else 1]
        target[...] = flipped.swapaxes(-1, -2) if transposed else flipped
    return moved


def random_dihedral(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip each of `(N, C, H, H)` images along either axis and transpose it, independently with probability 1/2."""
    return torch.from_numpy(flip(images.numpy(), draw_flips(len(images), generator)))


def vary_brightness(
    images: torch.Tensor, spread: float, generator: torch.Generator | list[torch.Generator]
) -> torch.Tensor:
    """Make each channel of each image brighter or darker, as staining and exposure differ between plates.

    Args:
        images: `(N, C, H, W)`; in [-1, 1]; black stays black, white may be passed.
        spread: Standard deviation of the logarithm of the gain; 0 changes nothing and draws nothing.
        generator: For all images, or for each.
    """
    if spread < 0:
        raise ValueError(f"the spread of the brightness (control_gain) must not be negative, got {spread}")
    if spread == 0:
        return images
    if images.ndim != 4:
        raise ValueError(
            f"the brightness (control_gain) is that of images (N, C, H, W), got shape {tuple(images.shape)}"
        )
    gain = randn_tensor((*images.shape[:2], 1, 1), generator=generator).mul(spread).exp()
    return (images + 1) * gain - 1


@dataclass(frozen=True)
class PairBatch:
    """N pairs of samples, `(N, ...)` (images in [-1, 1]), and their rows of `PairSource.conditions`, `(N,)`."""

    control: torch.Tensor
    treated: torch.Tensor
    condition: torch.Tensor


class PairSource(Protocol):
    """What a flow is post-trained from: controls, targets and their conditions, of any rank `(N, ...)`.

    Attributes:
        conditions: A table with one row for each condition: what was done to the targets, and where.
        treated_condition: `(M,)`; row of each target's condition in `conditions`.
    """

    conditions: pd.DataFrame
    treated_condition: torch.Tensor

    def draw(self, batch_size: int, generator: torch.Generator, *, augment: bool = True) -> PairBatch:
        """Draw targets at random, and a control for each, as [`draw_controls`] does."""
        ...

    def draw_conditions(self, num_groups: int, generator: torch.Generator) -> torch.Tensor:
        """Draw conditions, as often as they have targets; `(num_groups,)`."""
        ...

    def draw_controls(
        self, condition: torch.Tensor, generator: torch.Generator, *, augment: bool = True
    ) -> torch.Tensor:
        """Draw a control for each condition, `(N,)`, independently of all else; `(N, ...)`."""
        ...

    def targets(self, rows: torch.Tensor) -> torch.Tensor:
        """Some of the M targets, as they are; `(N, ...)`."""
        ...


class ControlTreatedPairs:
    """Pairs of a treated cell and a random control cell of the same plate and split (independent coupling).

    A [`PairSource`]. [`draw`] draws pairs with replacement; [`epoch_batches`] goes through the treated cells.

    Args:
        dataset: Rows of the cell schema ([`cell_features`]); the controls are the rows with `is_control`.

    Attributes:
        images: All images, uint8 of shape `(N, C, H, W)` ([`open_images`]).
        treated_rows: Row of each treated cell in `images`.
        treated_condition: Row of each treated cell's condition in `conditions`.
        conditions: One row for each (plate, split, compound, concentration) that has treated cells, with its `moa`.

    Raises:
        ValueError: If there is no treated cell, or a plate with treated cells has no control in the same split.
    """

    def __init__(self, dataset: datasets.Dataset):
        self.channel_names = channel_names_of(dataset)
        keys = ["plate", "split", "compound", "concentration", "moa"]
        table = dataset.select_columns([*keys, "is_control"]).to_pandas()
        assert isinstance(table, pd.DataFrame)  # without `batched` no iterator
        treated = table[~table["is_control"]]
        if treated.empty:
            raise ValueError(f"none of the {len(table)} cells is treated: there is nothing to pair controls with")
        self.conditions = treated[keys].drop_duplicates().sort_values(keys).reset_index(drop=True)
        index = pd.MultiIndex.from_frame(self.conditions)
        self.treated_rows = torch.tensor(treated.index.to_numpy())
        self.treated_condition = torch.tensor(index.get_indexer(pd.MultiIndex.from_frame(treated[keys])))

        # The controls, sorted by plate and split: those of condition c are `size[c]` rows from `start[c]` on.
        group_keys = ["plate", "split"]
        controls = table[table["is_control"]].sort_values(group_keys, kind="stable")
        sizes = controls.groupby(group_keys).size()
        group = sizes.index.get_indexer(pd.MultiIndex.from_frame(self.conditions[group_keys]))
        if (group < 0).any():
            plate, split = self.conditions[group_keys].iloc[int((group < 0).argmax())]
            raise ValueError(f"plate {plate!r} has treated cells but no control cell in split {split!r}")
        self._control_rows = torch.tensor(controls.index.to_numpy())
        self._control_size = torch.tensor(sizes.to_numpy()[group])
        self._control_start = torch.tensor((sizes.cumsum() - sizes).to_numpy()[group])
        self.images = open_images(dataset)

    def __len__(self) -> int:
        return len(self.treated_rows)

    def control_rows(self) -> torch.Tensor:
        """Row in `images` of each control that is drawn: those of the plates and splits that have treated cells."""
        places = torch.stack([self._control_start, self._control_size], dim=1).unique(dim=0).tolist()
        return torch.cat([self._control_rows[start : start + size] for start, size in places])

    def draw(self, batch_size: int, generator: torch.Generator, *, augment: bool = True) -> PairBatch:
        """Draw pairs at random with replacement; `augment` flips and transposes both sides independently."""
        chosen = torch.randint(len(self), (batch_size,), generator=generator)
        condition = self.treated_condition[chosen]
        control = self.draw_controls(condition, generator, augment=augment)
        flips = draw_flips(batch_size, generator) if augment else None
        return PairBatch(control, self._read(self.treated_rows[chosen], flips), condition)

    def draw_controls(
        self, condition: torch.Tensor, generator: torch.Generator, *, augment: bool = True
    ) -> torch.Tensor:
        """Draw a random control cell of the plate and split of each condition, `(N, C, H, W)` in [-1, 1]."""
        rows = self._controls_at(condition, torch.rand(len(condition), generator=generator))
        return self._read(rows, draw_flips(len(rows), generator) if augment else None)

    def draw_conditions(self, num_groups: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `num_groups` conditions, as often as they have treated cells."""
        return self.treated_condition[torch.randint(len(self), (num_groups,), generator=generator)]

    def targets(self, rows: torch.Tensor) -> torch.Tensor:
        """Some of the treated cells, `(N, C, H, W)` in [-1, 1]."""
        return self._read(self.treated_rows[rows], None)

    def steps_per_epoch(self, batch_size: int, world_size: int = 1) -> int:
        """Number of batches that each process gets from [`epoch_batches`]."""
        return max(1, len(self) // (batch_size * world_size))

    def epoch_batches(
        self, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1, *, augment: bool = True
    ) -> PairBatches:
        """Go through the treated cells in a new order, each with a control cell that is drawn anew.

        All processes together take `world_size * batch_size` cells a step; those that do not fill the last step are
        left out, others in each epoch. A data set of fewer cells than one step takes is one step, with the cells
        repeated as often as it needs, each with a control drawn for itself.

        Batch `i` is a function of (seed, epoch, i): whoever computes it, and whatever was computed before. The
        batches of `world_size` processes, one after the other, are those of one process with `world_size` times the
        batch size.

        Args:
            batch_size: Pairs a step and process.
            seed, epoch: What the order, the controls and the augmentation depend on.
            rank, world_size: This process, and how many there are.
            augment: Flip and transpose both sides independently.

        Returns:
            [`PairBatches`], for a `DataLoader` with `batch_size=None`.

        Raises:
            ValueError: If `batch_size` is not positive, or `rank` is not in 0..world_size - 1.

        Example:
            >>> batches = pairs.epoch_batches(32, seed=0, epoch=3)                 # doctest: +SKIP
            >>> for batch in DataLoader(batches, batch_size=None, num_workers=2):  # doctest: +SKIP
            ...     batch.control, batch.treated, batch.condition
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1} for world_size={world_size}, got {rank}")
        random = numpy_generator(seed, "epoch of pairs", epoch)
        count = self.steps_per_epoch(batch_size, world_size) * batch_size * world_size
        chosen = torch.from_numpy(np.resize(random.permutation(len(self)), count))
        control = self._controls_at(self.treated_condition[chosen], torch.from_numpy(random.random(count)))
        chosen, control = (rows.view(-1, world_size, batch_size)[:, rank] for rows in (chosen, control))
        return PairBatches(self, chosen, control, (seed, epoch) if augment else None, rank, world_size)

    def _controls_at(self, condition: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Rows of the controls at a relative position, in [0, 1), among those of each condition."""
        offset = (position.double() * self._control_size[condition]).long()
        return self._control_rows[self._control_start[condition] + offset]

    def _read(self, rows: torch.Tensor, flips: torch.Tensor | None) -> torch.Tensor:
        images = self.images[rows.numpy()]
        return images_to_tensor(images if flips is None else flip(images, flips))


class PairBatches(torch.utils.data.Dataset):
    """The batches of one epoch and process ([`ControlTreatedPairs.epoch_batches`]): item `i` is a [`PairBatch`]."""

    def __init__(
        self,
        pairs: ControlTreatedPairs,
        chosen: torch.Tensor,
        control: torch.Tensor,
        augmentation: tuple[int, int] | None,
        rank: int,
        world_size: int,
    ):
        self.pairs, self.chosen, self.control = pairs, chosen, control
        self.augmentation, self.rank, self.world_size = augmentation, rank, world_size

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> PairBatch:
        i = range(len(self))[i]  # counts from the end as lists do, or raises IndexError
        chosen, flips = self.chosen[i], (None, None)
        if self.augmentation:
            # Drawn for the batches of all processes, so that these do not depend on how many there are.
            generator = seeded_generator(self.augmentation[0], "flips of pairs", self.augmentation[1], i)
            drawn = draw_flips(2 * self.world_size * len(chosen), generator)
            flips = drawn.view(3, 2, self.world_size, len(chosen))[:, :, self.rank].unbind(1)
        control = self.pairs._read(self.control[i], flips[0])
        treated = self.pairs._read(self.pairs.treated_rows[chosen], flips[1])
        return PairBatch(control, treated, self.pairs.treated_condition[chosen])
