"""A build as a process among others: killed, interrupted, alone; real subprocesses throughout."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_plates import OPTIONS, write_tiny_plates

pytestmark = pytest.mark.slow

PLATES = ["Week4_1", "Week5_2", "Week6_3"]
KILLS = 20


def start(data_dir: Path, output_dir: Path, num_proc: int = 2, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "cellfluxrl.commands.cli", "data", "build", "--data_dir", str(data_dir), *OPTIONS]
    command += ["--output_dir", str(output_dir), "--num_proc", str(num_proc)]
    # A shell that runs the tests in the background has Ctrl-C ignored by all that it starts.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **options)


def finish(process: subprocess.Popen) -> str:
    """Its standard error, once it has ended well."""
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return error


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that a build leaves, but for what it downloads and its lock."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".lock"}


def parquet(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".parquet")}


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end by themselves."""
    return psutil.wait_procs(processes, timeout=30)[1]


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def plates(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plates")
    write_tiny_plates(folder, PLATES, wells_per_compound=6)
    return folder


@pytest.fixture(scope="module")
def whole(plates, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """What an uninterrupted build leaves, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    begin = time.monotonic()
    finish(start(plates, folder))
    return contents(folder), time.monotonic() - begin


def test_one_process_gives_the_same_as_two(plates, whole, tmp_path):
    finish(start(plates, tmp_path / "out", num_proc=1))
    assert contents(tmp_path / "out") == whole[0]


def test_killed_at_random_moments_it_gives_the_same_in_the_end(plates, whole, tmp_path):
    random = np.random.default_rng(0)
    orphans: list[psutil.Process] = []
    states = set()
    output = tmp_path / "out"
    for _ in range(KILLS):
        process = start(plates, output)
        try:
            process.wait(random.uniform(0, whole[1]))
        except subprocess.TimeoutExpired:
            orphans += descendants(process)
            process.kill()
        _, error = process.communicate()  # returns when the last process that may write to it has gone
        assert process.returncode in (0, -signal.SIGKILL), error
        finished = len(list(output.glob("data/*/*.parquet")))
        states.add((finished, (output / ".partial").exists()))
        if (output / "README.md").exists():  # begin anew: a finished build has nothing to interrupt
            assert parquet(contents(output)) == parquet(whole[0])
            output.rename(tmp_path / f"finished_{len(list(tmp_path.iterdir()))}")
    assert still_alive(orphans) == []
    assert orphans  # some were killed while their processes were at work
    assert len(states) > 1
    finish(start(plates, output))
    assert contents(output) == whole[0]
    assert not (output / ".partial").exists()


@pytest.mark.parametrize("num_proc", [1, 2])
def test_ctrl_c_ends_all_processes_and_says_how_to_go_on(plates, whole, tmp_path, num_proc):
    output = tmp_path / "out"
    process = start(plates, output, num_proc, start_new_session=True)
    wait_for(lambda: list(output.glob(".partial/*")), process)
    children = descendants(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "plates are finished: run the same command again to resume" in error
    assert "Traceback" not in error
    assert still_alive(children) == []
    assert not (output / ".partial").exists()
    finish(start(plates, output, num_proc))
    assert contents(output) == whole[0]


def test_two_builds_at_once_into_one_folder(plates, whole, tmp_path):
    output = tmp_path / "out"
    first = start(plates, output)
    wait_for((output / "build_report.json").exists, first)
    second = start(plates, output, num_proc=1)
    first.send_signal(signal.SIGSTOP)
    try:
        _, error = second.communicate(timeout=120)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"another build is writing to '{output}'" in error
    finish(first)
    assert contents(output) == whole[0]


def test_a_file_system_that_takes_no_more_is_an_error_without_noise(plates, whole, tmp_path):
    """A real failure of a write, deep in the Parquet library."""
    output = tmp_path / "out"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
    limit += "from cellfluxrl.commands.cli import main; sys.exit(main(sys.argv[2:]))"
    command = [sys.executable, "-c", limit, "90000", "data", "build", "--data_dir", str(plates), *OPTIONS]
    command += ["--output_dir", str(output), "--num_proc", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "plate Week4_1: " in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    finish(start(plates, output))
    assert contents(output) == whole[0]
