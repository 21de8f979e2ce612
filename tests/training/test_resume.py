"""A run that is killed, interrupted or stopped goes on as if nothing had happened."""

import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from cellfluxrl.checkpoints import find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from cellfluxrl.training.common import Log

PRETRAIN = ("--max_train_steps", 60, "--train_batch_size", 8, "--checkpointing_steps", 10)
RL = ("--max_train_steps", 12, "--checkpointing_steps", 3)
RESUME = ("--resume_from_checkpoint", "latest")


def leave_a_partial_checkpoint(folder, step):
    """What a process leaves behind that is killed while it writes."""
    partial = folder / f"partial-checkpoint-{step}"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")


# ----------------------------------------------------------------------------------------------------------------
# Real processes
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_post_training_resumes_bit_for_bit(scripts, rl_inputs, post_trained, log_of, same_weights):
    folder = scripts.folder / "killed_rl"
    command = (sys.executable, *scripts.script("rl", folder, *rl_inputs, *RL))
    killed = scripts.stop_after(folder / "checkpoint-3", signal.SIGKILL, *command)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "checkpoint-12").exists()
    leave_a_partial_checkpoint(folder, 6)

    resumed = scripts.run(*command, *RESUME)
    assert "resumed from" in resumed.stdout
    names = ("model", "old", "average", "optimizer")
    same_weights(folder / "checkpoint-12", post_trained / "checkpoint-12", names)
    rows = log_of(folder)
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row, whole in zip(rows, log_of(post_trained), strict=True):
        assert {k: v for k, v in row.items() if "seconds" not in k} == {
            k: v for k, v in whole.items() if "seconds" not in k
        }
    for part in ("unet/diffusion_pytorch_model.safetensors", "rewards"):
        assert (folder / part).exists()
    assert not list(folder.glob("partial-*"))


@pytest.fixture(scope="module")
def whole_pretraining(scripts):
    folder = scripts.folder / "whole_pretraining"
    scripts.run(sys.executable, *scripts.script("pretrain", folder, *PRETRAIN))
    return folder


@pytest.mark.slow
def test_a_killed_pretraining_resumes_bit_for_bit(scripts, whole_pretraining, log_of, same_weights):
    folder = scripts.folder / "killed_pretraining"
    command = (sys.executable, *scripts.script("pretrain", folder, *PRETRAIN))
    killed = scripts.stop_after(folder / "checkpoint-10", signal.SIGKILL, *command)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "checkpoint-60").exists()
    leave_a_partial_checkpoint(folder, 20)

    scripts.run(*command, *RESUME)
    same_weights(folder / "checkpoint-60", whole_pretraining / "checkpoint-60", ("model", "average", "optimizer"))
    rows = [row for row in log_of(folder) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 61))
    for row, whole in zip(rows, log_of(whole_pretraining), strict=False):
        assert row["learning_rate"] == whole["learning_rate"]
        assert row["loss"] == whole["loss"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_resumes(scripts, launch, whole_pretraining, log_of, same_weights):
    # The terminal sends Ctrl-C to the launcher and the script alike.
    folder = scripts.folder / "interrupted"
    command = (*launch, "--cpu", *scripts.script("pretrain", folder, *PRETRAIN))
    interrupted = scripts.stop_after(folder / "checkpoint-20", signal.SIGINT, *command)
    assert interrupted.returncode != 0
    assert "KeyboardInterrupt" in interrupted.stderr
    assert not (folder / "checkpoint-60").exists()

    # Starting over by mistake loses nothing of the first run.
    before = (folder / "log.jsonl").read_text()
    again = scripts.finish(scripts.start(sys.executable, *command[len(launch) + 1 :]))
    assert again.returncode != 0
    assert "--resume_from_checkpoint latest" in again.stderr.strip().splitlines()[-1]
    assert (folder / "log.jsonl").read_text() == before

    scripts.run(*command, *RESUME)
    same_weights(folder / "checkpoint-60", whole_pretraining / "checkpoint-60", ("model", "average", "optimizer"))
    assert [row["step"] for row in log_of(folder) if "loss" in row] == list(range(1, 61))


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(scripts, whole_pretraining, log_of):
    folder = scripts.folder / "finished"
    shutil.copytree(whole_pretraining, folder)
    scripts.run(sys.executable, *scripts.script("pretrain", folder, *PRETRAIN, *RESUME))
    for path in ("unet/diffusion_pytorch_model.safetensors", "checkpoint-60/model.safetensors"):
        a, b = load_file(folder / path), load_file(whole_pretraining / path)
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in log_of(folder)] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in log_of(whole_pretraining)
    ]


# ----------------------------------------------------------------------------------------------------------------
# Checkpoints and the log by themselves
# ----------------------------------------------------------------------------------------------------------------

TENSORS = {"model": {"w": torch.arange(3.0)}, "optimizer": {"0.step": torch.tensor(2.0)}}


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path):
    shared = torch.ones(2)
    tensors = {**TENSORS, "tied": {"a": shared, "b": shared}}
    path = save_checkpoint(tmp_path, 7, tensors, {"schedule": {"last_epoch": 7}}, keep=2)
    read, state = load_checkpoint(path)
    assert state == {"step": 7, "schedule": {"last_epoch": 7}}
    assert read.keys() == tensors.keys()
    for name, group in tensors.items():
        assert all(torch.equal(read[name][key], value) for key, value in group.items())


def test_only_the_last_checkpoints_are_kept_by_number_and_not_by_name(tmp_path):
    for step in (8, 9, 10, 100):
        save_checkpoint(tmp_path, step, TENSORS, {}, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-100"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100", "checkpoint-9"]


def test_what_is_not_a_whole_checkpoint_is_not_found(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    assert find_checkpoint(tmp_path, None) is None
    leave_a_partial_checkpoint(tmp_path, 5)
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint(tmp_path, "latest") is None
    with pytest.raises(FileNotFoundError, match=r"not a checkpoint.*has: none"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-best"))


@pytest.mark.parametrize("step", [3, 5])
def test_a_write_that_fails_leaves_the_checkpoints_before_it(tmp_path, step, monkeypatch):
    save_checkpoint(tmp_path, 3, TENSORS, {}, keep=1)

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cellfluxrl.checkpoints.save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, step, TENSORS, {}, keep=1)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-3"
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint-3")[0]["model"]["w"], torch.arange(3.0))
    assert save_checkpoint(tmp_path, step, TENSORS, {}, keep=1) == tmp_path / f"checkpoint-{step}"
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{step}"]


def test_a_checkpoint_that_is_being_deleted_does_not_look_like_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, TENSORS, {}, keep=1)
    seen = []
    remove = shutil.rmtree

    def watch(path, *args, **kwargs):
        seen.append([p.name for p in list_checkpoints(tmp_path)])
        remove(path, *args, **kwargs)

    monkeypatch.setattr("cellfluxrl.checkpoints.shutil.rmtree", watch)
    save_checkpoint(tmp_path, 2, TENSORS, {}, keep=1)
    assert seen[-1] == ["checkpoint-2"]


def test_a_new_run_does_not_replace_the_checkpoints_of_an_earlier_one(tmp_path):
    save_checkpoint(tmp_path, 4, TENSORS, {}, keep=1)
    with pytest.raises(FileExistsError, match=r"checkpoint-4 of an earlier run.*--resume_from_checkpoint latest"):
        find_checkpoint(tmp_path, None)


class _Process:
    is_main_process = True
    trackers = ()


def test_the_log_goes_on_after_the_checkpoint(tmp_path, log_of):
    log = Log(_Process(), tmp_path)
    for step in range(1, 6):
        log.write(step, {"loss": step})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # cut off by a full disk
    log = Log(_Process(), tmp_path, first_step=3)
    for step in range(4, 8):
        log.write(step, {"loss": -step})
    assert [(row["step"], row["loss"]) for row in log_of(tmp_path)] == [
        (1, 1), (2, 2), (3, 3), (4, -4), (5, -5), (6, -6), (7, -7)
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_new_run_starts_a_new_log(tmp_path, log_of):
    Log(_Process(), tmp_path).write(1, {"loss": 1})
    Log(_Process(), tmp_path).write(1, {"loss": 2})
    assert [row["loss"] for row in log_of(tmp_path)] == [2]
