"""Compounds: the 35 of BBBC021 that CellFlux uses with their mechanisms of action, and molecules read from SMILES."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # loaded where they are used
    import pandas as pd
    from rdkit import Chem

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

_ATOM = re.compile(r"\[[^\]]*\]|Br|Cl|[A-Za-z*]")
_RING_BOND = re.compile(r"\[[^\]]*\]|%\((?P<long>\d+)\)|%(?P<two>\d\d)|(?P<one>\d)")
_EXCERPT = 30  # characters shown on either side of a mistake


@cache
def known_compounds() -> pd.DataFrame:
    """Compounds by name (the index, spelled as in BBBC021), with columns `smiles` and `moa`.

    The names and mechanisms are those of Ljosa et al. (J. Biomol. Screen. 2013); the structures are public chemistry.

    Example:
        >>> known_compounds().loc["taxol", "moa"]
        'Microtubule stabilizers'
    """
    import pandas as pd

    return pd.read_csv(str(files("cellfluxrl.data") / "compounds.csv"), index_col="compound")


def read_molecule(smiles: str) -> Chem.Mol:
    """Read a SMILES with RDKit; a `ValueError` says why it cannot be read, and at which character where it can."""
    from rdkit import Chem, rdBase

    molecule = None
    # Of "CC O" RDKit would read "CC", and take "O" for its name.
    if isinstance(smiles, str) and re.fullmatch(r"\s*[!-~]+\s*", smiles):
        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(_why_unreadable(smiles))
    return molecule


def morgan_counts(smiles: str, radius: int = 2, num_bits: int = 1024) -> np.ndarray:
    """Hashed Morgan count fingerprint (Rogers & Hahn, 2010) of one molecule, `(num_bits,)` float32.

    CellFlux conditions on it. `radius` is that of the circular environments, in bonds.

    Example:
        >>> int(morgan_counts("CS(C)=O").sum())
        8
    """
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=num_bits)
    return generator.GetCountFingerprintAsNumPy(read_molecule(smiles)).astype(np.float32)


def _why_unreadable(smiles: object) -> str:
    """The message for a SMILES that RDKit cannot read: RDKit's reason, and a caret under the mistake."""
    if not isinstance(smiles, str) or not smiles.strip():
        return f"RDKit cannot read the SMILES {smiles!r}: a molecule is a string of at least one atom"
    stripped = smiles.strip()
    reason, position = _find_mistake(stripped)
    if position is None:
        return f"RDKit cannot read the SMILES {smiles!r}: {reason}"
    start = max(position - 1 - _EXCERPT, 0)
    excerpt = re.sub(r"[^ -~]", "?", stripped[start : position + _EXCERPT])
    caret = " " * (position - 1 - start) + "^"
    return f"RDKit cannot read the SMILES {smiles!r}: character {position}: {reason}\n    {excerpt}\n    {caret}"


def _find_mistake(smiles: str) -> tuple[str, int | None]:
    """Why a SMILES cannot be read, and at which character (from 1), where that is known."""
    from rdkit import Chem, rdBase

    if stray := re.search(r"[^!-~]", smiles):
        return f"a SMILES has no {stray.group()!r}", stray.start() + 1
    with rdBase.BlockLogs():
        unchecked = Chem.MolFromSmiles(smiles, sanitize=False)
        problems = Chem.DetectChemistryProblems(unchecked) if unchecked is not None else []
    if problems:
        # RDKit numbers the atoms in the order of the string, from 0.
        atoms = [match.start() + 1 for match in _ATOM.finditer(smiles)]
        first = problems[0]
        atom = first.GetAtomIdx() if hasattr(first, "GetAtomIdx") else min(first.GetAtomIndices())
        return first.Message(), atoms[atom] if len(atoms) == unchecked.GetNumAtoms() else None
    said = _parse_errors(smiles)
    if position := re.search(r"around position (\d+)", said):
        return said.partition(" while parsing")[0], int(position.group(1))
    if "unclosed ring" in said:
        return "unclosed ring", _unclosed_ring(smiles)
    return said or "not a SMILES", None


def _parse_errors(smiles: str) -> str:
    """What RDKit logs as it reads a SMILES; "" before RDKit 2026.3, which has no way to ask that spares other logs."""
    from rdkit import Chem, rdBase

    if not hasattr(rdBase, "CaptureErrorLog"):
        return ""
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        Chem.MolFromSmiles(smiles)
    return re.sub(r"(?m)^\[[0-9:]+\] (SMILES Parse Error: )?", "", log.messages).strip()


def _unclosed_ring(smiles: str) -> int | None:
    """Where the first ring is opened that is never closed, which RDKit does not say."""
    opened: dict[int, int] = {}
    for match in _RING_BOND.finditer(smiles):
        label = match["long"] or match["two"] or match["one"]
        if label is not None and opened.pop(int(label), None) is None:
            opened[int(label)] = match.start() + 1
    return min(opened.values(), default=None)
