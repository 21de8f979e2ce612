"""CellFluxRL: image-based virtual cells by flow matching, post-trained with biological rewards."""

from typing import TYPE_CHECKING

from cellfluxrl.lazy import lazy_names

if TYPE_CHECKING:  # what editors and type checkers see of the names below
    from cellfluxrl.data.builders.bbbc021 import BBBC021 as BBBC021
    from cellfluxrl.data.builders.simulated_cells import SimulatedCells as SimulatedCells
    from cellfluxrl.data.pairs import ControlTreatedPairs as ControlTreatedPairs
    from cellfluxrl.models.compound_encoder import CompoundEncoder as CompoundEncoder
    from cellfluxrl.models.moa_classifier import MoAClassifier as MoAClassifier
    from cellfluxrl.models.unet import CellFluxUNet2DModel as CellFluxUNet2DModel
    from cellfluxrl.pipelines.cellflux import CellFluxPipeline as CellFluxPipeline
    from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline as CellFluxRLPipeline
    from cellfluxrl.rewards.suite import RewardSuite as RewardSuite
    from cellfluxrl.rewards.terms import Reward as Reward
    from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler as CellFluxFlowMatchScheduler

__version__ = "0.1.0"

_PUBLIC = {
    "BBBC021": "cellfluxrl.data.builders.bbbc021",
    "CellFluxFlowMatchScheduler": "cellfluxrl.schedulers.flow_match",
    "CellFluxPipeline": "cellfluxrl.pipelines.cellflux",
    "CellFluxRLPipeline": "cellfluxrl.pipelines.cellflux_rl",
    "CellFluxUNet2DModel": "cellfluxrl.models.unet",
    "CompoundEncoder": "cellfluxrl.models.compound_encoder",
    "ControlTreatedPairs": "cellfluxrl.data.pairs",
    "MoAClassifier": "cellfluxrl.models.moa_classifier",
    "Reward": "cellfluxrl.rewards.terms",
    "RewardSuite": "cellfluxrl.rewards.suite",
    "SimulatedCells": "cellfluxrl.data.builders.simulated_cells",
}

__all__ = [
    "BBBC021",
    "CellFluxFlowMatchScheduler",
    "CellFluxPipeline",
    "CellFluxRLPipeline",
    "CellFluxUNet2DModel",
    "CompoundEncoder",
    "ControlTreatedPairs",
    "MoAClassifier",
    "Reward",
    "RewardSuite",
    "SimulatedCells",
    "__version__",
]

if not TYPE_CHECKING:  # to a type checker, a module with `__getattr__` has every name
    __getattr__, _ = lazy_names(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
