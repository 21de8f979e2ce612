"""Configurations of [`CellFluxUNet2DModel`] by name."""

from __future__ import annotations

from typing import Any

from cellfluxrl.errors import unknown_name

# The network published with CellFlux, up to the numbers of channels and conditions.
_PUBLISHED: dict[str, Any] = {
    "sample_size": 96,
    "model_channels": 128,
    "channel_mult": (2, 2, 2),
    "num_res_blocks": 4,
    "attention_resolutions": (2,),
    "dropout": 0.3,
}

# What the small networks share.
_PATCHES: dict[str, Any] = {
    "patch_size": 2,
    "num_res_blocks": 1,
    "dropout": 0.0,
    "norm_num_groups": 8,
    "prediction_type": "target",
}

PRESETS: dict[str, dict[str, Any]] = {
    # BBBC021: 56,201,219 parameters; the condition is a Morgan fingerprint.
    "bbbc021": _PUBLISHED,
    # RxRx1: gene knockdowns; the condition is a gene2vec embedding of the gene.
    "rxrx1": {
        **_PUBLISHED,
        "in_channels": 6,
        "out_channels": 6,
        "condition_dim": 200,
        "channel_names": ("nuclei", "er", "actin", "nucleoli", "mitochondria", "golgi"),
    },
    # JUMP's pilot: compounds and genes; the condition is as wide as a fingerprint and a gene2vec embedding together.
    "cpg0000": {
        **_PUBLISHED,
        "in_channels": 5,
        "out_channels": 5,
        "condition_dim": 1224,
        "channel_names": ("dna", "er", "rna", "agp", "mito"),
    },
    # Trains on a CPU: 48 px images in 2x2 patches, attention on the 6x6 map.
    "small": {
        **_PATCHES,
        "sample_size": 48,
        "model_channels": 48,
        "channel_mult": (1, 1.5, 2),
        "attention_resolutions": (4,),
    },
    # For tests: every kind of layer, no quality.
    "tiny": {
        **_PATCHES,
        "sample_size": 16,
        "model_channels": 16,
        "channel_mult": (1, 1),
        "attention_resolutions": (2,),
    },
}


def preset_config(name: str) -> dict[str, Any]:
    """Return a copy of the configuration of a preset, one of `PRESETS`."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return dict(PRESETS[name])
