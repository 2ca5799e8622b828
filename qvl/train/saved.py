"""Saved states of a run on disk: whole folders, of which a crash leaves the last good one.

Knows: the layout of a run's `checkpoint/`, which states there are whole, how one becomes the newest.
Does not know: what the tensors are (`state`), when one is saved and what goes on meanwhile (`saver`).

    checkpoint/000013/__0_0.distcp   the tensors that rank 0 has written, one such file per rank
    checkpoint/000013/.metadata      which (part of a) tensor lies where: PyTorch's distributed checkpoint
    checkpoint/000013/state.json     where the run stands, and the size of every file: written last
    checkpoint/frozen/               likewise, written once: parameters that no stage of the run changes
    checkpoint/partial/              the next one while it is written; it gets its number by one renaming
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from qvl.runtime import free_disk_bytes

log = logging.getLogger(__name__)

# One process is no mistake here.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")

PARTIAL = "partial"
FROZEN = "frozen"
PARTIAL_FROZEN = "partial-frozen"
_STATE = "state.json"
_OLD_FILE = "state.pt"
_FORMAT = 2
_TRIES = 5
"""How often a reader begins anew, if the writer has removed what it was reading."""


class Damaged(Exception):
    """A saved state that is not whole; says which and why."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder} {reason}")
        self.folder = folder


@dataclass(frozen=True)
class Point:
    """Where a run stands."""

    stages: tuple[str, ...]
    """Names of the run's stages."""
    stage: int
    """Index of the stage under way, or about to begin; `len(stages)` = all done."""
    under_way: bool
    """The stage has begun: its optimizers are saved too."""
    step: int
    """Steps of the stage so far."""
    stage_elapsed: float
    """Training seconds of the stage."""
    elapsed: float
    """Training seconds of the run."""
    lanes: tuple[tuple[int, tuple[int, ...]], ...]
    """Of each rank: the next sample, and those before it that still wait."""

    def __str__(self) -> str:
        return f"{self.stages[self.stage]}, step {self.step}" if self.stage < len(self.stages) else "the end"


@dataclass(frozen=True)
class Saved:
    """A state on disk, whole as far as the sizes of its files tell."""

    folder: Path
    point: Point
    frozen: Path | None
    """Where the parameters are that the run does not change."""

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.folder,) if self.frozen is None else (self.folder, self.frozen)


def saved_states(checkpoint: Path) -> list[Saved | Damaged]:
    """What is saved in a run's `checkpoint` folder, the newest first.

    Raises:
        ValueError: the folder is of an older version of this program.
    """
    if (checkpoint / _OLD_FILE).exists():
        raise ValueError(
            f"{checkpoint / _OLD_FILE} was saved by an earlier version of qvl, whose states this one neither "
            f"continues nor exports; finish that run with that version, or delete {checkpoint} to train anew"
        )
    return [_saved_or_damaged(folder) for folder in reversed(_numbered(checkpoint))]


def read_saved(folder: Path) -> Saved:
    """Raises `Damaged` for a folder that is not whole."""
    told = _told(folder)
    try:
        frozen = folder.parent / FROZEN if told.pop("frozen") else None
        lanes = tuple((index, tuple(waiting)) for index, waiting in told.pop("lanes"))
        point = Point(**told | {"lanes": lanes, "stages": tuple(told["stages"])})
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(folder, f"cannot be read: {_STATE} has other contents than expected ({error})") from error
    if frozen is not None:
        _told(frozen)
    return Saved(folder, point, frozen)


def _told(folder: Path) -> dict[str, Any]:
    """What a folder says of itself, if its files have the sizes it says they have."""
    try:
        told = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        files, version = told.pop("files"), told.pop("format")
        sizes = {name: (folder / name).stat().st_size for name in files}
    except FileNotFoundError as error:
        raise Damaged(folder, f"is not whole: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(folder, f"cannot be read: {error}") from error
    if version != _FORMAT:
        raise Damaged(folder, f"has format {version}, this version of qvl reads {_FORMAT}")
    for name, size in sizes.items():
        if size != files[name]:
            raise Damaged(folder, f"is not whole: {name} has {size} of {files[name]} bytes")
    return told


def make_room(checkpoint: Path) -> None:
    """An empty place for the next state. One rank calls it. Raises `OSError` if it cannot be."""
    for name in (PARTIAL, PARTIAL_FROZEN):
        if (checkpoint / name).exists():  # of a write that failed, or of a crash
            shutil.rmtree(checkpoint / name)
    (checkpoint / PARTIAL).mkdir(parents=True)


def write_tensors(partial: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Writes this rank's tensors. All ranks of `group` call it.

    Raises:
        OSError: some rank could not write.
    """
    try:
        writer = dcp.FileSystemWriter(partial, sync_files=True)
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        free = free_disk_bytes(partial) / 1e9
        raise OSError(f"{_reasons(error)}; {free:.3g} GB are free on that disk") from error


def commit(checkpoint: Path, point: Point) -> None:
    """Makes what was written the newest state, by one renaming after all is on the disk. One rank calls it."""
    number = 1 + max((int(folder.name) for folder in _numbered(checkpoint)), default=0)
    told = asdict(point) | {"frozen": (checkpoint / FROZEN).exists()}
    _commit(checkpoint / PARTIAL, told, checkpoint / f"{number:06d}")


def commit_frozen(checkpoint: Path) -> None:
    """The same for what the run does not change."""
    _commit(checkpoint / PARTIAL_FROZEN, {}, checkpoint / FROZEN)


def _commit(partial: Path, told: dict[str, Any], final: Path) -> None:
    files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    with (partial / _STATE).open("w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, **told, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(partial)
    partial.rename(final)
    _sync(final.parent)


def rotate(checkpoint: Path, keep: int) -> None:
    """Removes all but the newest `keep` states, and whatever is not whole."""
    whole = [found.folder for found in saved_states(checkpoint) if isinstance(found, Saved)][:keep]
    for folder in _numbered(checkpoint):
        if folder not in whole:
            shutil.rmtree(folder, ignore_errors=True)


def stored_tensors(saved: Saved) -> dict[str, TensorStorageMetadata]:
    """Shape and dtype of everything in a state. Raises `Damaged`."""
    return {key: about for folder in saved.folders for key, about in _stored(folder).items()}


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        found = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling a damaged file raises
        raise Damaged(folder, f"cannot be read: its .metadata gives {error!r}") from error
    return {key: value for key, value in found.items() if isinstance(value, TensorStorageMetadata)}


def read_tensors(saved: Saved, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Fills the given tensors in place. Raises `Damaged`."""
    for folder in saved.folders:
        here = {key: tensors[key] for key in _stored(folder) if key in tensors}
        reader = dcp.FileSystemReader(folder)
        try:
            dcp.load(here, storage_reader=reader, process_group=group, no_dist=group is None)
        except CheckpointException as error:
            raise Damaged(folder, f"cannot be read: {_reasons(error)}") from error


def read_model(checkpoint: Path) -> tuple[Point, dict[str, Tensor]]:
    """The model's tensors as last saved, by name, without other ranks; a run may be writing meanwhile.

    Args:
        checkpoint: a run's `checkpoint` folder, or one of the numbered ones in it.

    Raises:
        FileNotFoundError: nothing was saved yet.
        ValueError: nothing that was saved can be read.
    """
    error: Damaged | None = None
    for _ in range(_TRIES):  # what is being read may be removed, because newer states have come
        found = [_saved_or_damaged(checkpoint)] if checkpoint.name.isdigit() else saved_states(checkpoint)
        for saved in found:
            try:
                if isinstance(saved, Damaged):
                    raise saved
                stored = {k: v for k, v in stored_tensors(saved).items() if k.startswith("model/")}
                tensors = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in stored.items()}
                read_tensors(saved, tensors, None)
            except Damaged as damaged:
                error = damaged
                if damaged.folder.exists():
                    log.warning("%s; looking for an older state", error)
            else:
                return saved.point, {k.removeprefix("model/"): v for k, v in tensors.items()}
    if error is None:
        raise FileNotFoundError(f"nothing is saved in {checkpoint} yet; the first state comes after save_every_minutes")
    raise ValueError(f"{error}, and there is no older state beside it")


def _saved_or_damaged(folder: Path) -> Saved | Damaged:
    try:
        return read_saved(folder)
    except Damaged as error:
        return error


def _numbered(checkpoint: Path) -> list[Path]:
    """States, whole or not, the oldest first."""
    if not checkpoint.is_dir():
        return []
    return sorted((f for f in checkpoint.iterdir() if re.fullmatch(r"\d+", f.name)), key=lambda f: int(f.name))


def _reasons(error: CheckpointException) -> str:
    """What went wrong, by rank, without traces."""
    return "; ".join(f"{_root(cause)} (rank {rank})" for rank, (cause, _) in sorted(error.failures.items()))


def _root(error: BaseException) -> str:
    """One line. Behind what torch says of a file it could not write there may be what the system said."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return str(inner or error).partition("\n")[0]


def _sync(folder: Path) -> None:
    """Names in a folder are on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
