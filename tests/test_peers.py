"""docs/PEERS.md names tests: they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs" / "PEERS.md").read_text(encoding="utf-8")
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]


def test_every_complaint_has_a_test_or_says_that_it_is_open() -> None:
    assert len(ROWS) == 25
    for row in ROWS:
        _, complaint, here, guards, _ = (cell.strip() for cell in row.split("|"))
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", guards)
        assert named or "*open:*" in here, complaint
        assert guards.count("`") == 2 * len(named), f"{complaint}: {guards} names something else than tests"
        for file, name in named:
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in tests, f"there is no {file}::{name}"
