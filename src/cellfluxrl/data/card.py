"""The card of a data set, filled in from the report of its build."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import datasets
import pandas as pd
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from cellfluxrl.data.info import count_tables, problems_of, reported_counts
from cellfluxrl.data.schema import HIGH_PERCENTILE, LOW_PERCENTILE, cell_features
from cellfluxrl.errors import unknown_name
from cellfluxrl.hub.cards import render_card

LICENSE_FIELDS = ("license", "license_name", "license_link")
TAGS = ("biology", "microscopy", "single-cell", "drug-discovery", "cellfluxrl")


@dataclass(frozen=True)
class Origin:
    """What the card says that depends on where the cells come from."""

    title: str  # of the data set
    what: str  # the cells are, and who imaged them
    limits: tuple[str, ...]  # what the data must not be taken for
    terms: str  # the licence, in words
    citation: str
    license: dict[str, str]  # the card's `license`, and for a custom one `license_name` and `license_link`


_REAL_LIMITS = (
    "Cells are told apart by their nuclei. Neighbours reach into most crops, and some nuclei are wrongly split or "
    "merged.",
    "A mechanism of action is a property of the compound and dose, not something seen in each cell: many treated "
    "cells look like controls.",
    "Plates differ in staining and exposure. Compare treated cells with controls of the same plate.",
)

_BBBC021_LINK = "https://bbbc.broadinstitute.org/BBBC021"
_BBBC021 = Origin(
    title="BBBC021 single cells",
    what=(
        "Single cells of the image set BBBC021v1: MCF-7 human breast cancer cells, treated for 24 h with 113 "
        "compounds at eight concentrations, stained for DNA, beta-tubulin and F-actin, and imaged by fluorescence "
        "microscopy. The images are those of Caie et al. (2010), published by the Broad Bioimage Benchmark Collection "
        "(Ljosa et al., 2012)."
    ),
    limits=(*_REAL_LIMITS, "One cell line, one laboratory: nothing here says how other cells respond."),
    terms=(
        f"The images are the work of others. The terms stated at the source, {_BBBC021_LINK}, apply to these crops "
        "too: read and accept them there before using or sharing the data."
    ),
    citation=(
        f"We used image set [BBBC021v1]({_BBBC021_LINK}) [Caie et al., Molecular Cancer Therapeutics, 2010], "
        "available from the Broad Bioimage Benchmark Collection [Ljosa et al., Nature Methods, 2012].\n\n"
        "- Caie et al., High-content phenotypic profiling of drug response signatures across distinct cancer cells. "
        "Molecular Cancer Therapeutics 9, 1913 (2010). https://doi.org/10.1158/1535-7163.MCT-09-1148\n"
        "- Ljosa, Sokolnicki and Carpenter, Annotated high-throughput microscopy image sets for validation. "
        "Nature Methods 9, 637 (2012). https://doi.org/10.1038/nmeth.2083"
    ),
    license={"license": "other", "license_name": "bbbc021-terms", "license_link": _BBBC021_LINK},
)

ORIGINS = {
    "bbbc021": _BBBC021,
    "crops": _BBBC021,
    "impa": replace(
        _BBBC021,
        what=_BBBC021.what
        + " The crops were cut by the authors of IMPA (Palma et al., 2025), and are as they left them.",
        citation=_BBBC021.citation
        + "\n- Palma, Theis and Lotfollahi, Predicting cell morphological responses to perturbations using generative "
        "modeling. Nature Communications (2025). https://doi.org/10.1038/s41467-024-55707-8",
    ),
    "folder": Origin(
        title="Single cells",
        what="Single cells, cut from microscope images.",
        limits=_REAL_LIMITS,
        terms="No licence was given when this data set was built.",
        citation="No citation was given when this data set was built.",
        license={},
    ),
    "simulated": Origin(
        title="Simulated cells",
        what=(
            "Pictures of cells that were computed, not photographed, in the manner of BBBC021: DNA, tubulin and actin "
            "of cells under compounds of 12 mechanisms of action. For tests and demonstrations of software."
        ),
        limits=(
            "No real cell is shown. Compounds of one mechanism look the same by construction, doses are invented, and "
            "nothing learned here holds for real compounds.",
        ),
        terms="Apache License 2.0.",
        citation="No publication; name CellFluxRL and its version.",
        license={"license": "apache-2.0"},
    ),
}

_STRETCH = (
    f"8 bits: the square root of the intensity, stretched between the percentiles {LOW_PERCENTILE:g} and "
    f"{HIGH_PERCENTILE:g} of all cells of the plate, for each channel; what lies outside is cut off. Intensities of "
    "different plates are therefore on different scales."
)
_CUT = (
    "Nuclei were found in the DNA channel (typical diameter {nucleus_diameter} pixels), and {crop_size} x "
    "{crop_size} pixels were cut out around each, then resized to {image_size} x {image_size}.",
    "Illumination: each channel was divided by the smoothed mean of the plate's fields of view; plates with too few "
    "fields were left as they are, which `build_report.json` notes.",
    _STRETCH,
)
PROCESSING = {
    "bbbc021": _CUT,
    "folder": _CUT,
    "crops": ("Crops were resized to {image_size} x {image_size} pixels.", _STRETCH),
    "impa": ("Taken as published: already cut, and in 8 bits.",),
    "simulated": ("Drawn from random shapes and textures, then blurred and given a camera's noise.",),
}

SPLITS = {
    "plate": "by plate; the test plates are {held_out}",
    "cellflux": "by compound, as CellFlux does; its eight held-out compounds are tested on",
    "leave_one_compound_out": "all doses of {held_out} are tested on",
    "leave_one_batch_out": "all plates of {held_out} are tested on",
    "published": "as published with the crops",
}


def dataset_card(report: dict) -> str:
    """Fill in `model_cards/dataset.md` from the report of a build, as in `build_report.json`.

    A `"folder"` is described by the user, with `license` (a licence identifier of the Hub), and if wanted
    `license_name`, `license_link`, `title`, `description` and `citation`. Without `license` the card has none, and
    [`push_dataset`] refuses it.

    Raises:
        ValueError: If the report's source is unknown.
    """
    source = report["source"]
    if source not in ORIGINS:
        raise unknown_name("source", source, ORIGINS)
    origin = _described(ORIGINS[source], report) if source == "folder" else ORIGINS[source]
    settings = {"image_size": report["image_size"], **report.get("settings", {})}
    if "crop_size" in report:
        settings.setdefault("crop_size", report["crop_size"])
    numbers = {name: f"{value:g}" if isinstance(value, float) else value for name, value in settings.items()}
    known = defaultdict(lambda: "unknown", numbers)  # a source may leave settings out
    counts = reported_counts(report)
    splits = [split for split in ("train", "test") if split in set(counts["split"])]
    held_out = sorted(report["split"].get("held_out") or counts.loc[counts["split"] == "test", "plate"].unique())
    scheme = SPLITS.get(report["split"]["scheme"], report["split"]["scheme"])
    return render_card(
        "dataset.md",
        metadata=_metadata(report, origin, counts, splits),
        origin=origin,
        total=f"{counts['cells'].sum():,}",
        image_size=report["image_size"],
        channels=report["channel_names"],
        splits=splits,
        tables={title: _markdown(table) for title, table in count_tables(counts).items()},
        processing=[step.format_map(known) for step in PROCESSING[source]],
        split=scheme.format(held_out=", ".join(held_out) or "none"),
        near_border=sum(plate.get("near_border", 0) for plate in report["plates"].values()),
        problems=len(problems_of(report)),
        settings=", ".join(f"`{name}` {value}" for name, value in settings.items()),
    )


def _described(origin: Origin, report: dict) -> Origin:
    """The user's words in place of ours."""
    license = {key: report[key] for key in LICENSE_FIELDS if report.get(key)}
    link = f" ({report['license_link']})" if report.get("license_link") else ""
    return replace(
        origin,
        title=report.get("title") or origin.title,
        what=report.get("description") or origin.what,
        terms=f"{report['license']}{link}." if report.get("license") else origin.terms,
        citation=report.get("citation") or origin.citation,
        license=license,
    )


def _metadata(report: dict, origin: Origin, counts: pd.DataFrame, splits: list[str]) -> str:
    """The YAML header. With the features and the row counts in it, `load_dataset` notices what is missing."""
    rows = counts.groupby("split")["cells"].sum()
    files = [{"split": split, "path": f"data/{split}/*.parquet"} for split in splits]
    card = DatasetCardData(
        **origin.license,
        pretty_name=origin.title,
        task_categories=["image-classification", "image-to-image"],
        tags=[*TAGS],
        size_categories=[_size_category(int(counts["cells"].sum()))],
        configs=[{"config_name": "default", "data_files": files}],
    )
    lengths = [{"name": split, "num_examples": int(rows[split])} for split in splits]
    info = datasets.DatasetInfo(
        features=cell_features(report["channel_names"], report["image_size"], published=True),
        splits=datasets.SplitDict.from_split_dict(lengths),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    return card.to_yaml()


def _size_category(cells: int) -> str:
    """The Hub's size of a data set of so many rows, up to 100 million."""
    sizes = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"]
    return next((size for exponent, size in enumerate(sizes, start=3) if cells < 10**exponent), "10M<n<100M")


def _markdown(table: pd.DataFrame) -> str:
    def line(cells: list[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") or "–" for cell in cells) + " |"

    rules = ["---:" if pd.api.types.is_numeric_dtype(table[name]) else "---" for name in table.columns]
    return "\n".join(line(row) for row in [list(table.columns), rules, *table.astype(object).values.tolist()])
