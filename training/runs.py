"""The logs of post-training runs as data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

Estimate = tuple[float, float]  # value and standard error

SEED = re.compile(r"[/_-]?seed_?\d+$")


@dataclass
class Run:
    """One run of post-training.

    Args:
        label: Its folder's name, within the sweep.
        log: Parsed lines of its log.jsonl.
        real: The rewards of real cells, if they are known.
    """

    label: str
    log: list[dict[str, Any]]
    real: dict[str, Estimate] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The label without the seed: runs of one group are repetitions."""
        return SEED.sub("", self.label) or self.label

    @cached_property
    def keys(self) -> set[str]:
        """What is logged in any line."""
        return {key for line in self.log for key in line}

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and finite values of a key."""
        pairs = [(line["step"], line[key]) for line in self.log if _is_finite(line.get(key))]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps), np.array(values, dtype=float)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, or below them; logs without rewards, as those of pretraining, are passed over.

    Raises:
        ValueError: If a folder has none, or two runs have one label.
    """
    runs = []
    for folder in map(Path, folders):
        alone = (folder / "log.jsonl").is_file()
        paths = (
            [folder / "log.jsonl"] if alone else sorted([*folder.glob("*/log.jsonl"), *folder.glob("*/*/log.jsonl")])
        )
        found = [_read_run(path, folder.resolve().name if alone else _label(path, folder)) for path in paths]
        found = [run for run in found if any(key.startswith("reward/") for key in run.keys)]
        if not found:
            raise ValueError(f"no run in {str(folder)!r}: no log.jsonl with rewards, in it or up to two folders below")
        runs += found
    labels = [run.label for run in runs]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two runs are called {label!r}: rename a folder, or put them into one and give that")
    return runs


def _label(path: Path, folder: Path) -> str:
    return path.parent.relative_to(folder).as_posix()


def _read_run(path: Path, label: str) -> Run:
    log = []
    for line in path.read_text().splitlines():
        try:
            log.append(json.loads(line))
        except json.JSONDecodeError:  # cut off: the run was killed, or is about to write
            continue
    real = path.with_name("real_rewards.json")
    return Run(label, log, {k: tuple(v) for k, v in json.loads(real.read_text()).items()} if real.is_file() else {})


def by_group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ only in the seed, by their common label."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def reward_names(runs: Sequence[Run]) -> list[str]:
    """The rewards of the logs, in their order, and `"combined"`."""
    logged = [key.removeprefix("reward/") for run in runs for line in run.log for key in line if "reward/" in key[:7]]
    names = dict.fromkeys(name for name in logged if name not in ("std", "combined"))  # std: in the first logs
    return [*names, *(["combined"] if "combined" in logged else [])]
