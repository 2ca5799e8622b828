"""Folder or hub id."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from qvl.checkpoint.hub import resolve


def test_folders(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at-all", "/no/such/folder", "a/b/c", "../a"])
def test_neither(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="not a hub id"):
        resolve(name)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        resolve(tmp_path / "model.safetensors")


def test_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve("Qwen/Qwen2-VL-2B-Instruct") == tmp_path
    assert "*.safetensors" in asked["Qwen/Qwen2-VL-2B-Instruct"]
    assert "*.bin" not in asked["Qwen/Qwen2-VL-2B-Instruct"]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("cannot reach the hub"), ConnectionError("no route")])
def test_offline(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(FileNotFoundError, match=r"'Qwen/Qwen2-VL-2B-Instruct', and the hub could not .*connection"):
        resolve("Qwen/Qwen2-VL-2B-Instruct")
