"""`qvl inspect`: published sizes, and what a picture costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qvl.checkpoint.folder import save_model
from qvl.cli.inspect import parse_size, parts
from qvl.cli.main import USER_ERROR, main
from qvl.models.qwen2_vl.config import preset
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.qwen_vl.config import PRESETS, with_image_size
from qvl.models.registry import build_model


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


def test_first_generation_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "qwen-vl", "--image-size", "1024x768"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "adapter 91,791,360" in shown  # the released file's 92,839,936 with its fixed sines
    assert "adapter's queries 256 = 16 x 16" in shown
    assert "adapter's heads 32 x 128" in shown
    assert "learned table of 16 x 16" in shown
    assert "becomes 448 x 448, whatever its shape" in shown
    assert "patches 32 rows x 32 = 1,024" in shown
    assert "tokens 258 (with its two marks)" in shown


def test_folder_of_the_first_generation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown is the folder's, not the preset's: other queries, another side."""
    model = build_model(with_image_size(replace(PRESETS["tiny-qwen-vl"], vocab_size=64), 224, 36))
    save_model(model, tmp_path)
    assert main(["inspect", str(tmp_path), "--image-size", "30x900"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "becomes 224 x 224" in shown
    assert "tokens 38" in shown


def test_unknown_names_list_the_presets_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "3b"]) == USER_ERROR
    said = capsys.readouterr().err
    assert "qwen-vl" in said
    assert "qwen2-vl-72b" in said
