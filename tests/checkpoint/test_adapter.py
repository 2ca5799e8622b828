"""Adapter folders: the official order of rows, what is written, what is refused. PEFT itself: tests/parity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity.handmade import randomise
from parity.handmade_qwen_vl import small_config
from safetensors.torch import load_file
from torch import Tensor

from qvl.checkpoint.adapter import load_adapter, save_adapter
from qvl.models.keys import stored_tensors
from qvl.models.lora import LoraConfig, adapters, add_lora, merge_lora
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.registry import family_of
from qvl.models.vlm import VisionLanguageModel

EVERYTHING = LoraConfig(rank=3, alpha=6, parts=("text", "vision", "merger"))


def qwen_vl() -> QwenVL:
    model = QwenVL(small_config()).eval()
    randomise(model, 0)
    return model


def trained(config: LoraConfig = EVERYTHING) -> QwenVL:
    model = qwen_vl()
    add_lora(model, config, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapter in adapters(model):
            adapter.b.normal_(0, 0.2, generator=generator)
    return model


def official(model: VisionLanguageModel) -> dict[str, Tensor]:
    """Every tensor as an official checkpoint holds it."""
    own = stored_tensors(model)
    return {
        part.name: view.reshape(part.shape).detach().clone()
        for entry in family_of(model).entries(model)
        for part, view in entry.views(own[entry.ours])
    }


def test_rows_of_qwen_vl_are_in_the_official_order(tmp_path: Path) -> None:
    """The official vision tower has q, k, v head by head; what the file adds to it must be what merging adds."""
    model = trained()
    save_adapter(model, tmp_path, EVERYTHING)
    before = official(qwen_vl())
    merge_lora(model)
    after = official(model)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    assert "base_model.model.transformer.visual.transformer.resblocks.0.attn.in_proj" in names
    for name in names:
        weight = name.removeprefix("base_model.model.") + ".weight"
        added = 2 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        assert added.abs().max() > 0.01
        assert (after[weight] - before[weight] - added).abs().max() < 1e-6  # measured worst over eight models: 6e-8
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, dora: bool) -> None:
    config = LoraConfig(3, 6, 0.1, EVERYTHING.parts, ("c_attn", "in_proj", "w1"), dora)
    model, again = trained(config), qwen_vl()
    save_adapter(model, tmp_path, config, base="some/base")
    found = load_adapter(again, tmp_path)
    assert (found.rank, found.alpha, found.dropout, found.dora) == (3, 6, 0.1, dora)
    for (name, p), (other, q) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q), name
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "some/base"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no adapters to save"):
        save_adapter(qwen_vl(), tmp_path, EVERYTHING)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        load_adapter(qwen_vl(), tmp_path)
    save_adapter(trained(), tmp_path, EVERYTHING)
    model = QwenVL(small_config(layers=1)).eval()
    with pytest.raises(ValueError, match=r"layers that this model does not have.*transformer\.h\.1\.attn\.c_attn"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'.*let PEFT convert it"),
        ({"init_lora_weights": "olora"}, "weights that were changed when it began"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens is \[1, 2\], which is not implemented"),
    ],
)
def test_adapters_that_compute_something_else_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    """PEFT's own sum for a PiSSA or OLoRA adapter is not weight + B A (measured: 0.39 off, of weights of 0.4)."""
    save_adapter(trained(), tmp_path, EVERYTHING)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    for harmless in ("gaussian", "orthogonal", True, None):
        file.write_text(json.dumps(settings | {"init_lora_weights": harmless}))
        load_adapter(qwen_vl(), tmp_path)
    file.write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match=message):
        load_adapter(qwen_vl(), tmp_path)
