"""The options of the demo, which are known and checked without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from cellfluxrl.arguments import SharedArguments, option

CONFIGS = files("cellfluxrl.training") / "configs"


@dataclass
class DemoArguments(SharedArguments):
    """The whole chain: data, base, classifiers, rewards, post-training, evaluation, report.

    Without --data_dir the cells are simulated, and the base is the one that ships with the package; with it they are
    real BBBC021 crops, one PLATE.npz a plate. Ends with the tables of `cellfluxrl evaluate`, report.html in
    --output_dir, and a pipeline that CellFluxRLPipeline.from_pretrained loads. Run it again to resume where it was
    interrupted.

    Examples:
      cellfluxrl demo
      cellfluxrl demo --data_dir path/to/crops --output_dir runs/real
    """

    output_dir: str = option("runs/demo", "where the results go")
    eval_controls: int = option(320, "held-out controls that are evaluated, most models with 4 samples of each")
    overwrite: bool = option(False, "start again even if --output_dir holds a demo with other settings")
    json: bool = option(False, "print the result as JSON, and nothing else")
