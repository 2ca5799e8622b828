"""What samples look like on average: pictures of some sizes, and words about them.

Knows: what a picture costs either family, how such samples lie in a pack, what a stage's own samples are like.
Does not know: bytes, devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal, final

from qvl.batch import IGNORE
from qvl.data.fitting import prepare
from qvl.data.packing import Forgiving, SampleSource
from qvl.inputs.processor import Processor
from qvl.inputs.sequence import Sequence as Prepared
from qvl.media.resize import Geometry, PixelBudget, smart_resize
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.vlm import VLMConfig
from qvl.train.config import StageConfig
from qvl.train.step_memory import PackShape

MARKS = 2
"""Tokens around a picture."""


@final
@dataclass(frozen=True)
class Picture:
    """What a picture or a clip costs."""

    hw: tuple[int, int]
    """Pixels as given."""
    seen_hw: tuple[int, int]
    """Pixels as the model sees it."""
    grid: tuple[int, int]
    """Patches."""
    tokens: int
    """With the two marks: what the key-value cache and a pack hold."""
    positions: int
    """Rotary positions it takes: with three axes only its longest side counts."""
    moments: int = 1
    """Grids that lie behind each other: a clip has one for every two frames."""

    @property
    def patches(self) -> int:
        return self.moments * self.grid[0] * self.grid[1]

    @classmethod
    def of(cls, hw: tuple[int, int], config: VLMConfig, budget: PixelBudget, moments: int = 1) -> Picture:
        """A picture of `hw` pixels for a model of either family, or a Qwen2-VL's clip; `budget` bounds a Qwen2-VL's."""
        if isinstance(config, QwenVLConfig):
            side, tokens = config.vision.image_px, config.adapter.queries + MARKS
            rows = side // config.vision.patch
            return cls(hw, (side, side), (rows, rows), tokens, tokens)
        assert isinstance(config, Qwen2VLConfig), f"no pictures for {type(config).__name__}"
        patch, merge = config.vision.patch, config.vision.merge
        seen = smart_resize(*hw, Geometry(patch=patch, merge=merge).factor, budget.min_pixels, budget.max_pixels)
        rows, columns = (n // patch for n in seen)
        sides = rows // merge, columns // merge
        tokens = moments * sides[0] * sides[1] + MARKS
        positions = max(moments, *sides) + MARKS if config.text.rope_axes == 3 else tokens
        return cls(hw, seen, (rows, columns), tokens, positions, moments)


@final
@dataclass(frozen=True)
class Mix:
    """Samples of one picture or clip of these sizes in turn (none: text alone) and some questions about it."""

    hws: tuple[tuple[int, int], ...]
    """A size that comes three times as often stands here three times."""
    turns: int
    """Questions with their answers."""
    words: int
    """Tokens of one of them."""
    learned: int
    """Of these, tokens that are learned."""
    branches: bool = True
    """The questions do not need each other and share the picture's tokens (`Batch.parents`)."""
    medium: Literal["pixels", "words", "both"] = "pixels"
    """`words`: pictures are told, with a word where a vision token would be; `both`: told behind the picture."""
    moments: tuple[int, ...] = ()
    """Of each size: more than 1 for a clip. Empty = pictures all."""

    def __post_init__(self) -> None:
        if self.turns < 1 or not 0 < self.learned <= self.words:
            raise ValueError(
                f"a sample needs a question and learned tokens, got {self.turns} questions of {self.words} tokens, "
                f"{self.learned} of them learned"
            )

    def pictures(self, config: VLMConfig, budget: PixelBudget) -> tuple[Picture | None, ...]:
        moments = self.moments or (1,) * len(self.hws)
        return tuple(Picture.of(hw, config, budget, n) for hw, n in zip(self.hws, moments, strict=True)) or (None,)

    def tokens(self, picture: Picture | None) -> int:
        """Of one sample."""
        return self.turns * self.words + self._seen(picture)

    def patches(self, picture: Picture | None) -> int:
        """Of one sample."""
        return picture.patches if picture and self.medium != "words" else 0

    def _seen(self, picture: Picture | None) -> int:
        """Tokens of pictures in one sample, marks included."""
        return 0 if picture is None else picture.tokens * (2 if self.medium == "both" else 1)

    def pack(self, pictures: tuple[Picture | None, ...], count: int) -> PackShape:
        """The first `count` samples, end to end."""
        held = list(islice(cycle(pictures), count))
        lens: list[int] = []
        parents: list[int] = []
        for picture in held:
            if picture is not None and self.branches:
                root = len(lens)
                lens += [self._seen(picture), *[self.words] * self.turns]
                parents += [-1, *[root] * self.turns]
            else:
                lens.append(self.tokens(picture))
                parents.append(-1)
        seen = [p for p in held if p is not None]
        return PackShape(
            tuple(lens),
            tuple(parents),
            tuple((p.moments, *p.grid) for p in seen if self.patches(p)),
            sum(p.tokens - MARKS for p in seen) * (2 if self.medium == "both" else 1),
            count * self.turns * self.learned,
        )


def mix_of(source: SampleSource, processor: Processor, stage: StageConfig, looks: int = 64) -> Mix:
    """What the samples of a stage are like on average, by looking at some of them.

    Raises:
        ValueError, OSError: a sample cannot be used, and training would not leave it out; or none can.
    """
    samples = _usable(source, processor, stage, looks)
    held = [p for sample in samples for p in sample]
    medium = stage.world.medium if any(len(p.vision_rows_M) for p in held) else "pixels"
    visuals = [v for p in held for v in p.visuals]
    pictures = len(visuals) or len(samples)
    branches = sum(p.branch for p in held)
    turns = max(1, round(branches / pictures))
    marks = MARKS * pictures * (2 if medium == "both" else 1)
    words = sum(len(p.tokens_T) - len(p.vision_rows_M) for p in held) - marks
    learned = sum(int((p.labels_T != IGNORE).sum()) for p in held if p.labels_T is not None)
    # A clip's frames are bounded in another way than pictures.
    hws = tuple(v.resized_hw if v.timestamps else v.original_hw for v in visuals)
    moments = tuple(v.grid[0] for v in visuals)
    hws = hws or (stage.world.sizes if medium == "words" else ())
    each = pictures * turns
    return Mix(hws, turns, max(1, round(words / each)), max(1, round(learned / each)), branches > 0, medium, moments)


def _usable(source: SampleSource, processor: Processor, stage: StageConfig, looks: int) -> list[list[Prepared]]:
    """The sequences of the first `looks` samples, those left out that training leaves out."""
    found: list[list[Prepared]] = []
    wrong: ValueError | OSError | None = None
    for i in range(looks):
        try:
            found.append(prepare(source[i], processor, stage.chat_format))
        except (ValueError, OSError) as error:
            if not isinstance(source, Forgiving) or not source.allowed_bad:
                raise
            wrong = wrong or error
    if wrong is not None and not found:
        raise wrong
    return found
