"""Post-training in real processes: killed, interrupted, or two of them."""

import signal
import socket
import sys
from pathlib import Path

import pytest

NAMES = ("model", "old", "average", "optimizer")
STEPS = ("--max_train_steps", 36, "--checkpointing_steps", 2, "--kl_target", 0.001)
RESUME = ("--resume_from_checkpoint", "latest")


def without_seconds(rows):
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


@pytest.fixture(scope="module")
def whole(scripts, rl_inputs):
    folder = scripts.folder / "whole_rl"
    scripts.run(sys.executable, *scripts.script("rl", folder, *rl_inputs, *STEPS))
    return folder


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_at_random_moments_is_the_same_run(
    scripts, rl_inputs, whole, log_of, same_weights
):
    folder = scripts.folder / "killed_ten_times"
    _, *options = scripts.script("rl", folder, *rl_inputs, *STEPS)
    driver = Path(__file__).with_name("killed_runs.py")
    result = scripts.run(sys.executable, driver, 10, 0, folder / "log.jsonl", *options)
    assert result.stdout.count("killed after") == 10
    same_weights(folder / "checkpoint-36", whole / "checkpoint-36", NAMES)
    assert (folder / "checkpoint-36" / "state.json").read_text() == (whole / "checkpoint-36/state.json").read_text()
    assert without_seconds(log_of(folder)) == without_seconds(log_of(whole))


@pytest.mark.slow
def test_ctrl_c_saves_the_running_iteration_and_says_how_to_go_on(scripts, rl_inputs, whole, log_of, same_weights):
    folder = scripts.folder / "interrupted_rl"
    command = (sys.executable, *scripts.script("rl", folder, *rl_inputs, *STEPS))
    interrupted = scripts.stop_after(folder / "checkpoint-2", signal.SIGINT, *command)
    assert interrupted.returncode == 130
    assert "Traceback" not in interrupted.stderr
    done = len(log_of(folder))
    assert interrupted.stderr.strip().splitlines()[-1] == (
        f"interrupted after iteration {done}; checkpoint-{done} is saved; "
        "--resume_from_checkpoint latest goes on from it"
    )
    assert (folder / f"checkpoint-{done}").is_dir()
    assert not (folder / "unet").exists()
    scripts.run(*command, *RESUME)
    same_weights(folder / "checkpoint-36", whole / "checkpoint-36", NAMES)
    assert without_seconds(log_of(folder)) == without_seconds(log_of(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("rwr", ("--group_by", "condition")),
        ("best_of_n", ("--advantage_std", "per_reward")),
        ("dpo", ("--advantage_std", "group", "--kl_target", 0.001)),
    ],
)
def test_two_processes_do_what_one_does(scripts, rl_inputs, log_of, same_weights, objective, options):
    # 3 conditions of 2 controls: an odd number of pairs or best rollouts has to be shared by the two.
    options = (*rl_inputs, "--objective", objective, "--conditions_per_step", 3, "--max_train_steps", 4, *options)
    one, two = (scripts.folder / f"{objective}_{name}" for name in ("one", "two"))
    scripts.run(sys.executable, *scripts.script("rl", one, *options))
    scripts.two_processes("rl", two, *options)
    same_weights(one / "checkpoint-4", two / "checkpoint-4", ("model", "old", "average"), atol=1e-4)
    for a, b in zip(log_of(one), log_of(two), strict=True):
        assert a["r/histogram"] == b["r/histogram"]
        assert a["dead_groups"] == b["dead_groups"]
        for key in ("loss", "kl", "distance_to_old", "grad_norm", "distance_to_base", "kl_weight"):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-2, abs=1e-6), key


@pytest.mark.slow
def test_two_processes_that_are_interrupted_go_on_as_the_same_run(scripts, rl_inputs, launch, log_of, same_weights):
    steps = (*rl_inputs, "--max_train_steps", 30, "--checkpointing_steps", 30, "--checkpoints_total_limit", 9)
    whole, folder = scripts.folder / "two_whole", scripts.folder / "two_interrupted"
    scripts.two_processes("rl", whole, *steps)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (*launch, "--multi_gpu", "--num_processes", 2, "--main_process_port", port)
    command = (*launcher, *scripts.script("rl", folder, *steps, "--checkpointing_steps", 2), "--cpu")
    # The terminal sends Ctrl-C to the launcher and to both processes, and the launcher sends it again.
    assert scripts.stop_after(folder / "checkpoint-2", signal.SIGINT, *command).returncode != 0
    done = len(log_of(folder))
    assert 2 <= done < 30
    assert (folder / f"checkpoint-{done}").is_dir()
    scripts.two_processes("rl", folder, *steps, *RESUME)
    same_weights(folder / "checkpoint-30", whole / "checkpoint-30", NAMES)
    assert without_seconds(log_of(folder)) == without_seconds(log_of(whole))
