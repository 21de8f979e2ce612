"""Real training processes on tiny settings, and the runs that several tests look at."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

TRAINING = Path(__file__).parents[2] / "training"
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")
TIMEOUT = 300  # seconds; a run takes under ten on a free core

# One file serves the three scripts, as the configurations in training/configs do.
SETTINGS = {
    "dataset_name": "simulated",
    "image_size": 16,
    "simulated_cells_per_moa": 8,
    "cpu": True,
    "pretrain": {
        "preset": "tiny",
        "max_train_steps": 120,
        "train_batch_size": 16,
        "learning_rate": 3e-3,
        "lr_warmup_steps": 5,
        "ema_decay": 0.9,
        "log_steps": 1,
        "checkpointing_steps": 60,
    },
    "moa": {"max_train_steps": 20, "train_batch_size": 16, "width": 4},
    "rl": {
        "conditions_per_step": 2,
        "controls_per_condition": 2,
        "rollouts_per_control": 4,
        "train_batch_size": 8,
        "num_inference_steps": 1,
        "max_train_steps": 12,
        "checkpointing_steps": 3,
    },
}


class Scripts:
    """Starts the training scripts as a user would, away from this process' environment and the user's settings."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "settings.yaml"
        self.config.write_text(yaml.safe_dump(SETTINGS))
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))},
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hf"),
        }

    def start(self, *command) -> subprocess.Popen:
        """Start a command in a process group of its own, with the terminal's handling of Ctrl-C."""
        return subprocess.Popen(
            [str(part) for part in command],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def finish(self, process: subprocess.Popen) -> subprocess.CompletedProcess:
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def run(self, *command) -> subprocess.CompletedProcess:
        """Run a command that must succeed."""
        result = self.finish(self.start(*command))
        assert result.returncode == 0, result.stderr[-3000:]
        return result

    def script(self, name, output_dir, *options) -> tuple:
        """The arguments of `training/NAME.py` with the common settings."""
        return TRAINING / f"{name}.py", "--config", self.config, "--output_dir", output_dir, *options

    def two_processes(self, name, output_dir, *options) -> subprocess.CompletedProcess:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch = (*LAUNCH, "--multi_gpu", "--num_processes", 2, "--main_process_port", port)
        return self.run(*launch, *self.script(name, output_dir, *options), "--cpu")

    def stop_after(self, checkpoint: Path, how: signal.Signals, *command) -> subprocess.CompletedProcess:
        """Run a command and send it a signal as soon as the checkpoint is there."""
        process = self.start(*command)
        deadline = time.monotonic() + TIMEOUT
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, f"finished before {checkpoint.name}: {process.communicate()[1][-3000:]}"
        os.killpg(process.pid, how)
        return self.finish(process)


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    return Scripts(tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="session")
def base(scripts):
    """A pretrained pipeline whose samples are good enough to be scored differently."""
    folder = scripts.folder / "base"
    scripts.run(*LAUNCH, "--cpu", *scripts.script("pretrain", folder))
    return folder


@pytest.fixture(scope="session")
def classifier(scripts):
    folder = scripts.folder / "classifier"
    scripts.run(*LAUNCH, "--cpu", *scripts.script("moa", folder))
    return folder


@pytest.fixture(scope="session")
def rl_inputs(base, classifier):
    return "--pretrained_model_name_or_path", base, "--classifier", classifier


@pytest.fixture(scope="session")
def post_trained(scripts, rl_inputs):
    folder = scripts.folder / "post_trained"
    scripts.run(*LAUNCH, "--cpu", *scripts.script("rl", folder, *rl_inputs))
    return folder


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_weights(folder, other, names, atol=0.0):
    for name in names:
        a, b = load_file(folder / f"{name}.safetensors"), load_file(other / f"{name}.safetensors")
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], atol=atol, rtol=0, msg=lambda m, k=key, n=name: f"{n} {k}: {m}")


@pytest.fixture(scope="session")
def same_weights():
    """Compare tensors of two checkpoints by name, exactly unless `atol` is given."""
    return assert_same_weights


@pytest.fixture(scope="session")
def log_of():
    """The lines of a run's log.jsonl."""
    return read_log


@pytest.fixture(scope="session")
def launch():
    """`accelerate launch`."""
    return LAUNCH
