"""config.json: every generation that exists, what we write, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qvl.checkpoint.hf_config import config_json, parse_config, read_config, stored_dtype
from qvl.checkpoint.jsonfile import Fields
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import PRESETS, Qwen2VLConfig, TokenIds, VisionConfig, preset

CONFIGS = Path(__file__).parent / "configs"

# What transformers 4.45.2, 4.57.1 and 5.23.0 wrote for one and the same model.
SAVED = Qwen2VLConfig(
    text=DecoderConfig(64, 2, 4, 2, 16, 128, norm_eps=1e-6, rope_theta=1e6, rope_sections=(2, 3, 3)),
    vision=VisionConfig(width=64, layers=32, heads=2, mlp_hidden=256),
    vocab_size=500,
    tie_embeddings=True,
    ids=TokenIds(image_pad=11, video_pad=12, vision_start=13, vision_end=14, bos=1, eos=2),
)


def released() -> dict[str, Any]:
    return json.loads((CONFIGS / "released_7b.json").read_text())


def parse(data: dict[str, Any]) -> Qwen2VLConfig:
    return parse_config(Fields(data, "folder/config.json"))


def test_released() -> None:
    assert parse(released()) == preset("qwen2-vl-7b")


@pytest.mark.parametrize("version", ["4_45", "4_57", "5_23"])
def test_generations(version: str) -> None:
    data = json.loads((CONFIGS / f"saved_by_{version}.json").read_text())
    assert parse(data) == SAVED
    assert stored_dtype(data) == torch.bfloat16


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json(preset(name), torch.bfloat16)))
    assert read_config(tmp_path) == preset(name)


def test_round_trip_of_every_field() -> None:
    config = replace(
        SAVED,
        text=replace(SAVED.text, norm_eps=3e-5, rope_theta=20.0, rope_sections=(1, 3, 4)),
        vision=VisionConfig(48, 3, 2, 96, patch=4, temporal_patch=3, merge=4, channels=1, rope_theta=77.0),
        tie_embeddings=False,
        max_positions=123,
    )
    data = config_json(config, torch.float32)
    assert parse(json.loads(json.dumps(data))) == config
    assert stored_dtype(data) == torch.float32


def test_written_keys_are_the_released_ones() -> None:
    """A reader that knows only the released file finds all of it, with the same values."""
    ours, theirs = config_json(preset("qwen2-vl-7b"), torch.bfloat16), released()
    for key in set(theirs) - {"vision_config", "vision_token_id", "transformers_version"}:
        assert ours[key] == theirs[key], key
    for key, value in theirs["vision_config"].items():
        assert ours["vision_config"][key] == value, key


def test_one_axis_positions() -> None:
    config = replace(SAVED, text=replace(SAVED.text, rope_sections=()))
    data = config_json(config, torch.float32)
    assert "rope_scaling" not in data
    assert data["qvl_rope_axes"] == 1
    assert parse(data) == config


@pytest.mark.parametrize("kind", ["mrope", "default"])
def test_sections_mean_three_axes_whatever_the_type(kind: str) -> None:
    data = released() | {"rope_scaling": {"type": kind, "rope_type": "default", "mrope_section": [16, 24, 24]}}
    assert parse(data).text.rope_sections == (16, 24, 24)


def test_flag_at_either_level_ties() -> None:
    data = json.loads((CONFIGS / "saved_by_4_57.json").read_text())
    assert "tie_word_embeddings" not in data
    assert parse(data).tie_embeddings
    data["text_config"]["tie_word_embeddings"] = False
    assert not parse(data).tie_embeddings
    assert parse(data | {"tie_word_embeddings": True}).tie_embeddings


def test_ends_that_nobody_set() -> None:
    data = released() | {"bos_token_id": None}
    del data["eos_token_id"]
    assert parse(data) == preset("qwen2-vl-7b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": None}, "config.json: rms_norm_eps is missing"),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({"image_token_id": None}, "image_token_id is missing"),
        ({"vision_config": None}, "vision_config is missing"),
        ({"model_type": "qwen2_5_vl"}, "model_type is 'qwen2_5_vl', only 'qwen2_vl'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 28"),
        ({"hidden_size": "3584"}, "hidden_size must be a whole number, got '3584'"),
        ({"head_dim": 64}, "head_dim is 64, only 128"),
        ({"rope_scaling": None}, r"no rope_scaling.mrope_section .* \[16, 24, 24\]"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "type 'yarn' is not implemented"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [32, 32]}}, r"three numbers, got \[32, 32\]"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 23]}}, "has 64 frequencies"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [-8, 36, 36]}}, r"cannot be negative, got \(-8, 36, 36\)"),
        ({"quantization_config": {"bits": 4}}, "quantised checkpoints are not read"),
        ({"vision_config": {"hidden_size": 1536}}, "hidden_size is 1536, only 3584"),
        ({"vision_config": {"hidden_act": "silu"}}, "hidden_act is 'silu', implemented are quick_gelu and gelu"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
        ({"num_key_value_heads": 0}, "config.json: num_key_value_heads must be at least 1, got 0"),
        ({"vocab_size": -1}, "vocab_size must be at least 1, got -1"),
        ({"rope_theta": 0}, "rope_theta must be above 0, got 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number, got nan"),
        ({"eos_token_id": []}, r"eos_token_id must be a list of whole numbers, got \[\]"),
        ({"vision_config": {"num_heads": 0}}, "config.json: vision_config: num_heads must be at least 1, got 0"),
        ({"vision_config": {"mlp_ratio": float("inf")}}, "mlp_ratio must be a number, got inf"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(released() | change)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SAVED, text=replace(SAVED.text, head_size=8, rope_sections=(1, 1, 2))), "cannot express head size 8"),
        (replace(SAVED, text=replace(SAVED.text, rope_sections=(4, 4))), "three rope_sections"),
        (replace(SAVED, vision=replace(SAVED.vision, mlp_hidden=100)), "a vision mlp of 100 values"),
    ],
)
def test_inexpressible(config: Qwen2VLConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_json(config, torch.float32)


def test_not_a_folder_not_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*there is no such folder"):
        read_config(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"not a model folder \(it holds notes.txt\)"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match="not valid json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a json object"):
        read_config(tmp_path)
