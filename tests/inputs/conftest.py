from __future__ import annotations

import pytest

from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.reduced(["What is it? A dog, a cat and 3 keys."], base_ranks=64)


@pytest.fixture(scope="session")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, ProcessorConfig())
