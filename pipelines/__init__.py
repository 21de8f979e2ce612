from cellfluxrl.pipelines.animation import save_animation
from cellfluxrl.pipelines.cellflux import CellFluxPipeline, CellFluxPipelineOutput
from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline

__all__ = ["CellFluxPipeline", "CellFluxPipelineOutput", "CellFluxRLPipeline", "save_animation"]
