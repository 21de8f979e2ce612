"""Command lines: parsers with examples and one-line errors, and options from dataclasses with a YAML file behind them.

Nothing here imports torch, so that `--help`, completion and the report of a mistake take no time.
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
from dataclasses import MISSING, dataclass, field, fields
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
    """What makes the [`option`]s of one group.

    Example:
        >>> rollouts = option_group("rollouts")
        >>> @dataclass
        ... class Arguments:
        ...     num_inference_steps: int = rollouts(6, "steps of the solver")
        >>> Arguments()
        Arguments(num_inference_steps=6)
    """
    return functools.partial(option, group=title)


_run = option_group("run")


@dataclass
class RunArguments:
    """What every training script takes, whatever it trains."""

    output_dir: str = _run("runs/default", "where the results go")
    seed: int = _run(0, "seed of everything that is random")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = _run(None, "default: what accelerate is configured for")
    report_to: str | None = _run(None, "trackers besides log.jsonl and TensorBoard, for example 'wandb'")
    cpu: bool = _run(False, "stay on the CPU even where a GPU is found")


T = TypeVar("T")


class CommandParser(argparse.ArgumentParser):
    """The parser of one command: examples at the end of its help, a mistake told in one line with the nearest option.

    Args:
        prog: As it is called, e.g. `"cellfluxrl data info"`.
        text: What the command does. What follows a line `Examples:` is put at the end of the help.
        usage: The first line of the help; by default it names every option.
    """

    def __init__(self, prog: str | None, text: str, usage: str | None = None):
        description, _, examples = text.partition("\nExamples:\n")
        super().__init__(
            prog=prog,
            usage=usage,
            description="\n\n".join(filled(paragraph) for paragraph in description.strip().split("\n\n")),
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown and not unknown[0].startswith("-"):
            self.error(f"unexpected argument {unknown[0]!r}")
        if unknown:
            name = unknown[0].split("=")[0]
            nearest = difflib.get_close_matches(name, self._option_string_actions, n=1)
            self.error(f"unknown option {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))
        return parsed

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"cellfluxrl: error: {message} ({self.prog} --help tells the options)\n")


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
    """Run one of the commands of a group such as `cellfluxrl data`; without any, or with `--help`, list them.

    Raises:
        ValueError: For a command that is not there, with the nearest one.
        SystemExit: After the list: 0 if it was asked for, else 2.
    """
    if not argv or argv[0] in ("-h", "--help"):
        listed = list_commands({name: summary_of(command) for name, command in commands.items()})
        usage = f"usage: cellfluxrl {group} COMMAND [options]     (cellfluxrl {group} COMMAND --help tells them)"
        print(f"{usage}\n\n{listed}", file=sys.stdout if argv else sys.stderr)
        raise SystemExit(0 if argv else 2)
    if argv[0] not in commands:
        raise unknown_name(f"{group} command", argv[0], commands)
    commands[argv[0]](argv[1:])


def summary_of(command: Callable[..., Any]) -> str:
    """The first sentence of a command's docstring, as it stands in a list."""
    first = inspect.getdoc(command).split("\n\n")[0].rstrip(".")
    return first[0].lower() + first[1:]


def argument_parser(cls: type, prog: str | None, text: str) -> CommandParser:
    """The parser that has an option for each field of a dataclass, and `--config`."""
    parser = CommandParser(prog, text, usage=f"{prog} [options]" if prog else None)
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file; the command line overrides it"
    )
    hints = typing.get_type_hints(cls)
    groups: dict[str | None, argparse._ActionsContainer] = {None: parser}
    for f in fields(cls):
        title = f.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = f.default if f.default is not MISSING else f.default_factory()
        action = groups[title].add_argument(f"--{f.name}", default=default, **_argparse_type(f.name, hints[f.name]))
        # Set here, because some versions of Python would say the default of a switch twice.
        action.help = f.metadata["help"] + ("" if default in (None, []) else f" (default: {default})")
    return parser


def check_choices(args: Any) -> None:
    """See that the fields of a dataclass that are annotated with a `Literal` hold one of its values.

    Raises:
        ValueError: With the nearest one, if they do not.
    """
    for name, hint in typing.get_type_hints(type(args)).items():
        value, choices = getattr(args, name), _choices(hint)
        if choices and value not in choices and not (value is None and type(None) in _alternatives(hint)):
            raise unknown_name(name, value, choices)


def parse_arguments(
    cls: type[T],
    section: str,
    description: str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    *,
    sections: Collection[str] = (),
    shared: Collection[str] = (),
) -> T:
    """Build `cls` from defaults, a YAML file given with `--config`, and the command line, in rising order of
    precedence.

    Args:
        cls: A dataclass of [`option`]s.
        section: That of the YAML file that is read.
        description: What the command does; see [`CommandParser`].
        argv: By default those of the process.
        prog: How the command is called.
        sections: Those that the YAML file may have for other scripts, so that one file serves all.
        shared: Keys that may stand at the top level of the YAML file; those that `cls` does not have are passed over.

    Raises:
        ValueError: For a key of the YAML file, or a value, that is not known, with the nearest match.
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
    own = {f.name: hints[f.name] for f in fields(cls)}
    values = {}
    for key, value in content.items():
        if key in sections:
            continue
        if key not in shared:
            raise unknown_name(f"key in {path}", key, shared | sections)
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
    allowed = tuple(typing.get_origin(h) or h for h in _alternatives(hint))
    allowed = tuple(str if h is Literal else h for h in allowed)
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
