"""docs/app.md: its commands can be given, its snippet runs; and the app starts, as a command and as a Space."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cellfluxrl.app import inputs, simulation
from cellfluxrl.assets import SHIPPED_BASE
from cellfluxrl.commands import app as command
from cellfluxrl.commands import cli

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/app.md"
SPACE = REPOSITORY / "src/cellfluxrl/app/space"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = [shlex.split(line) for language, block in BLOCKS if language == "bash" for line in block.splitlines()]


def test_every_command_of_the_page_can_be_given():
    assert [words[0] for words in COMMANDS] == ["pip", "cellfluxrl", "cellfluxrl"]
    for words in COMMANDS[1:]:
        assert words[1] in cli.COMMANDS
        command.parser().parse_args(words[2:])
    options = {option for action in command.parser()._actions for option in action.option_strings}
    assert set(re.findall(r"--\w+", PAGE.read_text())) - {"--wheel"} <= options


def test_the_page_names_the_limits_of_the_app():
    text = PAGE.read_text()
    assert f"up to {simulation.MAX_IMAGES}, each one of up to {simulation.MAX_CANDIDATES} candidates" in text
    pytest.importorskip("gradio")
    from cellfluxrl.app import layout

    assert f"Uploads have at most {layout.MAX_UPLOAD >> 20} MB, {layout.MAX_WAITING} requests wait" in text
    assert f"`--max_seconds` ({simulation.MAX_SECONDS:g}, in a Space 120)" in text
    assert command.parser().get_default("max_seconds") == simulation.MAX_SECONDS
    assert "max_seconds=120" in (SPACE / "app.py").read_text()
    assert inputs.EXAMPLES == 8
    assert "eight controls" in text


def test_what_the_page_links_to_exists_and_its_picture_is_small():
    for path, _, anchor in re.findall(r"\]\(([^)#:]+)(#([^)]+))?\)", PAGE.read_text()):
        assert (PAGE.parent / path).is_file(), path
        if anchor:
            titles = re.findall(r"^#+ (.*)$", (PAGE.parent / path).read_text(), re.MULTILINE)
            assert anchor in [title.lower().replace(" ", "-") for title in titles]
    assert (PAGE.parent / "app.png").stat().st_size < 200_000
    with Image.open(PAGE.parent / "app.png") as picture:
        assert picture.width > 1000


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (snippet,) = [block for language, block in BLOCKS if language == "python"]
    exec(compile(snippet, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.count("taxol") == 3


def test_the_space_has_all_that_a_space_needs():
    header = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio"
    assert (SPACE / header["app_file"]).is_file()
    pinned = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines()[1:])
    assert header["sdk_version"] == pinned["gradio"]
    assert len(header["short_description"]) <= 60
    assert (SPACE / "requirements.txt").read_text() == "cellfluxrl[app]\n"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["command", "space"])
def test_the_app_starts_serves_its_page_and_ends(how, tmp_path):
    pytest.importorskip("gradio")
    words = [sys.executable, "-m", "cellfluxrl.commands.cli", "app", "--cpu"]
    if how == "space":
        (tmp_path / "app.py").write_text((SPACE / "app.py").read_text())
        words = [sys.executable, "app.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CELLFLUXRL_PIPELINE": str(SHIPPED_BASE)}
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if address := re.search(r"the app is at (http://[\w.:]+)", line):
                    break
            assert address, "".join(said)
            with urllib.request.urlopen(address.group(1)) as answer:
                assert answer.status == 200
                assert "CellFluxRL" in answer.read().decode()
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
            assert "Traceback" not in rest
            assert process.returncode == 0
        finally:
            process.kill()
