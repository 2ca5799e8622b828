"""One stage of a recipe on given devices: what packs of samples hold and compute there.

Knows: how a recipe's choices (objective, adapters, precision, ranks) decide what a device computes; how to look for the
largest pack. Does not know: what to advise (`plan`), the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qvl.batch import Batch
from qvl.data.packing import PackLimits
from qvl.layers.attention import PackedContext
from qvl.models.lora import add_lora
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.registry import build_model
from qvl.models.vlm import VisionLanguageModel, VLMConfig
from qvl.runtime import fast_bfloat16
from qvl.train.blocks import blocks_of, recompute_block
from qvl.train.config import ParallelConfig, StageConfig, TrainConfig
from qvl.train.feed import Share
from qvl.train.flops import FlopCount, StepFlops
from qvl.train.loss import token_losses
from qvl.train.mix import MARKS, Mix, Picture
from qvl.train.narrow import narrow
from qvl.train.objectives import objective_of
from qvl.train.optim import freeze, untouched
from qvl.train.step_memory import PackShape, StepMemory, step_memory

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
        if not self.flops >= 0:
            raise ValueError(f"a device computes 0 operations a second or more, got tflops={self.flops / 1e12:g}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is a share between 0 and 1, got {self.utilisation}")

    @property
    def usable(self) -> int:
        return int(USABLE * self.memory)

    def takes(self, precision: str) -> bool:
        """Whether matrix products are in bfloat16, in a recipe of that precision."""
        return precision == "bfloat16" or (precision == "auto" and (not self.cpu or fast_bfloat16()))


@final
class StageCosts:
    """Packs of one stage and what they cost."""

    def __init__(self, config: VLMConfig, recipe: TrainConfig, stage: StageConfig, mix: Mix, device: Device) -> None:
        self.config, self.recipe, self.stage, self.mix, self.device = config, recipe, stage, mix, device
        self.lanes = _lanes(recipe.parallel, device.count)
        self.share = Share.of(stage.accumulate, self.lanes, objective_of(stage.objective).divisible)
        self.room = PackLimits(
            stage.tokens_per_pack, stage.patches_per_pack, samples=stage.samples_per_pack, part=self.share.part
        )

    @property
    def token_area(self) -> int:
        """Pixels of a vision token of a Qwen2-VL."""
        assert isinstance(self.config, Qwen2VLConfig), "pictures of a Qwen-VL have one size"
        return (self.config.vision.merge * self.config.vision.patch) ** 2

    def memory(self, pack: PackShape) -> StepMemory:
        """Of a step on each device."""
        stage, parallel = self.stage, self.recipe.parallel
        alike = parallel.shard == 1 and parallel.tensor == 1  # every device holds everything
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
            summed=alike and self.device.count > 1,
            cpu=self.device.cpu,
            constant=partial(untouched, stages=self.recipe.stages) if self.recipe.save_in_background else None,
            writers=self.device.count if alike else 1,
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
        with FakeTensorMode():
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

        def alone(tokens: int) -> PackShape:
            picture = Picture((0, 0), (0, 0), (merge * tokens, merge), tokens + MARKS, 0)
            return self.mix.pack((picture,), 1)

        few, some = 16, 2048
        return self.token_area * self._largest(
            alone, {few: self.memory(alone(few)).peak}, some, self.config.max_positions, sure
        )

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
