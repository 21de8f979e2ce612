"""The wheel as a stranger installs it: every public name imports, and the command line runs."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import cellfluxrl

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # The dependencies are those of this environment; its own editable install is not seen through a .pth file.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("cellfluxrl-*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install"]
    subprocess.run([*install, "--no-deps", "--ignore-installed", str(wheel)], check=True, capture_output=True)
    return environment


def test_every_public_name_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import cellfluxrl as c; [getattr(c, n) for n in c.__all__]; print(c.__file__, len(c.__all__))"
    done = subprocess.run([installed / "bin" / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, count = done.stdout.split()
    assert path.startswith(str(installed))
    assert int(count) == len(cellfluxrl.__all__)


def test_the_command_line_and_the_shipped_files_are_there(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "bin" / "cellfluxrl", "demo", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--data_dir" in done.stdout
    code = (
        "from cellfluxrl.training import demo, options; from pathlib import Path; "
        "print(Path(str(options.CONFIGS / 'simulated.yaml')).is_file(), "
        "Path(str(demo.SHIPPED_BASE / 'model_index.json')).is_file())"
    )
    done = subprocess.run([installed / "bin" / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
