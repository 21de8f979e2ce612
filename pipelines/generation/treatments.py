"""The compounds that a command names, as what the network is conditioned on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cellfluxrl.data.tables import check_filled, check_smiles, check_text, numbers, read_table
from cellfluxrl.errors import unknown_name
from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline

COLUMNS = ("compound", "concentration", "smiles", "moa")


@dataclass(frozen=True)
class Treatment:
    """One compound, at one concentration in uM.

    Args:
        smiles: Its structure; needed for a compound that the pipeline does not know by name.
        moa: The mechanism of action that its images are scored for.
        is_scored: Whether the pipeline has rewards for that mechanism.
    """

    compound: str
    concentration: float | None = None
    smiles: str | None = None
    moa: str | None = None
    is_scored: bool = False

    @property
    def label(self) -> str:
        """For messages and folder names: `taxol`, or `nocodazole 0.1 uM`."""
        return self.compound if self.concentration is None else f"{self.compound} {self.concentration:g} uM"

    @property
    def key(self) -> int:
        """A number of 64 bits that differs between structures and between concentrations."""
        identity = json.dumps([self.smiles, self.concentration])
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")


def parse_treatments(texts: Sequence[str]) -> list[Treatment]:
    """Read `NAME` or `NAME:CONCENTRATION`, the latter in uM.

    Example:
        >>> [treatment.label for treatment in parse_treatments(["taxol", "nocodazole:0.1"])]
        ['taxol', 'nocodazole 0.1 uM']
    """
    treatments = []
    for text in texts:
        name, colon, number = text.partition(":")
        try:
            treatments.append(Treatment(name, float(number) if colon else None))
        except ValueError:
            raise ValueError(f"compounds are NAME or NAME:CONCENTRATION with a number in uM, got {text!r}") from None
        if not name:
            raise ValueError(f"compounds are NAME or NAME:CONCENTRATION, got {text!r}")
    return treatments


def read_treatments(path: str | Path) -> list[Treatment]:
    """Read a CSV file with the column `compound` and, where wanted, `concentration` (uM), `smiles` and `moa`."""
    path = Path(path)
    table = read_table(path, ["compound"])
    for column in table.columns:
        if column not in COLUMNS:
            raise unknown_name(f"column of {path}:", column, COLUMNS)
    check_text(table, path)
    check_filled(table, path, ["compound"])
    if "smiles" in table:
        check_smiles(table, path, "smiles")
    doses = {}
    if "concentration" in table:
        given = table[table["concentration"] != ""]
        doses = dict(zip(given.index, numbers(given, path, "concentration").tolist(), strict=True))
    return [
        Treatment(row["compound"], doses.get(line), row.get("smiles") or None, row.get("moa") or None)
        for line, row in table.iterrows()
    ]


def resolve_treatments(
    treatments: Sequence[Treatment], pipe: CellFluxRLPipeline
) -> tuple[list[Treatment], torch.Tensor]:
    """Look compounds up in the table of a pipeline, and encode them; a SMILES that is given is used.

    Returned are the treatments with their `smiles`, `moa` and `is_scored` filled in as far as they are known, and
    their conditions `(len(treatments), D)`.
    """
    if pipe.unet.config.condition_dim is None:
        raise ValueError("this pipeline's network is unconditional: it generates no treated cells of a compound")
    resolved, conditions = [], []
    for treatment in treatments:
        name, dose = treatment.compound, treatment.concentration
        entry = pipe.encoder.config.compounds.get(name)
        if entry is None and treatment.smiles is None:
            error = unknown_name("compound", name, pipe.encoder.names)
            raise ValueError(f"{error}. Any other compound needs its SMILES, in --compounds_file")
        if pipe.is_conditioned_on_dose and dose is None:
            raise ValueError(
                f"this network is conditioned on the concentration: give that of {name!r} in uM, {name}:0.1"
            )
        if not pipe.is_conditioned_on_dose and dose is not None:
            raise ValueError(f"{name}:{dose:g}: this network is not conditioned on the concentration; leave it out")
        smiles = treatment.smiles or entry["smiles"]
        is_known = entry is not None and smiles == entry["smiles"]
        by = {"compound": name} if is_known else {"smiles": smiles}
        conditions.append(pipe.encode_condition(1, **by, concentration=dose))
        moa = treatment.moa or (entry.get("moa") if is_known else None) or None
        if pipe.rewards is not None and treatment.moa:
            pipe.rewards.check_moas([treatment.moa])
        is_scored = pipe.rewards is not None and moa in pipe.rewards.moas
        is_scored = is_scored and bool(pipe.rewards.count[pipe.rewards.moas.index(moa)] > 0)
        resolved.append(replace(treatment, smiles=smiles, moa=moa, is_scored=is_scored))
    identities = [(t.compound, t.concentration, t.smiles) for t in resolved]
    for treatment, identity in zip(resolved, identities, strict=True):
        if identities.count(identity) > 1:
            raise ValueError(f"{treatment.label!r} is there more than once: several images are --num_per_control")
    return resolved, torch.cat(conditions)
