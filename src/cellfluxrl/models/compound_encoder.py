"""Compounds as the vectors that condition the velocity network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cellfluxrl.configuration import ConfigMixin, ModelMixin, register_to_config
from cellfluxrl.data.compounds import CONTROL, known_compounds, morgan_counts
from cellfluxrl.errors import unknown_name

# Just below BBBC021's smallest dose (podophyllotoxin, 3e-6 uM): where a cell without a compound is put.
NO_DOSE = 1e-6


class CompoundEncoder(ModelMixin, ConfigMixin):
    """Turns compound names or SMILES into hashed Morgan counts (radius 2, 1024 bins).

    Names are looked up in a table that is saved with the pipeline, so that a custom compound is known by name
    wherever the pipeline is loaded. Integers are returned as they are, without normalisation, as CellFlux does.

    Args:
        compounds: Name -> `{"smiles": ..., "moa": ...}` (`moa` may be empty); the 35 compounds of BBBC021 by default.
        radius, num_bits: See [`morgan_counts`].
        log_dose: Append log10 of the concentration in uM to each condition; CellFlux has no dose.

    Example:
        >>> encoder = CompoundEncoder()
        >>> encoder.encode(["taxol", "nocodazole"]).shape
        torch.Size([2, 1024])
        >>> encoder.moa("taxol")
        'Microtubule stabilizers'
        >>> CompoundEncoder(log_dose=True).encode(["taxol", "DMSO"], concentrations=[0.1, 0])[:, -1].tolist()
        [-1.0, -6.0]
    """

    @register_to_config
    def __init__(
        self,
        compounds: dict[str, dict[str, str]] | None = None,
        radius: int = 2,
        num_bits: int = 1024,
        *,
        log_dose: bool = False,
    ):
        super().__init__()
        table = known_compounds().to_dict(orient="index") if compounds is None else compounds
        # JSON is written with sorted keys: any other order would part the names from their rows on loading.
        compounds = dict(sorted(table.items()))
        self.register_to_config(compounds=compounds)
        self._rows = {name: row for row, name in enumerate(compounds)}
        self.register_buffer("fingerprints", torch.zeros(len(compounds), num_bits))
        for row, entry in enumerate(compounds.values()):
            self.fingerprints[row] = torch.from_numpy(morgan_counts(entry["smiles"], radius, num_bits))

    @property
    def names(self) -> list[str]:
        """Names of the known compounds."""
        return list(self.config.compounds)

    @property
    def condition_dim(self) -> int:
        """Width of a condition: the number of bins, and one more with `log_dose`."""
        return self.config.num_bits + int(self.config.log_dose)

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise unknown_name("compound", name, self.names)
        return self._rows[name]

    def encode(
        self,
        compounds: Sequence[str] | None = None,
        smiles: Sequence[str] | None = None,
        concentrations: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Encode compounds by name, or molecules by SMILES.

        Args:
            compounds: Known names.
            smiles: Any molecules; give either this or `compounds`.
            concentrations: One for each, in uM; needed with `log_dose`, and refused without. The last column is their
                log10, and log10 of `NO_DOSE` = -6 where the concentration is 0 or the compound is the control.

        Returns:
            `torch.Tensor` of shape `(N, condition_dim)`, on the encoder's device.

        Raises:
            ValueError: For an unknown name or an unreadable SMILES, if neither or both of these arguments are given,
                or for concentrations that are missing, not wanted, negative, not finite, or above 0 but not above
                `NO_DOSE`.
        """
        given = smiles if compounds is None else compounds
        if given is None or (compounds is not None and smiles is not None):
            raise ValueError("give either compound names or SMILES")
        if self.config.log_dose != (concentrations is not None):
            need = "needs concentrations" if self.config.log_dose else "takes no concentrations"
            raise ValueError(f"an encoder with log_dose={self.config.log_dose} {need}")
        if compounds is not None:
            conditions = self.fingerprints[[self._row(name) for name in compounds]]
        else:
            counts = [morgan_counts(s, self.config.radius, self.config.num_bits) for s in given]
            conditions = torch.from_numpy(np.stack(counts)).to(self.fingerprints)
        if concentrations is None:
            return conditions
        doses = _log_doses(concentrations, given)
        return torch.cat([conditions, torch.from_numpy(doses).to(conditions)[:, None]], dim=1)

    def moa(self, compound: str) -> str | None:
        """Mechanism of action of a known compound, or `None` where the table has none."""
        return self.config.compounds[self.names[self._row(compound)]].get("moa") or None


def _log_doses(concentrations: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """log10 of each concentration in uM, that of `NO_DOSE` for none and for the control."""
    doses = np.asarray(concentrations, dtype=np.float64)
    if doses.shape != (len(names),):
        raise ValueError(f"{len(names)} compounds need as many concentrations, got shape {doses.shape}")
    bad = ~np.isfinite(doses) | (doses < 0) | ((doses > 0) & (doses <= NO_DOSE))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"concentration {doses[i]} of {names[i]!r} (number {i}) must be 0 or a finite number of uM above {NO_DOSE}"
        )
    is_control = np.array([name == CONTROL for name in names], dtype=bool)
    return np.log10(np.where(is_control | (doses == 0), NO_DOSE, doses))


def encoder_for(dataset_compounds: Sequence[tuple[str, str, str]], *, log_dose: bool = False) -> CompoundEncoder:
    """Build an encoder that knows the 35 compounds of BBBC021 and those of a data set: name, SMILES and MoA.

    A compound may be there several times, with "" at doses without a known MoA.
    """
    table = known_compounds().to_dict(orient="index")
    for name, smiles, moa in dataset_compounds:
        if not smiles:
            raise ValueError(f"compound {name!r} has no SMILES, which its condition is made from")
        known = table.get(name, {}).get("moa", "")
        table[name] = {"smiles": smiles, "moa": CONTROL if name == CONTROL else moa or known}
    return CompoundEncoder(compounds=table, log_dose=log_dose)
