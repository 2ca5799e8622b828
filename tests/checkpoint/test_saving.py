"""A folder is written whole or not at all."""

from __future__ import annotations

import errno
import resource
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkpoint.small_model import SHARD, assert_same, files, small
from qvl.checkpoint import folder as folder_module
from qvl.checkpoint.folder import load_model, save_model
from qvl.checkpoint.stage import staged_folder, write_whole


def test_saving_over_a_folder(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m", max_shard_bytes=SHARD)
    (tmp_path / "m" / "tokenizer.json").write_text("kept")
    newer = small()
    with torch.no_grad():
        newer.embed.weight.add_(1)
    save_model(newer, tmp_path / "m")
    assert files(tmp_path / "m") == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert_same(load_model(tmp_path / "m"), newer)
    save_model(small(), tmp_path / "m", max_shard_bytes=SHARD)
    assert_same(load_model(tmp_path / "m"), small())


def test_saving_into_a_link(tmp_path: Path) -> None:
    """To another disk, or a volume is mounted there: nothing can be renamed from beside it into it."""
    disk, link = tmp_path / "disk", tmp_path / "here" / "m"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to(disk)
    with staged_folder(link) as stage:
        assert stage.parent.resolve() == disk
    save_model(small(), link)
    assert link.is_symlink()
    assert files(link.parent) == {"m"}
    assert files(disk) == {"config.json", "generation_config.json", "model.safetensors"}
    assert_same(load_model(link), small())


def test_saving_onto_a_file(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    with pytest.raises(ValueError, match="it is a file; name a folder"):
        save_model(small(), tmp_path / "m")


@pytest.mark.parametrize("existing", [True, False])
def test_failing_write_changes_nothing(existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m"
    if existing:
        save_model(small(), target)
    newer = small()
    with torch.no_grad():
        newer.embed.weight.add_(1)
    written = iter(range(100))
    real = folder_module.write_weights

    def fails_late(*args: object) -> None:
        real(*args)
        next(written)
        raise RuntimeError("power cut")

    monkeypatch.setattr(folder_module, "write_weights", fails_late)
    with pytest.raises(RuntimeError, match="power cut"):
        save_model(newer, target, max_shard_bytes=SHARD)
    assert next(written) == 1
    assert files(tmp_path) == ({"m"} if existing else set())
    if existing:
        assert_same(load_model(target), small())


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(OSError, match=r"no space left in .*nothing was changed") as caught:
        save_model(small(), tmp_path / "m")
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path) == set()


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """The operating system refuses files over 20 kB: the nearest thing to a disk that fills up in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("file_size_limit")
def test_a_file_stays_as_it_is_on_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_whole(file, "old")
    with pytest.raises(OSError, match="File too large"):
        write_whole(file, "new" * 10_000)
    assert file.read_text() == "old"
    write_whole(file, "new")
    assert (file.read_text(), files(tmp_path)) == ("new", {"config.yaml"})


@pytest.mark.usefixtures("file_size_limit")
def test_disk_filling_up(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"could not write .*model.safetensors"):
        save_model(small(), tmp_path / "m")
    assert files(tmp_path) == set()
