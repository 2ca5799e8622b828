"""Verbs, their help, and how errors reach a person."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qvl.cli.arguments import parse
from qvl.cli.main import INTERRUPTED, USER_ERROR, VERBS, main
from qvl.train.interrupt import Stopped


def _function(name: str):
    module, _, function = VERBS[name].target.partition(":")
    return getattr(importlib.import_module(f"qvl.cli.{module}"), function)


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["chat", "--help"], ["trian"]])
def test_help_and_mistakes_need_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from qvl.cli.main import main; status = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'matplotlib', 'tokenizers') if m in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert done.returncode == (USER_ERROR if arguments == ["trian"] else 0)


def test_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "qvl"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_help_begins_with_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = VERBS[name]
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].strip() == verb.example
    assert "_" not in "".join(word for word in text.split() if word.startswith("--")), "options are spelt with dashes"
    words = shlex.split(verb.example)
    assert words[: 1 + len(name.split())] == ["qvl", *name.split()]
    assert parse(name, verb.example, _function(name), words[1 + len(name.split()) :])


def test_options_have_dashes_and_lists_repeat() -> None:
    options = parse("inspect", "", _function("inspect"), ["2b", "--image-size", "8x8"])
    assert options == {"model": "2b", "image_size": "8x8"}
    options = parse("train", "", _function("train"), ["--config=a.yaml", "--set", "a.b=[1, 2]", "--set=c=1e-4"])
    assert options is not None
    assert options["set"] == ["a.b=[1, 2]", "c=1e-4"]
    assert options["config"] == Path("a.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean `qvl train`?"),
        (["data"], "there are: data parts, data show"),
        (["train"], "config (see `qvl train --help`)"),
        (["train", "--config", "x.yaml", "--minuts", "3"], "--minuts"),
        (["train", "--config", "x.yaml", "--minutes", "soon"], "minutes: expected float, got soon"),
        (["train", "--config", "no/such.yaml"], "there is no recipe no/such.yaml"),
        (["inspect", "3b"], "Presets: qwen2-vl-2b"),
        (["eval", "--model", "no/such/model/folder"], "no/such/model/folder"),
        (["eval", "--model", "x", "--split", "train"], "split: expected 'dev', 'test', got train"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == USER_ERROR
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["train", "--config", "no/such.yaml"])


@pytest.mark.parametrize(
    ("error", "said"), [(KeyboardInterrupt(), "stopped"), (Stopped("stopped in chat after step 3"), "after step 3")]
)
def test_an_interrupt_is_not_an_error(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def inspect(model: str) -> None:
        raise error

    monkeypatch.setattr("qvl.cli.inspect.inspect", inspect)
    assert main(["inspect", "2b"]) == INTERRUPTED
    assert said in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qvl ")
