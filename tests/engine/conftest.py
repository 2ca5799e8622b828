from __future__ import annotations

import pytest
import torch
from tiny_vlm import SIZES

from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.models.qwen2_vl.config import TokenIds, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.reduced(["the red circle is left of the blue square"], base_ranks=64)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Qwen2VL:
    """Random, and loud: at the usual initialisation a small model says one token for ever."""
    special = tokenizer.special
    ids = TokenIds(
        image_pad=special("<|image_pad|>"),
        video_pad=special("<|video_pad|>"),
        vision_start=special("<|vision_start|>"),
        vision_end=special("<|vision_end|>"),
        bos=special("<|endoftext|>"),
        eos=special("<|im_end|>"),
    )
    model = Qwen2VL(with_vocabulary(SIZES, tokenizer.vocab_size, ids)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.init_weights(0)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="session")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer)


@pytest.fixture(scope="session")
def raw_processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, ProcessorConfig(chat_format="raw"))


@pytest.fixture(scope="session")
def engine(model: Qwen2VL, processor: Processor) -> Engine:
    return Engine(model, processor, Limits(max_rows=4, max_batch_tokens=128))


@pytest.fixture(scope="session")
def vlm(model: Qwen2VL, processor: Processor) -> VLM:
    return VLM(model, processor)
