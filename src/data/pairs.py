"""Control and treated cells of one plate and split, paired as CellFlux trains on them."""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np
import pandas as pd
import torch

from cellfluxrl.data.schema import channel_names_of


def images_to_tensor(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Turn uint8 images into float32 in [-1, 1]."""
    return torch.as_tensor(images).float() / 127.5 - 1


def random_dihedral(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip each of `(N, C, H, H)` images along either axis and transpose it, independently with probability 1/2."""
    for transform in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        chosen = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(chosen[:, None, None, None], transform(images), images)
    return images


@dataclass(frozen=True)
class PairBatch:
    """
    Args:
        control (`torch.Tensor` of shape `(N, C, H, W)`): Control cells in [-1, 1].
        treated (`torch.Tensor` of shape `(N, C, H, W)`): A treated cell of the same plate and split for each.
        condition (`torch.Tensor` of shape `(N,)`): Row of `ControlTreatedPairs.conditions` of each pair.
    """

    control: torch.Tensor
    treated: torch.Tensor
    condition: torch.Tensor


class ControlTreatedPairs:
    """
    Draws pairs of a treated cell and a random control cell of the same plate and split (independent coupling).

    Args:
        dataset (`datasets.Dataset`):
            Rows of the cell schema ([`cell_features`]); the controls are the rows with `is_control`.

    Attributes:
        conditions (`pandas.DataFrame`):
            One row for each (plate, split, compound, concentration) that has treated cells, with its `moa`.

    Raises:
        ValueError: If there is no treated cell, or a plate with treated cells has no control in the same split.
    """

    def __init__(self, dataset: datasets.Dataset):
        self.channel_names = channel_names_of(dataset)
        table = dataset.remove_columns("image").to_pandas()
        self.images = torch.from_numpy(stack_images(dataset))
        treated = table[~table["is_control"]]
        if treated.empty:
            raise ValueError(f"none of the {len(table)} cells is treated: there is nothing to pair controls with")
        keys = ["plate", "split", "compound", "concentration", "moa"]
        self.conditions = treated[keys].drop_duplicates().sort_values(keys).reset_index(drop=True)
        index = pd.MultiIndex.from_frame(self.conditions)
        self.treated_rows = torch.tensor(treated.index.to_numpy())
        self.treated_condition = torch.tensor(index.get_indexer(pd.MultiIndex.from_frame(treated[keys])))

        controls = table[table["is_control"]].groupby(["plate", "split"]).groups
        self._controls: list[torch.Tensor] = []
        for plate, split in self.conditions[["plate", "split"]].itertuples(index=False):
            if (plate, split) not in controls:
                raise ValueError(f"plate {plate!r} has treated cells but no control cell in split {split!r}")
            self._controls.append(torch.tensor(controls[plate, split].to_numpy()))

    def __len__(self) -> int:
        return len(self.treated_rows)

    def draw(self, batch_size: int, generator: torch.Generator, augment: bool = True) -> PairBatch:
        """Draw pairs at random with replacement; `augment` flips and transposes both sides independently."""
        chosen = torch.randint(len(self), (batch_size,), generator=generator)
        condition = self.treated_condition[chosen]
        control = self.draw_controls(condition, generator, augment)
        treated = images_to_tensor(self.images[self.treated_rows[chosen]])
        if augment:
            treated = random_dihedral(treated, generator)
        return PairBatch(control, treated, condition)

    def draw_controls(self, condition: torch.Tensor, generator: torch.Generator, augment: bool = True) -> torch.Tensor:
        """Draw a random control cell of the plate and split of each condition, `(N, C, H, W)` in [-1, 1]."""
        position = torch.rand(len(condition), generator=generator)
        rows = [self._controls[c] for c in condition.tolist()]
        rows = torch.stack([r[int(p * len(r))] for r, p in zip(rows, position.tolist(), strict=True)])
        control = images_to_tensor(self.images[rows])
        return random_dihedral(control, generator) if augment else control

    def draw_conditions(self, num_groups: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `num_groups` conditions, as often as they have treated cells."""
        return self.treated_condition[torch.randint(len(self), (num_groups,), generator=generator)]


def stack_images(dataset: datasets.Dataset) -> np.ndarray:
    """All images of a data set as one uint8 array of shape (N, C, H, W)."""
    return np.ascontiguousarray(dataset.with_format("numpy", columns=["image"])[:]["image"], dtype=np.uint8)
