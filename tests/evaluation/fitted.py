"""Classifiers of simulated cells that are trained in seconds, and simulated cells as a data set."""

import datasets
import numpy as np
import torch
import torch.nn.functional as F

from cellfluxrl import MoAClassifier
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.data.schema import CHANNEL_NAMES, cell_features
from cellfluxrl.data.simulated import CONTROL, MOAS, SimulatedCrops, simulate_cells


def pictures(names, seed: int) -> np.ndarray:
    return simulate_cells(names, seed=seed).image


def fitted_classifier(width: int, seed: int, steps: int = 110, per_class: int = 60) -> MoAClassifier:
    """Half right on new simulated cells, where 8 % is chance."""
    torch.manual_seed(seed)
    classes = [CONTROL, *MOAS]
    classifier = MoAClassifier(moas=classes, width=width, dropout=0.0)
    labels = torch.arange(len(classes)).repeat_interleave(per_class)
    images = images_to_tensor(pictures([classes[k] for k in labels], seed=1000 + seed))
    with torch.no_grad():
        classifier.channel_mean.copy_(images.mean((0, 2, 3)))
        classifier.channel_std.copy_(images.std((0, 2, 3)))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    classifier.train()
    for _ in range(steps):
        chosen = torch.randperm(len(labels))[:64]
        batch = images[chosen].flip(3) if torch.rand(()) < 0.5 else images[chosen].transpose(2, 3)
        loss = F.cross_entropy(classifier(batch).logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def as_dataset(crops: SimulatedCrops, moas) -> datasets.Dataset:
    """Treated cells with the columns that a reward suite is fitted on."""
    count, size = len(crops.image), crops.image.shape[-1]
    text = {"compound": moas, "smiles": ["C"] * count, "moa": moas, "well": ["A01"] * count}
    text |= {"plate": ["p"] * count, "field": ["f"] * count, "split": ["train"] * count}
    whole = {name: [0] * count for name in ("site", "replicate", "cell_id")}
    real = {name: [0.0] * count for name in ("concentration", "x", "y")}
    columns = {"image": list(crops.image), **text, **whole, **real, "is_control": [m == CONTROL for m in moas]}
    return datasets.Dataset.from_dict(columns, features=cell_features(CHANNEL_NAMES, size))
