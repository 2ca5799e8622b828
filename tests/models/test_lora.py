"""Adapters around a finished model: nothing changes at first, merging changes nothing, targets are official modules."""

from __future__ import annotations

import pytest
import torch
from parity.handmade import batch_of, randomise, relative, sequence, small_config

from qvl.models.lora import LoraConfig, LoraLinear, adapters, add_lora, has_lora, merge_lora, targets_of
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.qwen_vl.config import PRESETS
from qvl.models.qwen_vl.model import QwenVL

EVERYTHING = LoraConfig(rank=3, alpha=6, parts=("text", "vision", "merger"))


def built() -> Qwen2VL:
    model = Qwen2VL(small_config()).eval()
    randomise(model, 0)
    return model


def excite(model: torch.nn.Module) -> None:
    """Trained adapters: B away from zero, magnitudes away from the norms."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapter in adapters(model):
            adapter.b.normal_(0, 0.3, generator=generator)
            if adapter.magnitude is not None:
                adapter.magnitude.mul_(1 + 0.2 * torch.rand(adapter.magnitude.shape, generator=generator))


def batch(model: Qwen2VL):
    return batch_of([sequence(3, [4, ("image", (1, 4, 6)), 5], model.config)], model.config)


@pytest.mark.parametrize("dora", [False, True])
@torch.no_grad()
def test_new_adapters_change_nothing_and_merging_changes_nothing(dora: bool) -> None:
    model = built()
    names = {name for name, _ in model.named_parameters()}
    plain = model(batch(model))
    add_lora(model, LoraConfig(3, 6, 0.0, EVERYTHING.parts, dora=dora))
    assert names < {name for name, _ in model.named_parameters()}
    assert relative(model(batch(model)), plain) < 1e-6  # measured over eight models: 0, with DoRA too
    excite(model)
    adapted = model(batch(model))
    assert relative(adapted, plain) > 0.05
    merge_lora(model)
    assert names == {name for name, _ in model.named_parameters()}
    assert relative(model(batch(model)), adapted) < 2e-5  # measured worst over eight models: 2.8e-6


def test_every_official_module_has_an_adapter_of_its_own() -> None:
    model = built()
    add_lora(model, EVERYTHING)
    qkv = model.get_submodule("decoder.layers.0.qkv")
    assert isinstance(qkv, LoraLinear)
    assert [a.target.name.rsplit(".")[-1] for a in qkv.lora] == ["q_proj", "k_proj", "v_proj"]
    assert [tuple(a.b.shape) for a in qkv.lora] == [(64, 3), (32, 3), (32, 3)]
    (one,) = model.get_submodule("visual.blocks.0.qkv").lora
    assert one.target.name == "visual.blocks.0.attn.qkv", "q, k and v are one module in the official vision tower"


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LoraConfig(), 2 * 7),
        (LoraConfig(targets=("q_proj", "v_proj")), 2 * 2),
        (LoraConfig(targets=("*.layers.1.*",)), 7),
        (LoraConfig(parts=("merger",)), 2),
        (LoraConfig(parts=("vision",), targets=("attn.qkv", "*.mlp.fc?")), 2 * 3),
    ],
)
def test_targets(config: LoraConfig, count: int) -> None:
    model = built()
    add_lora(model, config)
    assert len(list(adapters(model))) == count


def test_mistakes_are_named() -> None:
    model = built()
    with pytest.raises(ValueError, match=r"'c_attn' names no layer.*end in down_proj, gate_proj"):
        add_lora(model, LoraConfig(targets=("c_attn",)))
    assert not has_lora(model)
    add_lora(model, LoraConfig())
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(model, LoraConfig())
    with pytest.raises(ValueError, match="rank=0"):
        LoraConfig(rank=0)


def test_targets_of_qwen_vl_are_its_official_modules() -> None:
    with torch.device("meta"):
        model = QwenVL(PRESETS["tiny-qwen-vl"])
    names = {target.name for target in targets_of(model)}
    assert {"transformer.h.0.attn.c_attn", "transformer.h.0.mlp.w1", "transformer.h.0.mlp.w2"} < names
    assert "transformer.visual.transformer.resblocks.0.attn.in_proj" in names
    assert "transformer.visual.attn_pool.kv_proj" in names or model.config.vision.width == model.config.text.width
    assert not any("attn_pool.attn" in name for name in names)
