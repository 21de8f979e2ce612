import subprocess
import sys

import pytest

import cellfluxrl

NAMES = {
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
}


def test_the_public_names_are_listed():
    assert set(cellfluxrl.__all__) == NAMES | {"__version__"}
    assert set(dir(cellfluxrl)) == set(cellfluxrl.__all__)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_a_documented_class(name):
    value = getattr(cellfluxrl, name)
    assert value.__name__ == name
    assert value.__doc__


def test_a_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'cellfluxrl' has no attribute 'CellFlux'"):
        _ = cellfluxrl.CellFlux


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, cellfluxrl; print([m for m in ('torch', 'diffusers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
