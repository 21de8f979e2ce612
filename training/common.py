"""What the three training scripts share: the data, the accelerator, the log."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from cellfluxrl.data import loading
from cellfluxrl.data.pairs import PairSource
from cellfluxrl.files import write_whole
from cellfluxrl.models.compound_encoder import CompoundEncoder, encoder_for
from cellfluxrl.training.options import SharedArguments


def load_cells(args: SharedArguments) -> datasets.DatasetDict:
    """The splits `train` and `test` that the arguments name; see [`cellfluxrl.data.loading.load_cells`]."""
    return loading.load_cells(
        args.dataset_name,
        cache_dir=Path(args.output_dir) / "data",
        image_size=args.image_size,
        data_dir=args.data_dir,
        test_plates=args.test_plates,
        cells_per_moa=args.simulated_cells_per_moa,
        seed=args.seed,
    )


def load_labelled_cells(args: SharedArguments) -> datasets.DatasetDict:
    """[`load_cells`], without the cells whose compound, at its concentration, has no known mechanism of action."""
    return loading.with_known_moa(load_cells(args))


def encoder_of(cells: datasets.DatasetDict, *, log_dose: bool = False) -> CompoundEncoder:
    """A compound encoder that knows every compound of the data set."""
    columns = ["compound", "smiles", "moa"]
    tables = [split.select_columns(columns).to_pandas().drop_duplicates() for split in cells.values()]
    compounds = [tuple(row) for table in tables for row in table[columns].itertuples(index=False)]
    return encoder_for(compounds, log_dose=log_dose)


def conditions_of(encoder: CompoundEncoder, pairs: PairSource) -> torch.Tensor:
    """The condition of each row of `pairs.conditions`, with its dose if the encoder takes it: (K, D), on the CPU."""
    doses = pairs.conditions["concentration"].tolist() if encoder.config.log_dose else None
    return encoder.encode(pairs.conditions["compound"].tolist(), concentrations=doses).cpu()


def make_accelerator(args: SharedArguments, *, tensorboard: bool = False) -> Accelerator:
    """Set up the processes, on the CPU where there is no GPU, and seed them.

    Args:
        args: Of a script; `report_to` names trackers, separated by commas.
        tensorboard: Whether to log to TensorBoard beside those, in `output_dir`.

    Raises:
        RuntimeError: If more processes were asked for than were started.
    """
    cpu = args.cpu or not torch.accelerator.is_available()
    trackers = ["tensorboard"] * tensorboard + (args.report_to.split(",") if args.report_to else [])
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=args.mixed_precision,
        log_with=list(dict.fromkeys(trackers)) or None,
        project_dir=args.output_dir,
    )
    _check_process_count(accelerator.num_processes)
    set_seed(args.seed)
    if trackers:
        accelerator.init_trackers("cellfluxrl")
    return accelerator


def _check_process_count(started: int) -> None:
    # `accelerate launch --cpu --num_processes 2` silently starts one process; nothing in the environment tells.
    for process in psutil.Process().parents()[:2]:
        try:
            command = process.cmdline()
        except psutil.Error:  # another user's process, where the system hides those
            continue
        if not re.search(r"accelerate([./]commands)?[-./ ]launch\b", " ".join(command)):
            continue
        for i, part in enumerate(command):
            value = part.partition("=")[2] or (command[i + 1] if i + 1 < len(command) else "")
            if (
                part.split("=")[0] in ("--num_processes", "--num-processes")
                and value.isdigit()
                and int(value) > started
            ):
                raise RuntimeError(
                    f"accelerate was asked for {value} processes and started {started}; on the CPU use "
                    f"accelerate launch --multi_gpu --num_processes {value} SCRIPT --cpu"
                )


class Log:
    """Appends one JSON line a step to `output_dir/log.jsonl`, and to the trackers of the accelerator.

    On resume the lines of steps that will be run again are dropped.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | Path, first_step: int = 0):
        self.accelerator = accelerator
        self.path = Path(output_dir) / "log.jsonl"
        self.start = time.perf_counter()
        if accelerator.is_main_process:
            kept = self._lines_until(first_step) if first_step and self.path.is_file() else []
            write_whole(self.path, lambda partial: partial.write_text("".join(line + "\n" for line in kept)))

    def _lines_until(self, last_step: int) -> list[str]:
        lines: dict[int, str] = {}
        for line in self.path.read_text().splitlines():
            try:
                step = json.loads(line)["step"]
            except json.JSONDecodeError:
                continue  # cut off by a full disk or a power failure
            if step <= last_step:
                lines.setdefault(step, line)
        return list(lines.values())

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log the values of one step."""
        if self.accelerator.is_main_process:
            row = {"step": step, "seconds": round(time.perf_counter() - self.start, 3), **values}
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
        if self.accelerator.trackers:
            self.accelerator.log(values, step=step)
