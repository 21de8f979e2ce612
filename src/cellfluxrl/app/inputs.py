"""What a visitor of the app gives: control cells and compounds, each checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellfluxrl.app.models import Models
from cellfluxrl.data.compounds import CONTROL, read_molecule
from cellfluxrl.data.image_files import images_of_files
from cellfluxrl.data.images import unit_floats
from cellfluxrl.data.simulated import CHANNELS, simulate_cells
from cellfluxrl.pipelines.generation.controls import open_controls

EXAMPLES = 8
EXAMPLE_PLATE = 3  # of the demo's plates, one that it does not train on
MAX_SMILES = 500  # characters
MAX_UNPACKED = 2**26  # bytes of an uploaded .npz


@dataclass(frozen=True)
class ControlChoices:
    """Control cells to choose from."""

    images: np.ndarray  # (N, C, H, W), float32 in [0, 1], channels in the network's order
    names: list[str]


def example_controls(models: Models, controls: str | None = None) -> ControlChoices | None:
    """Controls to start with: of a folder or data set, else simulated, or `None` where none can be simulated.

    Raises:
        ValueError: If none of `controls` can be used, which [`open_controls`] reads.
    """
    names, size = models.pipe.channel_names, models.image_size
    if controls is not None:
        opened = open_controls(controls, names, max_controls=EXAMPLES, image_size=size)
        images = np.stack([opened.read(row) for row in range(len(opened.rows))])
        return ControlChoices(images, [str(name) for name in opened.rows["control"]])
    side = size[0] if size else models.pipe.unet.config.sample_size
    if sorted(names) != sorted(CHANNELS) or (size and size[0] != size[1]) or not isinstance(side, int):
        return None
    cells = simulate_cells([CONTROL] * EXAMPLES, plate=EXAMPLE_PLATE, image_size=side, seed=2).image
    images = unit_floats(cells[:, [CHANNELS.index(name) for name in names]])
    return ControlChoices(images, [f"simulated cell {k + 1}" for k in range(EXAMPLES)])


def read_controls(path: str | Path, models: Models, channels: str = "") -> ControlChoices:
    """Read and check the controls of an uploaded file, at most `EXAMPLES`.

    Args:
        path: A PNG, TIFF, `.npy` or `.npz`, as [`images_of_files`] reads them.
        models: The pipelines that the controls are for.
        channels: The channels of the file, in order, separated by commas; by default those of the network.

    Raises:
        ValueError: If the file cannot be used; says why, for somebody who has never seen the code.
    """
    path = Path(path)
    needed = models.pipe.channel_names
    found = tuple(name.strip() for name in channels.split(",") if name.strip()) or needed
    for name in needed:
        if name not in found:
            raise ValueError(
                f"this pipeline needs the channel {name!r}, and the file's were given as {', '.join(found)}"
            )
    if len(set(found)) < len(found):
        raise ValueError(f"a channel is named twice: {', '.join(found)}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path.name}: the file is empty")
    try:
        opened = images_of_files(path, found, moa=CONTROL, max_bytes=MAX_UNPACKED)
        images = [opened.read(row) for row in range(min(len(opened.rows), EXAMPLES))]
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).partition("files; the first: ")[2] or str(error)  # of one file there is no other
        reason = reason.replace(f"{path.parent}/", "")  # a folder of the server, which means nothing to its visitor
        raise ValueError(reason if path.name in reason else f"{path.name}: {reason}") from error
    order = [found.index(name) for name in needed]
    images = [unit_floats(image)[order] for image in images]
    for image in images:
        _check_control(image, path.name, models)
    return ControlChoices(np.stack(images), opened.rows["source"].tolist()[: len(images)])


def _check_control(image: np.ndarray, name: str, models: Models) -> None:
    height, width = image.shape[1:]
    if models.image_size and (height, width) != models.image_size:
        expected = " x ".join(map(str, models.image_size))
        raise ValueError(
            f"{name}: the image is {height} x {width} pixels, and this pipeline is for crops of {expected} "
            "around one cell, at the magnification that it was trained on. `cellfluxrl data build` cuts such crops."
        )
    config = models.pipe.unet.config
    factor = config.patch_size * 2 ** (len(config.channel_mult) - 1)
    if height % factor or width % factor:
        raise ValueError(f"{name}: height and width must be multiples of {factor}, the image is {height} x {width}")
    if image.max() == image.min():
        raise ValueError(f"{name}: every pixel has the same value: there is no cell in the image")


def compound_choices(models: Models) -> list[tuple[str, str]]:
    """The label and the name of each known compound, those of one mechanism together."""
    table = models.pipe.encoder.config.compounds
    moas = {name: entry.get("moa") or "mechanism not known" for name, entry in table.items()}
    return [(f"{name} ({moas[name]})", name) for name in sorted(table, key=lambda n: (moas[n], n.lower()))]


def check_smiles(smiles: str, models: Models) -> str | None:
    """The name of the known compound that a structure is, or `None`.

    Raises:
        ValueError: If the structure cannot be read; says why and, if possible, at which character.
    """
    if not smiles.strip():
        raise ValueError("there is no SMILES yet: paste one, such as CC(=O)Oc1ccccc1C(=O)O for aspirin")
    if len(smiles) > MAX_SMILES:
        raise ValueError(f"the SMILES has {len(smiles):,} characters; at most {MAX_SMILES} are allowed")
    read_molecule(smiles)
    from rdkit import Chem

    canonical = Chem.CanonSmiles(smiles.strip())
    for name, entry in models.pipe.encoder.config.compounds.items():
        if canonical == Chem.CanonSmiles(entry["smiles"]):
            return name
    return None


def moa_of_smiles(smiles: str, models: Models) -> str | None:
    """The mechanism of the known compound that a structure is, or `None`."""
    try:
        known = check_smiles(smiles, models)
    except ValueError:
        return None
    return models.pipe.encoder.moa(known) if known else None
