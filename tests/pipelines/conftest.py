import pytest
import torch


@pytest.fixture(scope="session")
def pipe(pipeline):
    """The pipeline under test; a module may put its own in this place."""
    return pipeline


@pytest.fixture
def generate(pipe, controls):
    """Calls the pipeline: two steps with seed 0, to a tensor, unless told otherwise."""

    def run(images=controls, pipe=pipe, **arguments):
        settings = {"compound": "taxol", "num_inference_steps": 2, "output_type": "pt"}
        settings["generator"] = torch.Generator().manual_seed(0)
        if "smiles" in arguments:
            settings.pop("compound")
        return pipe(images, **{**settings, **arguments})

    return run
