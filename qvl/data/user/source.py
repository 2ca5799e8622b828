"""The user's files as one endless, shuffled, exactly resumable list of samples.

Knows: which line of which file sample `index` is: a pure function of the configuration, the seed and the index.
Does not know: packs, tokens; what is done about a sample that cannot be used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from qvl.data.records import Sample
from qvl.data.user.boxes import rescale
from qvl.data.user.config import DataConfig
from qvl.data.user.layouts import read_entry
from qvl.data.user.lines import EntryFile, data_files
from qvl.data.user.objects import unit_of


@dataclass(frozen=True)
class _Member:
    """One file of the mixture."""

    file: EntryFile
    root: Path
    draws: int
    """Samples of this file in an epoch."""
    folder: str
    """`folder/` before its name where another file has the same one, with as many folders above it as tell the two
    apart; else empty."""

    @property
    def task(self) -> str:
        return self.folder + self.file.path.stem


@final
class UserSource:
    """`source[index]`: sample `index` of an endless stream of epochs.

    An epoch draws `weight * lines` samples of each file and shuffles all of them together. Each file is gone through
    in passes, every pass in an order of its own, so that every line comes equally often whatever the weight.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: no files, or a file without samples.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.allowed_bad = config.allowed_bad
        """Lines that may turn out to be unusable (`packing.Forgiving`)."""
        self._seed = seed
        members = []
        found = [(part, path) for part in config.files for path in data_files(part.path)]
        for part, path in found:
            file, root = EntryFile(path), part.image_root or config.image_root
            folder = _told_apart(path, [other for _, other in found if other.stem == path.stem])
            members.append(_Member(file, Path(root or path.parent), max(1, round(part.weight * len(file))), folder))
        if not members:
            raise ValueError("there are no data files: name some in the recipe (data.files) or with --data")
        self._members = tuple(members)
        self.tasks = tuple(dict.fromkeys(m.task for m in members))
        """The files' names: losses are reported for each."""
        self._ends = np.cumsum([m.draws for m in members])

    def __len__(self) -> int:
        """Samples per epoch."""
        return int(self._ends[-1])

    @property
    def description(self) -> str:
        """What was found, for people: `a.jsonl 500, b.jsonl 20 (10 per epoch)`."""
        return ", ".join(
            f"{m.folder}{m.file.path.name} {len(m.file)}"
            + (f" ({m.draws} per epoch)" if m.draws != len(m.file) else "")
            for m in self._members
        )

    def __getitem__(self, index: int) -> Sample:
        """
        Raises:
            OSError, ValueError: the line cannot be used; the message begins with file and line.
        """
        number, line = self._place(index)
        member = self._members[number]
        name = member.folder + member.file.name(line)
        try:
            entry = member.file[line]
            messages = rescale(read_entry(entry, member.root), unit_of(entry, self.config.boxes))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}: {error}") from None
        except OSError as error:
            raise OSError(f"{name}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return Sample(name, member.task, messages)

    def _place(self, index: int) -> tuple[int, int]:
        """File and entry of sample `index`."""
        epoch, at = divmod(index, len(self))
        drawn = int(_order(len(self), self._seed, epoch)[at])
        number = int(np.searchsorted(self._ends, drawn, side="right"))
        member = self._members[number]
        first = int(self._ends[number]) - member.draws
        turn, entry = divmod(epoch * member.draws + drawn - first, len(member.file))
        return number, int(_order(len(member.file), self._seed, turn, number + 1)[entry])


def _told_apart(path: Path, namesakes: Sequence[Path]) -> str:
    """As much of a file's folder as its namesakes (itself among them) have not; empty if it has none."""
    if len(namesakes) == 1:
        return ""
    own, *others = (p.absolute().parent.parts for p in (path, *namesakes))
    depths = range(1, len(own) + 1)
    least = next((n for n in depths if all(o == own or o[-n:] != own[-n:] for o in others)), len(own))
    return f"{Path(*own[-least:]).as_posix()}/"


@functools.lru_cache(maxsize=256)
def _order(size: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of 0 .. size - 1, the same for the same seed."""
    return np.random.default_rng(seed).permutation(size)
