"""The house rules that a script can check."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from qvl.cli.main import VERBS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "qvl").rglob("*.py"))
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
"""Without the docstring: a verb's tells every option."""
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:" + "|".join(("work", "opt/(?:wheels|pypi)", "root")) + r")/")


def _ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tracked() -> list[Path]:
    """Text files under version control; without git (an unpacked archive), the sources."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.split("\0") if done.returncode == 0 else [str(p.relative_to(ROOT)) for p in SOURCES]
    kinds = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".css", ".html", ""}
    return [p for p in (ROOT / n for n in names if n) if p.suffix in kinds and p.is_file()]


@pytest.mark.parametrize("path", SOURCES, ids=_ids)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            told = len(node.body[0].value.value.splitlines()) if ast.get_docstring(node) else 0
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - told
            assert lines < MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stat().st_size], ids=_ids)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "a module begins with a docstring"
    assert path.stem not in ("utils", "helpers", "misc")


def test_only_runtime_reads_the_environment() -> None:
    readers = [_ids(p) for p in SOURCES if re.search(r"\bos\.(environ|getenv)\b", p.read_text(encoding="utf-8"))]
    assert readers in ([], ["qvl/runtime.py"])


def test_nothing_is_unfinished_and_no_machine_is_named() -> None:
    for path in _tracked():
        text = path.read_text(encoding="utf-8")
        assert not MACHINE_PATHS.search(text), f"{path} names a folder of one machine"
        if path.suffix == ".py":
            assert not UNFINISHED.search(text), f"{path} is unfinished"


def test_pins_name_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    assert "torch==2.13.0" in lines


@pytest.mark.parametrize("name", ["README.md", "docs/ARCHITECTURE.md"])
def test_documents_name_only_what_there_is(name: str) -> None:
    document = ROOT / name
    text = document.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`]+`|```.*?```", text, re.DOTALL))))
    assert named <= targets, f"no such make targets: {named - targets}"
    verbs = {name.split()[0] for name in VERBS}
    assert set(re.findall(r"\bqvl ([a-z]+)(?=[ `])", text)) <= verbs
    for link in re.findall(r"\]\((?!http|#)([^)#]+)\)", text):
        assert (document.parent / link).exists(), f"{name} points to {link}, which is not there"


def test_readme_lists_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in VERBS if f"`qvl {name}`" not in text] == []
