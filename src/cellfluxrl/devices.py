"""Where tensors are computed."""

from __future__ import annotations

import torch


def choose_device(*, cpu: bool = False) -> torch.device:
    """The accelerator of this machine; the CPU where there is none, or if `cpu`."""
    accelerator = None if cpu or not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
    return accelerator or torch.device("cpu")
