"""Code in `docs/` runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


def test_the_agents_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (400, 300), "grey").save("street.png")
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "agents.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {"__name__": "example"}
    exec(code, names)
    talk = names["talk"]
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert talk.messages[1]["tool_calls"][0]["function"]["name"] == "crop"
    assert talk.messages[2]["content"][0]["image"].size == (448, 448)
    assert capsys.readouterr().out.endswith('The sign says "exit".\n')
