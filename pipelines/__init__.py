"""From control images and a compound to images of treated cells."""

from typing import TYPE_CHECKING

from cellfluxrl.lazy import lazy_names

if TYPE_CHECKING:  # what editors and type checkers see of the names below
    from cellfluxrl.pipelines.animation import save_animation as save_animation
    from cellfluxrl.pipelines.cellflux import CellFluxPipeline as CellFluxPipeline
    from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline as CellFluxRLPipeline
    from cellfluxrl.pipelines.outputs import CellFluxPipelineOutput as CellFluxPipelineOutput

__all__ = ["CellFluxPipeline", "CellFluxPipelineOutput", "CellFluxRLPipeline", "save_animation"]

_PUBLIC = {
    "CellFluxPipeline": "cellfluxrl.pipelines.cellflux",
    "CellFluxPipelineOutput": "cellfluxrl.pipelines.outputs",
    "CellFluxRLPipeline": "cellfluxrl.pipelines.cellflux_rl",
    "save_animation": "cellfluxrl.pipelines.animation",
}

if not TYPE_CHECKING:  # to a type checker, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
