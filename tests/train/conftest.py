from __future__ import annotations

from dataclasses import replace

import pytest

from qvl.data.world.config import WorldConfig
from qvl.data.world.world import World
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, VisionConfig, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer

WORLD = WorldConfig(concepts=9, sizes=((56, 84), (84, 56)), turns=3)


@pytest.fixture(scope="session")
def world() -> World:
    return World(WORLD)


@pytest.fixture(scope="session")
def tokenizer(world: World) -> Tokenizer:
    return Tokenizer.reduced(world.lexicon(), base_ranks=0)


@pytest.fixture(scope="session")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, ProcessorConfig(resize="fast"))


@pytest.fixture
def model(tokenizer: Tokenizer) -> Qwen2VL:
    ids = TokenIds(
        image_pad=tokenizer.special("<|image_pad|>"),
        video_pad=tokenizer.special("<|video_pad|>"),
        vision_start=tokenizer.special("<|vision_start|>"),
        vision_end=tokenizer.special("<|vision_end|>"),
    )
    config = Qwen2VLConfig(
        DecoderConfig(32, 2, 2, 1, 16, 48, rope_theta=20.0, rope_sections=(2, 3, 3)),
        VisionConfig(width=16, layers=2, heads=2, mlp_hidden=32),
        tie_embeddings=True,
    )
    built = Qwen2VL(with_vocabulary(replace(config), tokenizer.vocab_size, ids))
    built.init_weights(0)
    return built
