"""docs/tutorial.md is worked through as it stands, from TIFF files to the report, with fewer steps."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from accelerate.state import AcceleratorState

from cellfluxrl.commands import cli, registry

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/tutorial.md").read_text()
BLOCKS = [(kind, block.replace("\\\n", " ")) for kind, block in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)]
COMMANDS = [shlex.split(line) for language, block in BLOCKS if language == "bash" for line in block.splitlines()]

FEWER = {
    "data build": "--num_proc 1",
    "moa": "--cpu --max_train_steps 4 --train_batch_size 8",
    # Enough for samples of a group to differ, without which post-training refuses to begin.
    "pretrain": "--cpu --preset tiny --train_batch_size 4 --max_train_steps 60 --learning_rate 3e-3 "
    "--lr_warmup_steps 5 --ema_decay 0.9",
    "rl": "--cpu --max_train_steps 2 --conditions_per_step 1 --controls_per_condition 2 --rollouts_per_control 2 "
    "--num_inference_steps 2",
    "generate": "--cpu --max_controls 2 --steps 2",
    "evaluate": "--cpu --num 24 --num_inference_steps 2",
}


def command_of(words: list[str]) -> str:
    return next(command for command in registry.parsers() if words[1:][: len(command.split())] == command.split())


def test_the_commands_lead_from_plates_to_a_report() -> None:
    assert [command_of(words) for words in COMMANDS] == [
        *("data build", "data info", "moa", "moa", "pretrain", "rewards fit", "rewards score", "rl", "generate"),
        "evaluate",
    ]
    assert [language for language, _ in BLOCKS].count("python") == 2


@pytest.mark.parametrize("words", COMMANDS, ids=command_of)
def test_every_command_is_one_that_can_be_parsed(words: list[str]) -> None:
    command = command_of(words)
    registry.parsers()[command]().parse_args(words[1 + len(command.split()) :])


def test_links_lead_to_pages_and_headings_that_exist() -> None:
    for path, anchor in re.findall(r"\]\(([\w.]+)#?([\w-]*)\)", PAGE):
        page = (REPOSITORY / "docs" / path).read_text()
        headings = [re.sub(r"[^\w -]", "", line).lower().strip().replace(" ", "-") for line in page.splitlines()]
        assert not anchor or anchor in headings, f"{path}#{anchor}"


@pytest.mark.slow
def test_the_tutorial_can_be_worked_through(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have chosen a precision
    names: dict = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "docs/tutorial.md", "exec"), names)
            continue
        for line in block.splitlines():
            words = shlex.split(line)
            status = cli.main([*words[1:], *shlex.split(FEWER.get(command_of(words), ""))])
            assert status == 0, f"{line}\n{capfd.readouterr().err[-3000:]}"
    assert len(names["out"].images) == 4
    generated = pd.read_parquet("generated/generated.parquet")
    assert set(generated["compound"]) == {"taxol", "nocodazole"}
    assert generated["combined"].notna().all()
    for path in ("my_cells/contact_sheet.png", "real_sheet.png", "runs/base/log.jsonl", "runs/evaluation/report.html"):
        assert Path(path).is_file(), path
