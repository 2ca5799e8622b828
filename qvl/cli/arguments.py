"""Options of a verb from the signature and docstring of its function.

Knows: jsonargparse, and how its words become plain ones. Does not know: verbs.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
import types
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

_OPTIONAL = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (.*?) - [Ee]xpected "
    r"(?:a )?(?:<class ')?NoneType.*"
)
"""How the library says that a value that may be left out is wrong: only what is wrong with it is wanted."""


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the example, says types in plain words and leaves out defaults that say nothing."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action).replace("<class 'Path'>", "path").replace(" | null", "")
        return re.sub(r", default: (?:null|\[\])", "", text)


def parse(name: str, example: str, function: Callable[..., Any], given: Sequence[str]) -> dict[str, Any] | None:
    """The keyword arguments that `given` asks for, typed by the function's annotations; None after printing help.

    Keyword-only parameters are options, `image_size` is `--image-size`; the others are given by place, and those with
    a default can be left out (a list of texts takes all words that are left). An option that takes a list of texts can
    be repeated; one that is off needs no value to be on.

    Raises:
        ValueError: an unknown or missing option, or a value of the wrong type.
    """
    parser = _parser(name, example, function)
    if {"-h", "--help"} & set(given):
        print(parser.format_help().rstrip())
        return None
    try:
        found = parser.instantiate(parser.parse_args(list(given)))
    except ArgumentError as error:
        raise ValueError(f"{one_message(error)} (see `qvl {name} --help`)") from error
    return {parameter: found[parameter] for parameter in inspect.signature(function).parameters}


def one_message(error: ArgumentError | ValueError) -> str:
    """The library's nested message as one line: `optim.lr: expected float, got abc`."""
    text = re.sub(r"Problem with given class_path '[^']*':", "", str(error))
    text = " ".join(text.split()).replace("recipe.", "")
    text = re.sub(r'Parser key "stages": (?=Parser key|Group)', "", text)
    text = re.sub(r'Parser key "([^"]*)":', r"\1:", text)
    text = re.sub(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[([^]]*)\])", r"expected \1\2", text)
    text = _OPTIONAL.sub(r"\1", text)
    return text.replace(". Got value:", ", got").strip()


def _parser(name: str, example: str, function: Callable[..., Any]) -> ArgumentParser:
    # Types are resolved here: the library would also import what a module imports for type checkers only.
    hints = get_type_hints(function)
    told = docstring_parser.parse(function.__doc__ or "")
    parser = ArgumentParser(
        prog=f"qvl {name}",
        usage=SUPPRESS,
        description=f"  {example}\n\n{told.description or ''}",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    helps = {param.arg_name: " ".join((param.description or "").split()) for param in told.params}
    for parameter in inspect.signature(function).parameters.values():
        option = "--" + parameter.name.replace("_", "-")
        kind = _without_none(hints[parameter.name])
        about: dict[str, Any] = {"help": helps.get(parameter.name, "").replace("%", "%%")}
        if kind == list[str] and parameter.default is parameter.empty:
            parser.add_argument(parameter.name, nargs="+", **about)
        elif kind == list[str]:
            meant = "KEY=VALUE" if parameter.name == "set" else "PATH"
            parser.add_argument(option, action="append", default=[], metavar=meant, **about)
        elif kind is bool and parameter.default is False:
            parser.add_argument(option, action="store_true", **about)
        elif parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            parser.add_argument(parameter.name, type=kind, **about)
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            parser.add_argument(parameter.name, type=kind, nargs="?", default=parameter.default, **about)
        elif parameter.default is not parameter.empty:
            parser.add_argument(option, type=kind, default=parameter.default, **about)
        else:
            parser.add_argument(option, type=kind, required=True, **about)
    return parser


def _without_none(hint: Any) -> Any:
    """`float | None` -> `float`: an option that is not given is None anyway, and messages stay short."""
    if get_origin(hint) in (Union, types.UnionType):
        return functools.reduce(operator.or_, (kind for kind in get_args(hint) if kind is not types.NoneType))
    return hint
