"""One file of tensors, opened without reading it: safetensors, or what `torch.save` wrote.

Knows: names, shapes, single tensors on demand, what a damaged file looks like. Does not know: folders, models.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' words for the number formats that are read straight from the file."""


class TensorFile(ABC):
    """The file stays mapped while this object lives."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape by name."""

    @abstractmethod
    def get(self, name: str) -> Tensor:
        """A tensor on the CPU, as stored; it may go when the object goes."""

    def place(self, name: str) -> Place | None:
        """Where the tensor's values lie in the file, if they can be read as they are."""
        return None


@dataclass(frozen=True)
class Place:
    """A tensor's values in its file, one after the other."""

    dtype: torch.dtype
    offset: int
    bytes: int


def open_tensors(file: Path) -> TensorFile:
    """Opens `*.safetensors`, or else a checkpoint of torch (`*.bin`, `*.pt`, `*.pth`).

    Nothing but tensors is unpickled, so no code in a file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, cut off, or holds something else than tensors.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    return _Safetensors(file) if file.suffix == ".safetensors" else _Pickled(file)


@final
class _Safetensors(TensorFile):
    def __init__(self, file: Path) -> None:
        try:
            self._opened = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise _damaged(file, error) from None
        with file.open("rb") as opened:  # well-formed, or it would not be open
            size = int.from_bytes(opened.read(8), "little")
            self._header: dict[str, dict[str, Any]] = json.loads(opened.read(size))
        self._start = 8 + size

    def place(self, name: str) -> Place | None:
        told = self._header[name]
        begin, end = told["data_offsets"]
        dtype = _DTYPES.get(told["dtype"])
        return None if dtype is None else Place(dtype, self._start + begin, end - begin)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        names = self._opened.keys()
        return {name: tuple(self._opened.get_slice(name).get_shape()) for name in names}

    def get(self, name: str) -> Tensor:
        return self._opened.get_tensor(name)


@final
class _Pickled(TensorFile):
    def __init__(self, file: Path) -> None:
        if file.stat().st_size and not zipfile.is_zipfile(file):
            raise ValueError(
                f"{file} ({file.stat().st_size:,} bytes) is not a zip archive: it is damaged or cut off (download or "
                "copy it again), or written before torch 1.6 (load and save it with torch once)"
            )
        try:
            loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError(
                f"{file} holds something else than tensors, which is not read because it could run any code; "
                "save its state dict alone, best as safetensors"
            ) from None
        except (RuntimeError, EOFError, OSError) as error:
            raise _damaged(file, error) from None
        if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
            loaded = loaded["state_dict"]
        if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
            raise ValueError(f"{file} must hold a state dict (names to tensors), it holds a {type(loaded).__name__}")
        self._tensors: Mapping[str, Tensor] = loaded

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ValueError(
        f"{file} ({file.stat().st_size:,} bytes) is damaged or cut off ({reason}); download or copy it again"
    )
