"""Saving and finding the state of a run, so that a stopped run goes on as if nothing had happened.

Knows: one file, written beside the old one and then put in its place. Does not know: what the tensors mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

_FILE = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts) atomically: a crash leaves the last good file.

    Raises:
        OSError: the disk is full or the folder cannot be written; the last good file is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / _FILE
    partial = folder / f"{_FILE}.partial"
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        partial.unlink(missing_ok=True)
        raise OSError(
            f"could not save the run's state to {target}: {error}. The last good state is untouched; free some disk "
            "space and start the same command again to go on from there"
        ) from error


def load_state(folder: Path) -> dict[str, Any] | None:
    """The saved state, or None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    target = folder / _FILE
    if not target.exists():
        return None
    try:
        return torch.load(target, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{target} cannot be read ({error}); delete it to start the run from the beginning") from error


def rng_state() -> dict[str, Any]:
    """State of torch's random generators (the data has its own, by sample index)."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
