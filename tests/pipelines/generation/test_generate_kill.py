"""`cellfluxrl generate` as a process that is killed, interrupted, or has no space to write to."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxRLPipeline
from cellfluxrl.commands import cli
from cellfluxrl.data.image_store import open_images

pytestmark = pytest.mark.slow

COMMAND = "generate controls.npy --pipeline pipe --compounds taxol nocodazole --cpu --best_of_n 2 --selection match"
COMMAND += " --num_per_control 30 --steps 2 --guidance_scale 1 --batch_size 5"
IMAGES = 4 * 2 * 30


@pytest.fixture(scope="module")
def home(simulated_cells, pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    calm = CellFluxFlowMatchScheduler(solver="midpoint", source_noise_scale=0.1)  # or no image would have a nucleus
    CellFluxRLPipeline(pipeline.unet, calm, pipeline.encoder, pipeline.rewards).save_pretrained(folder / "pipe")
    cells = simulated_cells["test"]
    np.save(folder / "controls.npy", open_images(cells.select(np.flatnonzero(cells["is_control"])[:4]))[:])
    return folder


def start(home: Path, line: str, before: str = "pass") -> subprocess.Popen:
    code = f"import sys; {before}; from cellfluxrl.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *shlex.split(line)],
        cwd=home,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell that runs the tests in the background has Ctrl-C ignored by all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished_batches(folder: Path) -> int:
    return len(list((folder / ".finished").glob("[0-9]*.parquet")))


def stop_after(process: subprocess.Popen, folder: Path, batches: int, number: signal.Signals) -> str:
    while finished_batches(folder) < batches:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    return error


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    skipped = (".lock", "provenance.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in skipped}


def test_killed_and_interrupted_it_gives_the_same_in_the_end(home, monkeypatch):
    monkeypatch.chdir(home)
    assert cli.main(shlex.split(f"{COMMAND} --output_dir whole")) == 0
    line = f"{COMMAND} --output_dir out"
    killed = start(home, line)
    stop_after(killed, home / "out", 4, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    before = finished_batches(home / "out")
    assert 4 <= before < IMAGES / 5
    interrupted = start(home, line)
    error = stop_after(interrupted, home / "out", before + 3, signal.SIGINT)
    assert interrupted.returncode == 130, error
    assert f"of {IMAGES} images are finished" in error
    assert "the same command resumes" in error
    assert cli.main(shlex.split(line)) == 0
    assert contents(home / "out") == contents(home / "whole")
    sessions = json.loads((home / "out" / "provenance.json").read_text())["sessions"]
    assert sessions[0]["seconds"] is None  # it had no time to say
    assert sessions[1]["images"] >= 3 * 5
    table = pd.read_parquet(home / "out" / "generated.parquet")
    assert len(table) == IMAGES
    assert table["combined"].nunique() > IMAGES / 4  # so that there was something to choose among


def test_a_file_system_that_takes_no_more_is_an_error_without_noise(home, monkeypatch):
    monkeypatch.chdir(home)
    line = f"{COMMAND.replace('30', '10')} --format parquet --output_dir full"
    limited = start(home, line, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2)")
    _, error = limited.communicate(timeout=80)
    assert limited.returncode == 2, error
    assert "File too large" in error
    assert "80 of 80 images are finished and kept: the same command resumes" in error
    assert "Traceback" not in error
    assert "Exception ignored" not in error
    assert cli.main(shlex.split(line)) == 0
    assert len(pd.read_parquet(home / "full" / "generated.parquet")) == 80
    assert json.loads((home / "full" / "provenance.json").read_text())["sessions"][1]["images"] == 0


def test_two_processes_do_not_generate_into_one_folder(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    line = f"{COMMAND} --output_dir both"
    first = start(home, line)
    while finished_batches(home / "both") < 1:
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    try:
        assert cli.main(shlex.split(line)) == 2
        assert "another process is generating into 'both'" in capsys.readouterr().err
    finally:
        first.kill()
        first.communicate()
