"""From control images and a compound to images of treated cells."""

from cellfluxrl.lazy import lazy_names

_PUBLIC = {
    "CellFluxPipeline": "cellfluxrl.pipelines.cellflux",
    "CellFluxPipelineOutput": "cellfluxrl.pipelines.cellflux",
    "CellFluxRLPipeline": "cellfluxrl.pipelines.cellflux_rl",
    "save_animation": "cellfluxrl.pipelines.animation",
}

__all__ = sorted(_PUBLIC)

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
