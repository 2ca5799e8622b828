"""Qwen-VL folders: the official config.json, `.bin` shards and safetensors, and everything that can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.handmade_qwen_vl import made, small_config
from safetensors.torch import load_file
from torch import Tensor

from qvl.checkpoint.configs import config_json, parse_config, read_config
from qvl.checkpoint.folder import load_model, save_model
from qvl.checkpoint.jsonfile import Fields
from qvl.layers.decoder import BeyondTraining
from qvl.models.keys import stored_tensors
from qvl.models.qwen_vl.config import QwenVLConfig, TokenIds
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.registry import preset

RELEASED: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "emb_dropout_prob": 0.0,
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 8192,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 2048,
    "tie_word_embeddings": False,
    "tokenizer_type": "QWenTokenizer",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": False,
    "use_logn_attn": True,
    "visual": {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151857,
        "layers": 48,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    },
    "vocab_size": 151936,
}


def parse(data: dict[str, Any]) -> QwenVLConfig:
    return parse_config(Fields(data, "folder/config.json"))[1]


def test_released_config() -> None:
    assert parse(RELEASED) == preset("qwen-vl")
    written = config_json(preset("qwen-vl"), torch.bfloat16)
    assert RELEASED.items() <= written.items()
    assert written.keys() - RELEASED.keys() == {"auto_map", "bos_token_id", "eos_token_id"}


SOME = small_config(tied=True, queries=9, table_side=7, trained_len=99)


@pytest.mark.parametrize(
    "config",
    [
        preset("qwen-vl"),
        preset("tiny-qwen-vl"),
        SOME,
        replace(SOME, ids=TokenIds(500, 7, 7), text=replace(SOME.text, beyond=BeyondTraining(64, False, True))),
        small_config(width=96, vision=(44, 2, 4, 137)),
        small_config(vision=(100, 1, 4, 29)),
        small_config(vision=(60, 1, 4, 123)),
    ],
)
def test_config_round_trip(config: QwenVLConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, torch.float32)))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual": None}, r"visual is missing: .*Qwen-7B.*load_language_model"),
        ({"rotary_pct": 0.5}, r"rotary_pct is 0.5, only 1.0"),
        ({"no_bias": False}, r"no_bias is False, only True"),
        ({"kv_channels": 64}, r"32 x kv_channels 64 = 2048 must be the hidden_size 4096"),
        ({"intermediate_size": 22017}, r"both halves .* so 22017 must be even"),
        ({"quantization_config": {"bits": 4}}, r"quantised checkpoints are not read"),
        ({"visual": RELEASED["visual"] | {"output_dim": 1024}}, r"output_dim is 1024, only 4096"),
        ({"visual": RELEASED["visual"] | {"n_queries": 200}}, r"200 queries do not stand on a square"),
        ({"seq_length": None}, r"seq_length is missing"),
        ({"kv_channels": 0}, "kv_channels must be at least 1, got 0"),
        ({"eos_token_id": []}, "eos_token_id must be a list of whole numbers"),
    ],
)
def test_refused_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(RELEASED | change)


def test_configs_that_the_format_lacks() -> None:
    text = preset("qwen-vl").text
    with pytest.raises(ValueError, match="32 heads of size 128 with 8 of keys"):
        config_json(replace(preset("qwen-vl"), text=replace(text, kv_heads=8)), torch.float32)
    with pytest.raises(ValueError, match="needs the decoder's `beyond`"):
        config_json(replace(preset("qwen-vl"), text=replace(text, beyond=None)), torch.float32)


# Weights.


@pytest.fixture(scope="module")
def model() -> QwenVL:
    """With a table of positions that is not the computed one: bfloat16 checkpoints hold a rounded one."""
    made_model = made(small_config())
    made_model.visual.adapter.places_QD.copy_(made_model.visual.adapter.places_QD.bfloat16().float())
    return made_model


@pytest.fixture
def saved(model: QwenVL, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def to_bin(folder: Path, shards: int) -> dict[str, Tensor]:
    """Turns the folder's safetensors into what the released folder has."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return tensors
    weight_map = {}
    for i in range(shards):
        name = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(tensors.items())[i::shards])
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = stored_tensors(a), stored_tensors(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_official_to_ours_to_official(shards: int, model: QwenVL, saved: Path, tmp_path: Path) -> None:
    before = load_file(saved / "model.safetensors")
    if shards:
        to_bin(saved, shards)
    loaded = load_model(saved)
    assert loaded.config == model.config
    assert_same(loaded, model)
    assert {n for n, _ in loaded.named_buffers()} == {"visual.adapter.places_QD"}
    save_model(loaded, tmp_path / "again")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert (tmp_path / "again" / "config.json").read_text() == (saved / "config.json").read_text()


def test_in_bfloat16_and_tied(tmp_path: Path) -> None:
    model = made(small_config(tied=True))
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path, dtype=torch.bfloat16)
    assert loaded.head.weight is loaded.embed.weight
    assert {t.dtype for t in stored_tensors(loaded).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 300


def test_safetensors_win_over_bins(model: QwenVL, saved: Path) -> None:
    torch.save({"a": torch.zeros(1)}, saved / "pytorch_model.bin")
    assert_same(load_model(saved), model)


def test_missing_extra_and_wrong_tensors(saved: Path) -> None:
    tensors = to_bin(saved, 1)
    del tensors["transformer.visual.attn_pool.pos_embed"]
    tensors["transformer.visual.class_embedding"] = torch.zeros(4)
    tensors["transformer.ln_f.weight"] = torch.ones(65)
    torch.save(tensors, saved / "pytorch_model.bin")
    message = (
        r"missing 1: transformer.visual.attn_pool.pos_embed; not part of the model 1: "
        r"transformer.visual.class_embedding \(in pytorch_model.bin\); of another shape 1: "
        r"transformer.ln_f.weight is \[65\], config.json wants \[64\]"
    )
    with pytest.raises(ValueError, match=message):
        load_model(saved)


def test_missing_shard(saved: Path) -> None:
    to_bin(saved, 3)
    (saved / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"pytorch_model.bin.index.json names shards .*1: pytorch_model-00002-of"
    ):
        load_model(saved)


def test_cut_off_shard(saved: Path) -> None:
    to_bin(saved, 3)
    file = saved / "pytorch_model-00003-of-00003.bin"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"pytorch_model-00003-of-00003.bin \(.* bytes\) is .*damaged or cut off"):
        load_model(saved)


def test_the_loaded_model_does_not_depend_on_the_file(model: QwenVL, saved: Path) -> None:
    to_bin(saved, 1)
    loaded = load_model(saved)
    with (saved / "pytorch_model.bin").open("r+b") as file:
        file.seek(2000)
        file.write(b"\0" * 8000)
    assert_same(loaded, model)
