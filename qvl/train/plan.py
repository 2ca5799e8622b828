"""Before a run: does it fit, how long does a step take, how large may pictures and packs be?

Knows: how a mix of pictures fills packs, what of a device may be used, which option to change when it does not fit.
Does not know: how bytes and operations of a step are counted (`cost`), the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import final

from qvl.media.resize import Geometry, PixelBudget, smart_resize
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.train.config import Part, StageConfig
from qvl.train.cost import PackShape, Parameters, StepMemory, step_flops, step_memory

USABLE = 0.9
"""Share of a device's memory that a plan may fill; the rest is for the system, workspaces and fragments."""
MARKS = 2
"""Tokens around a picture."""
_PACK_ROUND = 256
_MOST_PICTURES = 1 << 14


@final
@dataclass(frozen=True)
class Picture:
    """What a picture costs."""

    hw: tuple[int, int]
    """Pixels as given."""
    seen_hw: tuple[int, int]
    """Pixels as the model sees it."""
    patches: int
    tokens: int
    """With the two marks: what the key-value cache and a pack hold."""
    positions: int
    """Rotary positions it takes: with three axes only its longer side counts."""

    @classmethod
    def of(cls, hw: tuple[int, int], geometry: Geometry, budget: PixelBudget) -> Picture:
        seen = smart_resize(*hw, geometry.factor, budget.min_pixels, budget.max_pixels)
        rows, columns = (n // geometry.factor for n in seen)
        return cls(hw, seen, rows * columns * geometry.merge**2, rows * columns + MARKS, max(rows, columns) + MARKS)


@final
@dataclass(frozen=True)
class Mix:
    """What samples look like: one picture of these in turn, and words."""

    hws: tuple[tuple[int, int], ...]
    """A size that comes three times as often stands here three times."""
    words: int
    """Tokens of text per picture."""
    learned: int
    """Of these, tokens that are learned."""

    def pictures(self, geometry: Geometry, budget: PixelBudget) -> tuple[Picture, ...]:
        return tuple(Picture.of(hw, geometry, budget) for hw in self.hws)


@final
@dataclass(frozen=True)
class Device:
    memory: int
    """Bytes of one device."""
    count: int = 1
    """Each holds the whole model and takes packs of its own."""
    flops: float = 0.0
    """Operations per second of one device at its best, in float32; 0 = unknown."""
    utilisation: float = 0.4
    """Share of these that training reaches."""
    cpu: bool = False

    def __post_init__(self) -> None:
        if self.memory <= 0 or self.count < 1:
            raise ValueError(f"a plan needs devices with memory, got {self.count} with {self.memory} bytes")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is a share between 0 and 1, got {self.utilisation}")


@final
@dataclass(frozen=True)
class StagePlan:
    stage: str
    trains: tuple[Part, ...]
    pack: PackShape
    """A full pack of the recipe."""
    pictures_per_pack: int
    memory: StepMemory
    flops: dict[Part, float]
    """Of an optimizer step on all devices."""
    seconds: float | None
    """Of a step; None if the device's speed is unknown."""
    largest_pack: int
    """Most `tokens_per_pack` that fits; 0 if none does."""
    largest_pixels: int
    """Most `max_pixels` with which one picture alone still fits; 0 if none does."""
    problem: str
    """Empty if it fits, else what does not and the option to change."""


def plan_stage(
    config: Qwen2VLConfig,
    parameters: Mapping[Part, Parameters],
    stage: StageConfig,
    mix: Mix,
    budget: PixelBudget,
    device: Device,
) -> StagePlan:
    """The plan of one stage on `device.count` devices."""
    sums = _Sums(config, parameters, stage, mix, device)
    pictures = mix.pictures(sums.geometry, budget)
    count = _fill(pictures, mix, stage)
    pack = sums.pack(pictures, max(1, count))
    memory = sums.memory(pack)
    packs = stage.accumulate * device.count
    flops = {part: n * packs for part, n in step_flops(config, pack, stage.trains).items()}
    rate = device.flops * device.utilisation * device.count
    most = sums.most_pictures(pictures)
    largest = sums.pack(pictures, most).tokens // _PACK_ROUND * _PACK_ROUND if most else 0
    pixels = sums.most_pixels()
    return StagePlan(
        stage=stage.name,
        trains=stage.trains,
        pack=pack,
        pictures_per_pack=count,
        memory=memory,
        flops=flops,
        seconds=sum(flops.values()) / rate if rate else None,
        largest_pack=largest,
        largest_pixels=pixels,
        problem=_problem(stage, pictures, memory, device, largest, pixels, sums.geometry),
    )


@final
class _Sums:
    """Packs of one stage and what they cost."""

    def __init__(
        self,
        config: Qwen2VLConfig,
        parameters: Mapping[Part, Parameters],
        stage: StageConfig,
        mix: Mix,
        device: Device,
    ) -> None:
        self._config, self._parameters, self._stage, self._mix, self._device = config, parameters, stage, mix, device
        v = config.vision
        self.geometry = Geometry(patch=v.patch, merge=v.merge, temporal=v.temporal_patch)

    def pack(self, pictures: tuple[Picture, ...], count: int) -> PackShape:
        """The first `count` samples of the mix."""
        held = list(islice(cycle(pictures), count))
        lens = tuple(p.tokens + self._mix.words for p in held)
        return PackShape(lens, tuple(p.patches for p in held), count * self._mix.learned)

    def memory(self, pack: PackShape) -> StepMemory:
        s = self._stage
        return step_memory(
            self._config, self._parameters, pack, s.trains, s.optim, accumulate=s.accumulate, cpu=self._device.cpu
        )

    def fits(self, pack: PackShape) -> bool:
        return self.memory(pack).peak <= USABLE * self._device.memory

    def most_pictures(self, pictures: tuple[Picture, ...]) -> int:
        """Most samples of the mix in one pack."""
        return _largest(_MOST_PICTURES, lambda n: self.fits(self.pack(pictures, n)))

    def most_pixels(self) -> int:
        """Largest pixel budget with which a square picture fits alone; a multiple of the pixels of a token."""
        area = self.geometry.factor**2
        marks = MARKS + self._mix.words
        group = self.geometry.merge**2

        def fits(tokens: int) -> bool:
            return self.fits(PackShape((tokens + marks,), (group * tokens,), self._mix.learned))

        return area * _largest(self._config.max_positions, fits)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest n up to `most` that fits, 0 if 1 does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _fill(pictures: tuple[Picture, ...], mix: Mix, stage: StageConfig) -> int:
    """How many samples the recipe's limits let into a pack."""
    tokens = patches = count = 0
    most = stage.samples_per_pack or _MOST_PICTURES
    for picture in cycle(pictures):
        tokens, patches = tokens + picture.tokens + mix.words, patches + picture.patches
        if tokens > stage.tokens_per_pack or patches > stage.patches_per_pack or count >= most:
            return count
        count += 1
    return count


def _problem(
    stage: StageConfig,
    pictures: tuple[Picture, ...],
    memory: StepMemory,
    device: Device,
    largest: int,
    pixels: int,
    geometry: Geometry,
) -> str:
    most = max(pictures, key=lambda p: p.tokens)
    area = geometry.factor**2
    if most.patches > stage.patches_per_pack or most.tokens > stage.tokens_per_pack:
        room = min(stage.patches_per_pack // geometry.merge**2, stage.tokens_per_pack - MARKS) * area
        return (
            f"a picture of {most.hw[1]} x {most.hw[0]} takes {most.tokens:,} tokens and {most.patches:,} patches, a "
            f"pack holds {stage.tokens_per_pack:,} and {stage.patches_per_pack:,}, so it would be left out: set "
            f"max_pixels to {room:,} or less, or raise tokens_per_pack and patches_per_pack"
        )
    usable = USABLE * device.memory
    if memory.peak <= usable:
        return ""
    need = f"a step needs {gib(memory.peak)}, {USABLE:.0%} of the device are {gib(usable)}"
    if largest:
        return f"{need}: set tokens_per_pack to {largest:,} or less"
    if pixels:
        return f"{need}, even with one picture a pack: set max_pixels to {pixels:,} or less"
    lasting = sum(memory.parameters.values()) + sum(memory.gradients.values()) + sum(memory.optimizer.values())
    return (
        f"parameters, gradients and optimizer alone take {gib(lasting)}, {USABLE:.0%} of the device are {gib(usable)}: "
        f"train fewer parts (trains, now {', '.join(stage.trains)}), take a smaller model or a larger device"
    )


def gib(size: float) -> str:
    """ "3.20 GiB", or MiB below a quarter of one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
