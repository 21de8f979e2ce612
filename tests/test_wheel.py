"""The package as a stranger installs it, from the wheel, the sdist or a clone: it imports, runs, and has types."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import cellfluxrl

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's package, links included: a build leaves nothing behind."""
    folder = tmp_path_factory.mktemp("clone")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "rewards", "pipelines", "training", "model_cards"):
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(clone: Path) -> dict[str, Path]:
    """The sdist, and the wheel that is built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", clone / "dist", clone, cwd=clone)
    (wheel,), (sdist,) = (list((clone / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    return {"wheel": wheel, "sdist": sdist}


def install(target: str | Path, environment: Path, *options: str) -> Path:
    """Install into a new environment, which has the dependencies of this one; returns its Python."""
    venv.create(environment, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # The dependencies are those of this environment; its own editable install is not seen through a .pth file.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation"]
    run(*command, "--ignore-installed", *options, target, cwd=environment)
    return python


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: dict[str, Path], tmp_path_factory) -> Path:
    return install(built[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def editable(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(clone, tmp_path_factory.mktemp("editable"), "--editable")


# --------------------------------------------------------------------------------------------------------------------
# Wheel and sdist
# --------------------------------------------------------------------------------------------------------------------


def test_wheel_and_sdist_have_all_files_of_the_package(clone: Path, built: dict[str, Path]) -> None:
    in_wheel = {name for name in zipfile.ZipFile(built["wheel"]).namelist() if name.startswith("cellfluxrl/")}
    with tarfile.open(built["sdist"]) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.islnk() or member.issym()]
    inside = [member.name.partition("/")[2] for member in members if member.isfile()]
    in_sdist = {name.removeprefix("src/") for name in inside if name.startswith("src/cellfluxrl/")}
    assert in_wheel == in_sdist
    roots = {"": clone / "src/cellfluxrl"} | {
        f"{name}/": clone / name for name in ("rewards", "pipelines", "training", "model_cards")
    }
    written = {
        f"cellfluxrl/{prefix}{path.relative_to(root)}"
        for prefix, root in roots.items()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
    }
    assert in_wheel == written
    assert "cellfluxrl/py.typed" in in_wheel


def test_every_public_name_imports(installed: Path, tmp_path: Path) -> None:
    code = "import cellfluxrl as c; [getattr(c, n) for n in c.__all__]; print(c.__file__, len(c.__all__))"
    path, count = run(installed, "-c", code, cwd=tmp_path).split()
    assert path.startswith(str(installed.parents[1]))
    assert int(count) == len(cellfluxrl.__all__)


def test_the_command_line_and_the_shipped_files_are_there(installed: Path, tmp_path: Path) -> None:
    assert "--data_dir" in run(installed.with_name("cellfluxrl"), "demo", "--help", cwd=tmp_path)
    code = (
        "from cellfluxrl.training import demo, options; from pathlib import Path; "
        "print(Path(str(options.CONFIGS / 'simulated.yaml')).is_file(), "
        "Path(str(demo.SHIPPED_BASE / 'model_index.json')).is_file())"
    )
    assert run(installed, "-c", code, cwd=tmp_path).split() == ["True", "True"]


# --------------------------------------------------------------------------------------------------------------------
# A clone, and what tools see of it
# --------------------------------------------------------------------------------------------------------------------


def test_an_editable_install_is_one_plain_path(editable: Path, clone: Path) -> None:
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(editable.parents[1])}))
    (entry,) = packages.glob("__editable__*")
    assert entry.suffix == ".pth"
    assert entry.read_text().split() == [str(clone / "src")]


def test_a_type_checker_sees_the_package_from_outside(editable: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import cellfluxrl.rewards.suite\n"
        "from cellfluxrl import CellFluxRLPipeline\n"
        "from cellfluxrl import Nonsense\n"
        "reveal_type(cellfluxrl.rewards.suite.RewardSuite)\n"
        "reveal_type(CellFluxRLPipeline)\n"
        "reveal_type(CellFluxRLPipeline.from_pretrained('folder'))\n"
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", editable, script]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    reports = json.loads(done.stdout)["generalDiagnostics"]
    errors = [report["message"] for report in reports if report["severity"] in ("error", "warning")]
    assert errors == ['"Nonsense" is unknown import symbol'], done.stdout
    types = [report["message"].split(" is ")[1] for report in reports if report["severity"] == "information"]
    assert types == ['"type[RewardSuite]"', '"type[CellFluxRLPipeline]"', '"CellFluxRLPipeline"']
