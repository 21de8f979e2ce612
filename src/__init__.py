"""CellFluxRL: image-based virtual cells by flow matching, post-trained with biological rewards."""

from cellfluxrl.lazy import lazy_names

__version__ = "0.1.0"

_PUBLIC = {
    "BBBC021": "cellfluxrl.data.bbbc021",
    "CellFluxFlowMatchScheduler": "cellfluxrl.schedulers.flow_match",
    "CellFluxPipeline": "cellfluxrl.pipelines.cellflux",
    "CellFluxRLPipeline": "cellfluxrl.pipelines.cellflux_rl",
    "CellFluxUNet2DModel": "cellfluxrl.models.unet",
    "CompoundEncoder": "cellfluxrl.models.compound_encoder",
    "ControlTreatedPairs": "cellfluxrl.data.pairs",
    "MoAClassifier": "cellfluxrl.models.moa_classifier",
    "Reward": "cellfluxrl.rewards.terms",
    "RewardSuite": "cellfluxrl.rewards.suite",
    "SimulatedCells": "cellfluxrl.data.simulated_cells",
}

__all__ = sorted([*_PUBLIC, "__version__"])

__getattr__, _ = lazy_names(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
