"""The command line of a program and its TOML files, both from the fields of settings classes."""

import argparse
import dataclasses
import difflib
import sys
import tomllib
from functools import partial
from pathlib import Path

from configs import TABLES, UserError, program_name


def parse(argv, doc, commands, default=None):
    """The command and the settings of `[COMMAND] [config.toml ...] [ARGUMENT ...] [--key value ...]`.

    Args: doc: the program's description, for --help. commands: {name: (function, settings class)}. default: the command
    where none is named. Returns: (function, its settings). Raises: UserError for an unknown command or key, a wrong
    value, or a file that cannot be read; SystemExit(0) after --help.
    """
    argv = list(argv)
    name = argv.pop(0) if argv and argv[0] in commands else default
    if name is None:
        if argv and argv[0] not in ("-h", "--help"):
            raise UserError(f"unknown command '{argv[0]}'; it is one of {', '.join(commands)}")
        print(doc.strip() + "\n\n" + describe_commands(commands))
        sys.exit(0)
    function, cls = commands[name]
    parser = build_parser(name, cls, commands, is_default=name == default)
    files = [arg for arg in argv if arg.endswith(".toml") and not arg.startswith("--")]
    if files and not tables_of(cls):
        raise UserError(f"{files[0]}: settings of this command are for the command line, not for files")
    given = parser.parse_intermixed_args(normalise([arg for arg in argv if arg not in files], cls))
    tables = {table: {} for table in TABLES}
    for path in files:
        for table, values in read_toml(path).items():
            tables[table] |= values
    for table, known in TABLES.items():
        check_values(tables[table], known)
    values = {key: value for table in tables_of(cls) for key, value in tables[table].items()} | vars(given)
    check_values(values, cls)
    settings = cls(**values)
    settings.files, settings.given, settings.tables = files, {*values}, tables
    return function, settings


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (--help lists the settings)")


def build_parser(name, cls, commands, is_default):
    """An argparse parser made from the fields of a settings class."""
    arguments = [f for f in dataclasses.fields(cls) if "argument" in f.metadata]
    options = [f for f in dataclasses.fields(cls) if "argument" not in f.metadata]
    usage = [program_name()] + [name] * (not is_default)
    shown = [f.metadata["argument"] + " ..." * f.metadata["many"] for f in arguments]
    usage += [f"[{name}]" if f.metadata["optional"] else name for f, name in zip(arguments, shown)]
    usage += ["[config.toml ...]"] * bool(tables_of(cls)) + ["[--key value ...]"] * bool(options)
    parser = Parser(
        usage=" ".join(usage), description=cls.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        epilog=describe_commands(commands) if is_default else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for field in arguments:
        m = field.metadata
        nargs = "+" if m["many"] else "?" if m["optional"] else None
        parser.add_argument(field.name, nargs=nargs, metavar=m["argument"], help=m["help"])
    groups = {}
    for field in options:
        m, (is_list, kind) = field.metadata, item_type(field.type)
        topic = m["group"] or "settings"
        if topic not in groups:
            groups[topic] = parser.add_argument_group(topic)
        default = " ".join(map(str, field.default_factory())) if is_list else field.default
        shown = "" if default is False else str(default)
        groups[topic].add_argument(
            f"--{field.name}", type=partial(convert, kind), nargs="+" if is_list else None,
            metavar="{" + ",".join(m["choices"]) + "}" if m["choices"] else METAVARS[kind],
            help=m["help"] + f" [{shown}]" * bool(shown),
        )  # fmt: skip
    return parser


def describe_commands(commands):
    """The commands of a program with a line each."""
    lines = [f"  {name:<10} {cls.__doc__.strip().splitlines()[0]}" for name, (_, cls) in commands.items()]
    return "\n".join(["commands (each has --help):", *lines])


def normalise(argv, cls):
    """Arguments as argparse wants them: --max-tokens is --max_tokens, and a lone flag means true."""
    fields = {f.name: f for f in dataclasses.fields(cls) if "argument" not in f.metadata}
    out = []
    for arg, following in zip(argv, [*argv[1:], ""]):
        if arg.startswith("--") and arg != "--help":
            key, equals, value = arg[2:].partition("=")
            key = key.replace("-", "_")
            if key not in fields:
                raise UserError(unknown_key(f"--{key}", key, fields))
            if fields[key].type is bool and not equals and following.lower() not in ("true", "false"):
                equals, value = "=", "true"
            arg = f"--{key}{equals}{value}"
        out.append(arg)
    return out


def unknown_key(where, key, fields):
    if key == "sa_pairs":
        return f"{where}: pairs of names are built on their own now: python -m beyond.synonyms build DATASET --pairs N"
    if key in ("bf16_stream", "attention_dropout"):
        return f"{where}: this setting was removed, as no measurement paid for it; leave it out"
    near = difflib.get_close_matches(key, fields, 1)
    return f"{where}: unknown setting '{key}'; " + (f"did you mean '{near[0]}'?" if near else "see --help")


def item_type(kind):
    """(whether a type is a list, the type of its items or itself)."""
    return (True, kind.__args__[0]) if hasattr(kind, "__args__") else (False, kind)


def convert(kind, text):
    """An argument of the command line as a value of type `kind`."""
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"'{text}' is not {TYPE_NAMES[kind]}") from None


METAVARS = {bool: "[true|false]", int: "N", float: "X", str: "TEXT"}
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read_toml(path):
    """The tables of a TOML file, {name: {setting: value}}, of the right types. Raises: UserError."""
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe or a device might never end
        raise UserError(f"{path}: not a file")
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:  # not TOML, not UTF-8, a number of thousands of digits, nested too deep
        raise UserError(f"{path}: not a TOML file: {e}") from None
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            known = f"{', '.join(TABLES)}; programs of beyond/ read the command line alone"
            raise UserError(f"{path}: '{name}' is not one of the tables {known}")
        check_types(path, name, table)
    return tables


def tables_of(cls):
    """The tables of a TOML file that a settings class reads: its own, and those of the classes that it extends."""
    return [table for table, known in TABLES.items() if issubclass(cls, known)]


def check_types(path, name, table):
    """Raises UserError for a key of a table that is no setting, or a value of another type; ints become floats."""
    fields = {f.name: f for f in dataclasses.fields(TABLES[name]) if "argument" not in f.metadata}
    for key, value in table.items():
        if key not in fields:
            raise UserError(unknown_key(f"{path}, [{name}]", key, fields))
        is_list, kind = item_type(fields[key].type)
        items = value if is_list and type(value) is list else [value]
        if kind is float:  # by way of a string, which is infinite where an int is too large
            items = [float(str(item)) if type(item) is int else item for item in items]
        if is_list != (type(value) is list) or any(type(item) is not kind for item in items):
            what = f"a list, each item {TYPE_NAMES[kind]}" if is_list else TYPE_NAMES[kind]
            raise UserError(f"{path}, [{name}]: {key} = {value!r} is not {what}")
        table[key] = items if is_list else items[0]


def check_values(values, cls):
    """Raises UserError for a value outside its range or choices."""
    for field in dataclasses.fields(cls):
        if field.name not in values or "argument" in field.metadata:
            continue
        value, m = values[field.name], field.metadata
        numbers = [x for x in (value if isinstance(value, list) else [value]) if type(x) in (int, float)]
        if not all(m["least"] <= x <= m["most"] for x in numbers):
            most = f"{m['most']:,}" if type(m["most"]) is int else f"{m['most']:g}"
            raise UserError(f"{field.name} = {value} must be between {m['least']} and {most}")
        if m["choices"] and value not in (field.default, *m["choices"]):
            raise UserError(f"{field.name} = '{value}' is not one of {', '.join(m['choices'])}")
