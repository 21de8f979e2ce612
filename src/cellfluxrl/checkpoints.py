"""The state of a training: checkpoints that are either whole or absent, averaged weights, hashes of weights."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cellfluxrl.files import read_json

PATTERN = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(
    output_dir: str | Path, step: int, tensors: Mapping[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int
) -> Path:
    """Write `output_dir/checkpoint-STEP`, a safetensors file an entry and a JSON, and drop all but the last `keep`.

    The folder is written under another name and renamed when complete: a killed process or a full disk leaves the
    checkpoints before it as they were.
    """
    output_dir = Path(output_dir)
    final = output_dir / f"checkpoint-{step}"
    partial = output_dir / f"partial-checkpoint-{step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, values in tensors.items():
            # A clone for each name: safetensors refuses tensors that share memory.
            clones = {key: value.detach().cpu().clone().contiguous() for key, value in values.items()}
            save_file(clones, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": step, **state}, indent=2))
        for path in partial.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    except BaseException:  # a full disk, above all: what was written only takes the room that the last one left
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
        _discard(final)
    partial.rename(final)
    for old in list_checkpoints(output_dir)[:-keep]:
        _discard(old)
    return final


def _discard(checkpoint: Path) -> None:
    # Renamed first: a folder that is half deleted must not look like a checkpoint.
    stale = checkpoint.with_name(f"stale-{checkpoint.name}")
    shutil.rmtree(stale, ignore_errors=True)
    checkpoint.rename(stale)
    shutil.rmtree(stale)


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if PATTERN.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(PATTERN.fullmatch(path.name)[1]))


def find_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | None) -> Path | None:
    """The checkpoint to resume from: `None` for a new run, `"latest"` (also `None` if there is none yet), or a folder.

    Raises:
        FileExistsError: If a new run would replace the checkpoints and the log of an earlier one.
        FileNotFoundError: If a folder is named that is not a checkpoint.
    """
    if resume_from_checkpoint is None:
        if there := list_checkpoints(output_dir):
            raise FileExistsError(
                f"{str(output_dir)!r} holds {there[-1].name} of an earlier run: resume it with "
                "--resume_from_checkpoint latest, or start again in another --output_dir"
            )
        return None
    if resume_from_checkpoint == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    path = Path(resume_from_checkpoint)
    if not (path / "state.json").is_file():
        there = [p.name for p in list_checkpoints(output_dir)] or "none"
        raise FileNotFoundError(f"{resume_from_checkpoint!r} is not a checkpoint; {str(output_dir)!r} has: {there}")
    return path


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Read back what [`save_checkpoint`] wrote: the tensors by file name, and the state."""
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return tensors, read_json(path / "state.json")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The per-parameter state of an optimizer as flat tensors, named `INDEX.KEY`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Undo [`optimizer_tensors`] in place; the parameter groups stay as they are."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def frozen_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in evaluation mode that shares no memory and gets no gradients."""
    return copy.deepcopy(model).eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the weights of `average` towards those of `model`: a <- decay a + (1 - decay) m."""
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(m, 1 - decay)


def weights_hash(network: torch.nn.Module) -> str:
    """SHA-256 of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
