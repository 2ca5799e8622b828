"""What a run begins with: sizes, rates, and pretrained parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qvl.checkpoint.folder import save_model
from qvl.models.qwen_vl.config import AdapterConfig, with_image_size
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.registry import build_model, preset, small_preset
from qvl.train.build import model_sizes
from qvl.train.config import OptimConfig, PartsConfig, StageConfig, TrainConfig
from qvl.train.start import fill_qwen_vl

STAGE = StageConfig("s", ("text",), 1.0, steps=100, optim=OptimConfig(warmup_steps=25))
TINY = preset("tiny-qwen-vl")


def test_a_warm_up_in_steps_is_a_share_of_the_stage() -> None:
    assert STAGE.schedule == OptimConfig(warmup=0.25)
    assert replace(STAGE, optim=OptimConfig(warmup=0.5)).schedule == OptimConfig(warmup=0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 20}, "warmup_steps is 25, the stage has 20 steps"),
        ({"steps": 0}, "warmup_steps is 25, the stage has 0 steps"),
        ({"samples_per_pack": 9, "tokens_per_sample": 512}, "set tokens_per_pack to at least 4608"),
    ],
)
def test_stages_that_cannot_be(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(STAGE, **wrong)  # type: ignore[arg-type]


def test_sizes_of_pictures_are_those_of_qwen_vl() -> None:
    config = TrainConfig("run", (STAGE,), model="tiny-qwen-vl", queries=36)
    assert model_sizes(config) == with_image_size(TINY, 112, 36)
    with pytest.raises(ValueError, match="tiny keeps a picture's shape"):
        model_sizes(replace(config, model="tiny"))
    with pytest.raises(ValueError, match="no model preset 'gone'"):
        model_sizes(replace(config, model="gone"))
    assert (small_preset("qwen-vl"), small_preset("qwen2-vl-7b")) == ("tiny-qwen-vl", "tiny")


def test_a_run_begins_with_the_language_half_of_a_folder(tmp_path: Path) -> None:
    sizes = replace(TINY, vocab_size=64)
    source = build_model(sizes)
    source.init_weights(1)
    save_model(source, tmp_path)
    fresh, filled = (build_model(replace(sizes, adapter=AdapterConfig(36, 4))) for _ in range(2))
    for model, parts in ((fresh, PartsConfig()), (filled, PartsConfig(language=str(tmp_path)))):
        assert isinstance(model, QwenVL)
        model.init_weights(0)
        fill_qwen_vl(model, parts)
    assert torch.equal(filled.embed.weight, source.embed.weight)
    assert not torch.equal(fresh.embed.weight, source.embed.weight)
    assert torch.equal(filled.visual.get_parameter("adapter.query"), fresh.visual.get_parameter("adapter.query"))
