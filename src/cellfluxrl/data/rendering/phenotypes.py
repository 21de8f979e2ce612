"""The biology of simulated cells: what an untreated cell looks like, and which of its numbers a mechanism changes.

All lengths are in pixels of a 48 x 48 crop (`REFERENCE_SIZE`).
"""

from __future__ import annotations

REFERENCE_SIZE = 48
MAX_CELLS = 9  # the central cell and at most eight neighbours

DMSO_PHENOTYPE: dict[str, float] = {
    "nucleus_radius": 8.2,  # px
    "nucleus_elongation": 1.22,  # long axis over short axis
    "nucleus_lobing": 0.0,  # distance of the lobes from the nucleus' centre, in nucleus radii; 1 = fragments
    "dna_brightness": 1.0,
    "dna_texture": 0.16,  # contrast of chromatin and nucleoli
    "mitotic_fraction": 0.03,  # of the cells, round and with condensed DNA
    "cell_radius": 18.0,  # px
    "cell_elongation": 1.45,
    "cell_spikiness": 0.15,  # amplitude of the outline's harmonics, in cell radii
    "neighbours": 6.0,  # mean number of cells around the central one
    "tubulin_brightness": 1.0,
    "tubulin_filaments": 0.6,  # 0 = diffuse, 1 = all of it in filaments
    "tubulin_bundling": 0.0,  # share of filaments that merged into few thick bundles
    "tubulin_aggregate": 0.0,  # brightness of one round aggregate beside the nucleus
    "actin_brightness": 1.0,
    "actin_cortex": 0.8,  # brightness of the rim under the membrane
    "actin_fibres": 0.6,  # contrast of the stress fibres
    "actin_clumps": 0.0,  # brightness of actin aggregates
}

# One row per MoA, BBBC021's spelling: only what differs from DMSO at full effect. The headline effects follow
# Ljosa et al., J. Biomol. Screen. 18, 1321 (2013) and Caie et al., Mol. Cancer Ther. 9, 1913 (2010); the reference
# beside a row explains its mechanism. The numbers are ours: chosen for the direction and rough size of the effect.
MOA_EFFECTS: dict[str, dict[str, float]] = {
    # Depolymerised filaments gather in clumps and the cell retracts (Schliwa, J. Cell Biol. 92, 79, 1982).
    "Actin disruptors": {
        "cell_radius": 13.5, "cell_spikiness": 0.20, "neighbours": 4.0,
        "actin_cortex": 0.35, "actin_fibres": 0.05, "actin_clumps": 1.7,
    },
    # Cytokinesis fails, cells become polyploid (Ditchfield et al., J. Cell Biol. 161, 267, 2003).
    "Aurora kinase inhibitors": {
        "nucleus_radius": 10.4, "nucleus_lobing": 0.65, "cell_radius": 21.5, "neighbours": 3.5,
    },
    # Statins: without prenylated Rho cells lose fibres and retract (Fenton et al., J. Cell Biol. 117, 347, 1992).
    "Cholesterol-lowering": {
        "nucleus_radius": 7.3, "nucleus_elongation": 1.5, "cell_radius": 13.5, "cell_elongation": 2.9,
        "cell_spikiness": 0.15, "neighbours": 3.5, "actin_fibres": 0.25,
    },
    # Arrested cells keep growing and divide no more (Rodier and Campisi, J. Cell Biol. 192, 547, 2011).
    "DNA damage": {
        "nucleus_radius": 10.6, "dna_brightness": 0.95, "dna_texture": 0.24, "cell_radius": 19.5,
        "neighbours": 2.6, "mitotic_fraction": 0.0,
    },
    # Stalled in S phase: unreplicated DNA, smooth chromatin (Vesela et al., Biomolecules 7, 19, 2017).
    "DNA replication": {
        "nucleus_radius": 9.6, "nucleus_elongation": 1.12, "dna_brightness": 0.68, "dna_texture": 0.05,
        "neighbours": 4.0, "mitotic_fraction": 0.0,
    },
    # Unseparated poles: a ring of chromosomes around one aster (Mayer et al., Science 286, 971, 1999).
    "Eg5 inhibitors": {
        "mitotic_fraction": 0.85, "cell_radius": 15.5, "neighbours": 3.8,
    },
    # Src-family inhibitors restore junctions: cobblestones (Nam et al., Clin. Cancer Res. 8, 2430, 2002).
    "Epithelial": {
        "nucleus_radius": 7.6, "cell_radius": 14.0, "cell_elongation": 1.1, "cell_spikiness": 0.04,
        "neighbours": 8.0, "actin_cortex": 1.7, "actin_fibres": 0.15,
    },
    # Broad kinase inhibition at sub-lethal doses: spread cells, fewer stress fibres; the mildest row on purpose.
    "Kinase inhibitors": {
        "cell_radius": 19.0, "actin_fibres": 0.15, "actin_cortex": 0.5, "actin_brightness": 0.75,
    },
    # No polymer, no spindle: diffuse tubulin, arrest and micronuclei (Jordan and Wilson, Nat Rev Cancer 4, 253, 2004).
    "Microtubule destabilizers": {
        "nucleus_radius": 7.6, "nucleus_lobing": 0.75, "mitotic_fraction": 0.22, "cell_radius": 14.0,
        "cell_elongation": 1.12, "neighbours": 4.0, "tubulin_filaments": 0.05,
    },
    # Excess polymer in bundles; mitotic slippage leaves lobed nuclei (Jordan and Wilson, 2004).
    "Microtubule stabilizers": {
        "nucleus_lobing": 0.70, "nucleus_radius": 8.6, "cell_elongation": 1.25, "neighbours": 4.0,
        "tubulin_filaments": 1.0, "tubulin_bundling": 0.9, "tubulin_brightness": 1.3,
    },
    # Proteasome inhibitors: aggresome at the centrosome (Johnston et al., J. Cell Biol. 143, 1883, 1998).
    "Protein degradation": {
        "nucleus_radius": 7.1, "dna_brightness": 1.2, "cell_radius": 15.0, "neighbours": 4.0,
        "tubulin_aggregate": 2.6,
    },
    # Growth stops: small, compact, bright cells (Lloyd, Cell 154, 1194, 2013, on what sets cell size).
    "Protein synthesis": {
        "nucleus_radius": 7.2, "dna_texture": 0.10, "cell_radius": 13.2, "neighbours": 4.5,
        "tubulin_brightness": 1.35, "actin_brightness": 1.35,
    },
}  # fmt: skip
