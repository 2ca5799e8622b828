"""Parameter counts of the released sizes, from the published tables (exact)."""

from __future__ import annotations

import pytest
import torch

from qvl.models.qwen2_vl.config import preset
from qvl.models.qwen2_vl.model import Qwen2VL

RELEASED = {  # language model, vision tower with merger, total
    "qwen2-vl-2b": (1_543_714_304, 665_271_296, 2_208_985_600),
    "qwen2-vl-7b": (7_615_616_512, 675_759_104, 8_291_375_616),
    "qwen2-vl-72b": (72_706_203_648, 699_356_672, 73_405_560_320),
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = Qwen2VL(preset(name))
    vision = sum(p.numel() for p in model.visual.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert (total - vision, vision, total) == RELEASED[name]
    assert (model.head.weight is model.embed.weight) == (name == "qwen2-vl-2b")
