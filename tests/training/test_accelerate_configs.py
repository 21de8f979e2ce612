"""The files in training/configs/accelerate: accelerate itself must know every word in them."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

FOLDER = Path(__file__).parents[2] / "training" / "configs" / "accelerate"
FILES = {path.stem: path for path in FOLDER.glob("*.yaml")}
NESTED = ("deepspeed_config", "fsdp_config")

TELL = """
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
ranks = accelerator.gather(torch.tensor([accelerator.process_index])).tolist()
accelerator.print("processes", accelerator.num_processes, "ranks", ranks)
"""


def test_there_is_one_for_every_kind_of_machine():
    assert set(FILES) == {
        "one_gpu",
        "several_gpus",
        "several_nodes",
        "deepspeed_zero2",
        "fsdp",
        "two_cpu_processes",
    }


@pytest.mark.parametrize("name", FILES)
def test_accelerate_knows_every_setting(name):
    config = load_config_from_file(str(FILES[name]))  # refuses names and kinds of processes that it does not know
    assert config.num_processes >= 1
    assert config.mixed_precision in ("no", "bf16")
    # What is nested it takes over unseen, so it is compared with the options of `accelerate launch`.
    options = vars(launch_command_parser().parse_args(["script.py"]))
    for section in NESTED:
        assert set(getattr(config, section)) <= set(options)


@pytest.mark.parametrize("name", FILES)
def test_values_are_what_they_look_like(name):
    """YAML reads an unquoted no as false."""
    settings = yaml.safe_load(FILES[name].read_text())
    assert isinstance(settings["mixed_precision"], str)
    assert isinstance(settings["distributed_type"], str)


@pytest.mark.slow
def test_two_processes_are_started_on_the_cpu(scripts, launch):
    script = scripts.folder / "tell.py"
    script.write_text(TELL)
    result = scripts.run(*launch, "--config_file", FILES["two_cpu_processes"], script)
    assert "processes 2 ranks [0, 1]" in result.stdout
