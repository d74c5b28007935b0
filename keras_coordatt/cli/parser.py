"""Parsers for the commands, from the signatures and docstrings of their functions.

jsonargparse checks the types, reads `--config` files and writes the help. It was chosen
over tyro and typer because they do not read configuration files, and typer does not read
docstrings. This module adds lists such as `--seeds 0 1 2`, switches such as `--memory` and
`--no-memory`, and errors of one line that names the argument.
"""

import argparse
import difflib
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Collection, Sequence

import docstring_parser
import jsonargparse

QUOTES = "'\""
# Names of positional arguments in help and errors, where they are not the parameter's.
METAVARS = {"source": "IN", "output": "OUT", "images": "IMAGE"}


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help without types that the choices before it show already."""

    def _expand_help(self, action):
        text = super()._expand_help(action)
        text = re.sub(r"type: (Optional\[)?Literal\[.*?\]+(, )?", "", text)
        text = re.sub(r"Literal\[(.*?)\]", r"\1", text)
        return text.removesuffix(" ()")


class CommandParser(jsonargparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def __init__(self, *args, **kwargs):
        # An abbreviation would be taken for an option: `--output` for `--output-stride`.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        """Prints the error of an argument, and ends the process."""
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        text = parser._explain(" ".join(message.split()))
        self.exit(2, f"{prog}: error: {text} See: {prog} --help\n")

    def _explain(self, message):
        """Replaces the names of Python by those that the user typed."""
        for action in self._actions:
            name = action.option_strings[0] if action.option_strings else action.metavar
            message = re.sub(rf'Parser key "{action.dest}"', str(name), message)
        message = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", message)
        message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
        message = re.sub(
            r"Does not validate against any of the Union subtypes Subtypes: "
            r"\[(.*), NoneType\] Errors: .* Given value type: \S+ Given value: (.*)",
            r"Expected \1. Received: \2",
            message,
        )
        message = message.replace("Expected a one of", "Expected one of")
        message = re.sub(
            'expected "subcommand" to be .* not provided',
            "COMMAND is required",
            message,
        )
        message = re.sub(
            r"(?<=required: )[\w., ]+$",
            lambda found: ", ".join(
                _metavar(name.split(".")[-1]) for name in found[0].split(", ")
            ),
            message,
        )
        if message.startswith("unrecognized arguments: --"):
            known = [name for action in self._actions for name in action.option_strings]
            typed = message.split()[2].split("=")[0]
            near = difflib.get_close_matches(typed, known, 1)
            if typed in (unnamed := self._unnamed()):
                message += f". Pass {unnamed[typed]} without an option name"
            elif near:
                message += f". Did you mean {near[0]}?"
        return message if message.endswith((".", "?")) else f"{message}."

    def _unnamed(self):
        """Returns the positional arguments by the options that users may try."""
        return {
            f"--{name.lower()}": str(action.metavar)
            for action in self._actions
            if not action.option_strings
            for name in (action.dest, str(action.metavar))
        }

    def format_help(self, *args) -> str:
        """Returns the help text."""
        return re.sub(r"<class\s+'Path'>", "path", super().format_help(*args))


def config_first(argv: Sequence[str]) -> list[str]:
    """Moves `--config FILE` to the front, because later arguments override earlier ones.

    Args:
        argv: The command and its arguments.

    Returns:
        The same arguments in another order.
    """
    configs, others = [], []
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument == "--config":
            configs += [argument, *itertools.islice(arguments, 1)]
        elif argument.startswith("--config="):
            configs.append(argument)
        else:
            others.append(argument)
    return [*argv[:1], *configs, *others]


def add_command(commands, name: str, function: Callable) -> None:
    """Adds a command with the arguments of a function.

    Parameters without a default become positional arguments, all others options. A
    positional `Literal` may be left out: it is then its first value.

    Args:
        commands: Return value of `CommandParser.add_subcommands`.
        name: Name of the command.
        function: Function with annotations and a docstring in Keras's form.
    """
    documentation = docstring_parser.parse(inspect.getdoc(function))
    parser = CommandParser(description=documentation.description)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML or JSON file with values for these options; those typed override "
        "those of the file",
    )
    texts = {item.arg_name: item.description for item in documentation.params}
    hints = typing.get_type_hints(function)
    for key, parameter in inspect.signature(function).parameters.items():
        _add_parameter(parser, parameter, hints[key], texts[key])
    summary = (documentation.short_description or "").rstrip(".")
    commands.add_subcommand(name, parser, help=f"{summary}.")


def _add_parameter(parser, parameter, kind, text):
    options = {"help": " ".join(text.split())}
    if parameter.default is parameter.empty:
        names = [parameter.name]
        options["metavar"] = _metavar(parameter.name)
        if _is_literal(kind):
            # Without a default, which would replace the value of a `--config` file.
            options |= {"nargs": "?", "default": argparse.SUPPRESS}
    else:
        names = [f"--{parameter.name.replace('_', '-')}"]
        options["default"] = parameter.default
        if choices := _choices(kind):
            options["metavar"] = f"{{{','.join(choices)}}}"
    if kind is bool:
        options["action"] = jsonargparse.ActionYesNo(no_prefix="no-")
    elif (items := _type_of_items(kind)) is not None:
        options |= {"type": items, "nargs": "+"}
        if isinstance(parameter.default, tuple):
            options["default"] = list(parameter.default)
            if items is str and not parameter.default:
                # Items from a file and from the command line are combined.
                options["action"] = "extend"
    else:
        options["type"] = kind
    parser.add_argument(*names, **options)


def first_choices(function: Callable) -> dict:
    """Returns the values of positional `Literal`s that are left out."""
    hints = typing.get_type_hints(function)
    return {
        name: typing.get_args(hints[name])[0]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and typing.get_origin(hints[name]) is typing.Literal
    }


def name_options(
    message: str, function: Callable, settable: Collection[str] = ()
) -> str:
    """Writes the arguments that a message names as the user types them.

    Args:
        message: Such as "`validation_split=0.2` sets aside ..., not `data`".
        function: The function of the command.
        settable: Names that are typed as `--set NAME=VALUE`.

    Returns:
        Such as "--validation-split 0.2 sets aside ..., not DATA".
    """
    parameters = inspect.signature(function).parameters

    def typed(found):
        if found[1] in settable:
            return f"--set {found[1]}{'=' if found[2] else ''}{found[2] or ''}"
        if found[1] == "include_top" and "top" in parameters:
            return "--no-top"
        parameter = parameters.get(found[1])
        if parameter is None:
            return found[0]
        if parameter.default is parameter.empty:
            return _metavar(found[1])
        option = f"--{found[1].replace('_', '-')}"
        if found[2] == "None":
            return f"no {option}"
        return option if found[2] is None else f"{option} {found[2].strip(QUOTES)}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", typed, message)


def _metavar(name):
    return METAVARS.get(name, name.upper())


def _choices(kind):
    """Returns the values of a `Literal`, or of one that may be `None`."""
    if int in typing.get_args(kind):
        return ()  # Numbers are possible, too.
    literals = [x for x in (kind, *typing.get_args(kind)) if _is_literal(x)]
    return typing.get_args(literals[0]) if literals else ()


def _is_literal(kind):
    return typing.get_origin(kind) is typing.Literal


def _type_of_items(kind):
    """Returns the type of the items if `kind` is a list, or `tuple[int, ...]`."""
    members = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for member in members:
        if typing.get_origin(member) in (list, tuple):
            return typing.get_args(member)[0]
    return None
