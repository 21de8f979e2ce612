"""What all commands have in common: help, examples, errors, exit statuses, completion, and that they start quickly."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from cellfluxrl import __version__
from cellfluxrl.commands import cli, registry
from cellfluxrl.commands.completion import actions_of

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "datasets", "pandas", "scipy")


PARSERS = registry.parsers()


def cellfluxrl(*arguments: str, **keywords) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cellfluxrl.commands.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **keywords)


def examples_of(help_text: str) -> list[list[str]]:
    lines = help_text.partition("examples:\n")[2].replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


# --------------------------------------------------------------------------------------------------------------------
# Help
# --------------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands() -> None:
    done = cellfluxrl("--help")
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in cli.COMMANDS)
    for words in examples_of(done.stdout):
        assert words[0] == "cellfluxrl"
        assert words[1] in cli.COMMANDS


@pytest.mark.parametrize("command", PARSERS)
def test_each_help_is_printed_without_loading_torch_and_fits_the_terminal(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; from cellfluxrl.commands.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert done.stdout.startswith(f"usage: cellfluxrl {command} ")
    described = done.stdout.partition("examples:\n")[0].splitlines()
    too_long = [line for line in described if len(line) > 80 and "[" not in line]  # but for what cannot be broken
    assert not too_long
    assert "--debug" in done.stdout
    assert max(len(line) for line in done.stdout.partition("examples:\n")[2].splitlines()) <= 115


@pytest.mark.parametrize("command", PARSERS)
def test_each_help_ends_with_examples_that_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    examples = examples_of(PARSERS[command]().format_help())
    assert len(examples) >= 2
    for words in examples:
        if words[:2] == ["accelerate", "launch"]:
            target = words[3] if words[2] == "-m" else words[2]
            assert target in (f"training/{command}.py", f"cellfluxrl.training.{command}")
            options = words[words.index(target) + 1 :]
        else:
            options = words[len(["cellfluxrl", *command.split()]) :]
            assert words[: len(words) - len(options)] == ["cellfluxrl", *command.split()]
            options = options[: options.index(">")] if ">" in options else options
        parsed = vars(PARSERS[command]().parse_args(options))
        assert Path(parsed.get("config", "pyproject.toml")).is_file()


def test_the_same_thing_has_the_same_name_everywhere() -> None:
    """Where the results go is `--output_dir`, or `--output` for one file; no option has a hyphen in its name."""
    for command, make in PARSERS.items():
        for action in actions_of(make()):
            for option in action.option_strings:
                allowed = option in ("-h", "--help") or option.startswith("--no-")
                assert allowed or "-" not in option[2:], f"{command} {option}"
            assert action.dest not in ("out", "output_folder", "outdir", "save_dir"), command


def test_the_version_is_that_of_the_package() -> None:
    assert cellfluxrl("--version").stdout.strip() == __version__


# --------------------------------------------------------------------------------------------------------------------
# Mistakes
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrian", "unknown command 'pretrian'; did you mean 'pretrain'?"),
        ("data biuld", "unknown data command 'biuld'; did you mean 'build'?"),
        ("rewards fti", "unknown rewards command 'fti'; did you mean 'fit'?"),
        ("rl --learning_rat 1", "unknown option '--learning_rat'; did you mean '--learning_rate'?"),
        ("moa --seed one", "argument --seed: invalid int value: 'one'"),
        ("data info", "the following arguments are required: folder"),
        ("data info a b", "unexpected argument 'b'"),
        ("generate c --output_dir o", "the following arguments are required: --pipeline"),
        ("completion fish", "unknown shell 'fish'"),
        ("pretrain --config nowhere.yaml", "--config 'nowhere.yaml' is not a file"),
    ],
)
def test_a_mistake_is_one_line_before_torch_is_loaded(line: str, message: str, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would be an ImportError
    try:
        status = cli.main(shlex.split(line))
    except SystemExit as stopped:
        status = stopped.code
    out, error = capsys.readouterr()
    assert (status, out) == (2, "")
    assert error.startswith("cellfluxrl: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [None, "empty"])
def test_a_missing_or_empty_data_folder_is_one_clear_line(tmp_path: Path, content: str | None, capsys) -> None:
    folder = tmp_path / "crops"
    if content:
        folder.mkdir()
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have chosen a precision
    assert cli.main(["demo", "--data_dir", str(folder), "--output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    message = error.strip().splitlines()[-1]
    assert message.startswith("cellfluxrl: error:")
    assert str(folder) in message
    assert "Traceback" not in error


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Lets `cellfluxrl data` fail in a way of one's own."""

    def fail_with(error: BaseException) -> None:
        def main(argv):
            raise error

        monkeypatch.setattr("cellfluxrl.commands.data.main", main)

    return fail_with


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("no such plate"), 2, "error: no such plate"),
        (FileNotFoundError("'crops' is not there"), 2, "error: 'crops' is not there"),
        (ImportError("needs peft: pip install 'cellfluxrl[lora]'"), 2, "error: needs peft: pip install"),
        (
            RuntimeError("out of memory\n  at 0x1"),
            1,
            "unexpected error: RuntimeError: out of memory (run with --debug",
        ),
        (KeyError("moa"), 1, "unexpected error: KeyError: 'moa' (run with --debug"),
        (KeyboardInterrupt(), 130, "interrupted; what is finished is kept"),
    ],
)
def test_every_failure_has_its_status_and_one_line(error, status, message, failing, capsys) -> None:
    failing(error)
    assert cli.main(["data"]) == status
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"cellfluxrl: {message}")
    assert "\n" not in printed


def test_a_list_of_what_is_wrong_is_told_as_a_whole(failing, capsys) -> None:
    failing(ValueError("2 plates are damaged:\n  A\n  B"))
    assert cli.main(["data"]) == 2
    assert capsys.readouterr().err == "cellfluxrl: error: 2 plates are damaged:\n  A\n  B\n"


@pytest.mark.parametrize("line", ["--debug data info", "data --debug info", "data info --debug"])
def test_debug_shows_the_traceback_wherever_it_stands(line: str, failing, capsys) -> None:
    failing(ValueError("no such plate"))
    assert cli.main(shlex.split(line)) == 2
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert printed.endswith("cellfluxrl: error: no such plate\n")


@pytest.mark.skipif(os.name != "posix", reason="pipes are closed otherwise")
def test_a_pipe_that_nobody_reads_is_no_traceback() -> None:
    command = shlex.join([sys.executable, "-m", "cellfluxrl.commands.cli", "completion", "zsh"])
    done = subprocess.run(["bash", "-c", f"{command} | head -1"], capture_output=True, text=True)
    assert done.stdout.startswith("#compdef cellfluxrl")
    assert done.stderr == ""


# --------------------------------------------------------------------------------------------------------------------
# Completion
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    done = cellfluxrl("completion", "bash")
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("completion") / "cellfluxrl"
    path.write_text(done.stdout)
    return path


def complete(script: Path, line: str, folder: Path) -> list[str]:
    """What bash offers at the end of a line, whose last word may be empty."""
    words = line.split(" ")
    code = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); "
        f"COMP_CWORD={len(words) - 1}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; "
        "_shtab_cellfluxrl cellfluxrl 2>/dev/null; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=folder)
    return [word.strip() for word in done.stdout.split("\n") if word.strip()]


def test_bash_completes_commands_options_and_paths(bash_script: Path, tmp_path: Path) -> None:
    (tmp_path / "my_cells").mkdir()
    (tmp_path / "my_table.csv").touch()
    assert set(complete(bash_script, "cellfluxrl ", tmp_path)) >= set(cli.COMMANDS)
    assert complete(bash_script, "cellfluxrl pre", tmp_path) == ["pretrain"]
    assert set(complete(bash_script, "cellfluxrl data ", tmp_path)) >= {"build", "info", "push"}
    assert complete(bash_script, "cellfluxrl rl --learning", tmp_path) == ["--learning_rate"]
    assert complete(bash_script, "cellfluxrl data build --output_dir my", tmp_path) == ["my_cells"]
    assert complete(bash_script, "cellfluxrl data build --table my_t", tmp_path) == ["my_table.csv"]


def test_the_zsh_script_knows_every_command() -> None:
    script = cellfluxrl("completion", "zsh").stdout
    assert script.startswith("#compdef cellfluxrl")
    assert all(f"{command}:" in script for command in cli.COMMANDS)
    if shutil.which("zsh"):
        assert subprocess.run(["zsh", "-n"], input=script, text=True).returncode == 0


# --------------------------------------------------------------------------------------------------------------------
# Machine-readable output
# --------------------------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_on_standard_output(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    build = "data build --source simulated --cells_per_moa 3 --controls_per_plate 4 --num_plates 2 --image_size 24"
    printed = []
    for line in (f"{build} --num_proc 1 --output_dir cells", "data info cells"):
        assert cli.main([*shlex.split(line), "--json"]) == 0
        printed.append(json.loads(capfd.readouterr().out))
    built, described = printed
    assert built == described
    assert built["complete"] is True
    assert built["problems"] == []
    assert sum(row["cells"] for row in built["counts"] if row["moa"] == "DMSO") == 2 * 4
    assert {row["split"] for row in built["counts"]} == {"train", "test"}
