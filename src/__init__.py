"""CellFluxRL: image-based virtual cells by flow matching, post-trained with biological rewards."""

import importlib

__version__ = "0.1.0"

# Public names by module; a name is imported when it is first used, so that `import cellfluxrl` stays fast.
_PUBLIC = {
    "BBBC021": "cellfluxrl.data.bbbc021",
    "CellFluxFlowMatchScheduler": "cellfluxrl.schedulers",
    "CellFluxPipeline": "cellfluxrl.pipelines",
    "CellFluxRLPipeline": "cellfluxrl.pipelines",
    "CellFluxUNet2DModel": "cellfluxrl.models.unet",
    "CompoundEncoder": "cellfluxrl.models.compound_encoder",
    "ControlTreatedPairs": "cellfluxrl.data.pairs",
    "MoAClassifier": "cellfluxrl.models.moa_classifier",
    "Reward": "cellfluxrl.rewards",
    "RewardSuite": "cellfluxrl.rewards",
    "SimulatedCells": "cellfluxrl.data.simulated_cells",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
