"""Writing folders and files so that a reader finds them whole or not at all.

Knows: temporary names, renaming, full disks. Does not know: what the files hold.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_folder(path: Path, *, replaces: tuple[str, ...] = (), needs_bytes: int = 0) -> Iterator[Path]:
    """Yields an empty folder; when the block ends well, its files become those of `path`.

    A new `path` appears in one rename. An existing one keeps its other files; each written file replaces its
    namesake in one rename, after all of them were written, and left-over files matching `replaces` are removed.
    When the block fails, nothing of it remains and `path` is untouched.

    The empty folder lies beside a new `path` and inside an existing one, which may be a link or a mounted volume: files
    can be renamed within one file system only, and the folder around may belong to somebody else.

    Args:
        replaces: glob patterns of older files that the new ones supersede ("model*.safetensors").
        needs_bytes: about how much will be written; refused up front if the disk has less.

    Raises:
        OSError: the disk is (or becomes) full, with the sizes.
        ValueError: `path` exists and is not a folder.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"cannot save into {path}: it is a file; name a folder")
    where = path if path.is_dir() else path.parent
    where.mkdir(parents=True, exist_ok=True)
    _require_space(where, needs_bytes)
    stage = where / f".{path.name}.partial-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)  # left by a killed process that had the same id
    stage.mkdir()
    try:
        yield stage
        for file in stage.iterdir():
            _flush(file)
        _publish(stage, path, replaces)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _no_space(where, needs_bytes) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_whole(file: Path, text: str) -> None:
    """Writes a file whose namesake stays as it is until all of the new one is on the disk.

    Raises:
        OSError: the disk is full; nothing is changed.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _publish(stage: Path, path: Path, replaces: tuple[str, ...]) -> None:
    if not path.exists():
        stage.rename(path)
        _flush(path.parent)
        return
    written = {file.name for file in stage.iterdir()}
    stale = {file for pattern in replaces for file in path.glob(pattern) if file.name not in written}
    for file in sorted(stage.iterdir()):
        file.replace(path / file.name)
    for file in stale:
        file.unlink()
    _flush(path)


def _flush(path: Path) -> None:
    """Waits until the disk has it, so that a power cut after the rename cannot leave an empty file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_space(folder: Path, needs_bytes: int) -> None:
    if shutil.disk_usage(folder).free < needs_bytes:
        raise _no_space(folder, needs_bytes)


def _no_space(folder: Path, needs_bytes: int) -> OSError:
    free = shutil.disk_usage(folder).free
    return OSError(
        errno.ENOSPC,
        f"no space left in {folder}: {free / 1e9:.2f} GB free, about {needs_bytes / 1e9:.2f} GB needed; "
        "nothing was changed. Free some space, save elsewhere, or save in bfloat16",
    )
