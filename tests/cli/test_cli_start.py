"""A run that begins with the folder of the one before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qvl.checkpoint.configs import read_config
from qvl.checkpoint.folder import save_model
from qvl.cli.recipe import read_recipe
from qvl.cli.start import begin, processor_of
from qvl.data.packing import PackLimits, packs
from qvl.data.user import DataConfig
from qvl.train.build import build, sample_source
from qvl.train.config import PartsConfig, StageConfig, TrainConfig

CONFIG = TrainConfig("run", (StageConfig("s", ("text",), 1.0, steps=1),), model="tiny-qwen-vl")


@pytest.mark.slow
def test_the_bound_of_a_recipe_lowers_that_of_the_model() -> None:
    """A bound above the model's own would train on pictures larger than those that it answers about."""
    config = replace(CONFIG, model="tiny")
    own = processor_of(config).config.pixels.max_pixels
    for most in (own // 2, 2 * own):
        bounded = processor_of(replace(config, data=DataConfig(max_pixels=most))).config.pixels.max_pixels
        assert bounded == min(most, own)


@pytest.mark.slow
def test_stage_2_begins_with_stage_1_and_larger_pictures(tmp_path: Path) -> None:
    """The same weights and vocabulary; the run's own files say how large its pictures are."""
    folder = tmp_path / "before"
    before = build(CONFIG, folder)
    save_model(before.model, folder)
    config = replace(CONFIG, seed=1, image_px=224, model=str(folder))
    after = begin(config, tmp_path / "run")
    pairs = zip(before.model.state_dict().values(), after.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert after.processor.tokenizer.specials == before.processor.tokenizer.specials
    kept = read_config(tmp_path / "run/start")
    assert after.model.config.vision.image_px == kept.vision.image_px == 224
    for processor in (after.processor, processor_of(config)):
        assert processor.config.square is not None
        assert processor.config.square.side == 224
    with pytest.raises(ValueError, match=r"queries is 36, but .*before has 16; their number can only be chosen"):
        begin(replace(config, queries=36), tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny_qwen_vl", "tiny_easy_vqa", "small"])
def test_every_stage_of_a_world_recipe_makes_packs(name: str) -> None:
    config = read_recipe(f"recipes/{name}.yaml")
    # easy-VQA's pictures and the pretrained parts need not have been fetched.
    config = replace(config, stages=tuple(replace(stage, easy_vqa=0.0) for stage in config.stages), parts=PartsConfig())
    processor = processor_of(config)
    for stage in config.stages:
        source = sample_source(config, stage)
        limits = PackLimits(stage.tokens_per_pack, stage.patches_per_pack)
        pack = next(packs(source, processor, limits, stage.chat_format))
        assert pack.samples > 1, stage.name
        if stage.objective == "match" and processor.config.square is None:
            merged = pack.batch.patches_PC.shape[0] // processor.config.geometry.merge**2
            assert len(pack.batch.vision_rows_M) == 2 * merged, "a word for every vision token"
