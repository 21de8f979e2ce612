"""Compounds as the vectors that condition the velocity network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from cellfluxrl.data.compounds import CONTROL, known_compounds
from cellfluxrl.errors import unknown_name


def morgan_counts(smiles: str, radius: int = 2, num_bits: int = 1024) -> np.ndarray:
    """
    Hashed Morgan count fingerprint (Rogers & Hahn, 2010) of one molecule, as CellFlux conditions on.

    Args:
        smiles (`str`): The molecule.
        radius (`int`, defaults to 2): Radius of the circular environments, in bonds.
        num_bits (`int`, defaults to 1024): Number of bins.

    Returns:
        `numpy.ndarray` of shape `(num_bits,)`, float32: how often an environment of each bin occurs.

    Raises:
        ValueError: If RDKit cannot read the SMILES.

    Example:
        >>> int(morgan_counts("CS(C)=O").sum())
        8
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdFingerprintGenerator

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles) if smiles.strip() else None
    if molecule is None:
        raise ValueError(f"RDKit cannot read the SMILES {smiles!r}")
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=num_bits)
    return generator.GetCountFingerprintAsNumPy(molecule).astype(np.float32)


class CompoundEncoder(ModelMixin, ConfigMixin):
    """
    Turns compound names or SMILES into hashed Morgan counts (radius 2, 1024 bins).

    Names are looked up in a table that is saved with the pipeline, so that a compound of one's own is known by name
    wherever the pipeline is loaded. Integers are returned as they are, without normalisation, as CellFlux does.

    Args:
        compounds (`dict[str, dict[str, str]]`, *optional*):
            Name -> `{"smiles": ..., "moa": ...}` (`moa` may be empty); the 35 compounds of BBBC021 by default.
        radius (`int`, defaults to 2), num_bits (`int`, defaults to 1024): See [`morgan_counts`].

    Example:
        >>> encoder = CompoundEncoder()
        >>> encoder.encode(["taxol", "nocodazole"]).shape
        torch.Size([2, 1024])
        >>> encoder.moa("taxol")
        'Microtubule stabilizers'
    """

    @register_to_config
    def __init__(
        self,
        compounds: dict[str, dict[str, str]] | None = None,
        radius: int = 2,
        num_bits: int = 1024,
    ):
        super().__init__()
        if compounds is None:
            compounds = known_compounds().to_dict(orient="index")
        # JSON is written with sorted keys: any other order would part the names from their rows on loading.
        compounds = dict(sorted(compounds.items()))
        self.register_to_config(compounds=compounds)
        self.register_buffer("fingerprints", torch.zeros(len(compounds), num_bits))
        for row, entry in enumerate(compounds.values()):
            self.fingerprints[row] = torch.from_numpy(morgan_counts(entry["smiles"], radius, num_bits))

    @property
    def names(self) -> list[str]:
        """Names of the known compounds."""
        return list(self.config.compounds)

    def _row(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise unknown_name("compound", name, self.names) from None

    def encode(self, compounds: Sequence[str] | None = None, smiles: Sequence[str] | None = None) -> torch.Tensor:
        """
        Encode compounds by name, or molecules by SMILES.

        Args:
            compounds (`Sequence[str]`, *optional*): Known names.
            smiles (`Sequence[str]`, *optional*): Any molecules; give either this or `compounds`.

        Returns:
            `torch.Tensor` of shape `(N, num_bits)`, on the encoder's device.

        Raises:
            ValueError: For an unknown name or an unreadable SMILES, or if neither or both arguments are given.
        """
        if (compounds is None) == (smiles is None):
            raise ValueError("give either compound names or SMILES")
        if compounds is not None:
            return self.fingerprints[[self._row(name) for name in compounds]]
        counts = [morgan_counts(s, self.config.radius, self.config.num_bits) for s in smiles]
        return torch.from_numpy(np.stack(counts)).to(self.fingerprints)

    def moa(self, compound: str) -> str | None:
        """Mechanism of action of a known compound, or `None` where the table has none."""
        return self.config.compounds[self.names[self._row(compound)]].get("moa") or None


def encoder_for(dataset_compounds: Sequence[tuple[str, str, str]]) -> CompoundEncoder:
    """
    Build an encoder that knows the 35 compounds of BBBC021 and those of a data set.

    Args:
        dataset_compounds (`Sequence[tuple[str, str, str]]`): Name, SMILES and MoA (or an empty string) of each.
    """
    table = known_compounds().to_dict(orient="index")
    for name, smiles, moa in dataset_compounds:
        table[name] = {"smiles": smiles, "moa": CONTROL if name == CONTROL else moa}
    return CompoundEncoder(compounds=table)
