"""Does it fit, and if not, what to change: every proposal is one that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qvl.media.resize import Geometry, PixelBudget
from qvl.models.qwen2_vl.config import preset
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.train.config import StageConfig
from qvl.train.cost import parameters_of
from qvl.train.plan import Device, Mix, Picture, StagePlan, plan_stage

CONFIG = preset("qwen2-vl-2b")
with torch.device("meta"):
    PARAMETERS = parameters_of(Qwen2VL(CONFIG))
STAGE = StageConfig("all", ("vision", "merger", "text"), 1.0, tokens_per_pack=4096, patches_per_pack=16384)
MIX = Mix(((768, 1024), (448, 448)), words=100, learned=30)


def planned(gib: float, stage: StageConfig = STAGE, budget: PixelBudget | None = None, mix: Mix = MIX) -> StagePlan:
    return plan_stage(CONFIG, PARAMETERS, stage, mix, budget or PixelBudget(), Device(int(gib * 2**30)))


def test_a_picture() -> None:
    # 1024 x 768 becomes 1036 x 756: 27 x 37 tokens of 28 x 28 pixels.
    picture = Picture.of((768, 1024), Geometry(), PixelBudget())
    assert (picture.seen_hw, picture.tokens, picture.patches) == ((756, 1036), 27 * 37 + 2, 27 * 37 * 4)
    assert picture.positions == 37 + 2, "keys and values are 999, positions only 37"


def test_what_fits() -> None:
    plan = planned(120)
    assert plan.problem == ""
    # 2.2 billion parameters: 4 bytes each, as many of gradients, twice as many of AdamW.
    assert sum(plan.memory.parameters.values()) == 4 * 2_208_985_600
    assert sum(plan.memory.optimizer.values()) == 8 * 2_208_985_600
    assert plan.pack.tokens <= STAGE.tokens_per_pack
    assert plan.pictures_per_pack == 5
    assert plan.seconds is None
    device = Device(120 * 2**30, count=8, flops=60e12, utilisation=0.5)
    eight = plan_stage(CONFIG, PARAMETERS, replace(STAGE, accumulate=2), MIX, PixelBudget(), device)
    assert sum(eight.flops.values()) == 16 * sum(plan.flops.values())
    assert eight.seconds == pytest.approx(2 * sum(plan.flops.values()) / 30e12)


def test_a_pack_that_is_too_large() -> None:
    plan = planned(60, replace(STAGE, tokens_per_pack=60_000, patches_per_pack=1 << 18))
    assert "set tokens_per_pack to" in plan.problem
    assert 0 < plan.largest_pack < 60_000
    assert f"{plan.largest_pack:,}" in plan.problem
    assert planned(60, replace(STAGE, tokens_per_pack=plan.largest_pack, patches_per_pack=1 << 18)).problem == ""


def test_a_picture_that_is_too_large() -> None:
    stage = replace(STAGE, tokens_per_pack=60_000, patches_per_pack=1 << 18)
    mix = replace(MIX, hws=((3000, 4000),))
    plan = planned(42, stage, mix=mix)
    assert "even with one picture a pack: set max_pixels to" in plan.problem
    assert planned(42, stage, PixelBudget(max_pixels=plan.largest_pixels), mix).problem == ""


def test_a_picture_that_no_pack_holds() -> None:
    mix = replace(MIX, hws=((3000, 4000),))
    plan = planned(120, mix=mix)
    assert "a picture of 4000 x 3000 takes 15,303 tokens" in plan.problem
    assert "set max_pixels to 3,209,696 or less" in plan.problem
    assert planned(120, budget=PixelBudget(max_pixels=3_209_696), mix=mix).problem == ""


def test_a_model_that_is_too_large() -> None:
    plan = planned(24)
    assert "parameters, gradients and optimizer alone take 32.92 GiB, 90% of the device are 21.60 GiB" in plan.problem
    assert "train fewer parts" in plan.problem
    assert (plan.largest_pack, plan.largest_pixels) == (0, 0)
    assert planned(24, replace(STAGE, trains=("merger",))).problem == ""


def test_devices_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="utilisation is a share between 0 and 1, got 40"):
        Device(1, utilisation=40)
    with pytest.raises(ValueError, match="a plan needs devices with memory, got 0"):
        Device(1, count=0)
