"""The documentation's site: built without a warning, complete, and readable without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, MoAClassifier, RewardSuite, SimulatedCells
from cellfluxrl.commands import cli, registry
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.training.demo import SHIPPED_BASE

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
GENERATED = {"index.md", "changelog.md", "quickstart.md"}  # by docs/site_hooks.py


def pages_of(nav: list) -> list[str]:
    """All pages of mkdocs.yml's navigation."""
    entries = [value for entry in nav for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [page for e in entries for page in (pages_of(e) if isinstance(e, list) else [e])]


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!\S+", "", (REPOSITORY / "mkdocs.yml").read_text())
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(pages_of(yaml.safe_load(text)["nav"])) == written | GENERATED


# --------------------------------------------------------------------------------------------------------------------
# The page of the command line
# --------------------------------------------------------------------------------------------------------------------


def test_the_command_line_page_names_every_command_and_exit_status() -> None:
    page = (DOCS / "cli.md").read_text()
    for command in cli.COMMANDS:
        assert f"`cellfluxrl {command}" in page or f"cellfluxrl {command} " in page, command
    statuses = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert {int(status) for status in statuses} == {0, cli.MISTAKE, cli.INTERRUPTED, cli.UNEXPECTED}


def test_the_command_line_page_says_what_each_json_holds() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "cli.md").read_text().split("## For programs")[1], re.MULTILINE)
    named = {command for row in rows for command in re.findall(r"`([\w ]+)`", row)}
    with_json = {
        command
        for command, make in registry.parsers().items()
        if "json" in {action.dest for action in make()._actions}
    }
    assert named == with_json


# --------------------------------------------------------------------------------------------------------------------
# The notebook
# --------------------------------------------------------------------------------------------------------------------


def test_the_notebook_is_small_and_was_run_from_top_to_bottom() -> None:
    assert NOTEBOOK.stat().st_size < 200_000
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result", "display_data"}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """With the base that ships with the package and a classifier that knows nothing."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    builder = SimulatedCells(
        cache_dir=str(tmp_path), image_size=48, cells_per_moa=4, controls_per_plate=3, num_plates=2
    )
    builder.download_and_prepare()
    suite = RewardSuite.fit(builder.as_dataset()["train"], MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval())
    base = CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    pipe = CellFluxRLPipeline(base.unet, base.scheduler, base.encoder, suite)
    pipe.save_pretrained(tmp_path / "runs/demo/pipeline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert printed.count('"image/png"') == 3
    assert "within_range" in printed


# --------------------------------------------------------------------------------------------------------------------
# The site
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, of a copy of the repository's files: a build leaves nothing behind."""
    pytest.importorskip("mkdocstrings", reason="pip install 'cellfluxrl[docs]'")
    copy = tmp_path_factory.mktemp("repository")
    for name in ("src", "rewards", "pipelines", "training", "docs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md"):
        shutil.copy(REPOSITORY / name, copy / name)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return copy / "build/site"


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        html = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="?(?:https?:)?//[^">]*', html)
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|preconnect|preload)"?[^>]*href="?(?:https?:)?//', html)
        assert not loaded, f"{page}: {loaded}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()), style


@pytest.mark.slow
def test_formulas_are_drawn_and_the_reference_is_filled(site: Path) -> None:
    method = (site / "method.html").read_text()
    assert method.count("<math") > 30
    assert 'class="arithmatex"' not in method
    assert "$$" not in method
    page = (site / "reference/pipelines.html").read_text()
    assert all(words in page for words in ("num_inference_steps", "Steps of the solver", "CellFluxPipelineOutput"))
    commands = (site / "cli.html").read_text()
    assert all(f"usage: cellfluxrl {command} " in commands for command in registry.parsers())
    assert "quickstart_output" in (site / "quickstart.html").read_text()
