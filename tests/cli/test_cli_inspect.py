"""`qvl inspect`: published sizes, and what a picture costs."""

from __future__ import annotations

import pytest
import torch

from qvl.cli.inspect import parse_size, parts
from qvl.cli.main import main
from qvl.models.qwen2_vl.config import preset
from qvl.models.qwen2_vl.model import Qwen2VL


def test_released_model_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "2b", "--image-size", "224x224"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "total 2,208,985,600" in shown
    assert "tokens 66 (with its two marks)" in shown
    assert "becomes 224 x 224" in shown


def test_parts_add_up() -> None:
    with torch.device("meta"):
        model = Qwen2VL(preset("qwen2-vl-7b"))
    sizes = parts(model)
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    assert sizes["output head"] == sizes["token embedding"] == 152064 * 3584


def test_sizes_are_width_by_height() -> None:
    assert parse_size("1024x768") == (768, 1024)
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        parse_size("1024")
