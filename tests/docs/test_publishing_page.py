"""Every command, snippet and message of docs/publishing.md, in order, against a Hub on loopback."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from example_results import example_results
from hub_server import READER, HubServer, HubUser

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/publishing.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
ROWS = re.findall(r"^\| (`.*?`) \|", PAGE.partition("## What can go wrong")[2], re.MULTILINE)
MESSAGES = [message for row in ROWS for message in re.findall(r"`(.*?)`", row)]
SMALL = shlex.split("--cpu --preset tiny --image_size 16 --simulated_cells_per_moa 8 --max_train_steps 2")
COMMAND = "from cellfluxrl.commands import cli\nresult = cli.main({!r})"


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pipeline, suite) -> Path:
    """Where the commands of the page are given: with what they publish."""
    folder = tmp_path_factory.mktemp("page")
    pipeline.save_pretrained(folder / "runs/rl")
    suite.classifier.save_pretrained(folder / "runs/moa")
    suite.save_pretrained(folder / "my_rewards")
    (folder / "runs/evaluation").mkdir()
    (folder / "runs/evaluation/results.json").write_text(json.dumps(example_results(pipeline.unet)))
    return folder


@pytest.fixture(scope="module")
def user(hub, folder):
    user = HubUser(hub, folder / "home", hub.token)
    build = "data build --source simulated --cells_per_moa 4 --controls_per_plate 4 --num_plates 2 --num_proc 1"
    user(f"import os\nos.chdir({str(folder)!r})\nresult = None")
    assert user(COMMAND.format([*build.split(), "--image_size", "16", "--output_dir", "my_cells"])) == 0
    yield user
    user.process.kill()
    user.process.communicate()


def test_paths_that_the_page_links_to_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (REPOSITORY / "docs" / path).exists(), path


def test_every_option_that_the_page_names_exists():
    from cellfluxrl.commands import push, training

    known = push.parser().format_help() + training.PARSERS["pretrain"]().format_help()
    for name in set(re.findall(r"--[a-z_]+", PAGE)) - {"--pipeline", "--config"}:
        assert name in known, name


@pytest.mark.slow
def test_the_page_can_be_worked_through(hub, folder, user):
    for language, block in BLOCKS:
        if language == "python":
            user(f"import torch\ntorch.set_num_threads(1)\n{block}\nresult = None")
            if "save_pretrained" in block:
                assert user(COMMAND.format(["push", "runs/rl", "my-lab/my-cells"])) == 0
            continue
        for command in commands(block):
            if command[0] == "cp":
                shutil.copy(folder / command[1], folder / command[2])
            elif command[0] == "cellfluxrl":
                assert user(COMMAND.format(command[1:])) == 0, command
            else:
                launch = [sys.executable, "-m", "accelerate.commands.launch", *command[2:], *SMALL]
                launch = [str(REPOSITORY / part) if part.startswith("training/") else part for part in launch]
                environment = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(folder / "home")}
                done = subprocess.run(launch, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
                assert done.returncode == 0, done.stderr[-3000:]
    assert {"my-lab/my-cells", "my-lab/my-classifier", "my-lab/my-rewards", "my-lab/my-base"} <= set(hub.repos)
    assert "datasets/my-lab/my-plates" in hub.repos
    assert hub.repos["my-lab/my-cells"].private
    card = hub.repos["my-lab/my-cells"].files["README.md"].content.decode()
    assert "- **fails**: The cells are as diverse as real cells." in card
    assert list((folder / "cache").glob("models--my-lab--my-cells/snapshots/*/unet/*.fp16.safetensors"))
    _check_messages(hub, user)


def _check_messages(hub: HubServer, user: HubUser) -> None:
    """What the page's table says is what a user sees."""
    load = "from cellfluxrl import CellFluxRLPipeline\nresult = CellFluxRLPipeline.from_pretrained({!r}, {})"
    push = (
        "from cellfluxrl.commands.push import push_folder\nresult = push_folder('runs/rl', 'my-lab/new', token={!r})"
    )
    seen = [
        user(load.format("my-lab/my-cell", ""), fails=True),
        user(load.format("my-lab/my-cells", "revision='mian'"), fails=True),
        user(load.format("my-lab/my-cells", "variant='fp61'"), fails=True),
        user(load.format("my-lab/my-base", "local_files_only=True"), fails=True),
        user("import os\ntoken = os.environ.pop('HF_TOKEN')\n" + push.format(None), fails=True),
        user(push.format("hf_wrong"), fails=True),
        user(push.format(READER), fails=True),
    ]
    hub.fail("POST /api/repos/create", cut=True)
    seen.append(user(push.format(hub.token), fails=True))
    hub.fail("POST /api/repos/create", status=503)
    seen.append(user(push.format(hub.token), fails=True))
    for message, error in zip(MESSAGES, seen, strict=True):
        assert message in error
