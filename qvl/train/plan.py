"""Before a run: does it fit, how long does a step take, how large may pictures and packs be?

Knows: how a mix of samples fills packs, which option to change when something does not fit.
Does not know: how bytes and operations of a step are counted (`costs`), the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import final

from qvl.data.packing import PackLimits
from qvl.media.resize import PixelBudget
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.vlm import VLMConfig
from qvl.train.config import Part, StageConfig, TrainConfig
from qvl.train.costs import USABLE, Device, StageCosts
from qvl.train.flops import StepFlops
from qvl.train.mix import MARKS, Mix, Picture
from qvl.train.step_memory import PackShape, StepMemory


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
    costs = StageCosts(config, recipe, stage, mix, device)
    pictures = mix.pictures(config, budget)
    pack, count = full_pack(costs, pictures)
    memory = costs.memory(pack)
    flops = costs.flops(pack)
    rate = device.flops * device.utilisation * device.count
    largest = pixels = 0
    if memory.lasting <= device.usable:
        sure = memory.peak > device.usable  # what is proposed as a way out has to be one
        largest, pixels = costs.most_tokens(pictures, max(1, count), memory, sure), costs.most_pixels(sure)
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
        problem=_problem(costs, pictures, memory, largest, pixels),
    )


def full_pack(costs: StageCosts, pictures: tuple[Picture | None, ...]) -> tuple[PackShape, int]:
    """What the recipe's limits let into a pack, and how many samples that are (0: one is too large, and stands for it
    all the same)."""
    count = _fill(pictures, costs.mix, costs.room)
    return costs.mix.pack(pictures, max(1, count)), count


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


def _problem(
    costs: StageCosts, pictures: tuple[Picture | None, ...], memory: StepMemory, largest: int, pixels: int
) -> str:
    """What does not fit, and the option to change; empty if all does."""
    stage, mix, usable = costs.stage, costs.mix, costs.device.usable
    most = max(pictures, key=mix.tokens)
    if mix.tokens(most) > stage.tokens_per_pack or mix.patches(most) > stage.patches_per_pack:
        return _no_room(costs, most)
    if memory.peak <= usable:
        return ""
    need = f"a step needs {gib(memory.peak)}, {USABLE:.0%} of the device are {gib(usable)}"
    again = _or_else(costs, memory)
    if largest:
        return f"{need}: set tokens_per_pack to {largest:,} or less{again}"
    if pixels:
        alone = mix.turns * mix.words + MARKS + pixels // costs.token_area
        return (
            f"{need}, even with one sample a pack: set max_pixels to {pixels:,} or less and tokens_per_pack to "
            f"{alone:,}{again}"
        )
    if memory.lasting <= usable:
        return f"{need}, whatever a pack holds: take a smaller model, fewer parts to train, or more memory{again}"
    return (
        f"parameters, gradients and optimizer alone take {gib(memory.lasting)}, {USABLE:.0%} of the device are "
        f"{gib(usable)}: {_less(costs)}"
    )


def _or_else(costs: StageCosts, memory: StepMemory) -> str:
    """Other ways out than smaller packs, in brackets; empty if there are none."""
    ways = []
    if costs.recipe.parallel.recompute == "none":
        ways.append("--set parallel.recompute=full")
    if not memory.copy_aside and memory.copy > 0 and memory.peak - memory.copy <= costs.device.usable:
        ways.append("--set save_in_background=false")
    return f" (or {' or '.join(ways)})" if ways else ""


def _less(costs: StageCosts) -> str:
    """What makes the lasting part smaller."""
    ways = []
    if costs.lanes > 1 and costs.recipe.parallel.shard == 1:
        ways.append("share them (--set parallel.shard=0)")
    if costs.recipe.lora is None:
        ways.append(f"train fewer parts (trains, now {', '.join(costs.stage.trains)}) or adapters (lora)")
    return ", ".join([*ways, "take a smaller model or more memory"])


def _no_room(costs: StageCosts, picture: Picture | None) -> str:
    stage, mix = costs.stage, costs.mix
    tokens, patches = mix.tokens(picture), mix.patches(picture)
    takes = (
        f"a sample takes {tokens:,} tokens and {patches:,} patches, a pack holds {stage.tokens_per_pack:,} and "
        f"{stage.patches_per_pack:,}"
    )
    words = mix.turns * mix.words
    room = stage.tokens_per_pack - words - MARKS
    if picture is None or not isinstance(costs.config, Qwen2VLConfig) or room < picture.moments:
        return (
            f"{takes}, so it would be left out: set tokens_per_pack to {tokens:,} and patches_per_pack to {patches:,}"
        )
    v = costs.config.vision
    pixels = min(stage.patches_per_pack // v.merge**2, room) // picture.moments * (v.merge * v.patch) ** 2
    kind = "picture" if picture.moments == 1 else f"clip of {picture.moments} moments"
    return (
        f"with a {kind} of {picture.hw[1]} x {picture.hw[0]} {takes}, so it would be "
        f"made smaller: set max_pixels to {pixels:,} or less, or raise tokens_per_pack and patches_per_pack"
    )


def cache_bytes(config: VLMConfig, tokens: int, value_bytes: int = 2) -> int:
    """Keys and values of `tokens` tokens while answering."""
    t = config.text
    return 2 * t.layers * t.kv_heads * t.head_size * value_bytes * tokens


def gib(size: float) -> str:
    """ "3.20 GiB", or MiB below a quarter of one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
