import errno

import pytest
import torch

from cellfluxrl import checkpoints
from cellfluxrl.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

WEIGHTS = {"model": {"weight": torch.tensor([1.0, 2.0])}}


def save(output_dir, *steps, keep=2):
    for step in steps:
        save_checkpoint(output_dir, step, WEIGHTS, {"best": 0.5}, keep=keep)


def names(output_dir):
    return [path.name for path in list_checkpoints(output_dir)]


def test_tensors_and_state_come_back_as_they_were(tmp_path):
    tensors = {"model": {"a": torch.randn(3, 2), "n": torch.tensor(7)}, "ema": {"a": torch.zeros(1).bfloat16()}}
    path = save_checkpoint(tmp_path, 5, tensors, {"seed": 3}, keep=1)
    loaded, state = load_checkpoint(path)
    assert state == {"step": 5, "seed": 3}
    assert loaded.keys() == tensors.keys()
    for name, values in tensors.items():
        for key, value in values.items():
            assert loaded[name][key].dtype == value.dtype
            assert torch.equal(loaded[name][key], value)


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    shared = torch.arange(4.0)
    path = save_checkpoint(tmp_path, 1, {"model": {"a": shared, "b": shared, "c": shared[1:]}}, {}, keep=1)
    assert torch.equal(load_checkpoint(path)[0]["model"]["c"], shared[1:])


def test_the_last_ones_are_kept_in_order_of_their_steps(tmp_path):
    save(tmp_path, 2, 9, 10, 100)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, WEIGHTS, {"best": 0.9}, keep=2)
    assert load_checkpoint(tmp_path / "checkpoint-3")[1]["best"] == 0.9


def test_latest_is_the_highest_step(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    assert find_checkpoint(tmp_path / "not there", "latest") is None
    save(tmp_path, 9, 10)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"


def test_a_new_run_does_not_replace_an_earlier_one(tmp_path):
    assert find_checkpoint(tmp_path, None) is None
    save(tmp_path, 9, 10)
    with pytest.raises(FileExistsError, match="holds checkpoint-10 of an earlier run"):
        find_checkpoint(tmp_path, None)


def test_a_folder_can_be_named(tmp_path):
    save(tmp_path, 1, 2)
    assert find_checkpoint("elsewhere", str(tmp_path / "checkpoint-1")) == tmp_path / "checkpoint-1"


def test_a_folder_that_is_no_checkpoint_is_refused_with_those_there(tmp_path):
    save(tmp_path, 1, 2)
    with pytest.raises(FileNotFoundError, match=r"checkpoint-7.* is not a checkpoint; .*checkpoint-1.*checkpoint-2"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-7"))


def test_what_a_killed_process_left_behind_is_ignored_and_overwritten(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / "partial-checkpoint-2"
    leftover.mkdir()
    (leftover / "stale.safetensors").write_bytes(b"half a file")
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-1"
    save(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert not leftover.exists()
    assert not (tmp_path / "checkpoint-2" / "stale.safetensors").exists()


def test_other_files_in_the_folder_are_not_touched(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    save(tmp_path, 1, 2, 3, keep=1)
    assert names(tmp_path) == ["checkpoint-3"]
    assert (tmp_path / "checkpoint-best").is_dir()


def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint-2")[0]["model"]["weight"], WEIGHTS["model"]["weight"])
    save(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def trained_steps(model, optimizer, steps, seed):
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def test_training_goes_on_bit_by_bit_after_the_optimizer_was_saved(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    trained_steps(model, optimizer, 3, seed=1)
    tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    loaded, _ = load_checkpoint(save_checkpoint(tmp_path, 3, tensors, {}, keep=1))

    resumed = torch.nn.Linear(3, 2)
    resumed.load_state_dict(loaded["model"])
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), lr=0.1, weight_decay=0.1)
    restore_optimizer(resumed_optimizer, loaded["optimizer"])
    for own, other in ((model, optimizer), (resumed, resumed_optimizer)):
        trained_steps(own, other, 4, seed=2)
    assert torch.equal(model.weight, resumed.weight)
    assert torch.equal(model.bias, resumed.bias)


def test_an_optimizer_that_took_no_step_has_nothing_to_save():
    optimizer = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    assert optimizer_tensors(optimizer) == {}
    restore_optimizer(optimizer, {})
