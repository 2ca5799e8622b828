from __future__ import annotations

import pytest

from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.text.family import QWEN_VL
from qvl.text.tokenizer import Tokenizer

TEXTS = ["What is it? A dog, a cat and 3 keys."]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.reduced(TEXTS, base_ranks=64)


@pytest.fixture(scope="session")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, ProcessorConfig())


@pytest.fixture(scope="session")
def v1() -> Processor:
    """Qwen-VL in small: squares of 56 pixels (16 patches), 4 slots per picture."""
    return Processor(Tokenizer.reduced(TEXTS, 64, QWEN_VL), ProcessorConfig.qwen_vl(56, 4))
