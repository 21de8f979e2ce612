from dataclasses import dataclass, fields
from typing import Literal

import pytest

from cellfluxrl.arguments import RunArguments, argument_parser, check_choices, option, option_group, parse_arguments


@dataclass
class Shared(RunArguments):
    image_size: int = option(48, "an integer")
    data_dir: str | None = option(None, "an optional text")
    test_plates: list[str] | None = option(None, "an optional list")


LAYOUT = {"sections": ("pretrain", "moa", "demo"), "shared": {f.name for f in fields(Shared)} | {"of_another_script"}}
sizes = option_group("sizes")


@dataclass
class Arguments(Shared):
    kind: Literal["nft", "rwr"] = option("nft", "one of several")
    limit_kind: Literal["hard", "soft"] | None = sizes(None, "one of several, or none")
    learning_rate: float = option(1e-3, "a float")
    max_train_steps: int = option(10, "an integer")
    shuffle: bool = option(False, "a switch")
    limit: float | None = sizes(None, "an optional float")


@pytest.fixture
def parse(tmp_path):
    """Parse a command line, with a YAML file behind it if one is given as text."""

    def run(*argv: str, yaml: str | None = None) -> Arguments:
        if yaml is not None:
            path = tmp_path / "config.yaml"
            path.write_text(yaml)
            argv = ("--config", str(path), *argv)
        return parse_arguments(Arguments, "rl", "A test.", list(argv), **LAYOUT)

    return run


def test_nothing_given_means_the_defaults(parse):
    assert parse() == Arguments()


def test_the_command_line_wins_over_yaml_and_yaml_over_the_defaults(parse):
    args = parse("--max_train_steps", "3", yaml="seed: 7\nrl:\n  max_train_steps: 2\n  learning_rate: 0.5\n")
    assert (args.max_train_steps, args.learning_rate, args.seed, args.image_size) == (3, 0.5, 7, 48)


def test_the_command_line_wins_even_with_the_default_value(parse):
    assert parse("--max_train_steps", "10", yaml="rl: {max_train_steps: 2}").max_train_steps == 10


def test_a_section_wins_over_the_top_level(parse):
    assert parse(yaml="seed: 1\nrl: {seed: 2}").seed == 2


def test_sections_of_other_scripts_are_ignored(parse):
    assert parse(yaml="pretrain: {something_else: 1}\nmoa: {seed: 5}\ndemo: null") == Arguments()


@pytest.mark.parametrize("yaml", ["", "rl:", "{}"])
def test_an_empty_file_or_section_changes_nothing(parse, yaml):
    assert parse(yaml=yaml) == Arguments()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("sede: 1", "'sede'; did you mean 'seed'"),
        ("rl: {learning_rat: 1}", "section 'rl' of .*'learning_rat'; did you mean 'learning_rate'"),
        ("learning_rate: 1", "unknown key .* 'learning_rate'"),
        ("1: 2", "unknown key .* 1; "),
    ],
    ids=["top level", "section", "a script's key outside its section", "no text"],
)
def test_unknown_keys_are_refused_with_the_nearest_match(parse, yaml, message):
    with pytest.raises(ValueError, match=message):
        parse(yaml=yaml)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("seed: one", "seed must be int, got 'one'"),
        ("seed: 1.5", "seed must be int, got 1.5"),
        ("seed: true", "seed must be int, got True"),
        ("seed: null", "seed must be int, got None"),
        ("cpu: 1", "cpu must be bool, got 1"),
        ("rl: {learning_rate: fast}", "learning_rate must be float, got 'fast'"),
        ("rl: {limit: true}", "limit must be float or NoneType, got True"),
        ("test_plates: P1", "test_plates must be list or NoneType, got 'P1'"),
        ("rl: [1, 2]", "section 'rl' .*must hold keys and values, got list"),
        ("[1, 2]", "must hold keys and values, got list"),
        ("seed: [1", "is not YAML"),
    ],
)
def test_values_of_the_wrong_type_are_refused(parse, yaml, message):
    with pytest.raises(ValueError, match=message):
        parse(yaml=yaml)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_every_way_to_write_a_float_is_a_float(parse, text):
    assert parse(yaml=f"rl: {{learning_rate: {text}}}").learning_rate == 1e-4
    assert parse("--learning_rate", text.strip("'")).learning_rate == 1e-4


def test_an_integer_in_yaml_is_turned_into_a_float(parse):
    value = parse(yaml="rl: {learning_rate: 1}").learning_rate
    assert isinstance(value, float)


def test_switches_can_be_turned_on_and_off(parse):
    assert parse("--shuffle").shuffle is True
    assert parse(yaml="rl: {shuffle: true}").shuffle is True
    assert parse("--no-shuffle", yaml="rl: {shuffle: true}").shuffle is False


def test_lists_come_from_both_sides(parse):
    assert parse("--test_plates", "a", "b").test_plates == ["a", "b"]
    assert parse(yaml="test_plates: [a, b]").test_plates == ["a", "b"]
    assert parse("--test_plates", "c", yaml="test_plates: [a, b]").test_plates == ["c"]


def test_what_other_scripts_share_is_passed_over(parse):
    assert parse(yaml="of_another_script: 1") == Arguments()


@pytest.mark.parametrize("argv", [("--kind", "rwr"), ("--kind=rwr", "--limit_kind", "soft")])
def test_one_of_several_is_taken(parse, argv):
    assert parse(*argv).kind == "rwr"
    assert parse(yaml="rl: {kind: rwr, limit_kind: null}").kind == "rwr"


@pytest.mark.parametrize(
    ("argv", "yaml", "message"),
    [
        (("--kind", "nfft"), None, "unknown kind 'nfft'; did you mean 'nft'"),
        ((), "rl: {kind: dpo}", "unknown kind 'dpo'; 2 known: nft, rwr"),
        ((), "rl: {kind: null}", "kind must be str, got None"),
        (("--limit_kind", "sooft"), None, "unknown limit_kind 'sooft'; did you mean 'soft'"),
    ],
)
def test_another_one_is_refused_with_the_nearest(parse, argv, yaml, message):
    with pytest.raises(ValueError, match=message):
        parse(*argv, yaml=yaml)


def test_choices_are_checked_where_no_command_line_is_read():
    check_choices(Arguments(kind="rwr", limit_kind=None))
    with pytest.raises(ValueError, match="unknown kind None"):
        check_choices(Arguments(kind=None))


def test_help_shows_choices_and_groups():
    text = argument_parser(Arguments, "test", "A test.").format_help()
    options, _, of_sizes = text.partition("\nsizes:\n")
    assert "--kind {nft,rwr}" in options
    assert "\nrun:\n" in options
    assert "--limit " in of_sizes
    assert "--limit_kind {hard,soft}" in of_sizes


def test_optional_values_can_be_null(parse):
    assert parse(yaml="data_dir: null\nrl: {limit: null}") == Arguments()
    assert parse(yaml="rl: {limit: 2}").limit == 2.0


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"'nowhere.yaml' is not a file"):
        parse_arguments(Arguments, "rl", "A test.", ["--config", "nowhere.yaml"])


@pytest.mark.parametrize("argv", [["--learning_rat", "1"], ["--seed", "x"], ["--image_size", "4.5"]])
def test_mistakes_on_the_command_line_end_with_usage(parse, capsys, argv):
    with pytest.raises(SystemExit, match="2"):
        parse(*argv)
    assert argv[0] in capsys.readouterr().err


def test_lists_given_as_defaults_are_not_shared():
    @dataclass
    class WithList(RunArguments):
        names: list[str] = option(["a"], "a list")

    first = parse_arguments(WithList, "rl", "A test.", [])
    first.names.append("b")
    assert parse_arguments(WithList, "rl", "A test.", []).names == ["a"]
