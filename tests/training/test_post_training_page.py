"""The commands of docs/post_training.md run as they stand there, on small simulated cells."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from cellfluxrl.rl.curriculum import check_curriculum
from cellfluxrl.training.options import RLArguments

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "post_training.md").read_text()
SMALL = shlex.split(
    "--dataset_name simulated --image_size 16 --simulated_cells_per_moa 8 --cpu --max_train_steps 2 "
    "--controls_per_condition 2 --rollouts_per_control 2 --num_inference_steps 1"
)


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line) for line in "".join(blocks).replace("\\\n", " ").splitlines() if line.strip()]


def in_checkout(words):
    return [REPOSITORY / word if word.startswith("training/") else word for word in words]


def test_files_and_options_that_the_page_names_exist():
    for path in re.findall(r"(?:training/configs|tests|src)/[\w/]+\.(?:yaml|py)", PAGE):
        assert (REPOSITORY / path).is_file(), path
    for name in re.findall(r"`--(\w+)", PAGE):
        assert name in RLArguments.__dataclass_fields__, name


def test_its_curriculum_is_one():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    check_curriculum(yaml.safe_load(text)["rl"]["curriculum"])


@pytest.mark.slow
def test_the_first_commands_run_one_after_the_other(scripts, rl_inputs, launch):
    train, plots = commands()[:2]
    assert (train[:2], plots[0]) == (["accelerate", "launch"], "python")
    scripts.run(*launch, *in_checkout(train[2:]), *SMALL, *rl_inputs)
    scripts.run(sys.executable, *in_checkout(plots[1:]))
    folder = scripts.folder / "runs" / "rl"
    assert (folder / "model_index.json").is_file()
    assert list((folder / "cellfluxrl").glob("events.out.tfevents.*")), "TensorBoard"
    assert {"rewards.png", "monitor.png", "training.png"} <= {path.name for path in (folder / "plots").iterdir()}
