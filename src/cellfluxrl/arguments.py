"""Command lines: parsers with examples and one-line errors, and options from dataclasses with a YAML file behind them.

Nothing here imports torch, so that `--help`, completion and error messages take no time.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import inspect
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cellfluxrl.errors import unknown_name

METAVARS = {int: "N", float: "X", str: "TEXT"}


def option(default: Any, help: str, group: str | None = None) -> Any:
    """A dataclass field with a help text, which `--help` shows among those of its group."""
    metadata = {"help": help, "group": group}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def option_group(title: str) -> Callable[[Any, str], Any]:
    """Make an [`option`] function for one group, such as `sizes`: `width: int = sizes(48, "pixels of a row")`."""
    return functools.partial(option, group=title)


_run = option_group("run")


@dataclass
class RunArguments:
    """What every training script takes, whatever it trains."""

    output_dir: str = _run("runs/default", "where the results go")
    seed: int = _run(0, "seed of everything that is random")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = _run(None, "default: what accelerate is configured for")
    report_to: str | None = _run(None, "trackers besides log.jsonl and TensorBoard, for example 'wandb'")
    cpu: bool = _run(default=False, help="stay on the CPU even where a GPU is found")


T = TypeVar("T")


class CommandParser(argparse.ArgumentParser):
    """The parser of one command, which reports a mistake in one line with the nearest option.

    Args:
        prog: The command's words, e.g. `"cellfluxrl data info"`.
        text: What the command does. What follows a line `Examples:` is put at the end of the help.
    """

    def __init__(self, prog: str | None, text: str | None):
        description, _, examples = (text or "").partition("\nExamples:\n")
        super().__init__(
            prog=prog,
            description="\n\n".join(filled(paragraph) for paragraph in description.strip().split("\n\n")),
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parse a command line; what is not known ends the process with one line."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown and not unknown[0].startswith("-"):
            self.error(f"unexpected argument {unknown[0]!r}")
        if unknown:
            name = unknown[0].split("=")[0]
            nearest = difflib.get_close_matches(name, self._option_string_actions, n=1)
            self.error(f"unknown option {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))
        return parsed

    def error(self, message: str) -> typing.NoReturn:
        """Report a mistake in one line, and end the process with status 2."""
        self.exit(2, f"cellfluxrl: error: {message} ({self.prog} --help lists the options)\n")


def filled(text: str, indent: str = "", initial: str = "") -> str:
    """A paragraph in lines that fit the terminal."""
    width = min(shutil.get_terminal_size().columns, 120) - 2
    # A command is not broken at its hyphens.
    return textwrap.fill(
        " ".join(text.split()), width, initial_indent=initial, subsequent_indent=indent, break_on_hyphens=False
    )


def list_commands(commands: Mapping[str, str]) -> str:
    """Names and what they do, in lines that fit the terminal."""
    return "\n".join(filled(text, " " * 13, f"  {name:11}") for name, text in commands.items())


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Let a command print its result for programs instead of for people."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")


def run_subcommand(group: str, commands: Mapping[str, Callable[[Sequence[str]], None]], argv: Sequence[str]) -> None:
    """Run one of the commands of a group such as `cellfluxrl data`; without any, or with `--help`, list them."""
    if not argv or argv[0] in ("-h", "--help"):
        listed = list_commands({name: summary_of(command) for name, command in commands.items()})
        usage = f"usage: cellfluxrl {group} COMMAND [options]     (cellfluxrl {group} COMMAND --help lists them)"
        print(f"{usage}\n\n{listed}", file=sys.stdout if argv else sys.stderr)
        raise SystemExit(0 if argv else 2)
    if argv[0] not in commands:
        raise unknown_name(f"{group} command", argv[0], commands)
    commands[argv[0]](argv[1:])


def summary_of(command: Callable[..., Any]) -> str:
    """The first sentence of a command's docstring, for a list of commands."""
    first = inspect.getdoc(command).split("\n\n")[0].rstrip(".")
    return first[0].lower() + first[1:]


def argument_parser(cls: type, prog: str | None, text: str | None) -> CommandParser:
    """The parser that has an option for each field of a dataclass, and `--config`."""
    parser = CommandParser(prog, text)
    parser.usage = f"{parser.prog} [options]"  # by default it would name every option
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file; the command line overrides it"
    )
    hints, defaults = typing.get_type_hints(cls), cls()
    groups: dict[str | None, argparse._ActionsContainer] = {None: parser}
    for f in fields(cls):
        title, default = f.metadata["group"], getattr(defaults, f.name)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        action = groups[title].add_argument(f"--{f.name}", default=default, **_argparse_type(f.name, hints[f.name]))
        # Set here, because some versions of Python would say the default of a switch twice.
        action.help = f.metadata["help"] + ("" if default in (None, []) else f" (default: {default})")
    return parser


def check_choices(args: Any) -> None:
    """Raise a `ValueError` if a field that is annotated with a `Literal` holds none of its values."""
    for name, hint in typing.get_type_hints(type(args)).items():
        value, choices = getattr(args, name), _choices(hint)
        if choices and value not in choices and not (value is None and type(None) in _alternatives(hint)):
            raise unknown_name(name, value, choices)


def parse_arguments(
    cls: type[T],
    section: str,
    description: str | None,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    *,
    sections: Collection[str] = (),
    shared: Collection[str] = (),
) -> T:
    """Build `cls` from its defaults, a YAML file given with `--config`, and the command line, which wins.

    Args:
        cls: A dataclass of [`option`]s.
        section: The section of the YAML file that is read.
        description, prog: See [`CommandParser`].
        argv: By default the command line of the process.
        sections: Other sections that the YAML file may have, so that one file serves all scripts.
        shared: Keys that may stand at the top level of the YAML file; those that `cls` does not have are skipped.

    Raises:
        ValueError: For a key or value of the YAML file that is not known, with the nearest match.
    """
    parser = argument_parser(cls, prog, description)
    known, _ = parser.parse_known_args(argv)
    if "config" in known:
        given = _read_yaml(Path(known.config), cls, section, {section, *sections}, set(shared))
        parser.set_defaults(**given)
    values = vars(parser.parse_args(argv))
    args = cls(**{f.name: values[f.name] for f in fields(cls)})
    check_choices(args)
    return args


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of a `Literal`, or of one that may be `None`."""
    return next((typing.get_args(h) for h in _alternatives(hint) if typing.get_origin(h) is Literal), ())


def _argparse_type(name: str, hint: Any) -> dict[str, Any]:
    if choices := _choices(hint):  # checked later, so that those of a YAML file are, too
        return {"type": str, "metavar": "{" + ",".join(choices) + "}"}
    hint = next(h for h in _alternatives(hint) if h is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is list:
        return {"nargs": "*", "type": typing.get_args(hint)[0], "metavar": "TEXT"}
    return {"type": hint, "metavar": "DIR" if name.endswith("_dir") else METAVARS[hint]}


def _read_yaml(path: Path, cls: type, section: str, sections: set[str], shared: set[str]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"--config {str(path)!r} is not a file")
    try:
        content = _mapping(yaml.safe_load(path.read_text()), str(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    hints = typing.get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    of_section = _mapping(content.get(section), f"section {section!r} of {path}")
    for key in content:
        if key not in sections | shared:
            raise unknown_name(f"key in {path}", key, shared | sections)
    for key in of_section:
        if key not in names:
            raise unknown_name(f"key in section {section!r} of {path}", key, names)
    values = {key: value for key, value in content.items() if key in names and key not in sections} | of_section
    return {key: _checked(value, hints[key], key, path) for key, value in values.items()}


def _mapping(content: Any, where: str) -> dict[Any, Any]:
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{where} must hold keys and values, got {type(content).__name__}")
    return content or {}


def _checked(value: Any, hint: Any, key: str, path: Path) -> Any:
    origins = [typing.get_origin(h) or h for h in _alternatives(hint)]
    allowed = tuple(str if origin is Literal else origin for origin in origins)
    if float in allowed and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            pass
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(getattr(h, "__name__", str(h)) for h in allowed)
        raise ValueError(f"{path}: {key} must be {names}, got {value!r}")
    return value
