from __future__ import annotations

import pytest
from tiny_vlm import small_model, small_tokenizer

from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Qwen2VL:
    return small_model(tokenizer)


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
