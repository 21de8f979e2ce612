"""Small Cellpose networks, trained on simulated cells with Cellpose's own training: half a minute each on one core."""

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.rewards.segmentation.protocol import Masks

WIDTHS = {"default": (32, 64, 128, 256), "small": (8, 16, 32, 64)}
ROUGH_FLOWS = 0.8  # a `flow_threshold` for networks that were trained for a short time
STYLES = 256  # values that `CellposeModel.eval` expects of a network
DIAMETERS = {"nucleus": 17.0, "cell": 20.0}  # to which objects are resized, in pixels; small ones train faster


def simulated_crops(count: int, image_size: int = 48, seed: int = 0):
    """Return simulated crops of all mechanisms of action in turn: images (count, 3, H, W) in [0, 1], and labels."""
    names = (CONTROL, *MOAS)
    crops = simulate_cells([names[i % len(names)] for i in range(count)], image_size=image_size, seed=seed)
    images = (crops.image / 255).astype(np.float32)
    return images, crops.nucleus_labels.astype(np.int32), crops.cell_labels.astype(np.int32)


def train_cellpose(
    kind: str,
    folder: Path,
    widths: tuple[int, ...] = WIDTHS["small"],
    crops: int = 300,
    epochs: int = 50,
    seed: int = 0,
) -> Path:
    """Train a network on simulated crops of 48x48 pixels and return the path of its weights.

    Args:
        kind: "nucleus" (from the DNA channel) or "cell" (from the mean of the others).
        folder: Where the file is written.
        widths: Channels of each level of the network.
        crops: Number of crops to train on.
        epochs: Number of epochs of 64 crops each; the learning rate rises through the first ten.
        seed: Of the crops and of the network.
    """
    from cellpose.resnet_torch import CPnet
    from cellpose.train import train_seg

    images, nuclei, cells = simulated_crops(crops, seed=seed)
    channel = images[:, 0] if kind == "nucleus" else images[:, 1:].mean(axis=1)
    planes = np.stack([channel, np.zeros_like(channel)], axis=1)
    labels = nuclei if kind == "nucleus" else cells
    torch.manual_seed(seed)
    network = CPnet([2, *widths], nout=3, sz=3, diam_mean=DIAMETERS[kind]).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the second channel is empty
        path, _, _ = train_seg(
            network,
            train_data=list(planes),
            train_labels=list(labels),
            channels=[1, 2],
            batch_size=8,
            n_epochs=epochs,
            nimg_per_epoch=64,
            bsize=48,
            min_train_masks=1,  # the default drops crops of fewer than five objects
            save_path=folder,
            model_name=f"{kind}_{'_'.join(map(str, widths))}",
        )
    return Path(path)


class WithAllStyles(torch.nn.Module):
    """A narrow network as `CellposeModel.eval` takes it: with zeros for the styles that only a wide one has."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.nout, self.mkldnn, self.device = network, network.nout, network.mkldnn, network.device

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output, styles = self.network(images)[:2]
        return output, F.pad(styles, (0, STYLES - styles.shape[1]))


def eval_model(path: Path, widths: tuple[int, ...] = WIDTHS["small"]):
    """Load weights into a `CellposeModel`, which has no setting for the width."""
    from cellpose.models import CellposeModel
    from cellpose.resnet_torch import CPnet

    if widths == WIDTHS["default"]:
        return CellposeModel(gpu=False, pretrained_model=str(path))
    model = CellposeModel(gpu=False)
    network = CPnet([2, *widths], nout=3, sz=3, mkldnn=model.mkldnn)
    network.load_state_dict(torch.load(path, weights_only=True))
    model.diam_mean, model.diam_labels = network.diam_mean.item(), network.diam_labels.item()
    model.net = WithAllStyles(network)
    return model


def eval_loop(models: dict, images: np.ndarray, diameters: dict[str, float | None]) -> Masks:
    """Segment image by image with `CellposeModel.eval`. Like our segmenter it keeps masks of any size."""
    shape = (len(images), *images.shape[2:])
    masks = {kind: np.zeros(shape, dtype=np.int32) for kind in models}
    for n, image in enumerate(images):
        for kind, channel in (("nucleus", image[0]), ("cell", image[1:].mean(axis=0))):
            masks[kind][n] = models[kind].eval(
                channel, channels=[0, 0], diameter=diameters[kind], max_size_fraction=1.0
            )[0]
    return Masks(masks["nucleus"], masks["cell"])


def precision(truth: np.ndarray, found: np.ndarray, overlap: float = 0.5) -> float:
    """Return the average precision TP / (TP + FP + FN) of all objects at an intersection over union."""
    from cellpose.metrics import average_precision

    with np.errstate(invalid="ignore"):  # of an image without objects
        _, hits, extra, missed = average_precision(list(truth), list(found), [overlap])
    return float(hits.sum() / (hits.sum() + extra.sum() + missed.sum()))
