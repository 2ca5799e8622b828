"""Official names <-> ours: nothing lost, nothing doubled, in both directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity.handmade import randomise, small_config
from torch import Tensor

from qvl.models.keys import Entry
from qvl.models.qwen2_vl.config import Qwen2VLConfig, preset
from qvl.models.qwen2_vl.keymap import entries, old_name
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.registry import FAMILIES, family, family_of


def meta(config: Qwen2VLConfig) -> Qwen2VL:
    with torch.device("meta"):
        return Qwen2VL(config)


def to_official(table: tuple[Entry, ...], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return {part.name: view.clone() for entry in table for part, view in entry.views(ours[entry.ours])}


def to_ours(table: tuple[Entry, ...], official: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {}
    for entry in table:
        made[entry.ours] = torch.full(entry.shape, float("nan"))
        for part, view in entry.views(made[entry.ours]):
            view.copy_(official[part.name])
    return made


@pytest.mark.parametrize("tied", [True, False])
def test_round_trips(tied: bool) -> None:
    config = small_config(heads=6, kv_heads=2, width=96, vision=(32, 3, 2, 3), tied=tied)
    model = Qwen2VL(config)
    randomise(model, 0)
    table = entries(model)
    ours = {name: p.detach() for name, p in model.named_parameters()}
    official = to_official(table, ours)
    again = to_ours(table, official)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    for i, name in enumerate(sorted(official)):
        official[name] = torch.randn(official[name].shape, generator=torch.Generator().manual_seed(i))
    back = to_official(table, to_ours(table, official))
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)


@pytest.mark.parametrize(("name", "count"), [("qwen2-vl-2b", 729), ("qwen2-vl-7b", 730)])
def test_released_key_lists(name: str, count: int) -> None:
    model = meta(preset(name))
    parts = [part for entry in entries(model) for part in entry.parts]
    shapes = {part.name: part.shape for part in parts}
    assert len(parts) == len(shapes) == count
    assert sum(name.startswith("visual.") for name in shapes) == 391
    assert sum(torch.Size(s).numel() for s in shapes.values()) == sum(p.numel() for p in model.parameters())
    width, kv = model.config.text.width, model.config.text.kv_heads * 128
    assert shapes["visual.patch_embed.proj.weight"] == (1280, 3, 2, 14, 14)
    assert shapes["visual.blocks.31.attn.qkv.weight"] == (3840, 1280)
    assert shapes["visual.merger.mlp.2.weight"] == (width, 5120)
    assert shapes["model.layers.27.self_attn.k_proj.bias"] == (kv,)
    assert shapes["model.layers.27.mlp.up_proj.weight"] == (model.config.text.mlp_hidden, width)
    assert ("lm_head.weight" in shapes) == (name == "qwen2-vl-7b")


def test_fused_rows_are_in_official_order() -> None:
    """q over k over v, gate over up: swapped halves would load without an error and compute nonsense."""
    table = {entry.ours: [part.name.split(".")[-2] for part in entry.parts] for entry in entries(meta(small_config()))}
    assert table["decoder.layers.1.qkv.weight"] == ["q_proj", "k_proj", "v_proj"]
    assert table["decoder.layers.1.qkv.bias"] == ["q_proj", "k_proj", "v_proj"]
    assert table["decoder.layers.1.mlp.gate_up.weight"] == ["gate_proj", "up_proj"]


def test_both_generations_of_names() -> None:
    for new, old in {
        "model.visual.blocks.3.attn.qkv.bias": "visual.blocks.3.attn.qkv.bias",
        "model.language_model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "model.language_model.embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
    }.items():
        assert old_name(new) == old
        assert old_name(old) == old


def test_a_parameter_without_a_name_is_noticed() -> None:
    model = meta(small_config())
    model.visual.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="differ"):
        entries(model)


def test_registry() -> None:
    model = meta(replace(small_config(), tie_embeddings=True))
    assert family_of(model) is family("qwen2_vl") is FAMILIES["qwen2_vl"]
    with pytest.raises(ValueError, match=r"'llava'.*there are: qwen2_vl"):
        family("llava")
    with pytest.raises(ValueError, match="Linear is not one of the models"):
        family_of(torch.nn.Linear(1, 1))
