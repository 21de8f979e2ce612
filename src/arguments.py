"""Command lines from dataclasses, with a YAML file behind them: the command line wins, unknown keys are refused."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cellfluxrl.errors import unknown_name

SECTIONS = ("data", "pretrain", "moa", "rl", "demo")


def option(default: Any, help: str) -> Any:
    """A dataclass field with a help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class SharedArguments:
    """What every training script takes; in a YAML file these may stand outside the sections."""

    dataset_name: str = option(
        "simulated", "'simulated', 'crops' with --data_dir, or a built data set: its folder or its name on the Hub"
    )
    data_dir: str | None = option(None, "for 'crops': folder with one PLATE.npz a plate")
    test_plates: list[str] | None = option(None, "plates of the test split; default: the last treated plate")
    image_size: int = option(48, "height and width of the crops in pixels")
    simulated_cells_per_moa: int = option(400, "simulated treated cells of each MoA, and controls of each plate")
    seed: int = option(0, "seed of everything that is random")
    output_dir: str = option("runs/default", "where the results go")
    time_logit_mean: float = option(1.2, "training times are t = sigmoid(N(mean, std)); lower means earlier, ...")
    time_logit_std: float = option(1.2, "... where the compound decides; CellFlux has 1.2 and 1.2")
    mixed_precision: str | None = option(None, "'no', 'bf16' or 'fp16'; default: what accelerate is configured for")
    report_to: str | None = option(None, "trackers besides log.jsonl and TensorBoard, for example 'wandb'")
    cpu: bool = option(False, "stay on the CPU even where a GPU is found")


T = TypeVar("T")


def parse_arguments(cls: type[T], section: str, description: str, argv: Sequence[str] | None = None) -> T:
    """
    Build `cls` from defaults, a YAML file given with `--config`, and the command line, in rising order of precedence.

    In the YAML file the fields of [`SharedArguments`] stand at the top level, those of a script in a section named
    `data`, `pretrain`, `moa`, `rl` or `demo`, so that one file serves all scripts.

    Raises:
        ValueError: For a key of the YAML file that is not known, with the nearest match.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default=argparse.SUPPRESS, help="YAML file; the command line overrides it")
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        default = f.default if f.default is not MISSING else f.default_factory()
        parser.add_argument(f"--{f.name}", default=default, help=f.metadata["help"], **_argparse_type(hints[f.name]))
    known, _ = parser.parse_known_args(argv)
    if "config" in known:
        parser.set_defaults(**_read_yaml(Path(known.config), cls, section))
    values = vars(parser.parse_args(argv))
    values.pop("config", None)
    return cls(**values)


def _argparse_type(hint: Any) -> dict[str, Any]:
    if isinstance(hint, types.UnionType):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is list:
        return {"nargs": "*", "type": typing.get_args(hint)[0]}
    return {"type": hint}


def _read_yaml(path: Path, cls: type, section: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"--config {str(path)!r} is not a file")
    try:
        content = _mapping(yaml.safe_load(path.read_text()), str(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    shared = {f.name for f in fields(SharedArguments)}
    own = {f.name: hint for f in fields(cls) for hint in [typing.get_type_hints(cls)[f.name]]}
    values = {}
    for key, value in content.items():
        if key in SECTIONS:
            continue
        if key not in shared:
            raise unknown_name(f"key in {path}", key, shared | set(SECTIONS))
        if key in own:
            values[key] = value
    for key, value in _mapping(content.get(section), f"section {section!r} of {path}").items():
        if key not in own:
            raise unknown_name(f"key in section {section!r} of {path}", key, own)
        values[key] = value
    return {key: _checked(value, own[key], key, path) for key, value in values.items()}


def _mapping(content: Any, where: str) -> dict[Any, Any]:
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{where} must hold keys and values, got {type(content).__name__}")
    return content or {}


def _checked(value: Any, hint: Any, key: str, path: Path) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    allowed = tuple(typing.get_origin(h) or h for h in allowed)
    if float in allowed and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            pass
    matches = isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed)
    if not matches:
        names = " or ".join(getattr(h, "__name__", str(h)) for h in allowed)
        raise ValueError(f"{path}: {key} must be {names}, got {value!r}")
    return value
