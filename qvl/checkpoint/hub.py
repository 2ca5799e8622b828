"""From "folder or hub id" to a folder.

Knows: huggingface_hub. Does not know: what is in the folder.
"""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.tiktoken")
_OLD_WEIGHTS = "pytorch_model*.bin"
"""Fetched only where there are no safetensors (Qwen-VL)."""


def resolve(path_or_hub_id: str | Path, *, weights: bool = True) -> Path:
    """The folder itself if it exists; else the local copy of a hub repository ("Qwen/Qwen2-VL-2B-Instruct"),
    downloaded if needed.

    Args:
        weights: False = the small json files only.

    Raises:
        FileNotFoundError: no such folder and not a hub id, or the hub cannot provide it (offline, unknown, gated).
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{path} is a file; give the folder that holds config.json and the weights")
    name = str(path_or_hub_id)
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"there is no folder {name!r}, and it is not a hub id of the form owner/name either")
    from huggingface_hub import (
        snapshot_download,
    )  # imported here: it takes a while, and folders do not need it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if not weights:
            return Path(snapshot_download(name, allow_patterns=["*.json"]))
        folder = Path(snapshot_download(name, allow_patterns=list(_WANTED)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_WANTED, _OLD_WEIGHTS]))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise FileNotFoundError(
            f"there is no folder {name!r}, and the hub could not provide it ({type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}); check the name and the connection, "
            "or download the folder elsewhere and give its path"
        ) from error
