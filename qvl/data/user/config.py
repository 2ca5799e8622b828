"""What a recipe says about the user's own files.

Knows: the options and their bounds. Does not know: how files are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BoxUnit = Literal["px", "relative", "1000"]
"""`px`: pixels of the picture as it is stored; `relative`: 0 to 1 of its sides; `1000`: 0 to 999 (or 1000)."""


@dataclass(frozen=True)
class DataFile:
    """One part of the mixture."""

    path: str
    """A .jsonl file, a .json file that holds one list, or a folder of such files."""
    weight: float = 1.0
    """How often an epoch goes through it: 0.5 = half of it (the other half in the next epoch), 2 = twice."""
    image_root: str = ""
    """Folder that pictures' paths start from (default: that of `DataConfig`, else the file's own folder)."""

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("a data file has an empty path; name a file, or a folder (`.` is this one)")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight of {self.path} must be above 0, got {self.weight}; leave the file out instead")


@dataclass(frozen=True)
class DataConfig:
    """Files to train on. Without any, a stage trains on its world."""

    files: tuple[DataFile, ...] = ()
    image_root: str = ""
    """Folder that pictures' paths start from (default: the folder that the file lies in)."""
    boxes: BoxUnit | None = None
    """What the numbers of boxes in the files are. There is no default: a file with boxes needs the answer."""
    max_pixels: int = 0
    """Most pixels (height * width) of a picture in training; 784 are one token of Qwen2-VL. 0 = the model's own bound,
    which is 16,384 tokens a picture for the released ones."""
    strict: bool = False
    """Stop at the first sample that cannot be used instead of leaving it out."""
    max_bad: int = 100
    """So many samples that cannot be used are left out and named; one more ends the run."""

    def __post_init__(self) -> None:
        if self.max_bad < 0 or self.max_pixels < 0:
            raise ValueError(
                f"max_bad and max_pixels must not be negative, got max_bad={self.max_bad}, max_pixels={self.max_pixels}"
            )

    @property
    def allowed_bad(self) -> int:
        """Samples that may be left out."""
        return 0 if self.strict else self.max_bad
