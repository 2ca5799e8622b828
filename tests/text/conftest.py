from __future__ import annotations

from pathlib import Path

import pytest

from qvl.text.family import QWEN_VL
from qvl.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def full() -> Tokenizer:
    return Tokenizer.qwen2_vl()


@pytest.fixture(scope="session")
def saved(full: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    full.save(folder)
    return folder


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return Tokenizer.reduced(["the red circle is left of the blue square", "数一数图中有几个圆"], base_ranks=64)


@pytest.fixture(scope="session")
def v1() -> Tokenizer:
    return Tokenizer.qwen_vl()


@pytest.fixture(scope="session")
def small_v1() -> Tokenizer:
    return Tokenizer.reduced(["the red circle is left of the blue square", "数一数图中有几个圆"], 64, QWEN_VL)
