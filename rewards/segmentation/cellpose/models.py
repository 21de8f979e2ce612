"""Networks of Cellpose 3 and 4, by the name of a published model or from the user's weights.

The package `cellpose` is optional and slow to import, so it is imported where it is needed, not before.
"""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from cellfluxrl.errors import unknown_name

# The package's private names and weights are used, which a version may change: from the first, below the second.
TESTED_VERSIONS = ("3.1.1", "5")
INSTALL = 'pip install "cellfluxrl[cellpose]"'
LOCAL_MODELS = "CELLPOSE_LOCAL_MODELS_PATH"
_NUCLEI_DIAMETER = 17.0
_DIAMETER = 30.0
_MARGIN = 8  # pixels of zeros around every image
_MULTIPLE = 16  # of which sides must be


@dataclass(frozen=True)
class CellposeNetwork:
    """A network that maps (N, channels, H, W) normalised images to flows and the logit of being in an object."""

    module: torch.nn.Module  # its first output: the (N, 3, H, W) flows in rows and columns, times 5, and logits
    channels: int  # how many it takes: the one to segment, the nuclei or zeros, and more zeros
    object_diameter: float  # pixels; images are resized so that objects have it
    trained_diameter: float  # pixels; mean of the objects it was trained on before they were resized
    tile: int  # pixels; larger images are cut into overlapping tiles of this side
    needs_full_tile: bool  # whether smaller images are padded to a tile

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, scale: float) -> torch.Tensor:
        """Run on (N, channels, H, W) images enlarged by `scale`; returns (N, 3, H, W) float32 of the original size."""
        size = images.shape[-2:]
        # The sizes of Cellpose, so that masks are the same.
        resized = [max(1, int(side * scale)) for side in size]
        images = F.interpolate(images, resized, mode="bilinear", align_corners=False)
        (top, bottom), (left, right) = self._padding(resized[0]), self._padding(resized[1])
        output = self._run(F.pad(images, (left, right, top, bottom)))
        output = output[:, :, top : top + resized[0], left : left + resized[1]]
        return F.interpolate(output, size, mode="bilinear", align_corners=False)

    def _padding(self, side: int) -> tuple[int, int]:
        """How many zeros go before and after, as in Cellpose."""
        if self.needs_full_tile and side < self.tile:
            room = max(0, self.tile - side - 2 * _MARGIN)
        else:
            room = -side % _MULTIPLE
        return _MARGIN + room // 2, _MARGIN + room - room // 2

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        if max(images.shape[-2:]) <= self.tile:
            return self._forward(images)
        from cellpose.transforms import average_tiles, make_tiles

        outputs = []
        for image in images.cpu().numpy():
            tiles, rows, columns, height, width = make_tiles(image, bsize=self.tile)
            tiles = torch.from_numpy(tiles.reshape(-1, *tiles.shape[2:])).to(images.device)
            # As many at once as there are small images in a batch.
            output = torch.cat([self._forward(part) for part in tiles.split(len(images))])
            outputs.append(torch.from_numpy(average_tiles(output.cpu().numpy(), rows, columns, height, width)))
        return torch.stack(outputs).to(images.device)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        dtype = next(self.module.parameters()).dtype
        return self.module(images.to(dtype).contiguous(memory_format=torch.channels_last))[0].float()


def load_network(model: str, device: torch.device, *, bfloat16: bool) -> CellposeNetwork:
    """Load a published model, such as "cyto3" or "cpsam", or a file of weights, with the Cellpose that is installed.

    Raises:
        ImportError: If Cellpose is not installed, or in a version that was not tested, or version 4 is without a
            torchvision that fits PyTorch.
        FileNotFoundError: If there is no such file, or a published model is neither there nor can be downloaded; the
            message says which file goes where.
        ValueError: If the installed version has no such model, or the file holds other weights.
    """
    version = _major_version()
    path = find_weights(model, version)
    if version >= 4:
        return _load_version_4(path, device, bfloat16=bfloat16)
    # The mean diameter of published models is not in their files.
    published = {"nuclei": _NUCLEI_DIAMETER, "nucleitorch_0": _NUCLEI_DIAMETER}.get(model)
    return _load_version_3(path, device, published, bfloat16=bfloat16)


def find_weights(model: str, version: int) -> Path:
    """Path of a model's weights, after a download if it is a published model that is not there yet."""
    if os.path.isfile(model):
        return Path(model)
    if os.sep in model or Path(model).suffix:
        raise FileNotFoundError(f"there is no file of Cellpose weights at {model!r}")
    models = _import_models(version)
    if model not in models.MODEL_NAMES:
        hint = "" if version >= 4 else " ('cpsam' needs Cellpose 4)" if model.startswith("cpsam") else ""
        raise unknown_name(f"model of Cellpose {version}{hint}, or file of weights:", model, models.MODEL_NAMES)
    name = f"{model}torch_0" if version < 4 and model in ("cyto", "cyto2", "nuclei") else model
    path = Path(models.MODEL_DIR) / name
    if not path.is_file():
        # With certificates: Cellpose's download goes without, and turns them off for the whole program.
        url = f"{models._MODEL_URL.rstrip('/')}/{name}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise FileNotFoundError(
                f"the weights of the Cellpose model {model!r} are not on this machine and could not be downloaded "
                f"({error}). Put the file {name!r} from {url} into the folder {path.parent}, or set {LOCAL_MODELS} to "
                "the folder that holds it, or give the path of a file of weights"
            ) from error
    return path


def _major_version() -> int:
    try:
        import cellpose
    except ModuleNotFoundError as error:
        if error.name != "cellpose":
            raise
        raise ImportError(f"the segmenter 'cellpose' needs the package cellpose; install it with {INSTALL}") from error
    installed, oldest, too_new = (_numbers(text) for text in (cellpose.version, *TESTED_VERSIONS))
    if not oldest <= installed < too_new:
        raise ImportError(
            f"the segmenter 'cellpose' is tested with Cellpose {TESTED_VERSIONS[0]} and later, below "
            f"{TESTED_VERSIONS[1]}; {cellpose.version} is installed: {INSTALL}"
        )
    return installed[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _import_models(version: int) -> ModuleType:
    try:
        from cellpose import models
    except (ImportError, RuntimeError) as error:
        if version < 4 or "torchvision" not in str(error):
            raise
        raise ImportError(
            f"Cellpose 4 needs a torchvision that fits the installed PyTorch {torch.__version__}, and its import "
            f"failed: {error}. Install the torchvision that was built for this PyTorch (the same release, for CPU or "
            f"CUDA as PyTorch is), or Cellpose 3, which needs none: {INSTALL}"
        ) from error
    return models


def _load_version_4(path: Path, device: torch.device, *, bfloat16: bool) -> CellposeNetwork:
    models = _import_models(4)
    model = models.CellposeModel(pretrained_model=str(path), device=device, use_bfloat16=bfloat16)
    return CellposeNetwork(model.net.eval(), 3, _DIAMETER, _DIAMETER, tile=256, needs_full_tile=True)


def _load_version_3(path: Path, device: torch.device, published: float | None, *, bfloat16: bool) -> CellposeNetwork:
    from cellpose.resnet_torch import CPnet

    weights = _read_weights(path)
    widths = _widths(weights, path)
    network: Any = CPnet(list(widths), nout=3, sz=3)
    expected = network.state_dict()
    for name in {*expected, *weights} - {"diam_mean", "diam_labels"}:
        have, want = (tuple(w[name].shape) if name in w else None for w in (weights, expected))
        if have != want:
            raise ValueError(
                f"the weights in {path} are not those of a Cellpose 3 network with the widths {widths}: {name!r} has "
                f"the shape {have}, expected {want}"
            )
    network.load_state_dict(weights, strict=False)
    diameter = published or float(weights.get("diam_mean", [_DIAMETER])[0])
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    return CellposeNetwork(
        network.eval().to(device, dtype, memory_format=torch.channels_last),
        channels=widths[0],
        object_diameter=diameter,
        trained_diameter=float(weights.get("diam_labels", [diameter])[0]),
        tile=224,
        needs_full_tile=False,
    )


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of PyTorch weights: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise ValueError(f"{path} does not hold the weights of a network, but {type(weights).__name__}")
    if "W2" in weights:
        raise ValueError(f"{path} holds weights for Cellpose 4; Cellpose 3 is installed")
    return weights


def _widths(weights: dict[str, torch.Tensor], path: Path) -> tuple[int, ...]:
    """Return the channels that the network takes, and those of each of its levels."""
    shapes = []
    while (name := f"downsample.down.res_down_{len(shapes)}.proj.1.weight") in weights:
        shapes.append(weights[name].shape)
    if not shapes:
        raise ValueError(f"{path} does not hold the weights of a Cellpose 3 network, but {sorted(weights)[:5]}")
    return (shapes[0][1], *(shape[0] for shape in shapes))
