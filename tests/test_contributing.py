"""CONTRIBUTING.md: its map is the one that is checked, its files exist, its recipes run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
RECIPES = {
    title.strip(): code for title, code in re.findall(r"^### (Add .*?)$.*?```python\n(.*?)```", PAGE, re.DOTALL | re.M)
}


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_map_is_the_order_of_imports_that_is_checked():
    tomllib = pytest.importorskip("tomllib")
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    rows = re.findall(r"^\| (.*?) \|", section("The map"), re.MULTILINE)[2:]
    assert rows[0] == "single modules"
    parts = [set(re.findall(r"`(\w+)(?:\.py)?`", row)) for row in rows[1:]]
    assert parts == [set(layer.split(" : ")) for layer in reversed(layers)][1:]


def test_the_way_of_an_image_names_files_that_exist():
    lines = re.findall(r"^\d+\. .*", section("The way of one image"), re.MULTILINE)
    assert len(lines) == 10
    for line in lines:
        paths = re.findall(r"`([\w/]+\.py)`", line)
        assert paths, line
        for path in paths:
            assert (REPOSITORY / path).is_file(), path


@pytest.mark.parametrize("path", re.findall(r"`([\w/]+/(?:\w+\.py)?)`", PAGE))
def test_every_path_exists(path):
    assert (REPOSITORY / path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs_and_prints_what_it_says(title, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    code = RECIPES[title]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


def test_there_is_a_recipe_for_each_kind_of_extension():
    assert list(RECIPES) == ["Add a reward", "Add a segmenter", "Add a solver", "Add a data source"]
