"""The front door with a Qwen-VL behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import qvl
from qvl.data.packing import PackLimits, packs
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.train.build import build, sample_source
from qvl.train.config import StageConfig, TrainConfig
from qvl.train.objectives import objective_of
from qvl.train.optim import part_of

STAGE = StageConfig("one", trains=("vision", "merger", "text"), share=1)
PLAIN = replace(STAGE, world=replace(STAGE.world, tasks={"what": 1, "grounding": 1, "caption": 1}))


@pytest.fixture(scope="module")
def built():
    return build(TrainConfig("unused", (PLAIN,), model="tiny-qwen-vl"))


@pytest.fixture(scope="module")
def vlm(built) -> VLM:
    return VLM(built.model.eval(), built.processor.with_options(resize="exact", chat_format="chatml"))


def ask(text: str, *pictures: object) -> list[dict]:
    parts = [{"type": "image", "image": p} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.slow
def test_a_saved_folder_answers_the_same(vlm, tmp_path) -> None:
    vlm.save(tmp_path / "m")
    again = qvl.load(tmp_path / "m")
    assert again.processor.config == vlm.processor.config
    path = tmp_path / "a.png"
    picture(60, 200).save(path)
    for messages in (ask("What is this?", picture(50, 80)), ask("Both?", str(path), picture(9, 9, 1)), ask("Hello")):
        assert again.chat(messages, 12).token_ids == vlm.chat(messages, 12).token_ids


def test_alone_or_among_others(vlm) -> None:
    messages = [
        ask("What is this?", picture(50, 80)),
        ask("Hello"),
        ask("And?", picture(30, 30, 2), picture(70, 20, 3)),
    ]
    assert [r.token_ids for r in vlm.chat_batch(messages, 8)] == [vlm.chat(m, 8).token_ids for m in messages]


@pytest.mark.slow
def test_the_other_family_saved_over_it_is_whole(vlm, tmp_path) -> None:
    vlm.save(tmp_path / "m")
    other = build(TrainConfig("unused", (PLAIN,)))
    VLM(other.model.eval(), other.processor).save(tmp_path / "m")
    assert not (tmp_path / "m" / "qwen.tiktoken").exists()
    assert qvl.load(tmp_path / "m").tokenizer.family.name == other.processor.tokenizer.family.name


def test_a_processor_of_another_size_is_refused(built) -> None:
    config = ProcessorConfig.qwen_vl(112, 25, chat_format="raw")
    with pytest.raises(ValueError, match=r"\(14, 25\).*\(14, 16\)"):
        VLM(built.model, Processor(built.processor.tokenizer, config))


@pytest.mark.parametrize("tasks", [{"what": 1}, {"text": 1}])
def test_every_part_gets_gradients_where_it_takes_part(built, tasks) -> None:
    stage = replace(PLAIN, world=replace(PLAIN.world, tasks=tasks))
    config = TrainConfig("unused", (stage,), model="tiny-qwen-vl")
    pack = next(packs(sample_source(config, stage), built.processor, PackLimits(400, 400), "raw"))
    built.model.train().zero_grad()
    objective_of("next_token").losses(built.model, pack.batch).sum().backward()
    moved = {part_of(n) for n, p in built.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    built.model.eval()
    assert moved == ({"vision", "merger", "text"} if "what" in tasks else {"text"})
    assert torch.isfinite(built.model.embed.weight.grad).all()
