"""Adapters against PEFT on transformers' Qwen2-VL: folders both ways, the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parity.conftest import Pair
from parity.handmade import batch_of, oracle_inputs, relative, sequence
from qvl.checkpoint.adapter import load_adapter, save_adapter
from qvl.checkpoint.folder import load_model, save_model
from qvl.inputs.sequence import Sequence
from qvl.models.lora import LoraConfig, adapters, add_lora, merge_lora
from qvl.models.qwen2_vl.model import Qwen2VL

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

CLOSE = 2e-5
"""Of the largest magnitude. Measured worst over eight random models 7.3e-6; an adapter changes more than 0.05."""
PLACES = {
    "text": LoraConfig(4, 8.0),
    "some": LoraConfig(3, 4.0, targets=("q_proj", "v_proj", "mlp.down_proj")),
    "everything": LoraConfig(5, 20.0, parts=("text", "vision", "merger")),
    "dora": LoraConfig(4, 8.0, parts=("text", "vision", "merger"), dora=True),
}


@pytest.fixture(scope="module")
def pair(pairs: dict[str, Pair]) -> Pair:
    return pairs["like-7b"]


def samples(pair: Pair) -> Sequence:
    return sequence(1, [3, ("image", (1, 4, 6)), 6, ("video", (2, 4, 4)), 4], pair.config)


def ours(model: Qwen2VL, s: Sequence, pair: Pair) -> Tensor:
    return model(batch_of([s], pair.config))


def theirs(model: object, s: Sequence) -> Tensor:
    return model(**oracle_inputs([s]).arguments).logits[0]  # type: ignore[operator]


def trained(pair: Pair, config: LoraConfig) -> Qwen2VL:
    model = load_model(pair.folder).eval()
    add_lora(model, config, seed=3)
    generator = torch.Generator().manual_seed(5)
    for adapter in adapters(model):
        adapter.b.normal_(0, 0.2, generator=generator)
        if adapter.magnitude is not None:
            adapter.magnitude.mul_(1 + 0.2 * torch.rand(adapter.magnitude.shape, generator=generator))
    return model


def fresh(pair: Pair):
    return transformers.Qwen2VLForConditionalGeneration.from_pretrained(pair.folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", PLACES)
def test_our_adapter_in_peft(pair: Pair, name: str, tmp_path: Path) -> None:
    model, s = trained(pair, PLACES[name]), samples(pair)
    save_adapter(model, tmp_path / "adapter", PLACES[name], base=str(pair.folder))
    loaded = peft.PeftModel.from_pretrained(fresh(pair), tmp_path / "adapter").eval()
    assert relative(ours(model, s, pair), theirs(loaded, s)) < CLOSE
    assert relative(ours(pair.ours, s, pair), theirs(loaded, s)) > 0.05, "the adapter matters"
    count = sum(name.endswith("lora_A.default.weight") for name, _ in loaded.named_parameters())
    assert count == len(list(adapters(model))), "every module got its adapter, and no other"


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_their_adapter_in_ours(pair: Pair, options: dict, tmp_path: Path) -> None:
    wanted = ["q_proj", "k_proj", "o_proj", "gate_proj", "attn.qkv", "mlp.fc1", "mlp.2"]
    settings = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, target_modules=wanted, **options)
    made = peft.get_peft_model(fresh(pair), settings).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.2, generator=generator)
        if "magnitude" in name:
            parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    made.save_pretrained(tmp_path / "adapter")
    model, s = load_model(pair.folder).eval(), samples(pair)
    config = load_adapter(model, tmp_path / "adapter")
    assert (config.rank, config.dropout, config.dora) == (4, 0.1, "use_dora" in options)
    assert relative(ours(model, s, pair), theirs(made, s)) < CLOSE
    merge_lora(model)
    assert relative(ours(model, s, pair), theirs(made, s)) < CLOSE


@pytest.mark.parametrize("name", ["everything", "dora"])
def test_merged_export_in_transformers(pair: Pair, name: str, tmp_path: Path) -> None:
    model, s = trained(pair, PLACES[name]), samples(pair)
    adapted = ours(model, s, pair)
    merge_lora(model)
    save_model(model, tmp_path / "merged")
    merged = transformers.Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert relative(theirs(merged.eval(), s), adapted) < CLOSE


def test_old_names_are_read(pair: Pair, tmp_path: Path) -> None:
    """As PEFT wrote them on transformers before 4.52: no `language_model`, no `model.` before `visual`."""
    from safetensors.torch import load_file, save_file

    model, s = trained(pair, PLACES["everything"]), samples(pair)
    save_adapter(model, tmp_path, PLACES["everything"])
    file = tmp_path / "adapter_model.safetensors"
    old = {
        name.replace("model.model.language_model.", "model.model.").replace("model.model.visual.", "model.visual."): t
        for name, t in load_file(file).items()
    }
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in old
    save_file(old, file)
    again = load_model(pair.folder).eval()
    load_adapter(again, tmp_path)
    assert torch.equal(ours(again, s, pair), ours(model, s, pair))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "adapters of other kinds are not read"),
        ({"bias": "all"}, "biases are not adapted"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 7}, "r=7 want"),
    ],
)
def test_what_is_not_read_is_refused(pair: Pair, change: dict, said: str, tmp_path: Path) -> None:
    save_adapter(trained(pair, PLACES["text"]), tmp_path, PLACES["text"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load_adapter(load_model(pair.folder), tmp_path)


def test_an_adapter_of_another_model_is_refused(pair: Pair, pairs: dict[str, Pair], tmp_path: Path) -> None:
    save_adapter(trained(pair, PLACES["text"]), tmp_path, PLACES["text"])
    with pytest.raises(ValueError, match=r"want \{'A': \(4, 96\)"):
        load_adapter(load_model(pairs["like-2b"].folder), tmp_path)
