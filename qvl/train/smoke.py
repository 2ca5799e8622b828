"""A recipe that is over in seconds.

Knows: which of a recipe's values make it long or large. Does not know: data, the loop.
"""

from __future__ import annotations

from dataclasses import replace

from qvl.data.user.config import DataConfig
from qvl.models.registry import presets, small_preset
from qvl.train.config import PartsConfig, StageConfig, TrainConfig

STEPS = 2


def smoke(config: TrainConfig, run: str) -> TrainConfig:
    """The same recipe with its family's small model from random weights, whole on every rank, two steps of one pack per
    stage, in float32, on the embedded world. What is frozen, how samples are packed, rates and picture sizes stay as
    they are."""
    return replace(
        config,
        run=run,
        model=_small(config),
        stages=tuple(map(_short, config.stages)),
        parts=PartsConfig(),
        data=DataConfig(),
        vocabulary="world",
        precision="float32",
        needs_data=False,
        parallel=replace(config.parallel, shard=1, tensor=1, compile=False),
        log_every=1,
        eval_samples=1,
    )


def _small(config: TrainConfig) -> str:
    """A model folder need not be there yet; only recipes of Qwen-VL say how large pictures are."""
    if config.model in presets():
        return small_preset(config.model)
    return small_preset("qwen-vl" if config.image_px or config.queries else "tiny")


def _short(stage: StageConfig) -> StageConfig:
    return replace(
        stage,
        source="world",
        easy_vqa=0.0,
        steps=STEPS,
        epochs=0.0,
        accumulate=1,
        optim=replace(stage.optim, warmup_steps=0),
    )
