"""Options of a verb from the signature and docstring of its function.

Knows: jsonargparse, and how its words become plain ones. Does not know: verbs.
"""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the example, says types in plain words and leaves out defaults that say nothing."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action).replace("<class 'Path'>", "path").replace(" | null", "")
        return re.sub(r", default: (?:null|\[\])", "", text)


def parse(name: str, example: str, function: Callable[..., Any], given: Sequence[str]) -> dict[str, Any] | None:
    """The keyword arguments that `given` asks for, typed by the function's annotations; None after printing help.

    Keyword-only parameters are options, the others are given by place. `image_size` is `--image-size`; an option
    that takes a list can be repeated.

    Raises:
        ValueError: an unknown or missing option, or a value of the wrong type.
    """
    parser = ArgumentParser(
        prog=f"qvl {name}",
        usage=SUPPRESS,
        description=f"  {example}\n\n{_about(function)}",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    parameters = inspect.signature(function).parameters.values()
    parser.add_function_arguments(function, as_positional=any(p.kind is not p.KEYWORD_ONLY for p in parameters))
    if {"-h", "--help"} & set(given):
        print(_help(parser, function))
        return None
    lists = {p.name for p in parameters if str(p.annotation).startswith("list")}
    try:
        return vars(parser.instantiate(parser.parse_args([_spelling(word, lists) for word in given])))
    except ArgumentError as error:
        raise ValueError(f"{one_message(error)} (see `qvl {name} --help`)") from error


def one_message(error: ArgumentError) -> str:
    """The library's nested message as one line: `optim.lr: expected float, got abc`."""
    text = re.sub(r"Problem with given class_path '[^']*':", "", str(error))
    text = " ".join(text.split()).replace("recipe.", "")
    text = re.sub(r'Parser key "stages": (?=Parser key|Group)', "", text)
    text = re.sub(r'Parser key "([^"]*)":', r"\1:", text)
    text = re.sub(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[([^]]*)\])", r"expected \1\2", text)
    return text.replace(". Got value:", ", got").strip()


def _spelling(word: str, lists: set[str]) -> str:
    """`--image-size=8x8` -> `--image_size=8x8`; `--set` -> `--set+`, which adds to what was given before."""
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    option = "--" + option[2:].replace("-", "_")
    return f"{option}+{equals}{value}" if option[2:] in lists else f"{option}{equals}{value}"


def _help(parser: ArgumentParser, function: Callable[..., Any]) -> str:
    text = re.sub(r"--[a-z_]+", lambda match: match[0].replace("_", "-"), parser.format_help())
    text = re.sub(r"( --[a-z-]+) \[ITEM,\.\.\.\], --[a-z-]+\+ \[ITEM,\.\.\.\]", r"\1 KEY=VALUE", text)
    title = _about(function).partition("\n")[0].rstrip(".")
    return text.replace(f"\n{title}:\n", "\n").rstrip()


def _about(function: Callable[..., Any]) -> str:
    """The docstring up to its sections."""
    return inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0].partition("\nRaises:")[0].strip()
