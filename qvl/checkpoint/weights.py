"""The weights of a folder: one file, or shards with an index.

Knows: where each tensor lies, how to read one without the others, how to write shards. Reads safetensors and, in
folders without them, `pytorch_model*.bin`; writes safetensors.
Does not know: models, configurations, what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qvl.checkpoint.jsonfile import Fields, dump
from qvl.checkpoint.mapping import MappedFile
from qvl.checkpoint.reading import read_at
from qvl.checkpoint.tensor_files import Place, TensorFile, open_tensors

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OLD_FILES = ("model*.safetensors", INDEX_FILE)
"""What a newly written set of weights supersedes in a folder."""
_OLD_SINGLE_FILE = "pytorch_model.bin"
_OLD_INDEX_FILE = "pytorch_model.bin.index.json"
_REMAP_BYTES = 1 << 28


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few names and how many there are: "3: a, b, c" or "730: a, b, c, d, ..."."""
    names = list(names)
    return f"{len(names)}: " + ", ".join(names[:most]) + (", ..." if len(names) > most else "")


@final
class WeightFiles:
    """All tensors of a folder by name; nothing is read until asked for."""

    def __init__(
        self,
        files: Mapping[str, Path],
        shapes: Mapping[str, tuple[int, ...]],
        stored_names: Mapping[str, str] | None = None,
    ) -> None:
        self.files = files
        """Tensor name -> file that holds it."""
        self.shapes = shapes
        self._stored_names = stored_names or {}
        self._opened: dict[Path, TensorFile] = {}
        """The file that was filled from last."""
        self._mapped_bytes = 0
        self._mapped: dict[Path, MappedFile] = {}

    @classmethod
    def find(cls, folder: Path) -> WeightFiles:
        """Reads the headers of `model.safetensors`, or of every shard that the index names; without either, those of
        `pytorch_model.bin` or its shards.

        Raises:
            FileNotFoundError: no weights, or a shard that the index names is missing.
            ValueError: a file is damaged or cut off, both forms are there, or index and shards disagree.
        """
        single, index = folder / SINGLE_FILE, folder / INDEX_FILE
        if not single.exists() and not index.exists():
            single, index = folder / _OLD_SINGLE_FILE, folder / _OLD_INDEX_FILE
        if single.exists() and index.exists():
            raise ValueError(f"{folder} holds both {single.name} and {index.name}; delete the one that is out of date")
        if not single.exists() and not index.exists():
            raise FileNotFoundError(_no_weights(folder))
        promised = _weight_map(index) if index.exists() else {}
        shards = sorted({*promised.values()}) if promised else [single.name]
        absent = [name for name in shards if not (folder / name).exists()]
        if absent:
            count = sum(1 for shard in promised.values() if shard in absent)
            raise FileNotFoundError(
                f"{index} names shards that are not in the folder ({some(absent)}), with {count} of "
                f"{len(promised)} tensors; download or copy them again"
            )
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name in shards:
            for key, shape in open_tensors(folder / name).shapes().items():
                files[key], shapes[key] = folder / name, shape
        lost = [key for key, shard in promised.items() if files.get(key) != folder / shard]
        if lost:
            raise ValueError(
                f"{index} and its shards disagree about {some(lost)}: "
                f"{lost[0]} is not in {promised[lost[0]]}; download the index and the shards from one place"
            )
        return cls(files, shapes)

    def renamed(self, names: Mapping[str, str]) -> WeightFiles:
        """The same tensors under the keys of `names`, whose values are the names in the files."""
        files = {new: self.files[stored] for new, stored in names.items()}
        return WeightFiles(files, {new: self.shapes[stored] for new, stored in names.items()}, names)

    def read(self, names: Iterable[str]) -> Iterator[Tensor]:
        """The tensors in turn, on the CPU, as stored. Use each before asking for the next, and do not keep it.

        A file is mapped anew after every `_REMAP_BYTES`: pages already copied are given back, and do not add up
        to a second model in memory (opening it for every tensor would cost 6 ms each).
        """
        current, mapped, used = None, None, 0
        for name in names:
            if mapped is None or current != self.files[name] or used > _REMAP_BYTES:
                current, used = self.files[name], 0
                mapped = open_tensors(current)
            tensor = mapped.get(self._stored_names.get(name, name))
            used += tensor.nbytes
            yield tensor
            del tensor

    def fill(self, name: str, view: Tensor) -> None:
        """Writes a stored tensor into `view`, memory of as many values, cast where need be.

        Values of the same dtype that shall lie one after the other are read from the file by several threads, straight
        to where they belong: nothing is mapped, and no page is touched twice.

        Raises:
            ValueError: the file is shorter than its header says.
        """
        place = self._place(name)
        if place is not None and place.dtype == view.dtype and view.device.type == "cpu" and view.is_contiguous():
            read_at(self.files[name], place.offset, view)
            return
        stored_tensor = self._open(self.files[name]).get(self._stored_names.get(name, name))
        view.copy_(stored_tensor.reshape(view.shape))
        self._mapped_bytes += stored_tensor.nbytes
        if self._mapped_bytes > _REMAP_BYTES:  # as in `read`
            self._opened, self._mapped_bytes = {}, 0

    def mapped(self, names: Sequence[str], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Stored tensors as one of `shape`, where they lie in their file: nothing is read before it is used.

        None if they do not lie there one after the other, or not as `dtype`. A file that is mapped must not be written
        into (see `MappedFile`).
        """
        file, first = self.files[names[0]], self._place(names[0])
        if first is None or not self._side_by_side(names, dtype):
            return None
        if file not in self._mapped:
            self._mapped[file] = MappedFile(file)
        return self._mapped[file].tensor(first.offset, shape, dtype)

    def let_go(self, names: Iterable[str]) -> None:
        """Gives back the memory in which the files are mapped that hold these tensors, as far as these lie in it. They
        can still be read."""
        for name in names:
            place, mapped = self._place(name), self._mapped.get(self.files[name])
            if place is not None and mapped is not None:
                mapped.let_go(place.offset, place.bytes)

    def _side_by_side(self, names: Sequence[str], dtype: torch.dtype) -> bool:
        places = [self._place(name) for name in names]
        if len({self.files[name] for name in names}) > 1 or any(p is None or p.dtype != dtype for p in places):
            return False
        return all(a and b and a.offset + a.bytes == b.offset for a, b in pairwise(places))

    def _place(self, name: str) -> Place | None:
        return self._open(self.files[name]).place(self._stored_names.get(name, name))

    def _open(self, file: Path) -> TensorFile:
        if file not in self._opened:
            self._opened = {file: open_tensors(file)}
        return self._opened[file]


def _weight_map(index: Path) -> dict[str, str]:
    fields = Fields.read(index)
    weight_map = fields.child("weight_map").data
    if not weight_map or not all(isinstance(v, str) and Path(v).name == v for v in weight_map.values()):
        raise ValueError(f"{index}: weight_map must map tensor names to names of files in the same folder")
    return dict(weight_map)


def _no_weights(folder: Path) -> str:
    others = [
        p.name
        for pattern in ("*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt")
        for p in sorted(folder.glob(pattern))
    ]
    found = f"; it holds {some(others)}, which are not read" if others else ""
    return f"no {SINGLE_FILE} and no {INDEX_FILE} (nor {_OLD_SINGLE_FILE}) in {folder}{found}"


@dataclass(frozen=True)
class Stored:
    """A tensor to be written: its size is known, its values are made when its shard is written."""

    name: str
    bytes: int
    make: Callable[[], Tensor]


def write_weights(folder: Path, tensors: Iterable[Stored], max_shard_bytes: float) -> None:
    """Writes `model.safetensors`, or shards with an index if that would be larger than `max_shard_bytes`.

    At most one shard's worth of new tensors (those that had to be cast or moved) is held at a time.

    Raises:
        OSError: the file system refused (full disk, file too large).
    """
    shards: list[list[Stored]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.bytes
    if len(shards) == 1:
        _write(folder / SINGLE_FILE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, shard)
        weight_map.update({tensor.name: name for tensor in shard})
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    index: dict[str, Any] = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX_FILE).write_text(dump(index), encoding="utf-8")


def _write(file: Path, shard: list[Stored]) -> None:
    try:
        with torch.no_grad():
            save_file({tensor.name: tensor.make() for tensor in shard}, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"could not write {file}: {error}") from error
