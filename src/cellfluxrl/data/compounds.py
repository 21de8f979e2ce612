"""The 35 compounds of BBBC021 that CellFlux uses, and the mechanisms of action of the image set."""

from functools import cache
from importlib.resources import files

import pandas as pd

MOAS = (
    "Actin disruptors",
    "Aurora kinase inhibitors",
    "Cholesterol-lowering",
    "DNA damage",
    "DNA replication",
    "Eg5 inhibitors",
    "Epithelial",
    "Kinase inhibitors",
    "Microtubule destabilizers",
    "Microtubule stabilizers",
    "Protein degradation",
    "Protein synthesis",
)
CONTROL = "DMSO"
# Of the 35, those that CellFlux never trains on: its out-of-distribution test set.
CELLFLUX_HELD_OUT = (
    "AZ841",
    "cyclohexamide",
    "cytochalasin D",
    "docetaxel",
    "epothilone B",
    "lactacystin",
    "latrunculin B",
    "simvastatin",
)


@cache
def known_compounds() -> pd.DataFrame:
    """Compounds by name (the index, spelled as in BBBC021), with columns `smiles` and `moa`.

    The names and mechanisms are those of Ljosa et al. (J. Biomol. Screen. 2013); the structures are public chemistry.

    Example:
        >>> known_compounds().loc["taxol", "moa"]
        'Microtubule stabilizers'
    """
    return pd.read_csv(str(files("cellfluxrl.data") / "compounds.csv"), index_col="compound")
