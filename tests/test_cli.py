import subprocess
import sys
from pathlib import Path

import pytest


def cellfluxrl(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "cellfluxrl.cli", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("command", ["demo", "pretrain", "moa", "rl"])
def test_each_command_has_a_useful_help(command: str) -> None:
    done = cellfluxrl(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--output_dir" in done.stdout
    assert "default:" in done.stdout


def test_help_lists_the_commands() -> None:
    done = cellfluxrl("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "pretrain", "moa", "rl"))


def test_an_unknown_command_names_the_nearest() -> None:
    done = cellfluxrl("pretrian")
    assert done.returncode == 2
    assert "did you mean 'pretrain'?" in done.stderr


@pytest.mark.parametrize("content", [None, "empty"])
def test_a_missing_or_empty_data_folder_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "crops"
    if content:
        folder.mkdir()
    done = cellfluxrl("demo", "--data_dir", str(folder), "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("cellfluxrl: error:")
    assert str(folder) in message
    assert "Traceback" not in done.stderr
