"""Before a run: does it fit, how long does a step take, how large may pictures and packs be?

Knows: how a mix of samples fills packs, what of a device may be used, which option to change if it is too small.
Does not know: how bytes and operations of a step are counted (`ledger`, `flops`), the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.batch import Batch
from qvl.data.packing import PackLimits
from qvl.layers.attention import PackedContext
from qvl.media.resize import PixelBudget
from qvl.models.lora import add_lora
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.registry import build_model
from qvl.models.vlm import VisionLanguageModel, VLMConfig
from qvl.runtime import fast_bfloat16
from qvl.train.blocks import blocks_of, recompute_block
from qvl.train.config import ParallelConfig, Part, StageConfig, TrainConfig
from qvl.train.feed import Share
from qvl.train.flops import FlopCount, StepFlops
from qvl.train.ledger import PackShape, StepMemory, step_memory
from qvl.train.loss import token_losses
from qvl.train.mix import MARKS, Mix, Picture
from qvl.train.narrow import narrow
from qvl.train.objectives import OBJECTIVES
from qvl.train.optim import freeze

USABLE = 0.9
"""Share of a device's memory that a plan may fill; the rest is for the system, workspaces and fragments."""
_PACK_ROUND = 64
_MOST_SAMPLES = 1 << 10
_WORDS_IN_A_PACK = 128
"""Distinct words that the match objective chooses from, about."""
_TRIES = 4
"""Most steps gone through in search of a largest pack."""
_MARGIN = 0.97
"""Aim a little lower than the line says."""
_NEAR = 1.05
"""A pack so little larger is not worth another look."""


@final
@dataclass(frozen=True)
class Device:
    memory: int
    """Bytes of one device."""
    count: int = 1
    flops: float = 0.0
    """Operations per second of one device at its best, in the recipe's precision; 0 = unknown."""
    utilisation: float = 0.4
    """Share of these that training reaches."""
    cpu: bool = True
    """A processor; else it computes attention without writing scores out, and multiplies bfloat16 fast."""

    def __post_init__(self) -> None:
        if self.memory <= 0 or self.count < 1:
            raise ValueError(f"a plan needs devices with memory, got {self.count} with {self.memory} bytes")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is a share between 0 and 1, got {self.utilisation}")

    @property
    def usable(self) -> int:
        return int(USABLE * self.memory)

    def takes(self, precision: str) -> bool:
        """Whether matrix products are in bfloat16, in a recipe of that precision."""
        return precision == "bfloat16" or (precision == "auto" and (not self.cpu or fast_bfloat16()))


@final
@dataclass(frozen=True)
class StagePlan:
    stage: str
    trains: tuple[Part, ...]
    pack: PackShape
    """A full pack of the recipe."""
    samples_per_pack: int
    memory: StepMemory
    flops: StepFlops
    """Of an optimizer step, all devices together."""
    seconds: float | None
    """Of a step; None if the device's speed is unknown."""
    largest_pack: int
    """Most `tokens_per_pack` that fits; 0 if none does."""
    largest_pixels: int
    """Most `max_pixels` with which one sample alone still fits; 0 if none does, or if the model sees all pictures at
    one size."""
    problem: str
    """Empty if it fits, else what does not and the option to change."""


def plan_stage(
    config: VLMConfig, recipe: TrainConfig, stage: StageConfig, mix: Mix, budget: PixelBudget, device: Device
) -> StagePlan:
    """The plan of one stage of `recipe`, whose model has the sizes `config`.

    Raises:
        ValueError: the stage trains nothing (`optim.freeze`).
    """
    sums = _Sums(config, recipe, stage, mix, device)
    pictures = mix.pictures(config, budget)
    count = _fill(pictures, mix, sums.room)
    pack = mix.pack(pictures, max(1, count))
    memory = sums.memory(pack)
    flops = sums.flops(pack)
    rate = device.flops * device.utilisation * device.count
    largest = pixels = 0
    if memory.lasting <= device.usable:
        sure = memory.peak > device.usable  # what is proposed as a way out has to be one
        largest, pixels = sums.most_tokens(pictures, max(1, count), memory, sure), sums.most_pixels(sure)
    return StagePlan(
        stage=stage.name,
        trains=stage.trains,
        pack=pack,
        samples_per_pack=count,
        memory=memory,
        flops=flops,
        seconds=flops.total / rate if rate else None,
        largest_pack=largest,
        largest_pixels=pixels,
        problem=_problem(sums, pictures, memory, largest, pixels),
    )


@final
class _Sums:
    """Packs of one stage and what they cost."""

    def __init__(self, config: VLMConfig, recipe: TrainConfig, stage: StageConfig, mix: Mix, device: Device) -> None:
        self.config, self.recipe, self.stage, self.mix, self.device = config, recipe, stage, mix, device
        self.lanes = _lanes(recipe.parallel, device.count)
        self.share = Share.of(stage.accumulate, self.lanes, OBJECTIVES[stage.objective].divisible)
        self.room = PackLimits(
            stage.tokens_per_pack, stage.patches_per_pack, samples=stage.samples_per_pack, part=self.share.part
        )

    def memory(self, pack: PackShape) -> StepMemory:
        """Of a step on each device."""
        stage, parallel = self.stage, self.recipe.parallel
        return step_memory(
            self._build_part,
            pack,
            self._losses,
            stage.trains,
            stage.schedule,
            frozen=stage.frozen,
            accumulate=self.share.packs,
            bfloat16=self.device.takes(self.recipe.precision),
            shard=parallel.shard or self.lanes,
            whole_gradients=parallel.reduce == "step",
            summed=self.device.count > 1 and parallel.shard == 1 and parallel.tensor == 1,
        )

    def _build(self) -> VisionLanguageModel:
        model = build_model(self.config)
        if self.recipe.lora is not None:
            add_lora(model, self.recipe.lora, self.recipe.seed)
        return model

    def _build_part(self) -> VisionLanguageModel:
        """What one device computes."""
        model, parallel = self._build(), self.recipe.parallel
        if parallel.tensor > 1:
            narrow(model, parallel.tensor)
        if parallel.recompute != "none":
            for block in blocks_of(model):
                recompute_block(block, parallel.recompute)
        return model

    def _losses(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        """As the stage's objective computes them, with the kernels of the device."""
        if self.stage.objective == "match":
            return _match_losses(model, batch)
        seen_MD = model.embed(batch.tokens_T[batch.vision_rows_M]) if self.stage.objective == "told" else None
        return token_losses(model, batch, seen_MD, PackedContext(batch, fused=not self.device.cpu))[0]

    def flops(self, pack: PackShape) -> StepFlops:
        """Of a step on all devices."""
        with torch.device("meta"):
            model = self._build()
        freeze(model, self.stage.trains, self.stage.frozen)
        found = FlopCount(model).of(pack.seq_lens, pack.segment_lens, pack.targets, pack.parents)
        packs = self.share.packs * self.lanes
        return StepFlops(**{key: packs * n for key, n in vars(found).items()})

    def most_tokens(self, pictures: tuple[Picture | None, ...], count: int, memory: StepMemory, sure: bool) -> int:
        """Tokens of the largest pack of the mix that fits; 0 if not even one sample does."""
        known = {count: memory.peak}
        other = count // 2 or 2
        most = self._largest(lambda n: self.mix.pack(pictures, n), known, other, _MOST_SAMPLES, sure)
        tokens = self.mix.pack(pictures, most).tokens if most else 0
        return tokens // _PACK_ROUND * _PACK_ROUND or tokens

    def most_pixels(self, sure: bool) -> int:
        """Largest pixel budget with which a sample with one picture fits alone; a multiple of the pixels of a token."""
        if not isinstance(self.config, Qwen2VLConfig) or not self.mix.hws:
            return 0
        merge = self.config.vision.merge
        area = (merge * self.config.vision.patch) ** 2

        def alone(tokens: int) -> PackShape:
            picture = Picture((0, 0), (0, 0), (merge * tokens, merge), tokens + MARKS, 0)
            return self.mix.pack((picture,), 1)

        few, some = 16, 2048
        return area * self._largest(alone, {few: self.memory(alone(few)).peak}, some, self.config.max_positions, sure)

    def _largest(
        self, shape: Callable[[int], PackShape], known: dict[int, int], other: int, most: int, sure: bool
    ) -> int:
        """About the largest n up to `most` with a step of `shape(n)` that fits; 0 if there is none.

        Memory grows nearly in proportion, so a line through two sizes says where it is.

        Args:
            known: peaks found before; `other` is one more size to look at.
            sure: go through a step of that size too, and take the next guess if it does not fit.
        """
        usable, fits = self.device.usable, 0
        for _ in range(_TRIES):
            known[other] = self.memory(shape(other)).peak
            fits = max((n for n, peak in known.items() if peak <= usable), default=0)
            beyond = min((n for n, peak in known.items() if peak > usable), default=most + 1)
            a, b = (fits, beyond) if fits and beyond in known else sorted(known)[:2]
            slope = max((known[b] - known[a]) / (b - a), 1.0)
            other = min(max(int(a + _MARGIN * (usable - known[a]) / slope), fits), beyond - 1)
            if not sure:
                return max(other, 0)
            if other <= _NEAR * fits or other < 1:
                return fits
        return fits


def _lanes(parallel: ParallelConfig, devices: int) -> int:
    """Devices, or groups of them, that compute packs of their own. Raises `ValueError` if they cannot be divided so."""
    lanes, rest = divmod(devices, parallel.tensor)
    if rest or lanes % (parallel.shard or 1):
        raise ValueError(
            f"{devices} devices are not replicas x {parallel.shard} (parallel.shard) x {parallel.tensor} "
            "(parallel.tensor); choose another number of devices, or --set parallel.shard=0 for all there are"
        )
    return lanes


def _match_losses(model: VisionLanguageModel, batch: Batch) -> Tensor:
    """What `objectives.Match` computes, on half of the places (the other half is told); which words there are to choose
    from depends on values that a plan has not."""
    seen_MD = F.normalize(model.see(batch, PackedContext(batch)), dim=-1)
    scores_MA = seen_MD @ F.normalize(model.embed.weight[:_WORDS_IN_A_PACK].detach(), dim=-1).T
    return F.cross_entropy(scores_MA, torch.zeros(len(seen_MD), dtype=torch.long), reduction="none")


def _fill(pictures: tuple[Picture | None, ...], mix: Mix, room: PackLimits) -> int:
    """How many samples the limits let into a pack; a share of a pack holds one at least, if a whole one does."""
    tokens = patches = 0
    for count, picture in enumerate(cycle(pictures)):
        size, seen = mix.tokens(picture), mix.patches(picture)
        part = room.part if count else 1.0
        tokens, patches = tokens + size, patches + seen
        if tokens > part * room.tokens or patches > part * room.patches or 0 < part * room.samples <= count:
            return count
    raise AssertionError("a sample takes room, so a pack is full at some time")


def _problem(sums: _Sums, pictures: tuple[Picture | None, ...], memory: StepMemory, largest: int, pixels: int) -> str:
    """What does not fit, and the option to change; empty if all does."""
    stage, mix, usable = sums.stage, sums.mix, sums.device.usable
    most = max(pictures, key=mix.tokens)
    if mix.tokens(most) > stage.tokens_per_pack or mix.patches(most) > stage.patches_per_pack:
        return _no_room(sums, most)
    if memory.peak <= usable:
        return ""
    need = f"a step needs {gib(memory.peak)}, {USABLE:.0%} of the device are {gib(usable)}"
    again = " (or --set parallel.recompute=full)" if sums.recipe.parallel.recompute == "none" else ""
    if largest:
        return f"{need}: set tokens_per_pack to {largest:,} or less{again}"
    if pixels:
        return f"{need}, even with one sample a pack: set max_pixels to {pixels:,} or less{again}"
    if memory.lasting <= usable:
        return f"{need}, whatever a pack holds: take a smaller model, fewer parts to train, or more memory{again}"
    return (
        f"parameters, gradients and optimizer alone take {gib(memory.lasting)}, {USABLE:.0%} of the device are "
        f"{gib(usable)}: {_less(sums)}"
    )


def _less(sums: _Sums) -> str:
    """What makes the lasting part smaller."""
    ways = []
    if sums.lanes > 1 and sums.recipe.parallel.shard == 1:
        ways.append("share them (--set parallel.shard=0)")
    if sums.recipe.lora is None:
        ways.append(f"train fewer parts (trains, now {', '.join(sums.stage.trains)}) or adapters (lora)")
    return ", ".join([*ways, "take a smaller model or more memory"])


def _no_room(sums: _Sums, picture: Picture | None) -> str:
    stage, mix = sums.stage, sums.mix
    tokens, patches = mix.tokens(picture), mix.patches(picture)
    takes = (
        f"a sample takes {tokens:,} tokens and {patches:,} patches, a pack holds {stage.tokens_per_pack:,} and "
        f"{stage.patches_per_pack:,}"
    )
    words = mix.turns * mix.words
    room = stage.tokens_per_pack - words - MARKS
    if picture is None or not isinstance(sums.config, Qwen2VLConfig) or room < 1:
        return (
            f"{takes}, so it would be left out: set tokens_per_pack to {tokens:,} and patches_per_pack to {patches:,}"
        )
    v = sums.config.vision
    pixels = min(stage.patches_per_pack // v.merge**2, room) * (v.merge * v.patch) ** 2
    shown = f"with a picture of {picture.hw[1]} x {picture.hw[0]} {takes}"
    return (
        f"{shown}, so the picture would be made smaller: set max_pixels to {pixels:,} or less, or raise "
        "tokens_per_pack and patches_per_pack"
    )


def cache_bytes(config: VLMConfig, tokens: int, value_bytes: int = 2) -> int:
    """Keys and values of `tokens` tokens while answering."""
    t = config.text
    return 2 * t.layers * t.kv_heads * t.head_size * value_bytes * tokens


def gib(size: float) -> str:
    """ "3.20 GiB", or MiB below a quarter of one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
